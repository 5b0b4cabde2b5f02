"""The batch from which records are handed out."""

from collections.abc import Iterator
from itertools import islice
from operator import length_hint

from streamq_consumer.feed import Feed
from streamq_consumer.records import Record

__all__ = ["Hand"]


class Hand:
    """Unpacked records of one feed, those that are left. Invariant: its feed's session stands behind the last of them."""

    def __init__(self) -> None:
        self.feed: Feed | None = None
        """Of which the records are, or were."""
        self.yielded: Feed | None = None
        """Of which the application has the record before `position` in its hands, as one that iterates does."""
        self._records: list[Record] = []
        self._left: Iterator[Record] = iter(self._records)

    def __len__(self) -> int:
        return length_hint(self._left)

    def __iter__(self) -> Iterator[Record]:
        """What is left, taken one by one; ends where it is dropped meanwhile."""
        return self._left

    def take(self, max_records: int) -> list[Record]:
        return list(islice(self._left, max_records))

    def fill(self, feed: Feed, records: list[Record]) -> None:
        """Another batch; what was left of the one before is gone."""
        self.feed, self._records = feed, records
        self._left = iter(records)

    def drop(self, feed: Feed) -> None:
        """Hands out no more of it: it goes on elsewhere, or is closed."""
        if feed is self.feed:
            self._records.clear()
            self.feed = self.yielded = None

    def position(self, feed: Feed) -> int:
        """The offset of the next record to be handed out of it."""
        return feed.session.position - (len(self) if feed is self.feed else 0)
