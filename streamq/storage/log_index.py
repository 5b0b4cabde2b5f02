"""A sparse index of one log file: about every 128 KiB, which batch begins where, and the largest record time before it.

An index is derived (pitfall 47): it grows while a file is written or walked, is kept in a sidecar file (`<log file>.index`) so that a
restart need not walk again, and whatever it says is checked against the batch found there. One that is missing, damaged or of another file
is built anew.
"""

import hashlib
import struct
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c

from streamq.model.batches import BATCH_HEADER_BYTES, BatchHeader
from streamq.model.ids import Incarnation
from streamq.storage.file_ops import FileOps, write_fully

__all__ = ["INDEX_SUFFIX", "Anchor", "FileIndex", "IndexCache", "decode_index", "encode_index", "index_path", "load_index", "save_index"]

INDEX_SUFFIX: Final = ".index"
SPACING_BYTES: Final = 128 << 10
FILES_MAX: Final = 2_048
"""Indexes kept in memory; one of a 64 MiB file has 512 entries of 24 bytes."""
HINTS_MAX: Final = 16
SIDECAR_BYTES_MAX: Final = 64 << 20
FORMAT_VERSION: Final = 1
MAGIC: Final = b"SQLI"
_head: Final = struct.Struct("<4sII16s32sqqqqI")


class Anchor(NamedTuple):
    """The batch with base `offset` begins at `position`."""

    offset: int
    position: int


class FileIndex:
    """Covers the file up to `covered`. Used by several threads."""

    def __init__(self, base: int, first_position: int) -> None:
        self._first = Anchor(base, first_position)
        self._lock = threading.Lock()
        self._offsets = array("q")
        self._positions = array("q")
        self._times_before = array("q")
        self._hints: dict[int, int] = {}
        self.is_from_disk = False
        self.is_misled = False
        """The sidecar is there and of no use: it has to be written anew."""
        self.saved_until = base
        self.clear()

    def clear(self) -> None:
        """Forgets everything; what is read from now on builds it again."""
        with self._lock:
            self._offsets = array("q", [self._first.offset])
            self._positions = array("q", [self._first.position])
            self._times_before = array("q", [-1])
            self._hints = {}
            self._covered = self._first
            self._covered_time = -1
            self.is_misled = self.is_from_disk
            self.is_from_disk = False
            self.saved_until = self._first.offset

    def __len__(self) -> int:
        return len(self._times_before)

    @property
    def covered(self) -> Anchor:
        return self._covered

    @property
    def max_time(self) -> int:
        """The largest record time below `covered`."""
        return self._covered_time

    def anchors(self) -> list[Anchor]:
        """All that it knows, `covered` last."""
        with self._lock:
            return [*map(Anchor, self._offsets, self._positions), self._covered]

    def note(self, header: BatchHeader, position: int) -> None:
        """This batch begins at `position`. Only what continues the index is taken up."""
        if position != self._covered.position:
            return
        with self._lock:
            if position != self._covered.position or header.base != self._covered.offset:
                return
            if position - self._positions[-1] >= SPACING_BYTES:
                self._offsets.append(header.base)
                self._positions.append(position)
                self._times_before.append(self._covered_time)
            if header.max_timestamp > self._covered_time:
                self._covered_time = header.max_timestamp
            self._covered = Anchor(header.end, position + BATCH_HEADER_BYTES + header.payload_bytes)

    def begin_at(self, anchor: Anchor) -> None:
        """What lies below is unreadable, and nobody wants it: nothing leads there any more, and what is asked for below is found here."""
        with self._lock:
            above = bisect_right(self._offsets, anchor.offset)
            self._offsets = array("q", [anchor.offset]) + self._offsets[above:]
            self._positions = array("q", [anchor.position]) + self._positions[above:]
            self._times_before = array("q", [-1]) + self._times_before[above:]
            self._covered = max(self._covered, anchor)

    def hint(self, offset: int, position: int) -> None:
        """A batch was read that ends there: whoever reads on begins there."""
        with self._lock:
            hints = self._hints
            if len(hints) >= HINTS_MAX and offset not in hints:
                del hints[next(iter(hints))]
            hints[offset] = position

    def before(self, offset: int) -> Anchor:
        """The nearest known beginning of a batch at or before `offset`."""
        with self._lock:
            hinted = self._hints.get(offset)
            if hinted is not None:
                return Anchor(offset, hinted)
            if offset >= self._covered.offset:
                return self._covered
            index = max(0, bisect_right(self._offsets, offset) - 1)
            return Anchor(self._offsets[index], self._positions[index])

    def before_time(self, timestamp_ms: int) -> Anchor:
        """A beginning of a batch before which every record is older than `timestamp_ms`, as late as is known."""
        with self._lock:
            if self._covered_time < timestamp_ms:
                return self._covered
            index = max(0, bisect_left(self._times_before, timestamp_ms) - 1)
            return Anchor(self._offsets[index], self._positions[index])


def encode_index(index: FileIndex, *, incarnation: Incarnation, file: str) -> bytes:
    """The sidecar's content. `file` (partition and name) is bound in, so that no other file's index passes for this one's."""
    with index._lock:
        count = len(index)
        rows = index._offsets[:count].tobytes() + index._positions[:count].tobytes() + index._times_before[:count].tobytes()
        fields = (incarnation, _digest(file), index._first.offset, *index._covered, index._covered_time, count)
    body = _head.pack(MAGIC, 0, FORMAT_VERSION, *fields) + rows
    return body[:4] + struct.pack("<I", google_crc32c.value(body[8:])) + body[8:]


def decode_index(content: bytes, *, incarnation: Incarnation, file: str, base: int, first_position: int) -> FileIndex | None:
    """None if these bytes are no whole index of this file."""
    if len(content) < _head.size:
        return None
    magic, crc, version, own_incarnation, digest, own_base, offset, position, time, count = _head.unpack_from(content)
    if magic != MAGIC or version != FORMAT_VERSION or crc != google_crc32c.value(content[8:]):
        return None
    if own_incarnation != incarnation or digest != _digest(file) or own_base != base or len(content) != _head.size + 24 * count:
        return None
    index = FileIndex(base, first_position)
    columns = [array("q"), array("q"), array("q")]
    for number, column in enumerate(columns):
        column.frombytes(content[_head.size + 8 * count * number : _head.size + 8 * count * (number + 1)])
    index._offsets, index._positions, index._times_before = columns
    index._covered = Anchor(offset, position)
    index._covered_time = time
    index.is_from_disk = True
    index.saved_until = offset
    return index


def _digest(file: str) -> bytes:
    return hashlib.blake2b(file.encode(), digest_size=32).digest()


def save_index(ops: FileOps, path: Path, index: FileIndex, *, incarnation: Incarnation) -> None:
    """Writes the sidecar of the log file at `path`. It is not synced, and an error is of no account: it can be built again."""
    saved_until = index.covered.offset
    content = encode_index(index, incarnation=incarnation, file=_file_of(path))
    fresh = path.with_name(path.name + INDEX_SUFFIX + ".new")
    try:
        fd = ops.open(fresh, create=True)
        try:
            write_fully(ops, fd, [content], 0)
        finally:
            ops.close(fd)
        ops.rename(fresh, index_path(path))
    except OSError:
        return
    index.saved_until = max(index.saved_until, saved_until)
    index.is_misled = False


def load_index(ops: FileOps, path: Path, *, incarnation: Incarnation, base: int, end: Anchor, first_position: int) -> FileIndex:
    """The sidecar's index, if it is whole and no further than the file, which ends at `end`; else an empty one."""
    try:
        fd = ops.open_to_read(index_path(path))
        try:
            content = ops.pread(fd, SIDECAR_BYTES_MAX, 0)
        finally:
            ops.close(fd)
    except OSError:
        content = b""
    index = decode_index(content, incarnation=incarnation, file=_file_of(path), base=base, first_position=first_position)
    if index is not None and index.covered <= end and (index.covered.offset == end.offset) == (index.covered.position == end.position):
        return index
    index = FileIndex(base, first_position)
    index.is_misled = bool(content)
    return index


def index_path(path: Path) -> Path:
    return path.with_name(path.name + INDEX_SUFFIX)


def _file_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


class IndexCache:
    """The indexes in use, by log file, the oldest forgotten first. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[Path, FileIndex] = OrderedDict()

    def get(self, path: Path, load: Callable[[], FileIndex]) -> FileIndex:
        with self._lock:
            index = self._indexes.get(path)
            if index is not None:
                self._indexes.move_to_end(path)
                return index
        index = load()
        with self._lock:
            index = self._indexes.setdefault(path, index)
            while len(self._indexes) > FILES_MAX:
                self._indexes.popitem(last=False)
        return index

    def known(self, path: Path) -> FileIndex | None:
        with self._lock:
            return self._indexes.get(path)

    def forget(self, path: Path) -> None:
        with self._lock:
            self._indexes.pop(path, None)
