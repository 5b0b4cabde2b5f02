"""The consumer's side of one partition: which replica it reads from, and which of what arrives may be handed out. Pure.

`position` is the next offset to hand out, `expected` the next to receive; what lies between is buffered by the caller. A batch is taken
when it contains `expected` and ends at or below the high watermark told with it: a repeat is dropped, the part of the first batch before
the place asked for is skipped, and a hole means that this replica is left and asked for nothing more (P-26). So whatever replicas do,
what is handed out is consecutive.

The window, what a broker may send ahead, begins small at each new place and grows by what the application has done with (as TCP's slow
start does): one record read at a place costs one batch, a stream soon has all of it.

A replica that is silent may be idle or left behind. When nothing came for a while, another broker reads the tip from a quorum (P-25); if
that is past what was received and still nothing comes, the next replica is asked.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec

from streamq.model.errors import CorruptDataError, NotFoundError, OffsetError, RefusedError, StreamqError, UnavailableError
from streamq.model.limits import FRAME_PAYLOAD_BYTES_MAX, KiB

__all__ = ["Credit", "Effect", "Fail", "Leave", "Locate", "PartitionSession", "ReadTip", "Route", "Span", "Subscribe", "Take", "Tuning"]

PAUSE_S_MIN: Final = 0.01
PAUSE_S_MAX: Final = 0.5
REACH_S: Final = 0.3
"""How long to wait for a connection before the next replica is asked; the dial goes on meanwhile."""
TIP_CHECK_S_MAX: Final = 5.0
DAMAGED_TRIES: Final = 3
"""Replicas asked, or the only one asked again, before damage is believed to be everywhere."""
CREDIT_SHARE: Final = 4
"""Credit is given back when so much of the window, a quarter, was handed out."""
FIRST_WINDOW_BYTES: Final = 64 * KiB
OVERDRAFT_BYTES_MAX: Final = FRAME_PAYLOAD_BYTES_MAX
"""A broker sends whole batches, so it may go past its credit, but not by more than a frame."""
NEVER: Final = float("inf")


class Route(Enum):
    """Where the session stands with the replica that it reads from."""

    LOCATING = "no replica is known; waits for metadata"
    REACHING = "a replica is chosen; waits for its connection"
    STREAMING = "subscribed; batches come as far as the credit goes"
    PAUSING = "refused; waits a little before it asks the next"
    FAILED = "nothing more can be read from this place; a seek begins anew"


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    window_bytes: int
    stall_s: float
    tip_check_s: float
    patience_s: float


class Span(msgspec.Struct, frozen=True):
    """A batch that arrived: its offsets, and its size."""

    base: int
    end: int
    size: int


class Subscribe(msgspec.Struct, frozen=True):
    """Have a connection to this broker and subscribe there; `attempt` goes with everything that comes of it."""

    broker: str
    attempt: int


class Leave(msgspec.Struct, frozen=True):
    """End the present subscription, if there is one."""


class Take(msgspec.Struct, frozen=True):
    """Buffer the batch at this place of those that arrived, without its first `skip` records."""

    at: int
    skip: int


class Credit(msgspec.Struct, frozen=True):
    size: int


class ReadTip(msgspec.Struct, frozen=True):
    """A quorum read of the tip, by another broker than `avoid` if possible; answered by `on_tip`, or not at all."""

    avoid: str


class Locate(msgspec.Struct, frozen=True):
    """Ask for fresh metadata; answered by `on_view`, `on_gone`, or not at all."""


class Fail(msgspec.Struct, frozen=True):
    """To be raised once what is buffered was handed out."""

    error: StreamqError


Effect = Subscribe | Leave | Take | Credit | ReadTip | Locate | Fail


class PartitionSession:
    """Invariants: `position <= expected`; `_credit` is what the broker may still send; `_buffered` counts what was handed out, too, until
    the application comes for more; `attempt` grows with every subscription, and what comes of an older one is ignored.
    """

    def __init__(self, *, offset: int, from_earliest: bool, replicas: Sequence[str], only: str, spread: int, tuning: Tuning) -> None:
        """`only` names the one broker to read from, if not empty; `spread` says with which replica to begin."""
        self.position = offset
        self.expected = offset
        self.route = Route.LOCATING
        self.source = ""
        self.attempt = 0
        self.trouble: StreamqError | None = None
        """Why nothing comes at the moment, if something is wrong."""
        self._from_earliest = from_earliest
        self._only = only
        self._tuning = tuning
        self._spread = spread
        self._replicas: tuple[str, ...] = ()
        self._known_tip = 0
        self._window = min(FIRST_WINDOW_BYTES, tuning.window_bytes)
        self._credit = 0
        self._buffered = 0
        self._handed_out = 0
        self._owed = 0
        self._moved_at = 0.0
        self._served_at: float | None = None
        self._tip_due = NEVER
        self._tip_interval = tuning.tip_check_s
        self._until = NEVER
        self._pause = PAUSE_S_MIN
        self._switches = 0
        self._damaged = (0, 0)
        """An offset that could not be read, and how often."""
        self._set_replicas(replicas)

    # --- what is asked of it -------------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float:
        if self.route is Route.FAILED:
            return NEVER
        if self.route is not Route.STREAMING:
            return min(self._until, self._patience_ends)
        if self._credit <= 0:
            return NEVER
        return self._moved_at + self._tuning.stall_s if self.expected < self._known_tip else self._tip_due

    @property
    def credit(self) -> int:
        """What to grant with the subscription that is made now."""
        return self._credit

    def check(self) -> None:
        assert self.position <= self.expected
        assert self._buffered >= 0
        assert self.source or self.route in (Route.LOCATING, Route.FAILED, Route.PAUSING)

    # --- inputs --------------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        self._served_at = now
        return self._begin(now)

    def on_subscribed(self, attempt: int, now: float) -> None:
        """The subscription from `expected`, with `credit`, is on its way."""
        if attempt == self.attempt and self.route is Route.REACHING:
            self.route, self._until = Route.STREAMING, NEVER
            self._moved_at = now
            self._tip_due = now + self._tip_interval

    def on_records(self, attempt: int, spans: Sequence[Span], high_watermark: int, now: float) -> list[Effect]:
        """Batches that arrived in one frame; none of them: the stream is alive."""
        if attempt != self.attempt or self.route is not Route.STREAMING:
            return []
        self._served_at = now
        self._known_tip = max(self._known_tip, high_watermark)
        effects: list[Effect] = []
        for at, span in enumerate(spans):
            self._credit -= span.size
            if span.end <= self.expected:
                self._owed += span.size
                continue
            fault = self._fault(span, high_watermark)
            if fault:
                self.trouble = UnavailableError(f"{self.source} {fault} offset {span.base}", code="unavailable")
                return effects + self._switch(now)
            effects.append(Take(at, self.expected - span.base))
            self.expected = span.end
            self._buffered += span.size
            self._moved(now)
        self.check()
        return effects + self._give_credit()

    def _fault(self, span: Span, high_watermark: int) -> str:
        if span.base > self.expected:
            return "left a hole before"
        if span.end > high_watermark:
            return "sent what cannot be read yet:"
        return "sent more than it had credit for:" if self._credit < -OVERDRAFT_BYTES_MAX else ""

    def on_handed_out(self, end: int, size: int) -> None:
        """A buffered batch that ends at `end` was taken by the application, which is busy with it until `on_finished`."""
        assert self.position < end <= self.expected
        self.position = end
        self._from_earliest = False
        self._handed_out += size

    def on_finished(self) -> list[Effect]:
        """The application has come for more than it was handed so far."""
        size, self._handed_out = self._handed_out, 0
        self._buffered -= size
        growth = min(size, self._tuning.window_bytes - self._window)
        self._window += growth
        self._owed += size + growth
        return self._give_credit()

    def on_damaged(self, error: CorruptDataError, now: float) -> list[Effect]:
        """The batch at `position` does not unpack; the caller has dropped everything buffered. Another replica may have it whole."""
        self.expected = self.position
        self._buffered = self._handed_out = 0
        if self._is_damaged_everywhere():
            return self._fail(error)
        self.trouble = error
        return self._switch(now)

    def on_ended(self, attempt: int, error: StreamqError, now: float) -> list[Effect]:
        """The subscription ended, or could not be made."""
        if attempt != self.attempt or self.route not in (Route.STREAMING, Route.REACHING):
            return []
        self.trouble = error
        if isinstance(error, OffsetError):
            return self._on_offset_refused(error, now)
        if isinstance(error, CorruptDataError) and self._is_damaged_everywhere():
            return self._fail(error)
        if isinstance(error, RefusedError) and error.code != "limit_reached":
            return self._fail(error)
        effects = self._switch(now)
        if isinstance(error, NotFoundError) or error.code == "not_replica":
            effects.append(Locate())
        return effects

    def _is_damaged_everywhere(self) -> bool:
        """Counts one more try that failed at `expected`."""
        tries = self._damaged[1] if self._damaged[0] == self.expected else 0
        self._damaged = (self.expected, tries + 1)
        return tries + 1 >= DAMAGED_TRIES

    def on_tip(self, high_watermark: int, start_offset: int, now: float) -> list[Effect]:
        """A quorum read of the tip, whoever asked for it."""
        self._known_tip = max(self._known_tip, high_watermark)
        if self._from_earliest and self.position == self.expected < start_offset:
            self.position = self.expected = start_offset
            if self.route is Route.PAUSING:
                return self._begin(now)
        if self.expected < self._known_tip:
            self._moved_at = max(self._moved_at, now - self._tuning.stall_s / 2)
        return []

    def on_view(self, replicas: Sequence[str], now: float) -> list[Effect]:
        self._set_replicas(replicas)
        return self._begin(now) if self.route is Route.LOCATING and self._replicas else []

    def on_gone(self, error: StreamqError) -> list[Effect]:
        """Fresh metadata does not have the partition: a hint (P-1), believed when a replica said so too."""
        return self._fail(error) if isinstance(self.trouble, NotFoundError) else []

    def on_time(self, now: float) -> list[Effect]:
        """To be called at `next_deadline`, at the latest soon after."""
        if self.route is Route.FAILED:
            return []
        if self.route is not Route.STREAMING:
            if self._patience_ends <= now:
                reason = self.trouble.message if self.trouble is not None else "no answer"
                message = f"no broker has served this partition for {self._tuning.patience_s:g} s: {reason}"
                return self._fail(UnavailableError(message, code="unavailable"))
            if self._until > now:
                return []
            if self.route is Route.REACHING:
                return self._switch(now)
            return [*self._begin(now), Locate()]
        if self._credit <= 0:
            return []
        if self.expected < self._known_tip:
            if now < self._moved_at + self._tuning.stall_s:
                return []
            self.trouble = UnavailableError(f"{self.source} does not deliver offset {self.expected}", code="unavailable")
            return self._switch(now)
        if now < self._tip_due:
            return []
        self._tip_interval = min(2 * self._tip_interval, max(TIP_CHECK_S_MAX, self._tuning.tip_check_s))
        self._tip_due = now + self._tip_interval
        return [ReadTip(self.source)]

    def seek(self, offset: int, now: float, *, from_earliest: bool = False) -> list[Effect]:
        """Goes on at `offset`; the caller has dropped everything buffered."""
        self.position = self.expected = offset
        self._from_earliest = from_earliest
        self._buffered = self._handed_out = self._owed = 0
        self._damaged = (0, 0)
        self._switches = 0
        self._window = min(FIRST_WINDOW_BYTES, self._tuning.window_bytes)
        self._served_at = now
        return [Leave(), *self._begin(now)]

    def close(self) -> list[Effect]:
        """For good: nothing more is wanted of this partition."""
        self.attempt += 1
        self.route, self._until = Route.FAILED, NEVER
        return [Leave()]

    def limit_window(self, window_bytes: int) -> None:
        """What this partition may have fetched ahead from now on; more of what is on its way already is taken, too."""
        self._tuning = msgspec.structs.replace(self._tuning, window_bytes=window_bytes)
        excess = max(0, self._window - window_bytes)
        self._window -= excess
        self._owed -= excess

    # --- which replica -------------------------------------------------------------------------------------------------------

    @property
    def _patience_ends(self) -> float:
        return NEVER if self._served_at is None else self._served_at + self._tuning.patience_s

    def _set_replicas(self, replicas: Sequence[str]) -> None:
        self._replicas = (self._only,) if self._only else tuple(replicas)

    def _begin(self, now: float) -> list[Effect]:
        """Subscribes to the present source, or the first one."""
        if not self._replicas:
            self.route, self._until = Route.LOCATING, now + self._pause
            return [Locate()]
        if self.source not in self._replicas:
            self.source = self._replicas[self._spread % len(self._replicas)]
        self.route, self._until = Route.REACHING, now + REACH_S
        self.attempt += 1
        room = self._window - self._buffered
        self._credit, self._owed = max(0, room), min(0, room)  # what was overdrawn is still to be worked off
        return [Subscribe(self.source, self.attempt)]

    def _switch(self, now: float) -> list[Effect]:
        """Leaves this replica for the next; when all were tried, after a pause."""
        self.attempt += 1
        if self._replicas:
            at = self._replicas.index(self.source) + 1 if self.source in self._replicas else self._spread
            self.source = self._replicas[at % len(self._replicas)]
        self._switches += 1
        if self._switches % max(1, len(self._replicas)):
            return [Leave(), *self._begin(now)]
        self.route, self._until = Route.PAUSING, now + self._pause
        self._pause = min(2 * self._pause, PAUSE_S_MAX)
        return [Leave()]

    def _on_offset_refused(self, error: OffsetError, now: float) -> list[Effect]:
        if error.code == "offset_trimmed" and self._from_earliest and self.position == self.expected:
            self._become_pausing(now)  # the start has moved on since it was told: read it anew, and begin there
            return [Leave(), ReadTip("")]
        if error.code == "offset_ahead" and self.expected <= self._known_tip:
            return self._switch(now)  # it is the replica that is behind
        return self._fail(error)

    def _become_pausing(self, now: float) -> None:
        self.attempt += 1
        self.route, self._until = Route.PAUSING, now + self._pause
        self._pause = min(2 * self._pause, PAUSE_S_MAX)

    def _moved(self, now: float) -> None:
        self.trouble = None
        self._moved_at = now
        self._switches = 0
        self._pause = PAUSE_S_MIN
        self._tip_interval = self._tuning.tip_check_s
        self._tip_due = now + self._tip_interval

    def _give_credit(self) -> list[Effect]:
        if self.route is not Route.STREAMING or self._owed * CREDIT_SHARE < self._window:
            return []
        grant, self._owed = self._owed, 0
        self._credit += grant
        return [Credit(grant)]

    def _fail(self, error: StreamqError) -> list[Effect]:
        self.attempt += 1
        self.route, self._until, self.trouble = Route.FAILED, NEVER, error
        return [Leave(), Fail(error)]
