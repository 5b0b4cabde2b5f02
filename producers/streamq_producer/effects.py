"""What goes into a partition's session and comes out of it. Pure."""

import msgspec

from streamq.model.errors import StreamqError
from streamq.model.messages import Ack

__all__ = ["Acked", "Effect", "Entry", "Failed", "Locate", "Open", "Transmit"]


class Entry:
    """A batch with its standing. `token` is the caller's. Invariant: `sequence` is set from the first try on."""

    __slots__ = ("deadline", "doubt", "gaps", "is_out", "records", "sequence", "tickets", "token")

    def __init__(self, token: object, *, records: int, deadline: float) -> None:
        self.token = token
        self.records = records
        self.deadline = deadline
        self.sequence: int | None = None
        self.doubt = False
        self.is_out = False
        """Sent to the present target, and not answered."""
        self.tickets: list[int] = []
        """Of its tries that may still be answered; the last is the present one."""
        self.gaps = 0

    @property
    def may_be_stored(self) -> bool:
        return self.doubt or bool(self.tickets)


class Transmit(msgspec.Struct, frozen=True):
    """Send these to the broker, in this order; each one's ticket is the last of its `tickets`."""

    broker: str
    entries: tuple[Entry, ...]


class Acked(msgspec.Struct, frozen=True):
    entry: Entry
    ack: Ack


class Failed(msgspec.Struct, frozen=True):
    """UnknownOutcomeError: it may be stored. Any other: it is certainly not."""

    entry: Entry
    error: StreamqError


class Open(msgspec.Struct, frozen=True):
    """Have a connection to this broker; answered by `on_opened` or `on_lost`."""

    broker: str


class Locate(msgspec.Struct, frozen=True):
    """Ask for fresh metadata; answered by `on_view`, `on_gone`, or not at all."""


Effect = Transmit | Acked | Failed | Open | Locate
