"""What the application has in its hands, by partition, and the feeds that open and close under it: the consumer's side of a group."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio

from streamq.model.errors import NotFoundError
from streamq.model.messages import PartitionView, TopicView
from streamq_consumer.membership import Place
from streamq_consumer.start import Start, open_feed

if TYPE_CHECKING:
    from streamq_consumer.consumer import Consumer

__all__ = ["GroupReading"]

OPENED_AT_ONCE_MAX: Final = 32
VIEW_AGE_S: Final = 1.0
"""A view of a topic is good for opening partitions for so long: where they live is a hint (P-1), which reading mends."""


class GroupReading:
    """`Reading` for `GroupReader`. Invariant: `_in_hand` has the first offset that the application was handed since it came last."""

    def __init__(self, consumer: "Consumer", start: Start) -> None:
        self._consumer = consumer
        self._start = start
        self._in_hand: dict[Place, int] = {}
        self._opening = anyio.Semaphore(OPENED_AT_ONCE_MAX)
        self._window_bytes = 0
        self._looking: dict[str, anyio.Lock] = {}
        self._views: dict[str, tuple[float, TopicView]] = {}

    # --- called by the consumer ----------------------------------------------------------------------------------------------

    def on_back(self) -> None:
        self._in_hand.clear()

    def on_handed_out(self, place: Place, offset: int) -> None:
        self._in_hand.setdefault(place, offset)

    def forget(self, place: Place) -> None:
        """The application goes on elsewhere in this partition."""
        self._in_hand.pop(place, None)

    # --- called by the group -------------------------------------------------------------------------------------------------

    async def open(self, place: Place, offset: int | None, *, may_go_on: Callable[[], bool]) -> None:
        consumer = self._consumer
        async with self._opening:
            view = await self._view(*place)
            partitions = max(len(consumer._feeds) + 1, consumer._held)
            feed = await open_feed(consumer._cluster, *place, view, offset, self._start, consumer._tuning(partitions))
        if consumer._fetcher is not None and place not in consumer._feeds and may_go_on():
            consumer._add(feed)
            self._share_windows()

    async def _view(self, topic: str, index: int) -> PartitionView:
        """Where the partition lives; one question for all of a topic that are opened together."""
        lock = self._looking.setdefault(topic, anyio.Lock())
        async with lock:
            known = self._views.get(topic)
            if known is None or anyio.current_time() > known[0] + VIEW_AGE_S:
                known = self._views[topic] = (anyio.current_time(), await self._consumer._cluster.topic(topic))
        partitions = known[1].partitions
        if index >= len(partitions):
            raise NotFoundError(f"topic {topic!r} has partitions 0 to {len(partitions) - 1}, not {index}", code="unknown_partition")
        return partitions[index]

    def close(self, place: Place) -> int:
        consumer = self._consumer
        at = consumer.position(*place)
        handling = consumer._handling
        if handling is not None and (dropped := handling.drop(place)) is not None:
            at = dropped
        if handling is None and (in_hand := self.in_hand(place)) is not None:
            self._in_hand[place] = in_hand
        consumer._remove(place)
        self._share_windows()
        return at

    def in_hand(self, place: Place) -> int | None:
        if self._consumer._handling is not None:
            return self._consumer._handling.first_undone(place)
        yielded = self._consumer._hand.yielded
        if yielded is not None and (yielded.topic, yielded.index) == place:
            return min(self._consumer.position(*place) - 1, self._in_hand.get(place, yielded.session.position))
        return self._in_hand.get(place)

    def next_offset(self, place: Place) -> int | None:
        return self._consumer.position(*place) if place in self._consumer._feeds else None

    def wake(self) -> None:
        if self._consumer._fetcher is not None:
            self._consumer._fetcher.wake()

    def _share_windows(self) -> None:
        """Once for any number of partitions that open or close, a good deal: each has to be told."""
        feeds = self._consumer._feeds
        window_bytes = self._consumer.settings.window_bytes(partitions=len(feeds))
        if feeds and not 0.8 <= window_bytes / (self._window_bytes or 1) <= 1.25:
            self._window_bytes = window_bytes
            for feed in feeds.values():
                feed.session.limit_window(window_bytes)
