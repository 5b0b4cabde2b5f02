"""One incoming connection at a broker, as `broker.session`: outcomes and reports are gathered for it until the step ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamq.model.batches import Batch
from streamq.model.messages import Ack, Message, Nack, Produced, Stored, StoredRun
from tests.sim.tier1.network import Connection

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process
    from tests.sim.tier1.serving import Subscription

__all__ = ["ReplyTo", "Session"]


class Session:
    def __init__(self, process: "Process", connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self._acks: list[Ack] = []
        self._nacks: list[Nack] = []
        self._stored: list[StoredRun] = []
        self._is_touched = False
        self._subscription: Subscription | None = None

    def subscribe(self, subscription: "Subscription") -> None:
        """One at a time."""
        self.ended()
        self._subscription = subscription

    def ended(self) -> None:
        """The connection, or its subscription, is over."""
        if self._subscription is not None:
            self._subscription.end()
            self._subscription = None

    def ack(self, ack: Ack) -> None:
        self._acks.append(ack)
        self._touch()

    def nack(self, nack: Nack) -> None:
        self._nacks.append(nack)
        self._touch()

    def stored(self, message: Message, _batches: Sequence[Batch] = ()) -> None:
        """The reply handle of a `Store`."""
        assert isinstance(message, Stored)
        self._stored += message.runs
        self._touch()

    def _touch(self) -> None:
        if not self._is_touched:
            self._is_touched = True
            self.process.touched.append(self)
            self.process.wants_flush = True

    def flush(self) -> None:
        self._is_touched = False
        if self._acks or self._nacks:
            self.connection.tell(Produced(tuple(self._acks), tuple(self._nacks)))
            self._acks, self._nacks = [], []
        if self._stored:
            self.connection.tell(Stored(tuple(self._stored)))
            self._stored = []


class ReplyTo:
    """The reply handle of a request."""

    __slots__ = ("connection", "number")

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number

    def __call__(self, message: Message, batches: Sequence[Batch] = ()) -> None:
        self.connection.answer(self.number, message, batches)
