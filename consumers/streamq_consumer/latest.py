"""The last records over several partitions, in order of time."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from streamq.client.settings import refuse_unless
from streamq.client.times import Place
from streamq_consumer.records import Record

__all__ = ["LAST_RECORDS_MAX", "in_time_order", "read_last"]

LAST_RECORDS_MAX: Final = 1_000_000
"""Records that are held to be put in order."""
FETCH_RECORDS: Final = 20_000
FETCH_S: Final = 0.1
"""What lies before an end may be a control batch, of which nothing is handed out."""
FURTHER: Final = 4
"""How many times as much is read as was so far, where that was too little."""


class _Consumer(Protocol):
    @property
    def partitions(self) -> tuple[Place, ...]: ...
    def position(self, topic: str, partition: int) -> int: ...
    def positions(self) -> Mapping[Place, int]: ...
    def seek(self, topic: str, partition: int, offset: int) -> None: ...
    async def ranges(self) -> dict[Place, tuple[int, int]]: ...
    async def fetch(self, max_records: int = 500, *, timeout: float = 1.0) -> list[Record]: ...


async def read_last(consumer: _Consumer, count: int, ends: Mapping[Place, int]) -> list[Record]:
    """See `Consumer.last`. Any of the last `count` is among the last `count` of its partition, so no more is needed of any.

    Not every offset is handed out (control batches, aborted transactions), so where too few came it is read from further back.
    """
    partitions = len(consumer.partitions)
    refuse_unless(count >= 0, f"count is not negative, as {count} is", code="bad_request")
    refuse_unless(
        count * partitions <= LAST_RECORDS_MAX,
        f"the last {count} records over {partitions} partition(s) are too many to be put in order",
        code="bad_request",
        hint=f"ask for at most {LAST_RECORDS_MAX // partitions}, or of fewer partitions",
    )
    before = dict(consumer.positions())
    known = await consumer.ranges()
    stops = {place: max(start, min(ends.get(place, end), end)) for place, (start, end) in known.items()}
    held: dict[Place, list[Record]] = {place: [] for place in stops}
    ranges = {place: (max(known[place][0], stop - count), stop) for place, stop in stops.items()}
    try:
        while ranges:
            found = await _read_ranges(consumer, ranges)
            held = {place: [*found.get(place, ()), *records][-count:] if count else [] for place, records in held.items()}
            ranges = {
                place: (max(known[place][0], first - FURTHER * (stops[place] - first)), first)
                for place, (first, _) in ranges.items()
                if first > known[place][0] and len(held[place]) < count
            }
    except BaseException:
        for place, offset in before.items():
            consumer.seek(*place, offset)
        raise
    for place, stop in stops.items():
        if consumer.position(*place) != stop:
            consumer.seek(*place, stop)
    return in_time_order(held)[-count:] if count else []


async def _read_ranges(consumer: _Consumer, ranges: Mapping[Place, tuple[int, int]]) -> dict[Place, list[Record]]:
    """What there is from the first offset of each to below the second."""
    found: dict[Place, list[Record]] = {place: [] for place in ranges}
    for place, (first, _) in ranges.items():
        consumer.seek(*place, first)
    while any(consumer.position(*place) < stop for place, (_, stop) in ranges.items()):
        for record in await consumer.fetch(FETCH_RECORDS, timeout=FETCH_S):
            place = record.topic, record.partition
            if place in found and record.offset < ranges[place][1]:
                found[place].append(record)
    return found


def in_time_order(held: Mapping[Place, Sequence[Record]]) -> list[Record]:
    """All records by time, each partition's in its own order, whatever times its producers gave them."""
    keyed = []
    for place, records in held.items():
        latest = 0
        for record in records:
            latest = max(latest, record.timestamp)
            keyed.append((latest, *place, record.offset, record))
    return [row[-1] for row in sorted(keyed, key=lambda row: row[:-1])]
