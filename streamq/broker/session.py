"""One incoming connection, from a client or a broker: who it is, and the answers that are gathered for it until the next flush."""

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from streamq.broker.subscription import READS_AT_ONCE, Subscription
from streamq.model.batches import Batch
from streamq.model.errors import ProtocolError, StreamqError
from streamq.model.ids import Member
from streamq.model.messages import Ack, Failure, Message, Nack, Produced, Stored, StoredRun
from streamq.net.channel import Channel
from streamq.wire.framing import Frame

__all__ = ["ReplyTo", "Session", "answer", "buffers", "failure_of", "need_broker"]

OUTCOMES_PER_FRAME: Final = 4_096
"""With the longest names in every one of them the frame's header stays within its bound."""


class Session:
    """`member` is who dialled, if it is a broker of this cluster, in its incarnation; None for clients.

    `is_local`: it was dialled on this machine.
    """

    def __init__(self, channel: Channel, member: Member | None, version: int, *, is_local: bool = True) -> None:
        self.channel = channel
        self.is_local = is_local
        self.member = member
        self.version = version
        self.requests = 0
        self.pending = 0
        """Batches taken from it whose outcome is not sent yet."""
        self.subscriptions: dict[int, Subscription] = {}
        self.reads = trio.CapacityLimiter(READS_AT_ONCE)
        self.questions: set[trio.CancelScope] = set()
        """Requests under way that change nothing: they end with the connection."""
        self.acks: list[Ack] = []
        self.nacks: list[Nack] = []
        self.stored: list[StoredRun] = []

    @property
    def is_awaiting(self) -> bool:
        """Whether the other side waits for an answer."""
        return self.requests > 0 or self.pending > 0

    def flush(self) -> None:
        """One frame for all outcomes of batches, one for all reports of stored ones; more only where a header would be too large."""
        while self.acks or self.nacks:
            acks, nacks = self.acks[:OUTCOMES_PER_FRAME], self.nacks[:OUTCOMES_PER_FRAME]
            self.acks, self.nacks = self.acks[OUTCOMES_PER_FRAME:], self.nacks[OUTCOMES_PER_FRAME:]
            self.channel.gather(Produced(tuple(acks), tuple(nacks)))
        while self.stored:
            stored, self.stored = self.stored[:OUTCOMES_PER_FRAME], self.stored[OUTCOMES_PER_FRAME:]
            self.channel.gather(Stored(tuple(stored)))
        self.channel.push()


class ReplyTo:
    """Where the answer to one request goes; handed through the cores, which do not look into it."""

    __slots__ = ("request", "session")

    def __init__(self, session: Session, request: int) -> None:
        self.session = session
        self.request = request

    def __call__(self, message: Message, batches: Sequence[Batch] = ()) -> None:
        self.session.channel.send(message, request=self.request, is_answer=True, payload=buffers(batches))


def buffers(batches: Iterable[Batch]) -> list[bytes]:
    """The bytes of batches in order, as they are."""
    return [part for batch in batches for part in (batch.head, batch.payload)]


def failure_of(error: StreamqError) -> Failure:
    instead = getattr(error, "sequencer", "") or getattr(error, "coordinator", "")
    return Failure(error.code, error.message[:4000], error.hint[:4000], instead)


def answer(session: Session, frame: Frame, message: Message, batches: Sequence[Batch] = ()) -> None:
    """Answers a request; a one-way message has nobody to be answered."""
    if frame.request:
        session.channel.send(message, request=frame.request, is_answer=True, payload=buffers(batches))


def need_broker(session: Session) -> None:
    """Raises ProtocolError for a client's connection."""
    if session.member is None:
        raise ProtocolError("only a broker of this cluster may send this", code="protocol")
