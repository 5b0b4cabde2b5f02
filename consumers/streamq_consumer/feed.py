"""One partition as the consumer reads it: the session, the stream that it is subscribed to, and the batches that wait to be handed out."""

from collections import deque
from typing import Protocol

from streamq.client.connection import Connection, Stream
from streamq.client.timers import NEVER
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.messages import PartitionView, Subscribe, Unsubscribe
from streamq.wire.framing import Frame
from streamq_consumer.session import PartitionSession

__all__ = ["Feed", "FeedOwner"]


class FeedOwner(Protocol):
    """Gets what comes of subscriptions."""

    def on_frame(self, feed: "Feed", attempt: int, frame: Frame) -> None: ...
    def on_ended(self, feed: "Feed", attempt: int, error: StreamqError) -> None: ...


class Feed:
    """Invariant: `batches` are consecutive from the session's `position` to its `expected`, but for the skipped records of the first."""

    def __init__(self, topic: str, index: int, view: PartitionView, session: PartitionSession, *, skip_before_ms: int) -> None:
        self.topic = topic
        self.index = index
        self.view = view
        self.session = session
        self.batches: deque[tuple[Batch, int]] = deque()
        self.error: StreamqError | None = None
        """To be raised once `batches` is empty; a seek clears it."""
        self.skip_before_ms = skip_before_ms
        """Records before this time are skipped until the first that is not."""
        self.is_paused = False
        self.is_listed = False
        """It waits its turn to hand out a batch."""
        self.wakes_at = NEVER
        self.stream: Stream | None = None

    @property
    def next_deadline(self) -> float:
        return self.session.next_deadline

    def subscribe(self, connection: Connection, owner: FeedOwner, attempt: int) -> None:
        """Raises UnavailableError."""
        assert self.stream is None
        request = Subscribe(self.view.id, self.session.expected, self.session.credit)
        self.stream = connection.open_stream(request, _Sink(self, owner, attempt))

    def leave(self) -> None:
        if self.stream is not None:
            self.stream.close(Unsubscribe())
            self.stream = None

    def drop(self) -> None:
        """Forgets what is buffered."""
        self.batches.clear()


class _Sink:
    def __init__(self, feed: Feed, owner: FeedOwner, attempt: int) -> None:
        self._feed = feed
        self._owner = owner
        self._attempt = attempt

    def on_frame(self, frame: Frame) -> None:
        self._owner.on_frame(self._feed, self._attempt, frame)

    def on_end(self, error: StreamqError) -> None:
        self._owner.on_ended(self._feed, self._attempt, error)
