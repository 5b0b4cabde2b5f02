"""What `streamq export` writes and `streamq import` reads: records whole, in blocks that are checked, with an end that says so.

    file    = magic block…                    magic: the 8 bytes "sqexport"
    block   = kind payload_bytes raw_bytes number payload_crc crc payload                  (24 bytes before the payload, little endian)
                4s       u32          u32     u32      u32      u32

`crc` is the CRC-32C of the 20 bytes before it, `payload_crc` that of the payload, `number` counts the blocks from 0: one that is missing,
repeated or in another place is noticed. A payload is a zstd frame of `raw_bytes` bytes of MessagePack, by kind:

    "head"  first: a map: version (1), topic, partitions (how many the topic has), fields (the names of a record's fields, in order)
    "data"  [partition, [[offset, timestamp, key, value, headers], …]]: offsets rise; timestamp in milliseconds since 1970; key and value
            bytes or nil; headers a map of text to bytes, or nil
    "done"  last, nothing follows: a map: blocks (before this one), records, and partitions: how many records of which

Without "done" it is not complete. Records of one partition are in their order; partitions come mixed. Later versions may add keys to maps.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import google_crc32c
import msgspec

from streamq.model.batches import COMPRESSION_ZSTD
from streamq.model.errors import CorruptDataError
from streamq.model.limits import BATCH_RAW_BYTES_MAX, MiB
from streamq.wire.compression import compress, decompress

__all__ = ["MAGIC", "DataBlock", "ExportHead", "ExportReader", "ExportWriter", "Exportable", "ExportedRecord"]

MAGIC: Final = b"sqexport"
VERSION: Final = 1
FIELDS: Final = ("offset", "timestamp", "key", "value", "headers")
LEVEL: Final = 3
BLOCK_RAW_BYTES: Final = 1 * MiB
"""A block has at most so much, or one record."""
GATHERED_BYTES_MAX: Final = 16 * MiB
"""Of all partitions together; past it the largest unfinished block is closed."""
ROW_BYTES: Final = 32
"""What a record counts beside its key, value and headers."""
RAW_BYTES_MAX: Final = BATCH_RAW_BYTES_MAX
"""As many as a batch; a record that a producer of ours takes has a quarter of that at most."""
PAYLOAD_BYTES_MAX: Final = BATCH_RAW_BYTES_MAX + 64 * 1024
_prefix: Final = struct.Struct("<4sIIIII")
_encoder: Final = msgspec.msgpack.Encoder()


class Exportable(Protocol):
    """What is needed of a consumer's record."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Mapping[str, bytes]: ...


class ExportedRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] | None


class ExportHead(msgspec.Struct, frozen=True):
    topic: str
    partitions: int
    version: int = VERSION
    fields: tuple[str, ...] = FIELDS


class DataBlock(msgspec.Struct, frozen=True, array_like=True):
    partition: int
    records: list[ExportedRecord]


class _Done(msgspec.Struct, frozen=True):
    blocks: int
    records: int
    partitions: dict[int, int]


_head_decoder: Final = msgspec.msgpack.Decoder(ExportHead)
_data_decoder: Final = msgspec.msgpack.Decoder(DataBlock)
_done_decoder: Final = msgspec.msgpack.Decoder(_Done)


class ExportWriter:
    """Turns records into bytes: `begin` once, `add` as they come, `end` once. Holds at most `GATHERED_BYTES_MAX`, and a record."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """Records by partition."""
        self._blocks = 0
        self._gathered: dict[int, tuple[list[ExportedRecord], int]] = {}
        self._gathered_bytes = 0

    def begin(self, head: ExportHead) -> bytes:
        return MAGIC + self._block(b"head", head)

    def add(self, records: Sequence[Exportable]) -> bytes:
        """Whatever blocks are full now; often none."""
        out: list[bytes] = []
        for record in records:
            partition, headers = record.partition, dict(record.headers) or None
            row = ExportedRecord(record.offset, record.timestamp, record.key, record.value, headers)
            grown = ROW_BYTES + len(record.key or b"") + len(record.value or b"")
            if headers:
                grown += sum(ROW_BYTES + 4 * len(name) + len(content) for name, content in headers.items())
            if partition in self._gathered and self._gathered[partition][1] + grown > BLOCK_RAW_BYTES:
                out.append(self._close(partition))
            rows, size = self._gathered.get(partition) or ([], 0)
            rows.append(row)
            self._gathered[partition] = rows, size + grown
            self._gathered_bytes += grown
            if self._gathered_bytes >= GATHERED_BYTES_MAX:
                out.append(self._close(max(self._gathered, key=lambda largest: self._gathered[largest][1])))
        return b"".join(out)

    def end(self) -> bytes:
        out = [self._close(partition) for partition in sorted(self._gathered)]
        done = _Done(self._blocks, sum(self.counts.values()), self.counts)
        return b"".join([*out, self._block(b"done", done)])

    def _close(self, partition: int) -> bytes:
        rows, size = self._gathered.pop(partition)
        self._gathered_bytes -= size
        self.counts[partition] = self.counts.get(partition, 0) + len(rows)
        return self._block(b"data", DataBlock(partition, rows))

    def _block(self, kind: bytes, content: object) -> bytes:
        raw = _encoder.encode(content)
        assert len(raw) <= RAW_BYTES_MAX
        payload = compress(raw, level=LEVEL)
        begin = _prefix.pack(kind, len(payload), len(raw), self._blocks, google_crc32c.value(payload), 0)[:-4]
        self._blocks += 1
        return b"".join((begin, int(google_crc32c.value(begin)).to_bytes(4, "little"), payload))


class ExportReader:
    """Turns bytes back into records, in pieces of any size. Hands out no block that was not checked whole.

    Every error is a CorruptDataError that says how far it came; nothing can be read after it.
    """

    def __init__(self) -> None:
        self.head: ExportHead | None = None
        self.is_complete = False
        self.counts: dict[int, int] = {}
        """Records handed out, by partition."""
        self._last: dict[int, int] = {}
        self._blocks = 0
        self._buffer = bytearray()
        self._position = 0
        """In the file, of the buffer's beginning."""
        self._has_begun = False

    @property
    def progress(self) -> str:
        """How far it came, for people."""
        if not self.counts:
            return "no record was read"
        shown = [f"{partition} up to offset {self._last[partition]}" for partition in sorted(self._last)[:20]]
        more = "" if len(self._last) <= 20 else f" and {len(self._last) - 20} more partitions"
        return f"{sum(self.counts.values())} record(s) were read before it: partition {', '.join(shown)}{more}"

    def feed(self, piece: bytes) -> Iterator[DataBlock]:
        """The blocks that are complete with this piece, in order; those before damage come before the error."""
        self._buffer += piece
        while (block := self._next()) is not None:
            content = self._decode(*block)
            if content is not None:
                yield content

    def end(self) -> None:
        """To be called when there is nothing more. Raises CorruptDataError if something is missing."""
        if not self._has_begun:
            raise self._damaged("it is empty" if not self._buffer else "it is too short for one")
        if not self.is_complete:
            raise self._damaged("it is cut off: its end is missing")

    def _next(self) -> tuple[bytes, bytes] | None:
        """Kind and raw content of the next block, when it is there whole."""
        buffer = self._buffer
        if not self._has_begun:
            if not MAGIC.startswith(bytes(buffer[: len(MAGIC)])):
                raise self._damaged("it does not begin as one")
            if len(buffer) < len(MAGIC):
                return None
            self._has_begun = True
            self._drop(len(MAGIC))
        if self.is_complete and buffer:
            raise self._damaged("there is something behind its end")
        if len(buffer) < _prefix.size:
            return None
        begin = bytes(buffer[: _prefix.size])
        kind, payload_bytes, raw_bytes, number, payload_crc, crc = _prefix.unpack(begin)
        if google_crc32c.value(begin[:-4]) != crc or payload_bytes > PAYLOAD_BYTES_MAX:
            raise self._damaged("a block's header is damaged")
        if number != self._blocks:
            raise self._damaged(f"block {number} is where block {self._blocks} should be")
        if len(buffer) < _prefix.size + payload_bytes:
            return None
        payload = bytes(buffer[_prefix.size : _prefix.size + payload_bytes])
        if google_crc32c.value(payload) != payload_crc:
            raise self._damaged("a block is damaged")
        try:
            raw = decompress(payload, compression=COMPRESSION_ZSTD, raw_bytes=raw_bytes)
        except CorruptDataError as error:
            raise self._damaged(error.message) from None
        self._drop(_prefix.size + payload_bytes)
        self._blocks += 1
        return kind, raw

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._position += size

    def _decode(self, kind: bytes, raw: bytes) -> DataBlock | None:
        try:
            if (kind == b"head") != (self._blocks == 1):
                raise self._damaged("its head is not where it should be")
            if kind == b"head":
                self._take_head(_head_decoder.decode(raw))
            elif kind == b"data":
                return self._checked(_data_decoder.decode(raw))
            elif kind == b"done":
                self._check_done(_done_decoder.decode(raw))
            else:
                raise self._damaged(f"a block is of a kind that is not known here: {kind!r}")
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise self._damaged(f"a block does not unpack: {error}") from None
        return None

    def _take_head(self, head: ExportHead) -> None:
        if head.version != VERSION or head.fields != FIELDS:
            raise self._damaged(f"it is of version {head.version}, which this streamq does not read")
        self.head = head

    def _checked(self, block: DataBlock) -> DataBlock:
        for record in block.records:
            if record.offset <= self._last.get(block.partition, -1):
                raise self._damaged(f"offset {record.offset} of partition {block.partition} is out of order")
            self._last[block.partition] = record.offset
        self.counts[block.partition] = self.counts.get(block.partition, 0) + len(block.records)
        return block

    def _check_done(self, done: _Done) -> None:
        if done.records != sum(self.counts.values()) or done.partitions != self.counts or done.blocks != self._blocks - 1:
            raise self._damaged(f"it should have {done.records} record(s) in {done.blocks} blocks")
        self.is_complete = True

    def _damaged(self, what: str) -> CorruptDataError:
        return CorruptDataError(
            f"this is no whole export, at byte {self._position}: {what}; {self.progress}",
            code="data_damaged",
            hint="export again; the part before the damage is good",
        )
