"""Where a consumer begins: topics and partitions looked up, and the first offset of each settled."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal, NamedTuple
from zlib import crc32

import anyio

from streamq.client.cluster import Cluster
from streamq.client.settings import refuse_unless
from streamq.model.errors import NotFoundError, OffsetError, StreamqError, UnavailableError
from streamq.model.limits import OFFSET_MAX
from streamq.model.messages import FindOffset, OffsetFound, PartitionView, ReadTip, TipRead
from streamq_consumer.feed import Feed
from streamq_consumer.session import PartitionSession, Tuning

__all__ = ["Assignment", "Start", "check_start", "open_feed", "open_feeds"]

Start = Literal["earliest", "latest"] | int | datetime | Mapping[tuple[str, int], int]

LOOKUPS_AT_ONCE_MAX: Final = 32
FIND_S: Final = 6.0
FIND_PAUSE_S: Final = 0.1
ASK_S: Final = 1.0
"""How long one replica is waited for that looks up a time, before the next is asked."""


class Assignment(NamedTuple):
    """What is read; `partitions` None: all of each topic. `broker` is empty, or the one to read from."""

    topics: tuple[str, ...]
    partitions: frozenset[int] | None
    broker: str


class _Place(NamedTuple):
    offset: int
    from_earliest: bool = False
    skip_before_ms: int = 0


def check_start(start: Start) -> None:
    """Raises RefusedError for a start that no partition can have."""
    if isinstance(start, str):
        refuse_unless(start in ("earliest", "latest"), f"start is earliest, latest, an offset or a time, not {start!r}", code="bad_request")
    elif isinstance(start, datetime):
        refuse_unless(start.timestamp() >= 0, "start lies before 1970", code="bad_request")
    else:
        offsets = start.values() if isinstance(start, Mapping) else [start]
        for offset in offsets:
            refuse_unless(0 <= offset <= OFFSET_MAX, f"an offset is not negative, as {offset} is", code="bad_request")


async def open_feeds(cluster: Cluster, assignment: Assignment, start: Start, tuning: Callable[[int], Tuning]) -> list[Feed]:
    """A feed for each partition. Raises NotFoundError, OffsetError, or UnavailableError when a question had no answer."""
    chosen = await _look_up(cluster, assignment)
    places: dict[tuple[str, int], _Place] = {}
    errors: list[StreamqError] = []
    limiter = anyio.CapacityLimiter(LOOKUPS_AT_ONCE_MAX)

    async def settle(topic: str, index: int, view: PartitionView) -> None:
        try:
            async with limiter:
                places[topic, index] = await _place(cluster, topic, index, view, start)
        except StreamqError as error:
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for topic, index, view in chosen:
            tasks.start_soon(settle, topic, index, view)
    if errors:
        raise errors[0]
    tuned = tuning(len(chosen))
    return [_feed(topic, index, view, places[topic, index], assignment.broker, tuned) for topic, index, view in chosen]


async def open_feed(cluster: Cluster, topic: str, index: int, offset: int | None, start: Start, tuning: Tuning) -> Feed:
    """One partition, from `offset` on or, if there is none, from `start`. Raises as `open_feeds` does, but for an `offset` that cannot be
    read: reading it says so."""
    view = await cluster.topic(topic)
    if index >= len(view.partitions):
        raise NotFoundError(f"topic {topic!r} has partitions 0 to {len(view.partitions) - 1}, not {index}", code="unknown_partition")
    partition = view.partitions[index]
    place = _Place(offset) if offset is not None else await _place(cluster, topic, index, partition, start)
    return _feed(topic, index, partition, place, "", tuning)


def _feed(topic: str, index: int, view: PartitionView, place: _Place, broker: str, tuning: Tuning) -> Feed:
    session = PartitionSession(
        offset=place.offset,
        from_earliest=place.from_earliest,
        replicas=view.replicas,
        only=broker,
        spread=_spread(view),
        tuning=tuning,
    )
    return Feed(topic, index, view, session, skip_before_ms=place.skip_before_ms)


def _spread(view: PartitionView) -> int:
    """With which replica to begin: not every partition with its first."""
    return crc32(view.id)


async def _look_up(cluster: Cluster, assignment: Assignment) -> list[tuple[str, int, PartitionView]]:
    view = await cluster.metadata(assignment.topics)
    topics = {topic.name: topic for topic in view.topics if not topic.error}
    chosen: list[tuple[str, int, PartitionView]] = []
    for name in assignment.topics:
        topic = topics.get(name)
        if topic is None:
            raise NotFoundError(f"there is no topic {name!r}", code="unknown_topic", hint="streamq topic ls shows all")
        unknown = sorted((assignment.partitions or frozenset()) - set(range(len(topic.partitions))))
        if unknown:
            message = f"topic {name!r} has partitions 0 to {len(topic.partitions) - 1}, not {unknown[0]}"
            raise NotFoundError(message, code="unknown_partition")
        wanted = range(len(topic.partitions)) if assignment.partitions is None else sorted(assignment.partitions)
        chosen += [(name, index, topic.partitions[index]) for index in wanted]
    if assignment.broker and assignment.broker not in {broker.broker for broker in view.brokers}:
        known = ", ".join(sorted(broker.broker for broker in view.brokers))
        raise NotFoundError(f"there is no broker {assignment.broker!r} (known: {known})", code="unknown_broker")
    return chosen


async def _place(cluster: Cluster, topic: str, index: int, view: PartitionView, start: Start) -> _Place:
    if isinstance(start, Mapping):
        start = start.get((topic, index), "earliest")
    if isinstance(start, datetime):
        at = int(start.timestamp() * 1000)
        return _Place(await _find(cluster, view, at), skip_before_ms=at)
    if start == "earliest":
        return _Place(view.start_offset, from_earliest=True)
    tip = await cluster.request(ReadTip(topic, index), TipRead)
    if start == "latest":
        return _Place(tip.high_watermark)
    assert isinstance(start, int)
    where = f"partition {index} of {topic!r} has offsets {tip.start_offset} up to {tip.high_watermark}"
    if start < tip.start_offset:
        raise OffsetError(f"offset {start} is trimmed: {where}", code="offset_trimmed", hint="begin with earliest")
    if start > tip.high_watermark:
        raise OffsetError(f"offset {start} is past the tip: {where}", code="offset_ahead", hint="begin with latest")
    return _Place(start)


async def _find(cluster: Cluster, view: PartitionView, timestamp_ms: int) -> int:
    """Asks one replica after the other: only they have an index of times, and one that is behind may lack what is asked for.

    The first is the one that will be read from: it is connected.
    """
    at = _spread(view) % max(1, len(view.replicas))
    error: StreamqError = UnavailableError("the partition has no replicas", code="unavailable")
    with anyio.move_on_after(FIND_S):
        while view.replicas:
            for broker in (*view.replicas[at:], *view.replicas[:at]):
                error = UnavailableError(f"{broker} does not say where a time begins within {ASK_S:g} s", code="timed_out")
                try:
                    with anyio.move_on_after(ASK_S):
                        connection = await cluster.connection(broker)
                        return (await connection.request(FindOffset(view.id, timestamp_ms), OffsetFound, timeout_s=ASK_S)).offset
                except UnavailableError as failed:
                    error = failed
            await anyio.sleep(FIND_PAUSE_S)
    raise error
