"""Which record is the first at or after a time, exactly: replicas find its batch by headers, and that is read."""

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Final

from streamq.client.cluster import Cluster
from streamq.client.each import each
from streamq.client.lifetime import Lifetime
from streamq.client.settings import refuse_unless
from streamq.client.times import Place, find_views, read_tips, to_ms
from streamq.model.limits import OFFSET_MAX, KiB
from streamq.model.messages import TipRead
from streamq_consumer.feed import Feed
from streamq_consumer.fetcher import Fetcher
from streamq_consumer.session import Tuning
from streamq_consumer.start import Position, find_offset, make_feed
from streamq_consumer.stats import ConsumerMetrics

__all__ = ["When", "offsets_for_times"]

When = datetime | int
"""A datetime (a naive one is local time), or milliseconds since 1970."""

PARTITIONS_AT_ONCE_MAX: Final = 32
TUNING: Final = Tuning(window_bytes=64 * KiB, stall_s=0.5, tip_check_s=0.5, patience_s=6.0)
"""A batch or two of each partition come, and whoever cannot serve one is left soon."""


async def offsets_for_times(cluster: Cluster, times: Mapping[Place, When]) -> dict[Place, int]:
    """See `Consumer.offsets_for_times`."""
    wanted = {place: to_ms(when) if isinstance(when, datetime) else when for place, when in times.items()}
    for place, at in wanted.items():
        refuse_unless(0 <= at <= OFFSET_MAX, f"{times[place]} lies before 1970, or too far ahead", code="bad_request")
    views = await find_views(cluster, wanted)
    found: dict[Place, int] = {}
    places = iter(wanted.items())
    while some := dict(islice(places, PARTITIONS_AT_ONCE_MAX)):
        tips = await read_tips(cluster, some)
        feeds: list[Feed] = []

        async def open_feed(place: Place, some: dict[Place, int] = some, feeds: list[Feed] = feeds) -> None:
            position = Position(await find_offset(cluster, views[place], some[place]), skip_before_ms=some[place])
            feeds.append(make_feed(*place, views[place], position, "", TUNING))

        await each(some, open_feed, at_once=PARTITIONS_AT_ONCE_MAX)
        found |= await _first_of_each(cluster, feeds, tips)
    return {place: found[place] for place in times}


async def _first_of_each(cluster: Cluster, feeds: list[Feed], tips: Mapping[Place, TipRead]) -> dict[Place, int]:
    """Where what each feed hands out begins; its tip where nothing does before that. A replica that did not know the tip yet may have let a
    feed begin too early, never too late."""
    lifetime = Lifetime()
    await lifetime.open()
    fetcher = Fetcher(cluster, lifetime, ConsumerMetrics(), isolation="read_uncommitted")
    try:
        found = await _read_first(fetcher, feeds, {place: tip.high_watermark for place, tip in tips.items()})
    except BaseException as error:
        fetcher.close()
        await lifetime.close(error, error.__traceback__)
        raise
    fetcher.close()
    await lifetime.close(None, None)
    return found


async def _read_first(fetcher: Fetcher, feeds: list[Feed], tips: Mapping[Place, int]) -> dict[Place, int]:
    found: dict[Place, int] = {}
    for feed in feeds:
        if feed.session.position < tips[feed.topic, feed.index]:
            fetcher.add(feed)
    while True:
        taken = fetcher.take()
        if taken is not None:
            feed, records = taken
            found.setdefault((feed.topic, feed.index), records[0].offset)
            feed.leave()
        for feed in feeds:
            place = feed.topic, feed.index
            if feed.session.position >= tips[place]:
                found.setdefault(place, tips[place])
        if len(found) == len(feeds):
            return found
        if taken is None:
            await fetcher.wait_for_news()
