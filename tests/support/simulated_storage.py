"""`DiskStorage` with its threads, on a simulated disk: power loss at any operation, beside whatever else goes on."""

from random import Random

import msgspec

from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskStorage
from tests.sim.disk import DATA, SimulatedDisk
from tests.sim.simulated_storage import format_directory
from tests.support.stored_batches import SMALL

__all__ = ["SETTINGS", "formatted_disk", "opened_on"]

SETTINGS = msgspec.structs.replace(SMALL, flush_bytes=30_000, cache_bytes=60_000, log_file_bytes=20_000, flush_interval_s=0.0)


def formatted_disk(chance: Random) -> SimulatedDisk:
    """With one broker's data directory."""
    disk = SimulatedDisk(chance)
    format_directory(disk, cluster=b"cluster.........", broker="b1", first_voters=Voters(1, ()))
    return disk


def opened_on(disk: SimulatedDisk) -> DiskStorage:
    return DiskStorage.open(DATA, settings=SETTINGS, ops=disk.ops)
