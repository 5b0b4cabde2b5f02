"""Appending much to a file at little cost: whole blocks go from memory to the disk, past the page cache.

Through the page cache a growing file costs the CPU more than a second for each GB, past it 0.05 s (`python -m deploy.bench.disk`). The disk
takes such writes only block by block, from memory that is aligned: bytes are laid out in one piece of memory as they will lie in the file,
and what is ragged at either end goes through the page cache, which the system keeps in step. Pieces are small enough that group commits,
which share the disk, wait behind a short one.
"""

import errno
import mmap
from pathlib import Path
from typing import Final

from streamq.storage.file_ops import FileOps, write_fully

__all__ = ["Appender", "Piece"]

PIECE_BLOCKS: Final = 128
DIRECT_BLOCKS_MIN: Final = 16
"""For less the system call that waits for the disk costs more than it saves."""
CACHED_BYTES_MAX: Final = 4 << 20
"""Written through the page cache, until it is synced: not to hold up the group commits by all of it at once."""


class Piece:
    """The memory, aligned; for one appender after the other."""

    def __init__(self, ops: FileOps) -> None:
        self.block_bytes = ops.block_bytes
        self.size = PIECE_BLOCKS * ops.block_bytes
        self.memory = memoryview(mmap.mmap(-1, self.size))


class Appender:
    """Extends one open file from a position on. Nothing counts before `fd` is synced. Raises OSError as the system does."""

    def __init__(self, ops: FileOps, path: Path, fd: int, position: int, piece: Piece) -> None:
        self._ops = ops
        self._path = path
        self._fd = fd
        self._piece = piece
        self._low = self._high = position % piece.block_bytes
        self._base = position - self._low
        """Where the piece begins in the file; `[_low, _high)` of it waits to be written."""
        self._direct: int | None = None
        self._is_direct_refused = False
        self._cached = 0

    def add(self, data: bytes) -> None:
        """Behind what was added before."""
        rest = memoryview(data)
        piece = self._piece
        while rest:
            count = min(len(rest), piece.size - self._high)
            piece.memory[self._high : self._high + count] = rest[:count]
            self._high += count
            rest = rest[count:]
            if self._high == piece.size:
                self._write()

    def finish(self) -> int:
        """Writes the rest, and gives back what `fd` does not need; returns the position behind it all."""
        if self._low < self._high:
            self._write()
        self.close()
        return self._base + self._high

    def close(self) -> None:
        if self._direct is not None:
            self._ops.close(self._direct)
            self._direct = None

    def _write(self) -> None:
        low, high, block = self._low, self._high, self._piece.block_bytes
        first, last = -(-low // block) * block, high // block * block
        if last - first >= DIRECT_BLOCKS_MIN * block and self._write_direct(first, last):
            self._write_cached(low, first)
            self._write_cached(last, high)
        else:
            self._write_cached(low, high)
        if high == self._piece.size:
            self._base += high
            high = 0
        self._low = self._high = high

    def _write_cached(self, low: int, high: int) -> None:
        if low < high:
            write_fully(self._ops, self._fd, [self._piece.memory[low:high]], self._base + low)
            self._cached += high - low
            if self._cached >= CACHED_BYTES_MAX:
                self._ops.fdatasync(self._fd)
                self._cached = 0

    def _write_direct(self, first: int, last: int) -> bool:
        """Whether these whole blocks were written. Where none can be, the system says so at the opening or at the first write."""
        if self._is_direct_refused:
            return False
        if self._direct is None:
            self._direct = self._ops.open_direct(self._path)
        if self._direct is not None:
            try:
                write_fully(self._ops, self._direct, [self._piece.memory[first:last]], self._base + first)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return True
        self._is_direct_refused = True
        return False
