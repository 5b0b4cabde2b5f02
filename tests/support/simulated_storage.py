"""`DiskStorage` on a simulated disk: power loss at any operation."""

import threading
from pathlib import Path
from random import Random

import msgspec

from streamq.model.registers import Voters
from streamq.storage.disk_runs import DiskRuns
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.identity import create_identity, load_identity
from streamq.storage.restart import restart
from tests.support.stored_batches import SMALL
from tests.unit.storage.simulated_disk import HostCrashError, SimulatedDisk

DATA = Path("/simulated/data")
SETTINGS = msgspec.structs.replace(SMALL, flush_bytes=30_000, cache_bytes=60_000, log_file_bytes=20_000, flush_interval_s=0.0)


class SimulatedDirectory(SimulatedDisk):
    """One broker's data directory, with a crash after so many changes: nothing more happens then."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._lock = threading.RLock()  # `DiskStorage` has threads
        create_identity(DATA, cluster=b"cluster.........", broker="b1", first_voters=Voters(1, ()), ops=self)

    def crash_after(self, operations: int) -> None:
        left = [operations]

        def before(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise HostCrashError

        self.before = before

    def exists(self, path: Path) -> bool:
        return path in self._files or path in self._directories

    def truncate(self, fd: int, size: int) -> None:
        self.before("truncate")
        file = self._open[fd]
        file.sync()
        del file.content[size:], file.durable[size:]

    def remove_directory(self, directory: Path) -> None:
        self._directories.discard(directory)

    def names(self, directory: Path) -> list[str]:
        with self._lock:
            folders = {path.parent.name for path in self._files if path.parent.parent == directory}
            return sorted({*super().names(directory), *folders})

    def open(self, path: Path, *, create: bool = False) -> int:
        with self._lock:
            return super().open(path, create=create)

    def open_to_read(self, path: Path) -> int:
        with self._lock:
            return super().open_to_read(path)

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            super().rename(source, target)

    def unlink(self, path: Path) -> None:
        with self._lock:
            super().unlink(path)

    def sync_directory(self, directory: Path) -> None:
        with self._lock:
            super().sync_directory(directory)


class NoLock:
    def release(self) -> None:
        pass


def opened_on(disk: SimulatedDirectory) -> DiskStorage:
    runs = DiskRuns(cache_bytes=SETTINGS.cache_bytes)
    found = restart(DATA, load_identity(DATA, ops=disk), runs, journal_file_bytes=SETTINGS.journal_file_bytes, ops=disk)
    lock = NoLock()
    return DiskStorage(DATA, found, lock=lock, settings=SETTINGS, ops=disk, free_bytes=lambda _: 1 << 40)  # type: ignore[arg-type]
