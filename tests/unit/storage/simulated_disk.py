"""A disk in memory that forgets what was not synced, tears writes and fails on demand; and batches to write to it."""

import errno
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

from streamq.model.batches import COMPRESSION_NONE, Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.storage.file_ops import FileOps
from streamq.wire.batch_format import encode_batch

__all__ = ["SECTOR", "HostCrashError", "SimulatedDisk", "batch_of", "partition_id"]

SECTOR = 512


def partition_id(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


def batch_of(partition: int, base: int, payload: bytes, *, records: int = 1, epoch: int = 1) -> Batch:
    header = BatchHeader(
        partition_id(partition), records, 0, len(payload), 0, NO_PRODUCER, 0, 0, 1, 1, epoch, base, 1, compression=COMPRESSION_NONE
    )
    return encode_batch(header, payload)


class HostCrashError(Exception):
    """The simulated power went off in the middle of an operation."""


class _File:
    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []

    def write(self, offset: int, written: bytes) -> None:
        _put(self.content, offset, written)
        self.unsynced.append((offset, written))

    def sync(self) -> None:
        for offset, written in self.unsynced:
            _put(self.durable, offset, written)
        self.unsynced.clear()

    def lose(self, random: Random) -> None:
        """After a crash: what was synced, and any of the sectors written since, the last of them torn anywhere."""
        for offset, written in self.unsynced:
            cuts = [0, *range(SECTOR - offset % SECTOR, len(written), SECTOR), len(written)]
            share = random.choice((0.0, 0.5, 0.9, 1.0))
            for first, last in pairwise(cuts):
                if random.random() < share:
                    torn = random.random() < 0.1
                    _put(self.durable, offset + first, written[first : random.randint(first, last) if torn else last])
        self.unsynced.clear()
        self.content = bytearray(self.durable)


def _put(target: bytearray, offset: int, written: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(written)] = written


class SimulatedDisk(FileOps):
    """`before` is called with the name of each operation that changes anything, before it happens; it may raise."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._files: dict[Path, _File] = {}
        self._durable_names: dict[Path, _File] = {}
        self._open: dict[int, _File] = {}
        self._directories: set[Path] = set()
        self._next_fd = 100
        self.before: Callable[[str], None] = lambda operation: None

    # --- what tests do to it -------------------------------------------------------------------------------------------

    def crash(self, *, keeps_names: bool | None = None) -> None:
        """The power goes: contents and names (unless they are kept) are what was synced, more or less."""
        if keeps_names is None:
            keeps_names = self._random.random() < 0.5
        names = dict(self._files if keeps_names else self._durable_names)
        self._files = names
        self._durable_names = dict(names)
        for file in set(names.values()):
            file.lose(self._random)
        self._open.clear()
        self.before = lambda operation: None

    def content(self, path: Path) -> bytearray:
        """To be damaged in place; what is damaged is so on the disk."""
        file = self._files[path]
        file.sync()
        file.durable = file.content
        return file.content

    def flip(self, path: Path, offset: int, mask: int = 0x40) -> None:
        file = self._files[path]
        file.content[offset] ^= mask
        if len(file.durable) > offset and file.durable is not file.content:
            file.durable[offset] ^= mask

    def remove(self, path: Path) -> None:
        del self._files[path]
        self._durable_names.pop(path, None)

    def paths(self) -> list[Path]:
        return sorted(self._files)

    # --- file operations -----------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False) -> int:
        if create:
            self.before("create")
            self._files[path] = _File()
        return self.open_to_read(path)

    def open_to_read(self, path: Path) -> int:
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._next_fd += 1
        self._open[self._next_fd] = self._files[path]
        return self._next_fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._open[fd].content[offset : offset + length])

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        self.before("write")
        written = b"".join(buffers)
        if self._random.random() < 0.1:
            written = written[: self._random.randint(1, len(written))]
        self._open[fd].write(offset, written)
        return len(written)

    def fdatasync(self, fd: int) -> None:
        self.before("sync")
        self._open[fd].sync()

    def fsync(self, fd: int) -> None:
        self.fdatasync(fd)

    def drop_cache(self, fd: int, offset: int, length: int) -> None:
        pass

    def size(self, path: Path) -> int:
        return len(self._files[path].content)

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self._files if path.parent == directory)

    def make_directory(self, directory: Path) -> None:
        self._directories.add(directory)

    def rename(self, source: Path, target: Path) -> None:
        self.before("rename")
        self._files[target] = self._files.pop(source)

    def unlink(self, path: Path) -> None:
        self.before("unlink")
        del self._files[path]

    def sync_directory(self, directory: Path) -> None:
        self.before("sync directory")
        for path in [path for path in self._durable_names if path.parent == directory]:
            del self._durable_names[path]
        self._durable_names.update({path: file for path, file in self._files.items() if path.parent == directory})
