"""The quorum read of the tip (P-24) as a state machine. Times are seconds of a steady clock.

It asks the replicas of one epoch e, which a hint names. R answers about e give U, the largest local tail: it bounds everything acked before
the read began, if e was still current then. That is confirmed by W unsealed answers, or by a read of the register begun after this one that
shows e last and open. Then the read ends when the high watermark of e reaches U, or, e being closed, with min(U, end). If a register begun
after this read shows another epoch before e was confirmed, everything begins again there. Answers about different epochs never meet.
"""

from typing import Final

import msgspec

from streamq.model.ids import Member, PartitionId
from streamq.model.messages import Tip, TipAnswer
from streamq.model.quorum import high_watermark
from streamq.model.registers import PartitionRegister, Segment

__all__ = ["AskTakeOver", "ReadRegister", "SendTip", "TipEffect", "TipRead", "TipResult"]

CONFIRM_AFTER_S: Final = 0.02
"""How long W unsealed answers are waited for before the register is asked."""
REGISTER_RETRY_S: Final = 0.05
ROUND_TIMEOUT_S: Final = 0.2
"""A replica that has not answered for so long is asked again."""
POLL_S_MAX: Final = 0.1


class SendTip(msgspec.Struct, frozen=True):
    """To `broker` (may be this one itself); then `on_answer`, or `on_unreachable`."""

    broker: str
    tip: Tip


class ReadRegister(msgspec.Struct, frozen=True):
    """Begin a quorum read of the register now; then `on_register`, or `on_read_failed`. At most one is under way."""


class AskTakeOver(msgspec.Struct, frozen=True):
    """The high watermark does not move: have a replica take over from `epoch`, one of `brokers`, best first."""

    epoch: int
    brokers: tuple[str, ...]


TipEffect = SendTip | ReadRegister | AskTakeOver


class TipResult(msgspec.Struct, frozen=True):
    """Everything acked before the read began lies below `high_watermark`, and everything below that is committed for ever."""

    epoch: int
    high_watermark: int
    answered: tuple[str, ...]
    start_offset: int = 0
    """The largest that the register or a replica told (P-41)."""


class TipRead:
    """Carry out each effect, feed each outcome, call `on_deadline(now)` at `next_deadline`, until `result` is there or patience ends.

    Invariants: `_bound` (U) is set once an epoch, from R answers; `_is_current` only by evidence from after the read began; `_unsealed`
    holds the largest tail that each replica told while it was not sealed, which is all that counts for the high watermark (P-17)."""

    def __init__(self, *, register: PartitionRegister | None, now: float, poll_s: float = 0.004, stall_s: float = 0.3) -> None:
        """`register` may be any hint, however old; None if there is none. `poll_s`: the first pause between questions; `stall_s`: how long
        the high watermark may lag before a takeover is asked for."""
        self.result: TipResult | None = None
        self._began = now
        self._poll_s = poll_s
        self._stall_s = stall_s
        self._hint = register if register is not None and register.chain and not register.deleted else None
        self._partition: PartitionId = b""
        self._segment: Segment | None = None
        self._tails: dict[str, int] = {}
        self._unsealed: dict[str, int] = {}
        self._asked_at: dict[str, float] = {}
        self._away: set[str] = set()
        self._bound: int | None = None
        self._told = 0
        self._start_offset = 0
        self._is_current = False
        self._may_be_over = False
        self._is_reading = False
        self._read_at = now
        self._next_read_at = now
        self._ask_at = now
        self._stall_at = now
        self._pause = poll_s

    def start(self) -> list[TipEffect]:
        if self._hint is None:
            return self._read_register(self._began)
        return self._begin(self._hint, self._began)

    @property
    def next_deadline(self) -> float | None:
        """None: only an outcome can bring it on (or it is over)."""
        if self.result is not None:
            return None
        reads = [self._read_at] if self._wants_register() else []
        times = reads if self._segment is None else [self._ask_at, self._stall_at, *reads]
        return min(times, default=None)

    def missing(self) -> str:
        """Why there is no result yet, for the error when the caller's patience ends."""
        segment = self._segment
        if segment is None:
            return "the register could not be read"
        if self._bound is None:
            return f"{len(self._tails)} of the {segment.read} replicas of epoch {segment.epoch} that a read needs answered"
        if not self._is_current:
            return (
                f"epoch {segment.epoch} could not be confirmed: {len(self._unsealed)} of {segment.write} unsealed answers, and no register"
            )
        return f"the high watermark of epoch {segment.epoch} stays at {self._high_watermark()}, below {self._bound}"

    # --- asking --------------------------------------------------------------------------------------------------------

    def _begin(self, register: PartitionRegister, now: float) -> list[TipEffect]:
        """Asks about the newest epoch in `register`; whatever was heard of another one is forgotten."""
        self._partition = register.id
        self._segment = segment = register.last
        self._start_offset = max(self._start_offset, register.start_offset)
        self._tails.clear()
        self._unsealed.clear()
        self._asked_at.clear()
        self._away.clear()
        self._bound = None
        self._told = segment.base
        self._is_current = False
        self._may_be_over = False
        self._pause = self._poll_s
        self._read_at = max(now + CONFIRM_AFTER_S, self._next_read_at)
        self._stall_at = now + self._stall_s
        return self._ask(now)

    def _ask(self, now: float) -> list[TipEffect]:
        """Asks every replica that is not being asked already."""
        segment = self._segment
        assert segment is not None
        tip = Tip(partition=self._partition, epoch=segment.epoch, base=segment.base)
        free = [b for b in (m.broker for m in segment.replicas) if b not in self._asked_at or now - self._asked_at[b] >= ROUND_TIMEOUT_S]
        self._asked_at.update(dict.fromkeys(free, now))
        self._ask_at = now + self._pause
        self._pause = min(2 * self._pause, POLL_S_MAX)
        return [SendTip(broker, tip) for broker in free]

    def _read_register(self, now: float) -> list[TipEffect]:
        self._is_reading = True
        self._next_read_at = self._read_at = now + REGISTER_RETRY_S
        return [ReadRegister()]

    def _wants_register(self) -> bool:
        return not self._is_reading and (not self._is_current or self._may_be_over)

    def on_deadline(self, now: float) -> list[TipEffect]:
        """Call it at `next_deadline` or later; earlier it does nothing."""
        if self.result is not None:
            return []
        effects: list[TipEffect] = []
        if self._wants_register() and now >= self._read_at:
            effects += self._read_register(now)
        segment = self._segment
        if segment is None:
            return effects
        if now >= self._ask_at:
            effects += self._ask(now)
        if now >= self._stall_at:
            self._stall_at = now + 2 * self._stall_s
            if self._bound is not None and self._high_watermark() < self._bound:
                self._may_be_over = True
                brokers = sorted(self._tails, key=lambda broker: -self._tails[broker])
                effects.append(AskTakeOver(segment.epoch, tuple(brokers)))
        return effects

    # --- hearing -------------------------------------------------------------------------------------------------------

    def on_answer(self, member: Member, answer: TipAnswer, now: float) -> list[TipEffect]:
        """`member`: the broker and the incarnation that its connection speaks for (P-10)."""
        segment = self._segment
        if self.result is not None or segment is None or answer.epoch != segment.epoch:
            return []
        self._asked_at.pop(member.broker, None)
        self._start_offset = max(self._start_offset, answer.start_offset)
        if member not in segment.replicas or answer.limbo:
            return self._on_away(member.broker, now)  # P-10, P-29: it counts in no quorum of this epoch
        broker, tail = member.broker, answer.local_tail
        self._away.discard(broker)
        self._tails[broker] = max(tail, self._tails.get(broker, 0))
        self._told = max(self._told, answer.high_watermark)
        if answer.sealed:
            self._may_be_over = True
            self._hurry(now)
        else:
            self._unsealed[broker] = max(tail, self._unsealed.get(broker, 0))
        return self._weigh(now)

    def on_unreachable(self, broker: str, now: float) -> list[TipEffect]:
        self._asked_at.pop(broker, None)
        return self._on_away(broker, now) if self.result is None else []

    def _on_away(self, broker: str, now: float) -> list[TipEffect]:
        self._away.add(broker)
        self._hurry(now)
        return self._weigh(now)

    def _hurry(self, now: float) -> None:
        """Reads the register now if the replicas cannot confirm the epoch any more, or if it is over."""
        segment = self._segment
        assert segment is not None
        names = [m.broker for m in segment.replicas if m.broker not in self._away]
        may_confirm = sum(1 for name in names if name not in self._tails or name in self._unsealed)
        if self._is_current or may_confirm < segment.write:
            self._read_at = min(self._read_at, max(now, self._next_read_at))

    def _high_watermark(self) -> int:
        """P-24: the largest told for this epoch, or the W-th largest tail told by replicas that were not sealed in it."""
        segment = self._segment
        assert segment is not None
        return max(self._told, high_watermark(list(self._unsealed.values()), write=segment.write, base=segment.base))

    def _weigh(self, now: float) -> list[TipEffect]:
        segment = self._segment
        assert segment is not None
        if self._bound is None and len(self._tails) >= segment.read:
            self._bound = max(self._tails.values())
        if len(self._unsealed) >= segment.write:
            self._is_current = True  # every seal quorum has one of these, so the epoch was closed after this read began, if it was
        if self._bound is not None and self._is_current:
            mark = self._high_watermark()
            if mark >= self._bound:
                return self._end(mark)
        return self._read_register(now) if self._wants_register() and now >= self._read_at else []

    def on_register(self, register: PartitionRegister, now: float) -> list[TipEffect]:
        """What a quorum read begun after `ReadRegister` returned. A tombstone ends the read in the runner."""
        self._is_reading = False
        if self.result is not None or not register.chain:
            return []
        last = register.last
        segment = self._segment
        self._start_offset = max(self._start_offset, register.start_offset)
        if segment is not None and last.epoch < segment.epoch:
            return []
        if segment is None or last.epoch > segment.epoch:
            closed = register.segment(segment.epoch) if segment is not None else None
            if self._is_current and self._bound is not None and closed is not None and closed.end is not None:
                return self._end(min(max(self._bound, self._told), closed.end))
            effects = self._begin(register, now)
            self._is_current = last.is_open
            return effects if last.end is None else self._end(last.end)
        if last.end is not None:
            return self._end(last.end)
        self._is_current = True
        return self._weigh(now)

    def on_read_failed(self, now: float) -> list[TipEffect]:
        self._is_reading = False
        return []

    def _end(self, mark: int) -> list[TipEffect]:
        assert self._segment is not None
        self.result = TipResult(self._segment.epoch, mark, tuple(sorted(self._tails)), self._start_offset)
        return []
