"""What a consumer hands out, and how a batch is turned into it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from streamq.model.batches import Batch
from streamq.wire.compression import decompress
from streamq.wire.records import unpack_rows

__all__ = ["Record", "Stable", "Tip", "records_of"]

NO_HEADERS: Final[Mapping[str, bytes]] = MappingProxyType({})


class Record(msgspec.Struct, frozen=True, gc=False):
    """`timestamp` is the producer's, in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = NO_HEADERS


class Tip(msgspec.Struct, frozen=True):
    """A partition's end as R replicas tell it: every record acked before the question lies below `high_watermark`."""

    topic: str
    partition: int
    high_watermark: int
    epoch: int
    start_offset: int
    answered: tuple[str, ...]
    """The brokers that answered."""


class Stable(msgspec.Struct, frozen=True):
    """How far a partition can be read: below `offset` every transaction is decided. `tip` is its end, by a quorum read.

    Where they differ, transaction `number` of the producer `name` is open, and its first record there was appended at `began_ms`.
    """

    topic: str
    partition: int
    offset: int
    tip: int
    start_offset: int
    name: str = ""
    number: int = 0
    began_ms: int = 0


def records_of(topic: str, partition: int, batch: Batch, *, skip: int) -> list[Record]:
    """The batch's records without the first `skip`. Raises CorruptDataError; takes no more memory than the header announced."""
    header = batch.header
    raw = decompress(batch.payload, compression=header.compression, raw_bytes=header.raw_bytes)
    rows = unpack_rows(raw, records=header.records)
    if skip:
        del rows[:skip]
    first = header.first_timestamp
    return [
        Record(topic, partition, offset, first if row.time is None else first + row.time, row.key, row.value, row.headers or NO_HEADERS)
        for offset, row in enumerate(rows, header.base + skip)
    ]
