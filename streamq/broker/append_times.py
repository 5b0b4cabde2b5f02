"""When what lies at an offset was appended, as its batch's header says: what the age of a consumer's next record is told by."""

from collections.abc import Sequence
from typing import Final

from streamq.broker.each import each
from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.log.replica import Readable, Unreadable
from streamq.model.errors import StreamqError
from streamq.model.messages import PlaceAsked
from streamq.storage.interface import DamagedRangeError

__all__ = ["append_times"]

AT_ONCE: Final = 8
"""Places of one request that are looked up at a time: each may have to read from the disk."""


async def append_times(node: Node, places: Sequence[PlaceAsked]) -> tuple[int | None, ...]:
    """In milliseconds since 1970; None for what this replica does not hold, does not know of, or cannot read now."""
    found: list[int | None] = [None] * len(places)

    async def look(at: int) -> None:
        partition = node.partitions.get(places[at].partition)
        if partition is not None:
            found[at] = await _append_time(partition, places[at].offset)

    await each(range(len(places)), look, at_once=AT_ONCE)
    return tuple(found)


async def _append_time(partition: Partition, offset: int) -> int | None:
    replica = partition.replica
    readable = replica.readable(offset)
    if readable is Unreadable.TRIMMED:
        offset = replica.start_offset
        readable = replica.readable(offset)
    if not isinstance(readable, Readable):
        return None
    try:
        headers = await partition.node.storage.headers(partition.id, readable.epoch, offset, max_batches=1)
        if not headers:  # it was trimmed a moment ago
            return None
        return headers[0].append_time
    except DamagedRangeError:
        pass
    try:
        batches = await partition.read(offset, max_bytes=1)  # mends it (P-30)
    except StreamqError:
        return None
    return batches[0].header.append_time if batches else None
