"""Log files: where the batches of a run lie for good; their format, their names, and how they are written.

    logs/<partition id in hex>/<epoch>-<base>.log      header (128 bytes) | batches, back to back, exactly as on the wire

A file is only ever extended, at the position that the last checkpoint names, so what lies behind that position is of no account. What a
file holds, and how many bytes of it count, stands in the checkpoint (`LogFile`); the file's own header says whose it is.
"""

import struct
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c
import msgspec

from streamq.model.batches import BATCH_HEADER_BYTES, Batch
from streamq.model.ids import Incarnation, PartitionId
from streamq.storage.appender import Appender, Piece
from streamq.storage.file_ops import FileOps, write_fully
from streamq.storage.log_index import FileIndex, IndexCache, save_index

__all__ = [
    "LOG_HEADER_BYTES",
    "LogFile",
    "LogFileHeader",
    "LogWriter",
    "decode_file_header",
    "encode_file_header",
    "log_file_name",
    "log_path",
    "partition_directory",
]

LOG_HEADER_BYTES: Final = 128
OPEN_FILES_MAX: Final = 256
"""Written and not yet synced."""
FORMAT_VERSION: Final = 1
MAGIC: Final = b"SQLF"
_header: Final = struct.Struct("<4sII16s16sQQ")
_crc: Final = struct.Struct("<I")
assert _header.size <= LOG_HEADER_BYTES


class LogFile(msgspec.Struct, frozen=True, array_like=True):
    """What a checkpoint says of a file: it holds `[base, end)` in its first `size` bytes; `max_time` is the largest record time there.

    `first_append` and `last_append` are append times of its first and last batch, 0 where a checkpoint of an older version did not say.
    """

    name: str
    base: int
    end: int
    size: int
    max_time: int
    first_append: int = 0
    last_append: int = 0


class LogFileHeader(NamedTuple):
    incarnation: Incarnation
    partition: PartitionId
    epoch: int
    base: int


def partition_directory(directory: Path, partition: PartitionId) -> Path:
    return directory / "logs" / partition.hex()


def log_path(directory: Path, partition: PartitionId, name: str) -> Path:
    return partition_directory(directory, partition) / name


def log_file_name(epoch: int, base: int, taken: Collection[str]) -> str:
    """A name that is not taken: a run that was dropped may begin anew before the first one's file is removed."""
    name, again = f"{epoch}-{base}.log", 0
    while name in taken:
        again += 1
        name = f"{epoch}-{base}-{again}.log"
    return name


def encode_file_header(header: LogFileHeader) -> bytes:
    rest = _header.pack(MAGIC, 0, FORMAT_VERSION, *header).ljust(LOG_HEADER_BYTES, b"\0")[8:]
    return MAGIC + _crc.pack(google_crc32c.value(rest)) + rest


def decode_file_header(content: bytes) -> LogFileHeader | None:
    """None if these bytes are no log file's header, or damaged."""
    if len(content) < LOG_HEADER_BYTES:
        return None
    magic, crc, version, incarnation, partition, epoch, base = _header.unpack_from(content)
    if magic != MAGIC or version != FORMAT_VERSION or crc != google_crc32c.value(content[8:LOG_HEADER_BYTES]):
        return None
    return LogFileHeader(incarnation, partition, epoch, base)


class LogWriter:
    """Extends log files, for one flush, in one thread; nothing counts before `sync`. Raises OSError as the system does."""

    def __init__(
        self,
        directory: Path,
        *,
        incarnation: Incarnation,
        file_bytes: int,
        ops: FileOps,
        piece: Piece,
        indexes: IndexCache,
        durable_folders: set[Path],
    ) -> None:
        """`durable_folders` are the partitions' folders that this start knows to be durable; those that `sync` makes so are added."""
        self._directory = directory
        self._incarnation = incarnation
        self._file_bytes = file_bytes
        self._ops = ops
        self._piece = piece
        self._indexes = indexes
        self._open: list[int] = []
        self._durable_folders = durable_folders
        self._made_in: set[Path] = set()
        self._touched: list[Path] = []
        self._made: list[Path] = []
        self._full: list[tuple[Path, FileIndex]] = []
        self.written = 0
        """Bytes, the headers of new files included."""

    def append(
        self, partition: PartitionId, epoch: int, files: Sequence[LogFile], batches: Sequence[Batch], *, taken: Collection[str], roll: bool
    ) -> tuple[LogFile, ...]:
        """Writes the batches behind what the files hold. Returns what the files hold then. `roll` begins a new file in any case."""
        rows = list(files)
        names = {*taken, *(row.name for row in rows)}
        first = 0
        while first < len(batches):
            if rows and not roll and rows[-1].size < self._file_bytes:
                row = rows.pop()
            else:
                base = batches[first].base
                row = LogFile(log_file_name(epoch, base, names), base, base, 0, -1)
                names.add(row.name)
            row, first = self._extend(partition, epoch, row, batches, first)
            rows.append(row)
            roll = False
        return tuple(rows)

    def _extend(self, partition: PartitionId, epoch: int, row: LogFile, batches: Sequence[Batch], first: int) -> tuple[LogFile, int]:
        """Fills one file as far as it goes, from `batches[first]` on. Returns its row and how far it got."""
        path = log_path(self._directory, partition, row.name)
        if len(self._open) >= OPEN_FILES_MAX:
            self._sync_open()
        index: FileIndex | None
        if row.size == 0:
            fd, index, position = self._make(path, LogFileHeader(self._incarnation, partition, epoch, row.base))
        else:
            fd, index, position = self._ops.open(path), self._indexes.known(path), row.size
        first_append = row.first_append if row.size else batches[first].header.append_time
        self._open.append(fd)
        self._touched.append(path)
        appender = Appender(self._ops, path, fd, position, self._piece)
        expected, max_time = row.end, row.max_time
        try:
            while first < len(batches) and position < self._file_bytes:
                batch = batches[first]
                header = batch.header
                assert header.base == expected, f"a batch at {header.base} where {expected} is due"
                appender.add(batch.head)
                appender.add(batch.payload)
                if index is not None:
                    index.note(header, position)
                position += BATCH_HEADER_BYTES + len(batch.payload)
                expected = header.base + header.records
                max_time = max(max_time, header.max_timestamp)
                first += 1
            written = appender.finish()
        finally:
            appender.close()
        assert written == position, f"{written} bytes lie in {path}, not {position}"
        self.written += position - row.size
        if position >= self._file_bytes and index is not None:
            self._full.append((path, index))
        return LogFile(row.name, row.base, expected, position, max_time, first_append, batches[first - 1].header.append_time), first

    def _make(self, path: Path, header: LogFileHeader) -> tuple[int, FileIndex, int]:
        """A new file with its header; one of this name that is there was never checkpointed."""
        if path.parent not in self._durable_folders:
            # Also one that exists: an earlier flush may have made it and failed before its name was durable.
            self._ops.make_directory(path.parent)
            self._made_in.update((path.parent.parent, self._directory))
        self._made_in.add(path.parent)
        self._made.append(path)
        fd = self._ops.open(path, create=True)
        index = FileIndex(header.base, LOG_HEADER_BYTES)
        self._indexes.forget(path)
        self._indexes.get(path, lambda: index)
        return fd, index, write_fully(self._ops, fd, [encode_file_header(header)], 0)

    def sync(self) -> None:
        """Makes all of it durable."""
        self._sync_open()
        for directory in sorted(self._made_in):
            self._ops.sync_directory(directory)
        self._durable_folders |= self._made_in
        self._made_in.clear()

    def save_indexes(self) -> None:
        """Files that are full get their indexes' sidecars; these may be lost."""
        for path, index in self._full:
            save_index(self._ops, path, index, incarnation=self._incarnation)

    def abandon(self) -> None:
        """After an error: what was written counts for nothing, so its files go, and what the indexes say of it is forgotten."""
        while self._open:
            self._ops.close(self._open.pop())
        for path in self._touched:
            self._indexes.forget(path)
        for path in self._made:
            with suppress(OSError):
                self._ops.unlink(path)

    def _sync_open(self) -> None:
        for fd in self._open:
            self._ops.drop_cache(fd, 0, 0)  # begins to write them all, so that one commit of the file system serves all
        for fd in self._open:
            self._ops.fdatasync(fd)
        while self._open:
            self._ops.close(self._open.pop())
