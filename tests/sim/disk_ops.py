"""The operating system's calls on a simulated disk, as one process makes them."""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamq.storage.file_ops import FileOps
from tests.sim.disk_medium import ROOT, SimulatedFile

if TYPE_CHECKING:
    from tests.sim.disk import SimulatedDisk

__all__ = ["HostCrashError", "SimulatedOps"]


class HostCrashError(Exception):
    """The simulated host has crashed, in the middle of an operation or before it: this process is no more."""


class SimulatedOps(FileOps):
    """Of one process: once it is dead every call raises HostCrashError, so that nothing of it acts on the next one's files."""

    block_bytes = 16
    """So that the small files of the simulation have whole blocks, too."""

    def __init__(self, disk: "SimulatedDisk") -> None:
        self._disk = disk
        self._open: dict[int, tuple[Path, SimulatedFile]] = {}
        self._locks: dict[int, Path] = {}
        self._next_fd = 100
        self.is_dead = False

    def _begin(self, operation: str) -> None:
        self._check_alive()
        self._disk.begin(operation)

    def _check_alive(self) -> None:
        if self.is_dead:
            raise HostCrashError("this process is dead")

    # --- files ---------------------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False) -> int:
        with self._disk.lock:
            if create:
                self._begin("create")
                file = self._disk.names.now.files.get(path)
                if file is not None:
                    file.truncate(0)
                else:
                    self._check_room_for(path)
                    self._disk.names.link(path, SimulatedFile())
                self._disk.end()
            return self.open_to_read(path)

    def open_direct(self, path: Path) -> int | None:
        return self.open_to_read(path)  # no page cache is simulated for what succeeds

    def open_to_read(self, path: Path) -> int:
        with self._disk.lock:
            self._check_alive()
            self._next_fd += 1
            self._open[self._next_fd] = (path, self._file(path))
            return self._next_fd

    def lock(self, path: Path) -> int:
        with self._disk.lock:
            if path in self._disk.locked:
                raise BlockingIOError(errno.EWOULDBLOCK, "locked", str(path))
            fd = self.open_to_read(path) if self.exists(path) else self.open(path, create=True)
            self._disk.locked.add(path)
            self._locks[fd] = path
            return fd

    def close(self, fd: int) -> None:
        with self._disk.lock:
            self._open.pop(fd, None)
            path = self._locks.pop(fd, None)
            if path is not None and not self.is_dead:
                self._disk.locked.discard(path)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        with self._disk.lock:
            self._check_alive()
            return bytes(self._open[fd][1].content[offset : offset + length])

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        with self._disk.lock:
            self._begin("write")
            path, file = self._open[fd]
            written = b"".join(buffers)
            if self._disk.chance.random() < 0.1:
                written = written[: self._disk.chance.randint(1, len(written))]
            growth = offset + len(written) - max(offset, len(file.content))
            missing = growth - self._disk.free_bytes() if growth > 0 else 0
            if missing > 0:
                written = written[: max(0, len(written) - missing)]
                if not written:
                    raise OSError(errno.ENOSPC, "no space left on the simulated disk", str(path))
            self._disk.write(path, file, offset, written)
            self._disk.end()
            return len(written)

    def fdatasync(self, fd: int) -> None:
        with self._disk.lock:
            self._begin("sync")
            path, file = self._open[fd]
            if self._disk.sync_fails(path):
                file.lose(self._disk.chance)
                raise OSError(errno.EIO, "the sync failed", str(path))
            file.sync()
            self._disk.end()

    def fsync(self, fd: int) -> None:
        self.fdatasync(fd)

    def drop_cache(self, fd: int, offset: int, length: int) -> None:
        with self._disk.lock:
            self._check_alive()
            file = self._open[fd][1]
            file.drop_cache(offset, length or len(file.content))

    def truncate(self, fd: int, size: int) -> None:
        with self._disk.lock:
            self._begin("truncate")
            self._open[fd][1].truncate(size)
            self._disk.end()

    # --- names ---------------------------------------------------------------------------------------------------------

    def size(self, path: Path) -> int:
        with self._disk.lock:
            self._check_alive()
            return len(self._file(path).content)

    def exists(self, path: Path) -> bool:
        with self._disk.lock:
            self._check_alive()
            return path in self._disk.names.now.files or path in self._disk.names.now.directories

    def is_file(self, path: Path) -> bool:
        with self._disk.lock:
            self._check_alive()
            return path in self._disk.names.now.files

    def names(self, directory: Path) -> list[str]:
        with self._disk.lock:
            self._check_alive()
            now = self._disk.names.now
            return sorted(path.name for path in (*now.files, *now.directories) if path.parent == directory)

    def make_directory(self, directory: Path) -> None:
        with self._disk.lock:
            self._check_alive()
            missing = [path for path in (directory, *directory.parents) if ROOT in path.parents and not self.exists(path)]
            for path in reversed(missing):
                self._begin("make directory")
                self._disk.names.make_directory(path)
                self._disk.end()

    def remove_directory(self, directory: Path) -> None:
        with self._disk.lock:
            self._begin("remove directory")
            if self.names(directory):
                raise OSError(errno.ENOTEMPTY, "not empty", str(directory))
            self._disk.names.remove_directory(directory)
            self._disk.end()

    def rename(self, source: Path, target: Path) -> None:
        with self._disk.lock:
            self._begin("rename")
            if not self.exists(source):
                raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
            self._disk.names.rename(source, target)
            self._disk.end()

    def unlink(self, path: Path) -> None:
        with self._disk.lock:
            self._begin("unlink")
            self._file(path)
            self._disk.names.unlink(path)
            self._disk.end()

    def sync_directory(self, directory: Path) -> None:
        with self._disk.lock:
            self._begin("sync directory")
            self._disk.names.sync(directory)
            self._disk.end()

    # --- the host ------------------------------------------------------------------------------------------------------

    def free_bytes(self, directory: Path) -> int:
        with self._disk.lock:
            self._check_alive()
            return self._disk.free_bytes()

    def now_us(self) -> int:
        return 0  # what it takes passes outside its calls: see `TaskWorkers`

    def random_bytes(self, count: int) -> bytes:
        return self._disk.chance.randbytes(count)

    def _file(self, path: Path) -> SimulatedFile:
        file = self._disk.names.now.files.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return file

    def _check_room_for(self, path: Path) -> None:
        if path.parent not in self._disk.names.now.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(path.parent))
        if self._disk.free_bytes() == 0:
            raise OSError(errno.ENOSPC, "no space left on the simulated disk", str(path))
