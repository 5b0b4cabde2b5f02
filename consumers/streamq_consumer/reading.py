"""What the application has in its hands, by partition, and the feeds that open and close under it: the consumer's side of a group."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio

from streamq_consumer.membership import Place
from streamq_consumer.start import Start, open_feed

if TYPE_CHECKING:
    from streamq_consumer.consumer import Consumer

__all__ = ["GroupReading"]

OPENED_AT_ONCE_MAX: Final = 32


class GroupReading:
    """`Reading` for `GroupReader`. Invariant: `_in_hand` has the first offset that the application was handed since it came last."""

    def __init__(self, consumer: "Consumer", start: Start) -> None:
        self._consumer = consumer
        self._start = start
        self._in_hand: dict[Place, int] = {}
        self._opening = anyio.Semaphore(OPENED_AT_ONCE_MAX)

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
            feed = await open_feed(consumer._cluster, *place, offset, self._start, consumer._tuning(len(consumer._feeds) + 1))
        if consumer._fetcher is not None and place not in consumer._feeds and may_go_on():
            consumer._add(feed)
            self._share_windows()

    def close(self, place: Place) -> int:
        consumer = self._consumer
        at = consumer.position(*place)
        if (in_hand := self.in_hand(place)) is not None:
            self._in_hand[place] = in_hand
        consumer._remove(place)
        self._share_windows()
        return at

    def in_hand(self, place: Place) -> int | None:
        yielded = self._consumer._yielded
        if yielded is not None and (yielded.topic, yielded.index) == place:
            return min(self._consumer.position(*place) - 1, self._in_hand.get(place, yielded.session.position))
        return self._in_hand.get(place)

    def next_offset(self, place: Place) -> int | None:
        return self._consumer.position(*place) if place in self._consumer._feeds else None

    def wake(self) -> None:
        if self._consumer._fetcher is not None:
            self._consumer._fetcher.wake()

    def _share_windows(self) -> None:
        feeds = self._consumer._feeds
        if feeds:
            window_bytes = self._consumer.settings.window_bytes(partitions=len(feeds))
            for feed in feeds.values():
                feed.session.limit_window(window_bytes)
