"""What an appender leaves in a file is what was added, wherever it begins, whether or not the system writes past its page cache."""

import errno
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from streamq.storage.appender import CACHED_BYTES_MAX, DIRECT_BLOCKS_MIN, PIECE_BLOCKS, Appender, Piece
from streamq.storage.file_ops import FileOps


class WatchedOps(FileOps):
    """Counts bytes by the way they took; holds direct writes to their rules, and may write less than asked for."""

    def __init__(self, *, has_direct: bool, short: random.Random | None = None) -> None:
        self.direct = set[int]()
        self.direct_bytes = self.cached_bytes = self.cached_since_sync = self.cached_at_most = self.open_files = 0
        self._has_direct = has_direct
        self._short = short

    def open(self, path: Path, *, create: bool = False) -> int:
        self.open_files += 1
        return super().open(path, create=create)

    def open_direct(self, path: Path) -> int | None:
        if not self._has_direct:
            return None
        fd = self.open(path)  # not every file system of a test machine knows O_DIRECT: its rules are held here
        self.direct.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.open_files -= 1
        self.direct.discard(fd)
        super().close(fd)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        size = sum(map(len, buffers))
        if fd in self.direct:
            assert offset % self.block_bytes == 0
            assert all(len(buffer) % self.block_bytes == 0 for buffer in buffers)
            if self._short is not None:
                size = self._short.randrange(1, size // self.block_bytes + 1) * self.block_bytes
            self.direct_bytes += size
        else:
            if self._short is not None:
                size = self._short.randrange(1, size + 1)
            self.cached_bytes += size
            self.cached_since_sync += size
            self.cached_at_most = max(self.cached_at_most, self.cached_since_sync)
        return super().pwritev(fd, [b"".join(buffers)[:size]], offset)

    def fdatasync(self, fd: int) -> None:
        self.cached_since_sync = 0
        super().fdatasync(fd)


def write(ops: FileOps, path: Path, piece: Piece, position: int, parts: Sequence[bytes]) -> int:
    fd = ops.open(path)
    appender = Appender(ops, path, fd, position, piece)
    try:
        for part in parts:
            appender.add(part)
        return appender.finish()
    finally:
        appender.close()
        ops.fdatasync(fd)
        ops.close(fd)


@pytest.mark.parametrize("has_direct", [True, False])
@pytest.mark.parametrize("is_short", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_file_holds_what_was_added_at_any_position_in_any_sizes(tmp_path: Path, seed: int, has_direct: bool, is_short: bool) -> None:
    chance = random.Random(seed)
    ops = WatchedOps(has_direct=has_direct, short=random.Random(seed) if is_short else None)
    path, piece, expected = tmp_path / "log", Piece(ops), b""
    ops.close(ops.open(path, create=True))
    for _ in range(12):
        largest = chance.choice((100, 5_000, 200_000, 1_500_000))
        parts = [chance.randbytes(chance.randrange(1, largest)) for _ in range(chance.randrange(1, 6))]
        end = write(ops, path, piece, len(expected), parts)
        expected += b"".join(parts)
        assert end == len(expected)
        assert path.read_bytes() == expected
    assert ops.direct_bytes + ops.cached_bytes == len(expected)
    assert (ops.direct_bytes > len(expected) // 2) == has_direct
    assert ops.open_files == 0


def test_the_systems_own_direct_writes_leave_the_same_bytes_as_the_page_cache(tmp_path: Path) -> None:
    """On whatever file system the test runs: the memory is aligned as the system wants it, or none of it is written past the cache."""
    ops, chance = FileOps(), random.Random(7)
    path, piece, expected = tmp_path / "log", Piece(ops), b""
    ops.close(ops.open(path, create=True))
    for size in (1, 3 * piece.size + 17, 130, piece.size, DIRECT_BLOCKS_MIN * piece.block_bytes, 2 * piece.size - 1):
        part = chance.randbytes(size)
        write(ops, path, piece, len(expected), [part])
        expected += part
        assert path.read_bytes() == expected


def test_little_goes_through_the_page_cache_and_much_is_synced_there_in_between(tmp_path: Path) -> None:
    ops = WatchedOps(has_direct=True)
    path, piece = tmp_path / "log", Piece(ops)
    ops.close(ops.open(path, create=True))
    write(ops, path, piece, 0, [b"x" * (DIRECT_BLOCKS_MIN * piece.block_bytes - 1)])
    assert ops.direct_bytes == 0
    without = WatchedOps(has_direct=False)
    write(without, path, piece, 0, [b"x" * (3 * CACHED_BYTES_MAX)])
    assert without.cached_at_most <= CACHED_BYTES_MAX + PIECE_BLOCKS * piece.block_bytes


class PickyOps(WatchedOps):
    """Opens files for direct writes, and takes none: some file systems find out only then."""

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        if fd in self.direct:
            raise OSError(errno.EINVAL, "not aligned as this file system wants it")
        return super().pwritev(fd, buffers, offset)


def test_a_file_system_that_takes_no_direct_write_gets_all_through_its_page_cache(tmp_path: Path) -> None:
    ops = PickyOps(has_direct=True)
    path, piece = tmp_path / "log", Piece(ops)
    ops.close(ops.open(path, create=True))
    part = random.Random(1).randbytes(2 * piece.size + 77)
    assert write(ops, path, piece, 0, [part]) == len(part)
    assert path.read_bytes() == part
    assert ops.open_files == 0
