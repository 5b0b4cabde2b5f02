"""What storage asks of the operating system, behind one class, so that tests can fail, tear and count it and a simulation stand in for it.

`FileOps` is the operating system itself; a test passes a subclass of it. Nothing else in storage opens, locks, measures or draws. Two rules
hold for whoever uses it: a write or sync that raises is never tried again (P-15), and a file that is created, replaced or removed counts
only once its directory has been synced.
"""

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["FileOps", "replace_file", "write_fully"]

BUFFERS_PER_WRITE_MAX: Final = 512
"""Half of Linux's limit on the buffers of one `pwritev`."""
O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)


class FileOps:
    """Each method is one system call (or a loop over one) and raises OSError as that does."""

    block_bytes: int = mmap.PAGESIZE
    """What positions, lengths and memory have to be multiples of where a file was opened by `open_direct`."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """For reading and writing; `create` makes the file anew, empty."""
        return os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if create else 0), 0o644)

    def open_direct(self, path: Path) -> int | None:
        """For writing whole blocks past the page cache; None where the system or the file system has no such thing."""
        try:
            return os.open(path, os.O_RDWR | O_DIRECT) if O_DIRECT else None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def open_to_read(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY)

    def lock(self, path: Path) -> int:
        """Opens the file, made if it is not there, and locks it until `close` or the end of the process; its content names the process.

        Raises BlockingIOError if another process has locked it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            os.close(fd)
            raise
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """May return less than asked for at the end of the file."""
        return os.pread(fd, length, offset)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        """May write less than asked for: see `write_fully`."""
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def drop_cache(self, fd: int, offset: int, length: int) -> None:
        """Lets the next read of clean pages come from the disk. After a failed sync the cache may hold what the disk does not."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def exists(self, path: Path) -> bool:
        return path.exists()

    def is_file(self, path: Path) -> bool:
        return path.is_file()

    def free_bytes(self, directory: Path) -> int:
        """What this process may still take of the file system."""
        stat = os.statvfs(directory)
        return stat.f_bavail * stat.f_frsize

    def random_bytes(self, count: int) -> bytes:
        """For keys and ids that nobody may ever draw again."""
        return os.urandom(count)

    def now_us(self) -> int:
        """Steady, in microseconds from some moment on: only differences mean anything, and nothing is decided by it."""
        return time.perf_counter_ns() // 1000

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def names(self, directory: Path) -> list[str]:
        """Sorted; [] if there is no such directory."""
        return sorted(os.listdir(directory)) if directory.is_dir() else []

    def make_directory(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)

    def remove_directory(self, directory: Path) -> None:
        """It must be empty."""
        directory.rmdir()

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_fully(ops: FileOps, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
    """Writes all buffers one behind the other from `offset` on, whatever the system call leaves over. Returns the offset behind them."""
    for first in range(0, len(buffers), BUFFERS_PER_WRITE_MAX):
        rest = [buffer for buffer in buffers[first : first + BUFFERS_PER_WRITE_MAX] if buffer]
        while rest:
            wrote = ops.pwritev(fd, rest, offset)
            offset += wrote
            while rest and wrote >= len(rest[0]):
                wrote -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][wrote:]
    return offset


def replace_file(ops: FileOps, path: Path, content: bytes) -> None:
    """After it returns the file holds `content`, durably; after a crash before that it holds that or what it held before."""
    fresh = path.with_name(path.name + ".new")
    fd = ops.open(fresh, create=True)
    try:
        write_fully(ops, fd, [content], 0)
        ops.fsync(fd)
    finally:
        ops.close(fd)
    ops.rename(fresh, path)
    ops.sync_directory(path.parent)
