"""`DiskStorage` in virtual time: what takes long on a slow disk, and what a whole simulated life depends on."""

from collections.abc import Callable
from random import Random
from typing import TypeVar

import trio
import trio.testing

from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskStorage
from tests.sim.disk import DATA, SimulatedDisk
from tests.sim.simulated_storage import SETTINGS, TaskWorkers, format_directory
from tests.support.stored_batches import batch, running

T = TypeVar("T")


def formatted(seed: int = 1) -> SimulatedDisk:
    disk = SimulatedDisk(Random(seed))
    format_directory(disk, cluster=b"cluster.........", broker="b1", first_voters=Voters(1, ()))
    return disk


class SlowSpares(TaskWorkers):
    """A new journal file takes ten seconds."""

    made = 0

    async def run(self, work: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None) -> T:
        if getattr(work, "__name__", "") == "prepare_spare":
            self.made += 1
            await trio.sleep(10)
        return await super().run(work, limiter=limiter)


async def test_memory_is_bounded_while_a_new_journal_file_is_made(autojump_clock: trio.testing.MockClock) -> None:
    """No flush begins meanwhile, so no more may be taken than memory has room for."""
    disk = formatted()
    workers = SlowSpares(disk.latency_s)
    storage = DiskStorage.open(DATA, settings=SETTINGS, ops=disk.ops, workers=workers)
    async with running(storage) as tokens:
        for number in range(1000):
            storage.append([batch(2 * number, size=500)], [], number)
            with trio.fail_after(60):
                while number not in tokens.given[-1:]:
                    await trio.sleep(0.001)
            assert storage._runs.pinned_cost <= SETTINGS.cache_bytes + 2000
    assert workers.made > 0
