"""The batch header in bytes, and its two checksums.

    magic "SQB2" | header crc | record format, compression, flags | records | payload bytes | raw bytes | payload crc | 0
    | partition id | producer id | producer epoch | 0 | sequence | mark | first, max timestamp | epoch | base | append time

The header's CRC-32C covers everything after it in the header, the payload's checksum included, so a batch is bound to its partition and
its position (P-28). A producer leaves epoch, base and append time zero; the sequencer stamps them, and only the header is written anew.
"""

import struct
from collections.abc import Iterator
from typing import Final

import google_crc32c
import msgspec

from streamq.model.batches import (
    BATCH_HEADER_BYTES,
    COMPRESSION_ZSTD,
    FLAG_CONDITIONAL,
    FORMAT_MSGPACK,
    Batch,
    BatchHeader,
    fault_of_flags,
)
from streamq.model.errors import RefusedError
from streamq.model.limits import BATCH_PAYLOAD_BYTES_MAX, BATCH_RAW_BYTES_MAX, BATCH_RECORDS_MAX, OFFSET_MAX

__all__ = ["MAGIC", "BadBatchError", "decode_header", "encode_batch", "encode_header", "payload_is_whole", "split_batches", "stamp"]

MAGIC: Final = b"SQB2"
_head: Final = struct.Struct("<4sI")
_body: Final = struct.Struct("<BBHIIIII16s16sIIQQqqQQq")
assert _head.size + _body.size == BATCH_HEADER_BYTES


class BadBatchError(RefusedError):
    """Bytes that are no whole, undamaged batch within the bounds."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bad_batch")


def encode_header(header: BatchHeader) -> bytes:
    body = _body.pack(
        header.record_format, header.compression, header.flags,
        header.records, header.payload_bytes, header.raw_bytes, header.payload_crc, 0,
        header.partition, header.producer, header.producer_epoch, 0,
        header.sequence, header.mark, header.first_timestamp, header.max_timestamp, header.epoch, header.base, header.append_time,
    )  # fmt: skip
    return _head.pack(MAGIC, google_crc32c.value(body)) + body


def encode_batch(header: BatchHeader, payload: bytes) -> Batch:
    """A new batch; `payload_bytes` and `payload_crc` are filled in here."""
    header = msgspec.structs.replace(header, payload_bytes=len(payload), payload_crc=google_crc32c.value(payload))
    return Batch(header, encode_header(header), payload)


def stamp(batch: Batch, *, epoch: int, base: int, append_time: int, window_ms: int = 0) -> Batch:
    """The batch with the place that a sequencer has given it; the payload is shared, not copied. `window_ms` is for how long its record's
    id counts."""
    h = batch.header
    header = BatchHeader(
        h.partition, h.records, h.payload_bytes, h.raw_bytes, h.payload_crc, h.producer, h.producer_epoch, h.sequence,
        h.first_timestamp, h.max_timestamp, epoch, base, append_time, h.record_format, h.compression, h.flags & ~FLAG_CONDITIONAL,
        window_ms or h.mark,
    )  # fmt: skip
    return Batch(header, encode_header(header), batch.payload)


def decode_header(head: bytes) -> BatchHeader:
    """Checks magic, checksum and bounds. Raises BadBatchError. Says nothing about the payload: see `payload_is_whole`."""
    if len(head) != BATCH_HEADER_BYTES:
        raise BadBatchError(f"a batch header has {BATCH_HEADER_BYTES} bytes, not {len(head)}")
    magic, crc = _head.unpack_from(head)
    if magic != MAGIC:
        raise BadBatchError(f"a batch begins with {MAGIC!r}, not {magic!r}")
    if google_crc32c.value(head[_head.size :]) != crc:
        raise BadBatchError("a batch header fails its checksum")
    (
        record_format, compression, flags, records, payload_bytes, raw_bytes, payload_crc, zero1,
        partition, producer, producer_epoch, zero2, sequence, mark, first_timestamp, max_timestamp, epoch, base, append_time,
    ) = _body.unpack_from(head, _head.size)  # fmt: skip
    if record_format != FORMAT_MSGPACK or compression > COMPRESSION_ZSTD or zero1 or zero2:
        raise BadBatchError(f"record format {record_format}, compression {compression} are not known here")
    if not 1 <= records <= BATCH_RECORDS_MAX:
        raise BadBatchError(f"a batch has 1 to {BATCH_RECORDS_MAX} records, not {records}")
    if payload_bytes > BATCH_PAYLOAD_BYTES_MAX or raw_bytes > BATCH_RAW_BYTES_MAX:
        raise BadBatchError(
            f"a batch of {payload_bytes} bytes ({raw_bytes} raw); at most {BATCH_PAYLOAD_BYTES_MAX} ({BATCH_RAW_BYTES_MAX})"
        )
    if base > OFFSET_MAX - records or max(epoch, sequence, mark) > OFFSET_MAX or min(first_timestamp, max_timestamp, append_time) < 0:
        raise BadBatchError("a batch header has a number out of range")
    header = BatchHeader(
        partition, records, payload_bytes, raw_bytes, payload_crc, producer, producer_epoch, sequence,
        first_timestamp, max_timestamp, epoch, base, append_time, record_format, compression, flags, mark,
    )  # fmt: skip
    if flags and (fault := fault_of_flags(header)):
        raise BadBatchError(fault)
    return header


def payload_is_whole(header: BatchHeader, payload: bytes) -> bool:
    return len(payload) == header.payload_bytes and google_crc32c.value(payload) == header.payload_crc


def split_batches(data: bytes) -> Iterator[Batch]:
    """The batches that lie back to back in `data`, each checked whole. Raises BadBatchError at the first that is not."""
    start, size = 0, len(data)
    while start < size:
        body = start + BATCH_HEADER_BYTES
        head = data[start:body]
        header = decode_header(head)
        end = body + header.payload_bytes
        payload = data[body:end]
        if not payload_is_whole(header, payload):
            raise BadBatchError(f"a batch's payload of {header.payload_bytes} bytes fails its checksum or is cut short")
        yield Batch(header, head, payload)
        start = end
