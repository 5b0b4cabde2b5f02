"""Reading log files: every batch is checked, and damage is named exactly (P-30).

Reading walks from batch to batch: from the nearest entry of the file's index, each header checked against its checksum, its partition, its
epoch and the offset where it has to begin (P-28). The first that is not good ends the walk with `DamagedRangeError`, which names the
offsets and bytes up to the next batch that is whole in its place. What lies behind damage is served only where the index leads there, never
because it looks like a batch: a payload may hold anything, even headers.

What lies below the start offset nobody wants, and nobody else may have it any more to mend it (P-41): a walk that meets damage there goes
on behind it, at the next entry of the index, or where an unbroken chain of headers begins that leads to exactly such an entry or to exactly
the end of the file.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from streamq.model.batches import BATCH_HEADER_BYTES, Batch, BatchHeader
from streamq.model.errors import CorruptDataError
from streamq.model.ids import Incarnation, PartitionId
from streamq.storage.file_ops import FileOps, write_fully
from streamq.storage.interface import DamagedRangeError
from streamq.storage.log_file import LOG_HEADER_BYTES, LogFile, LogFileHeader, decode_file_header, encode_file_header
from streamq.storage.log_index import Anchor, FileIndex
from streamq.wire.batch_format import MAGIC as BATCH_MAGIC
from streamq.wire.batch_format import BadBatchError, decode_header, payload_is_whole

__all__ = [
    "LogSource",
    "Place",
    "find_offset",
    "find_time",
    "header_in_place",
    "read_batches",
    "read_headers",
    "restore",
    "walk",
]

CHUNK_BYTES_MIN: Final = 4 << 10
CHUNK_BYTES_MAX: Final = 256 << 10


class LogSource(msgspec.Struct, frozen=True):
    """Everything that reading one file needs."""

    path: Path
    incarnation: Incarnation
    partition: PartitionId
    epoch: int
    row: LogFile
    index: FileIndex
    ops: FileOps
    start: int = 0
    """Nothing below this offset is wanted."""

    def damaged(self, *, base: int, end: int, first_byte: int, last_byte: int) -> DamagedRangeError:
        return DamagedRangeError(
            partition=self.partition,
            epoch=self.epoch,
            base=base,
            end=end,
            file=str(Path(*self.path.parts[-3:])),
            first_byte=first_byte,
            last_byte=last_byte,
        )

    def all_damaged(self) -> DamagedRangeError:
        row = self.row
        return self.damaged(base=row.base, end=row.end, first_byte=0, last_byte=row.size - 1)

    def file_header(self) -> bytes:
        return encode_file_header(LogFileHeader(self.incarnation, self.partition, self.epoch, self.row.base))


class Place(NamedTuple):
    """A batch in a file: where it begins, its header, and the header's bytes."""

    position: int
    header: BatchHeader
    head: bytes

    @property
    def end_position(self) -> int:
        return self.position + BATCH_HEADER_BYTES + self.header.payload_bytes


# --- walking -------------------------------------------------------------------------------------------------------------------


def walk(source: LogSource, fd: int, anchor: Anchor, *, wanted: int = 0) -> Iterator[Place]:
    """The batches from the anchor on to the end of what the file holds; headers only. Adds to the index as it goes.

    Raises DamagedRangeError at the first header that is not the one that has to be there, unless what it makes unreadable ends at or below
    `wanted`: that is left out.
    """
    while anchor.offset < source.row.end:
        for place in _chain(source, fd, anchor):
            source.index.note(place.header, place.position)
            yield place
            anchor = Anchor(place.header.end, place.end_position)
        if anchor.offset < source.row.end:
            anchor = _behind_damage(source, fd, anchor, wanted)


def _chain(source: LogSource, fd: int, anchor: Anchor) -> Iterator[Place]:
    """The batches from the anchor on, as far as each header is the one that has to be there."""
    row = source.row
    offset, position = anchor
    chunk, chunk_at, chunk_bytes = b"", 0, CHUNK_BYTES_MIN
    while offset < row.end:
        at = position - chunk_at
        if at < 0 or at + BATCH_HEADER_BYTES > len(chunk):
            chunk_bytes = min(chunk_bytes * 2, CHUNK_BYTES_MAX) if 0 < at <= len(chunk) else CHUNK_BYTES_MIN
            chunk = source.ops.pread(fd, min(chunk_bytes, max(0, row.size - position)), position)
            chunk_at, at = position, 0
        head = chunk[at : at + BATCH_HEADER_BYTES]
        header = header_in_place(source, head, position=position, offset=offset)
        if header is None:
            return
        yield Place(position, header, head)
        position += BATCH_HEADER_BYTES + header.payload_bytes
        offset = header.end


def header_in_place(source: LogSource, head: bytes, *, position: int, offset: int) -> BatchHeader | None:
    """The header, if it is the one of the batch that has to begin here (P-28)."""
    try:
        header = decode_header(head)
    except BadBatchError:
        return None
    if header.partition != source.partition or header.epoch != source.epoch or header.base != offset:
        return None
    if header.end > source.row.end or position + header.size > source.row.size:
        return None
    return header


def _behind_damage(source: LogSource, fd: int, bad: Anchor, wanted: int) -> Anchor:
    """Where reading goes on if the header at `bad` is not the one that has to be there (P-41: nothing below `wanted` is missed).

    Raises DamagedRangeError if anything is (P-30).
    """
    end = Anchor(source.row.end, source.row.size)
    begins = _good_behind(source, fd, position=bad.position, offset=bad.offset)
    if bad.offset >= wanted:
        good = next(begins, end)
    else:
        known = [anchor for anchor in (*source.index.anchors(), end) if bad.offset < anchor.offset <= end.offset]
        left_out = [anchor for anchor in known if anchor.offset <= wanted]
        if left_out:
            return left_out[-1]
        good = next((anchor for anchor in begins if _leads_to(source, fd, anchor, known[0])), known[0])
        if good.offset <= wanted:
            source.index.begin_at(good)
            return good
    base = max(bad.offset, wanted)
    raise source.damaged(base=base, end=good.offset, first_byte=bad.position, last_byte=good.position - 1)


def _leads_to(source: LogSource, fd: int, anchor: Anchor, to: Anchor) -> bool:
    for place in _chain(source, fd, anchor):
        anchor = Anchor(place.header.end, place.end_position)
        if anchor.offset >= to.offset:
            break
    return anchor == to


def _good_behind(source: LogSource, fd: int, *, position: int, offset: int) -> Iterator[Anchor]:
    """Headers of this run behind a bad one whose batch ends the file or is followed by another one of this run."""
    at, size = position + 1, source.row.size
    while at < size:
        chunk = source.ops.pread(fd, min(CHUNK_BYTES_MAX, size - at), at)
        found = chunk.find(BATCH_MAGIC)
        while found >= 0:
            header = _plausible(source, fd, position=at + found, offset=offset)
            if header is not None:
                yield Anchor(header.base, at + found)
            found = chunk.find(BATCH_MAGIC, found + 1)
        if len(chunk) < len(BATCH_MAGIC):
            break
        at += len(chunk) - len(BATCH_MAGIC) + 1


def _plausible(source: LogSource, fd: int, *, position: int, offset: int) -> BatchHeader | None:
    head = source.ops.pread(fd, BATCH_HEADER_BYTES, position)
    try:
        base = decode_header(head).base
    except BadBatchError:
        return None
    header = header_in_place(source, head, position=position, offset=base) if base > offset else None
    if header is None:
        return None
    behind = position + header.size
    if header.end == source.row.end:
        return header if behind == source.row.size else None
    following = source.ops.pread(fd, BATCH_HEADER_BYTES, behind)
    return header if header_in_place(source, following, position=behind, offset=header.end) is not None else None


def _walk_from(source: LogSource, fd: int, anchor_in: Callable[[FileIndex], Anchor], *, wanted: int) -> Iterator[Place]:
    """A walk from an anchor of the index. An index from a sidecar that leads to no batch is built anew, once (pitfall 47)."""
    anchor = anchor_in(source.index)
    if source.index.is_from_disk and not _leads_to_a_batch(source, fd, anchor):
        source.index.clear()
        anchor = anchor_in(source.index)
    if anchor.position == LOG_HEADER_BYTES:
        _check_file_header(source, fd)
    return walk(source, fd, anchor, wanted=min(wanted, source.start))


def _walk_to(source: LogSource, fd: int, offset: int) -> Iterator[Place]:
    """The batches from the one that contains `offset` on."""
    is_there = False
    for place in _walk_from(source, fd, lambda index: index.before(offset), wanted=offset):
        position, header, _ = place
        if header.end <= offset:
            continue
        if header.base > offset and not is_there:  # the index begins behind damage that somebody wants after all
            raise source.damaged(base=offset, end=header.base, first_byte=LOG_HEADER_BYTES, last_byte=position - 1)
        is_there = True
        yield place


def _leads_to_a_batch(source: LogSource, fd: int, anchor: Anchor) -> bool:
    if anchor == (source.row.end, source.row.size):
        return True
    head = source.ops.pread(fd, BATCH_HEADER_BYTES, anchor.position)
    return header_in_place(source, head, position=anchor.position, offset=anchor.offset) is not None


def _check_file_header(source: LogSource, fd: int) -> None:
    """The file's header says what the checkpoint says too, so damage there is repaired from it, if the disk can be written."""
    if decode_file_header(source.ops.pread(fd, LOG_HEADER_BYTES, 0)) is not None:
        return
    try:
        writable = source.ops.open(source.path)
        try:
            write_fully(source.ops, writable, [source.file_header()], 0)
            source.ops.fdatasync(writable)
        finally:
            source.ops.close(writable)
    except OSError:
        return


def _open(source: LogSource) -> int:
    try:
        return source.ops.open_to_read(source.path)
    except FileNotFoundError:
        raise source.all_damaged() from None


# --- reading -------------------------------------------------------------------------------------------------------------------


def read_batches(source: LogSource, offset: int, *, max_bytes: int) -> list[Batch]:
    """From the batch that contains `offset` on: at least that one, then up to `max_bytes`, each checked whole.

    Raises DamagedRangeError only if the first one cannot be had; damage further on ends the list before it. The range named may lie before
    `offset`: where a batch begins is known only from the one before it.
    """
    fd = _open(source)
    batches: list[Batch] = []
    try:
        size, chunk, chunk_at = 0, b"", 0
        for place in _walk_to(source, fd, offset):
            position, header, head = place
            size += header.size
            if batches and size > max_bytes:
                break
            body, end = position + BATCH_HEADER_BYTES, place.end_position
            if not chunk_at <= body <= end <= chunk_at + len(chunk):
                chunk_at = body
                chunk = source.ops.pread(fd, max(header.payload_bytes, min(max_bytes, source.row.size - body)), body)
            payload = chunk[body - chunk_at : end - chunk_at]
            if not payload_is_whole(header, payload):
                raise source.damaged(base=header.base, end=header.end, first_byte=position, last_byte=end - 1)
            batches.append(Batch(header, head, payload))
            source.index.hint(header.end, end)
    except DamagedRangeError:
        if not batches:
            raise
    finally:
        source.ops.close(fd)
    return batches


def read_headers(source: LogSource, offset: int, *, max_batches: int) -> list[BatchHeader]:
    """The headers from the batch that contains `offset` on. Damage as in `read_batches`; payloads are not looked at."""
    fd = _open(source)
    headers: list[BatchHeader] = []
    try:
        for place in _walk_to(source, fd, offset):
            headers.append(place.header)
            source.index.hint(place.header.end, place.end_position)
            if len(headers) >= max_batches:
                break
    except DamagedRangeError:
        if not headers:
            raise
    finally:
        source.ops.close(fd)
    return headers


def find_offset(source: LogSource, offset: int) -> int:
    """The position where the batch with base `offset` begins or, if it is damaged, has to begin; `offset` may be the file's end.

    It follows from the batch before, which has to be good: raises DamagedRangeError otherwise.
    """
    if offset == source.row.base:
        return LOG_HEADER_BYTES
    if offset == source.row.end:
        return source.row.size
    first = source.index.before(offset - 1)
    if first.offset == offset:
        return first.position  # everything before it is unreadable, and unwanted
    fd = _open(source)
    try:
        for place in _walk_from(source, fd, lambda index: index.before(offset - 1), wanted=offset):
            if place.header.base == offset:
                return place.position
            if place.header.end == offset:
                return place.end_position
            if place.header.end > offset:
                break
    finally:
        source.ops.close(fd)
    raise CorruptDataError(f"{source.path}: no batch ends at offset {offset}", code="data_damaged")


def find_time(source: LogSource, timestamp_ms: int) -> int | None:
    """The base of the first batch whose largest record time is at or after `timestamp_ms`."""
    if source.row.max_time < timestamp_ms:
        return None
    fd = _open(source)
    try:
        for place in _walk_from(source, fd, lambda index: index.before_time(timestamp_ms), wanted=source.start):
            if place.header.max_timestamp >= timestamp_ms:
                return place.header.base
    finally:
        source.ops.close(fd)
    return None


# --- restoring -----------------------------------------------------------------------------------------------------------------


def restore(source: LogSource, batches: Sequence[Batch]) -> None:
    """Writes good copies where these batches have to lie, durably. Refuses, with CorruptDataError, what would not fit there exactly.

    What lies before a damaged range that begins at the start offset may be unreadable too (P-41): then it is needed as a whole.
    """
    row = source.row
    if not source.ops.exists(source.path):
        source.ops.make_directory(source.path.parent)
        source.ops.close(source.ops.open(source.path, create=True))
        for directory in (source.path.parent, source.path.parent.parent, source.path.parent.parent.parent):
            source.ops.sync_directory(directory)
    position = _place_of(source, batches)
    end = position + sum(batch.size for batch in batches)
    fd = source.ops.open(source.path)
    try:
        fits = row.base <= batches[0].base and batches[-1].end <= row.end and end <= row.size
        if not fits or (end == row.size and batches[-1].end != row.end):
            raise CorruptDataError(
                f"{source.path}: a copy of {batches[0].base} to {batches[-1].end - 1} does not fit in its place", code="data_damaged"
            )
        if position == LOG_HEADER_BYTES:
            write_fully(source.ops, fd, [source.file_header()], 0)
        write_fully(source.ops, fd, [buffer for batch in batches for buffer in (batch.head, batch.payload)], position)
        source.ops.fdatasync(fd)
    finally:
        source.ops.close(fd)


def _place_of(source: LogSource, batches: Sequence[Batch]) -> int:
    """Where the first one begins, if need be counted back from the end of the damaged range."""
    try:
        return find_offset(source, batches[0].base)
    except DamagedRangeError as damage:
        within = [batch for batch in batches if batch.end <= damage.end]
        position = damage.last_byte + 1 - sum(batch.size for batch in within)
        if not within or within[-1].end != damage.end or position < damage.first_byte:
            raise
        return position
