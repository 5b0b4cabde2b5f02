"""The journal in bytes: files, groups, tables. What it is for is told in `journal`; how it is read after a crash in `journal_recovery`.

    journal/manifest          who the journal belongs to, and how many files there are: a file that is gone is missed
    journal/000001.journal    block 0: the file's header; then groups, one behind the other, each beginning on a block of 4096 bytes

    group   head | table | repeat | bodies | zeros up to the next block
    head    magic, crc, key, own position, start, synced position, position of the group before, lengths
    table   for each entry: what it is, the length of its body and the body's CRC-32C
    repeat  head and table of the group before, as they were written
    bodies  batches (header and payload, as on the wire) and values of states

The crc of the head covers the head and the table, and so, through the checksums in the table, every body; each of them is bound to the
journal (a random key that never leaves the directory, so no payload can pose as a group), to its file's sequence number, its
offset and its start (P-28). The repeat is no part of that: it has the checksum of the group that it repeats. If a head or a table is
damaged, the group behind it still says what was there, and where each body lies.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import google_crc32c

from streamq.model.batches import Batch
from streamq.model.ids import Incarnation
from streamq.model.limits import BATCH_PAYLOAD_BYTES_MAX

__all__ = [
    "BLOCK_BYTES",
    "ENTRY_BODY_BYTES_MAX",
    "FILE_BYTES_MIN",
    "GROUP_BODY_BYTES_MAX",
    "GROUP_HEAD_BYTES",
    "KEY_BYTES_MAX",
    "NOWHERE",
    "TABLE_BYTES_MAX",
    "BatchRow",
    "FileHeader",
    "Group",
    "JournalEntry",
    "JournalPosition",
    "Manifest",
    "Row",
    "StateEntry",
    "StateRow",
    "decode_file_header",
    "decode_group",
    "decode_manifest",
    "encode_file_header",
    "encode_group_head",
    "encode_manifest",
    "encode_row",
    "file_name",
    "head_bytes",
    "is_header_of",
    "names_place",
    "padded",
]

BLOCK_BYTES: Final = 4096
FILE_BYTES_MIN: Final = 1 << 20
GROUP_BODY_BYTES_MAX: Final = 8 << 20
"""The bodies of one group; also the memory that a restart needs at a time."""
ENTRY_BODY_BYTES_MAX: Final = GROUP_BODY_BYTES_MAX
TABLE_BYTES_MAX: Final = 256 << 10
KEY_BYTES_MAX: Final = 1024
"""The key of a state, in UTF-8."""
FORMAT_VERSION: Final = 1

FILE_MAGIC: Final = b"SQJF"
GROUP_MAGIC: Final = b"SQJG"
MANIFEST_MAGIC: Final = b"SQJM"
KIND_BATCH: Final = 1
KIND_STATE: Final = 2
KIND_FORGET: Final = 3

_file: Final = struct.Struct("<4sII16s16sQ QQQ")
_file_identity: Final = slice(8, 8 + 4 + 16 + 16)
_manifest: Final = struct.Struct("<4sII16s16sI")
_group: Final = struct.Struct("<4sI16sQQQQQQQIIII")
_crc: Final = struct.Struct("<I")
_batch_row: Final = struct.Struct("<B16sQQIII")
_state_row: Final = struct.Struct("<BHII")
GROUP_HEAD_BYTES: Final = _group.size
assert BATCH_PAYLOAD_BYTES_MAX + BLOCK_BYTES <= ENTRY_BODY_BYTES_MAX


class JournalPosition(NamedTuple):
    """A place in the journal: the sequence number of a file (1, 2, 3, … in the order of use) and a byte offset in it. Ordered."""

    file: int
    offset: int


NOWHERE: Final = JournalPosition(0, 0)
"""Before everything: the position of what does not exist."""


class StateEntry(NamedTuple):
    """A state's newest value; None forgets the key."""

    key: str
    value: bytes | None


JournalEntry = Batch | StateEntry


class FileHeader(NamedTuple):
    """Block 0. Sequence 0: never used. `synced`: up to where the journal was durable when the file was taken into use."""

    incarnation: Incarnation
    key: bytes
    file_bytes: int
    sequence: int
    synced: JournalPosition


class Manifest(NamedTuple):
    """There are the files numbered 1 to `files`, at least."""

    incarnation: Incarnation
    key: bytes
    files: int


class BatchRow(NamedTuple):
    """A batch in a table: `[base, end)`; its body lies `at` bytes behind the group's beginning."""

    partition: bytes
    epoch: int
    base: int
    end: int
    at: int
    length: int
    crc: int


class StateRow(NamedTuple):
    """A state in a table; `length` is None if the key was forgotten."""

    key: str
    at: int
    length: int | None
    crc: int


Row = BatchRow | StateRow


class Group(NamedTuple):
    """A group whose head and table are whole. Of its bodies nothing is known yet."""

    position: JournalPosition
    end: JournalPosition
    start: int
    synced: JournalPosition
    before: JournalPosition
    """Where the group before it begins; `NOWHERE` if there was none."""
    repeat_at: int
    repeat_bytes: int
    rows: tuple[Row, ...]
    head: bytes
    """Head and table as written: what the next group repeats."""


def padded(length: int) -> int:
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def file_name(number: int) -> str:
    return f"{number:06d}.journal"


def encode_manifest(manifest: Manifest) -> bytes:
    body = _manifest.pack(MANIFEST_MAGIC, 0, FORMAT_VERSION, *manifest)
    return body[:4] + _crc.pack(google_crc32c.value(body[8:])) + body[8:]


def decode_manifest(content: bytes) -> Manifest | None:
    if len(content) != _manifest.size:
        return None
    magic, crc, version, incarnation, key, files = _manifest.unpack(content)
    if magic != MANIFEST_MAGIC or version != FORMAT_VERSION or crc != google_crc32c.value(content[8:]):
        return None
    return Manifest(incarnation, key, files)


def encode_file_header(header: FileHeader) -> bytes:
    """All of block 0."""
    incarnation, key, file_bytes, sequence, synced = header
    body = _file.pack(FILE_MAGIC, 0, FORMAT_VERSION, incarnation, key, file_bytes, sequence, *synced)
    return (body[:4] + _crc.pack(google_crc32c.value(body[8:])) + body[8:]).ljust(BLOCK_BYTES, b"\0")


def decode_file_header(block: bytes) -> FileHeader | None:
    if len(block) < _file.size:
        return None
    magic, crc, version, incarnation, key, file_bytes, sequence, synced_file, synced_offset = _file.unpack_from(block)
    if magic != FILE_MAGIC or version != FORMAT_VERSION or crc != google_crc32c.value(block[8 : _file.size]):
        return None
    return FileHeader(incarnation, key, file_bytes, sequence, JournalPosition(synced_file, synced_offset))


def is_header_of(block: bytes, *, incarnation: Incarnation, key: bytes) -> bool:
    """Whether a header that fails its checksum is one of this journal all the same, torn while it was written anew."""
    expected = encode_file_header(FileHeader(incarnation, key, 0, 0, NOWHERE))
    return block[:4] == FILE_MAGIC and block[_file_identity] == expected[_file_identity]


def encode_row(entry: JournalEntry) -> tuple[bytes, list[bytes], int]:
    """The entry's row, the buffers of its body, and their length together."""
    if isinstance(entry, Batch):
        header = entry.header
        crc = google_crc32c.extend(google_crc32c.value(entry.head), entry.payload)
        length = len(entry.head) + len(entry.payload)
        row = _batch_row.pack(KIND_BATCH, header.partition, header.epoch, header.base, header.records, length, crc)
        return row, [entry.head, entry.payload], length
    key = entry.key.encode()
    if entry.value is None:
        return _state_row.pack(KIND_FORGET, len(key), 0, 0) + key, [], 0
    crc = google_crc32c.value(entry.value)
    return _state_row.pack(KIND_STATE, len(key), len(entry.value), crc) + key, [entry.value], len(entry.value)


def encode_group_head(
    *,
    key: bytes,
    position: JournalPosition,
    start: int,
    synced: JournalPosition,
    before: JournalPosition,
    rows: list[bytes],
    repeat_bytes: int,
    body_bytes: int,
) -> bytes:
    """Head and table."""
    table = b"".join(rows)
    fields = (key, *position, start, *synced, *before, len(rows), len(table), repeat_bytes, body_bytes)
    rest = _group.pack(GROUP_MAGIC, 0, *fields)[8:] + table
    return GROUP_MAGIC + _crc.pack(google_crc32c.value(rest)) + rest


def head_bytes(head: bytes) -> int:
    """How long head and table are, if `head` begins a group; else 0. Not checked: see `decode_group`."""
    if head[:4] != GROUP_MAGIC or len(head) < GROUP_HEAD_BYTES:
        return 0
    table_bytes: int = _group.unpack_from(head)[11]
    return GROUP_HEAD_BYTES + table_bytes if table_bytes <= TABLE_BYTES_MAX else 0


def names_place(head: bytes, position: JournalPosition) -> bool:
    """Whether a head that fails its checksum was written for this place: what is left of a group."""
    return head[:4] == GROUP_MAGIC and len(head) >= GROUP_HEAD_BYTES and _group.unpack_from(head)[3:5] == position


def decode_group(buffer: bytes, at: int, *, key: bytes, position: JournalPosition | None, file_bytes: int) -> Group | None:
    """The group whose head begins at `at`, if it is whole, of this journal, and was written for this position (None: for any).

    `buffer` must reach over head and table if the group is to be found; what lies behind them is not looked at.
    """
    if buffer[at : at + 4] != GROUP_MAGIC or len(buffer) - at < GROUP_HEAD_BYTES:
        return None
    (
        _, crc, own_key, file, offset, start, synced_file, synced_offset, before_file, before_offset,
        entries, table_bytes, repeat_bytes, body_bytes,
    ) = _group.unpack_from(buffer, at)  # fmt: skip
    own = JournalPosition(file, offset)
    if own_key != key or (position is not None and own != position):
        return None
    bodies_at = GROUP_HEAD_BYTES + table_bytes + repeat_bytes
    end = offset + padded(bodies_at + body_bytes)
    if table_bytes > TABLE_BYTES_MAX or repeat_bytes > TABLE_BYTES_MAX + GROUP_HEAD_BYTES or body_bytes > GROUP_BODY_BYTES_MAX:
        return None
    head = buffer[at : at + GROUP_HEAD_BYTES + table_bytes]
    if end > file_bytes or len(head) != GROUP_HEAD_BYTES + table_bytes or google_crc32c.value(head[8:]) != crc:
        return None
    rows = tuple(_decode_rows(head, entries, bodies_at))
    synced = JournalPosition(synced_file, synced_offset)
    before = JournalPosition(before_file, before_offset)
    return Group(own, JournalPosition(file, end), start, synced, before, len(head), repeat_bytes, rows, head)


def _decode_rows(head: bytes, entries: int, bodies_at: int) -> Iterator[Row]:
    """The table is covered by a checksum that was compared before: what does not unpack here is a bug, not damage."""
    at = GROUP_HEAD_BYTES
    for _ in range(entries):
        if head[at] == KIND_BATCH:
            _, partition, epoch, base, records, length, crc = _batch_row.unpack_from(head, at)
            at += _batch_row.size
            yield BatchRow(partition, epoch, base, base + records, bodies_at, length, crc)
        else:
            kind, key_bytes, length, crc = _state_row.unpack_from(head, at)
            at += _state_row.size + key_bytes
            key = head[at - key_bytes : at].decode()
            yield StateRow(key, bodies_at, length if kind == KIND_STATE else None, crc)
        bodies_at += length
