"""One incoming connection, from a client or a broker: who it is, and the answers that are gathered for it until the next flush."""

from collections.abc import Iterable, Sequence

from streamq.broker.subscription import Subscription
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.ids import Member
from streamq.model.messages import Ack, Failure, Message, Nack, Produced, Stored, StoredRun
from streamq.net.channel import Channel

__all__ = ["ReplyTo", "Session", "failure_of"]


class Session:
    """`member` is who dialled, if it is a broker of this cluster, in its incarnation; None for clients."""

    def __init__(self, channel: Channel, member: Member | None, version: int) -> None:
        self.channel = channel
        self.member = member
        self.version = version
        self.requests = 0
        self.pending = 0
        """Batches taken from it whose outcome is not sent yet."""
        self.subscriptions: dict[int, Subscription] = {}
        self.acks: list[Ack] = []
        self.nacks: list[Nack] = []
        self.stored: list[StoredRun] = []

    @property
    def is_awaiting(self) -> bool:
        """Whether the other side waits for an answer."""
        return self.requests > 0 or self.pending > 0

    def flush(self) -> None:
        """One frame for all outcomes of batches, one for all reports of stored ones."""
        if self.acks or self.nacks:
            self.channel.gather(Produced(tuple(self.acks), tuple(self.nacks)))
            self.acks, self.nacks = [], []
        if self.stored:
            self.channel.gather(Stored(tuple(self.stored)))
            self.stored = []
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
    return Failure(error.code, error.message[:4000], error.hint[:4000], getattr(error, "sequencer", ""))
