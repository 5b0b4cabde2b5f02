"""Times and distances in logs, asked of a cluster: how far it is from a position to the tip, in records and in seconds.

The tip comes from quorum reads (P-24); the age of what lies at a position from one replica's headers, a request a broker for any number of
partitions. A replica that lacks the offset, or has not heard of it yet, says so, and the next one is asked.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import anyio
import msgspec

from streamq.client.cluster import Cluster
from streamq.client.each import each
from streamq.model.errors import NotFoundError, UnavailableError
from streamq.model.limits import PLACES_PER_REQUEST_MAX
from streamq.model.messages import PartitionView, PlaceAsked, ReadTimes, ReadTip, TimesRead, TipRead

__all__ = ["Lag", "Place", "find_views", "read_ages", "read_lags", "read_tips", "to_ms"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TIPS_AT_ONCE_MAX: Final = 32
ASK_S: Final = 1.0
"""How long one broker is waited for, before the next is asked."""
READ_S: Final = 6.0
PAUSE_S: Final = 0.1

Place = tuple[str, int]
"""Topic and partition."""


class Lag(msgspec.Struct, frozen=True):
    """What lies between a position and the tip. `seconds`: since the oldest of these records was appended, 0 without one."""

    records: int
    seconds: float


def to_ms(when: datetime) -> int:
    """Milliseconds since 1970, exactly, rounded up: no record before this is at or after `when`. A naive datetime is local time."""
    return -((EPOCH - when.astimezone(UTC)) // timedelta(milliseconds=1))


async def read_tips(cluster: Cluster, places: Iterable[Place]) -> dict[Place, TipRead]:
    """By quorum reads, some at a time. Raises what the first that fails raised: NotFoundError, UnavailableError."""
    tips: dict[Place, TipRead] = {}

    async def read(place: Place) -> None:
        tips[place] = await cluster.request(ReadTip(*place), TipRead)

    await each(places, read, at_once=TIPS_AT_ONCE_MAX)
    return tips


async def read_lags(cluster: Cluster, positions: Mapping[Place, int]) -> dict[Place, Lag]:
    """Of whoever stands at these offsets, a consumer or a group. What was trimmed is not counted: nobody can read it any more.

    Raises NotFoundError; UnavailableError when R replicas of a partition do not answer, or none that holds the position.
    """
    tips = await read_tips(cluster, positions)
    begins = {place: max(position, tips[place].start_offset) for place, position in positions.items()}
    behind = {place: at for place, at in begins.items() if at < tips[place].high_watermark}
    ages = await read_ages(cluster, behind)
    return {place: Lag(max(0, tips[place].high_watermark - begins[place]), ages.get(place, 0.0)) for place in positions}


async def find_views(cluster: Cluster, places: Iterable[Place]) -> dict[Place, PartitionView]:
    """Where these partitions live (a hint). Raises NotFoundError."""
    places = list(places)
    views: dict[Place, PartitionView] = {}
    if not places:
        return views
    found = {view.name: view for view in (await cluster.metadata(sorted({topic for topic, _ in places}))).topics if not view.error}
    for topic, index in places:
        view = found.get(topic)
        if view is None:
            raise NotFoundError(f"there is no topic {topic!r}", code="unknown_topic", hint="streamq topic ls shows all")
        if not 0 <= index < len(view.partitions):
            raise NotFoundError(
                f"topic {topic!r} has partitions 0 to {len(view.partitions) - 1}, not {index}",
                code="unknown_partition",
                hint=f"streamq topic describe {topic}",
            )
        views[topic, index] = view.partitions[index]
    return views


class _Wanted(NamedTuple):
    """Which replicas may still be asked about a place, the best first."""

    asked: PlaceAsked
    brokers: list[str]


async def read_ages(cluster: Cluster, offsets: Mapping[Place, int]) -> dict[Place, float]:
    """Seconds since the batches that hold these offsets were appended, by the clocks of brokers. The caller knows that the offsets are
    committed. Raises NotFoundError, or UnavailableError when no replica tells within some seconds."""
    ages: dict[Place, float] = {}
    trouble = ""
    with anyio.move_on_after(READ_S):
        while len(ages) < len(offsets):
            views = await find_views(cluster, [place for place in offsets if place not in ages])
            left = {
                place: _Wanted(PlaceAsked(view.id, offsets[place]), sorted(view.replicas, key=lambda b, v=view: b != v.sequencer))  # type: ignore[misc]
                for place, view in views.items()
            }
            while left:
                trouble = await _ask_each(cluster, left, ages) or trouble
                left = {place: wanted for place, wanted in left.items() if place not in ages and wanted.brokers}
            if len(ages) < len(offsets):
                await anyio.sleep(PAUSE_S)
    missing = next((place for place in offsets if place not in ages), None)
    if missing is not None:
        reason = f": {trouble}" if trouble else ""
        raise UnavailableError(
            f"no replica of {missing[0]}/{missing[1]} tells the age of offset {offsets[missing]}{reason}", code="timed_out"
        )
    return ages


async def _ask_each(cluster: Cluster, left: Mapping[Place, _Wanted], ages: dict[Place, float]) -> str:
    """Puts each place to its next replica, a request a broker. Returns why one of them did not answer, if so."""
    rows: dict[str, list[Place]] = {}
    for place, wanted in left.items():
        rows.setdefault(wanted.brokers.pop(0), []).append(place)
    troubles: list[str] = []

    async def ask(broker: str, places: list[Place]) -> None:
        request = ReadTimes(tuple(left[place].asked for place in places))
        try:
            with anyio.move_on_after(ASK_S) as waited:
                connection = await cluster.connection(broker)
                answer = await connection.request(request, TimesRead, timeout_s=ASK_S)
        except (UnavailableError, NotFoundError) as error:
            troubles.append(f"{broker}: {error.message}")
            return
        if waited.cancelled_caught:
            troubles.append(f"{broker} did not answer within {ASK_S:g} s")
            return
        for place, time in zip(places, answer.append_times, strict=False):
            if time is not None:
                ages[place] = max(0, answer.now_ms - time) / 1000

    async with anyio.create_task_group() as tasks:
        for broker, places in rows.items():
            for first in range(0, len(places), PLACES_PER_REQUEST_MAX):
                tasks.start_soon(ask, broker, places[first : first + PLACES_PER_REQUEST_MAX])
    return troubles[0] if troubles else ""
