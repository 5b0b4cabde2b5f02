"""Batches as the cores and brokers see them: a header with fields, and a payload nobody looks into.

The same bytes lie on the wire, in the journal, in the log file and in memory. `wire.batch_format` turns bytes into these.
"""

from typing import Final, Literal

import msgspec

from streamq.model.ids import NO_PRODUCER, PartitionId, ProducerId

__all__ = [
    "BATCH_HEADER_BYTES",
    "COMPRESSION_NONE",
    "COMPRESSION_ZSTD",
    "FLAG_CONDITIONAL",
    "FLAG_CONTROL",
    "FLAG_FENCED",
    "FLAG_IDENTIFIED",
    "FLAG_TRANSACTIONAL",
    "FORMAT_MSGPACK",
    "Batch",
    "BatchHeader",
    "Compression",
    "fault_of_flags",
]

BATCH_HEADER_BYTES: Final = 128
FORMAT_MSGPACK: Final = 1
COMPRESSION_NONE: Final = 0
COMPRESSION_ZSTD: Final = 1
FLAG_CONTROL: Final = 1
"""A batch of exactly one record that is for brokers and producers: it has an offset, and no consumer hands it out."""
FLAG_CONDITIONAL: Final = 2
"""On its way to a sequencer: `base` is where the producer wants it to lie, or nowhere. No batch is stored with it."""
FLAG_TRANSACTIONAL: Final = 4
"""Read only if its producer's transaction `mark` is committed."""
FLAG_IDENTIFIED: Final = 8
"""A batch of exactly one record, which has an id: `producer` is that id's hash. The sequencer puts into `mark` for how many milliseconds
another one of the same id is taken for this one."""
FLAG_FENCED: Final = 16
"""`mark` is a fencing token: refused where a batch with a higher one is stored."""
FLAGS_THAT_GO_TOGETHER: Final = frozenset(
    (0, FLAG_CONTROL, FLAG_CONDITIONAL, FLAG_TRANSACTIONAL, FLAG_IDENTIFIED, FLAG_FENCED, FLAG_CONDITIONAL | FLAG_FENCED)
)
Compression = Literal[0, 1]


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """What a batch says of itself. `epoch`, `base` and `append_time` are zero until a sequencer has stamped it; epoch 0 never exists.

    `[base, end)` are the offsets of its records, `sequence` numbers the producer's batches in this partition (0, 1, 2, …).
    `mark` is the producer's own position (that of the last record, in whatever it reads from), 0 where it has none; flags give it another
    meaning.
    Times are milliseconds since 1970. `payload_bytes` counts the payload alone, `raw_bytes` what it decompresses to.
    """

    partition: PartitionId
    records: int
    payload_bytes: int
    raw_bytes: int
    payload_crc: int
    producer: ProducerId
    producer_epoch: int
    sequence: int
    first_timestamp: int
    max_timestamp: int
    epoch: int
    base: int
    append_time: int
    record_format: int = FORMAT_MSGPACK
    compression: int = COMPRESSION_ZSTD
    flags: int = 0
    mark: int = 0

    @property
    def is_conditional(self) -> bool:
        return bool(self.flags & FLAG_CONDITIONAL)

    @property
    def is_control(self) -> bool:
        return bool(self.flags & FLAG_CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.flags & FLAG_TRANSACTIONAL)

    @property
    def is_fenced(self) -> bool:
        return bool(self.flags & FLAG_FENCED)

    @property
    def is_identified(self) -> bool:
        return bool(self.flags & FLAG_IDENTIFIED)

    @property
    def end(self) -> int:
        return self.base + self.records

    @property
    def size(self) -> int:
        """Bytes on the wire and on disk: header and payload."""
        return BATCH_HEADER_BYTES + self.payload_bytes


def fault_of_flags(header: BatchHeader) -> str | None:
    """Why no batch, stored or on its way to a sequencer, is such a one; None if it may be."""
    if header.flags not in FLAGS_THAT_GO_TOGETHER:
        return f"flags {header.flags} are not known here, or do not go together"
    if header.flags & (FLAG_CONTROL | FLAG_IDENTIFIED) and header.records != 1:
        return f"a batch with flags {header.flags} has one record, not {header.records}"
    if header.is_identified:
        if header.producer == NO_PRODUCER or header.producer_epoch or header.sequence:
            return "a record with an id has neither a producer epoch nor a sequence"
        if bool(header.mark) != bool(header.epoch):
            return "for how long a record's id counts is the sequencer's to give"
    if header.is_transactional and (header.producer == NO_PRODUCER or not header.mark):
        return "a batch of a transaction has a producer, and the transaction's number"
    return None


class Batch(msgspec.Struct, frozen=True, gc=False):
    """A batch with its bytes: `head` is the encoded header (`BATCH_HEADER_BYTES` long), `payload` the records."""

    header: BatchHeader
    head: bytes
    payload: bytes

    @property
    def base(self) -> int:
        return self.header.base

    @property
    def end(self) -> int:
        return self.header.base + self.header.records

    @property
    def size(self) -> int:
        return len(self.head) + len(self.payload)
