"""Takeover (protocol section 5) as an explicit state machine, run by one replica B of the open epoch e. Times are seconds of a steady clock.

    READ ──► SEAL ──► COPY ──► REPAIR ──► CLOSE ──► OPEN ──► DONE
                └────────────────^ nothing to copy
    from SEAL: DEFERRED; from anywhere: LOST, STUCK; from COPY and REPAIR back to READ when holders are lost (step 3)

Any number of these may run at once, on any brokers, and stop anywhere: what decides is the register change alone (P-19). All that safety needs
is here: who is counted (`_good`), L and its check (`_digest`), that the register is changed only after the repair (P-18), and that L and the
answers it came from never outlive a loss.
"""

import enum
from typing import Final, NamedTuple

import msgspec

from streamq.log.takeover_effects import (
    AskTakeOver,
    ChangeRegister,
    OpenEpoch,
    ReadRegister,
    SendRepair,
    SendSeal,
    StartCopy,
    TakeoverAlarm,
    TakeoverEffect,
)
from streamq.model.ids import Member, PartitionId
from streamq.model.messages import Repaired, Seal, Sealed
from streamq.model.quorum import Quorum, reopen_quorum, seal_quorum
from streamq.model.registers import PartitionRegister, Segment

__all__ = [
    "AskTakeOver",
    "ChangeRegister",
    "OpenEpoch",
    "Phase",
    "ReadRegister",
    "SendRepair",
    "SendSeal",
    "StartCopy",
    "Takeover",
    "TakeoverAlarm",
    "TakeoverEffect",
]

ROUNDS_MAX: Final = 4
"""Times that a takeover begins again at step 1 before it gives up."""
CHANGES_MAX: Final = 3
"""Times that a register change of unknown outcome is looked after."""
RESENDS_MAX: Final = 3
"""Repairs sent again to a broker whose tail did not move."""


class Phase(enum.Enum):
    READ = "Nothing is known; a quorum read of the register is awaited."
    SEAL = "Seal is sent to the replicas of e; N - W + 1 answers are awaited, and a short grace for the rest."
    COPY = "L is known; this broker's own copy is awaited up to L."
    REPAIR = "This broker holds everything below L; W brokers that do are awaited."
    CLOSE = "The tail is repaired; the outcome of the register change is awaited."
    OPEN = "The next epoch is this broker's; its own replica's opening is awaited."
    DONE = "Over: this broker sequences the next epoch."
    LOST = "Over: another attempt closed the epoch, or it is no longer the last; follow `register`."
    DEFERRED = "Over: `successor` is better placed and has been asked to take over."
    STUCK = "Over: it cannot be done now, see `reason`; try again later."


_OVER: Final = frozenset({Phase.DONE, Phase.LOST, Phase.DEFERRED, Phase.STUCK})


class _Answer(NamedTuple):
    member: Member
    tail: int
    high_watermark: int
    limbo: bool


class Takeover:
    """Carry out each effect, feed each outcome, call `on_deadline(now)` at `next_deadline`, until `is_over`. Late and repeated outcomes are welcome.

    `attempt` is 16 fresh random bytes for each Takeover (P-5). `epoch` is the one to take over from; if the register is past it: LOST.
    When the phase leaves COPY or REPAIR, cancel what is left of StartCopy and SendRepair. Invariant: `tail` (L) and `high_watermark` are those
    of the present round; after CLOSE was reached they never change.
    """

    def __init__(
        self,
        *,
        me: Member,
        partition: PartitionId,
        epoch: int,
        attempt: bytes,
        now: float,
        grace_s: float = 0.02,
        step_timeout_s: float = 2.0,
        change_timeout_s: float = 8.0,
        defer_above: int | None = None,
    ) -> None:
        """`grace_s`: how long to wait for the answers beyond those needed; `step_timeout_s`: a step without progress; `change_timeout_s`: the
        register change with its retries; `defer_above`: lacking more offsets than this below L, the most complete replica is asked instead."""
        self._me = me
        self._partition = partition
        self._epoch = epoch
        self._attempt = attempt
        self._grace_s = grace_s
        self._step_timeout_s = step_timeout_s
        self._change_timeout_s = change_timeout_s
        self._defer_above = defer_above
        self.phase = Phase.READ
        self.register: PartitionRegister | None = None
        """The newest one seen; in OPEN and DONE the one whose last segment is this broker's."""
        self.reason = ""
        self.successor = ""
        self.tail = 0
        """L, from COPY on."""
        self.high_watermark = 0
        self._segment: Segment | None = None
        self._asked: tuple[str, ...] = ()
        self._answers: dict[str, _Answer] = {}
        self._unreachable: set[str] = set()
        self._grace_until: float | None = None
        self._deadline: float = now + step_timeout_s
        self._rounds = 0
        self._changes = 0
        self._change: ChangeRegister | None = None
        self._resent: dict[str, int] = {}
        self._repairing: set[str] = set()

    @property
    def is_over(self) -> bool:
        return self.phase in _OVER

    @property
    def next_deadline(self) -> float | None:
        if self.is_over:
            return None
        return self._deadline if self._grace_until is None else min(self._deadline, self._grace_until)

    def start(self) -> list[TakeoverEffect]:
        return [ReadRegister()]

    # --- step 0: the register ------------------------------------------------------------------------------------------

    def on_register(self, register: PartitionRegister, now: float) -> list[TakeoverEffect]:
        """What a quorum read begun after `ReadRegister` returned. A tombstone is told by `on_read_failed`."""
        if self.phase is Phase.CLOSE:
            return self._on_outcome(register, now)
        if self.phase is not Phase.READ:
            return []
        self.register = register
        last = register.last
        if last.epoch != self._epoch or not last.is_open:
            return self._lost()
        if last.member(self._me.broker) is None:
            return self._stuck(f"{self._me.broker} is no replica of epoch {last.epoch}")
        self._segment = last
        self._answers.clear()
        self._unreachable.clear()
        self._repairing.clear()
        self._resent.clear()
        self._grace_until = None
        self.phase = Phase.SEAL
        self._deadline = now + self._step_timeout_s
        seal = Seal(partition=self._partition, epoch=last.epoch, base=last.base)
        # Brokers that only the next epoch will name are asked too, for their incarnation; they count in no quorum of this one.
        self._asked = tuple(dict.fromkeys((*(m.broker for m in last.replicas), *register.replicas)))
        return [SendSeal(broker, seal) for broker in self._asked]

    def on_read_failed(self, reason: str, now: float) -> list[TakeoverEffect]:
        return self._stuck(f"the register cannot be read: {reason}") if self.phase in (Phase.READ, Phase.CLOSE) else []

    # --- steps 1 and 2: seal, digest -----------------------------------------------------------------------------------

    def on_sealed(self, member: Member, sealed: Sealed, now: float) -> list[TakeoverEffect]:
        """`member`: the broker and the incarnation that its connection speaks for (P-10)."""
        if self.phase not in (Phase.SEAL, Phase.COPY, Phase.REPAIR) or sealed.epoch != self._epoch or member.broker not in self._asked:
            return []
        if sealed.end is not None:
            return self._again("the epoch is closed, a replica says", now)
        if member.broker in self._answers:
            return []
        answer = _Answer(member, sealed.local_tail, sealed.high_watermark, sealed.limbo)
        self._unreachable.discard(member.broker)
        self._answers[member.broker] = answer
        if self.phase is Phase.SEAL:
            return self._weigh(now)
        if answer.high_watermark > self.tail:
            return self._impossible(answer.high_watermark, self.tail)
        return self._go_on_repairing(now) if self.phase is Phase.REPAIR else []

    def on_unreachable(self, broker: str, now: float) -> list[TakeoverEffect]:
        """`SendSeal` or `SendRepair` got no answer."""
        if self.phase is Phase.SEAL:
            if broker not in self._answers:
                self._unreachable.add(broker)
            return self._weigh(now)
        if self.phase is Phase.REPAIR and broker in self._repairing:
            self._repairing.discard(broker)
            self._answers.pop(broker, None)
            self._unreachable.add(broker)
            return self._go_on_repairing(now)
        return []

    def _good(self) -> dict[str, _Answer]:
        """The answers that count in e: of a replica named with that incarnation (P-10), not in limbo for it (P-29)."""
        assert self._segment is not None
        named = self._segment.replicas
        return {broker: a for broker, a in self._answers.items() if a.member in named and not a.limbo}

    def _weigh(self, now: float) -> list[TakeoverEffect]:
        """Step 1: whether the answers are enough, and all that need be waited for."""
        segment = self._segment
        assert segment is not None
        good = self._good()
        awaited = [b for b in self._asked if b not in self._answers and b not in self._unreachable]
        needed = seal_quorum(replicas=len(segment.replicas), write=segment.write)
        own = self._answers.get(self._me.broker)
        if len(good) < needed or own is None:
            if awaited and now < self._deadline:
                return []
            return self._stuck(f"{len(good)} of the {needed} seals that epoch {segment.epoch} needs were answered")
        if self._me.broker not in good:
            return self._defer(good, "this broker's own replica does not count in the epoch")
        if self._grace_until is None:
            self._grace_until = now + self._grace_s
        if awaited and now < self._grace_until:
            return []
        if lack := self._lack():
            if awaited and now < self._deadline:
                self._grace_until = self._deadline
                return []
            return self._stuck(lack)
        return self._digest(good, now)

    def _lack(self) -> str | None:
        """Why steps 4 and 5 cannot be done with the brokers that have answered; None if they can."""
        segment, register = self._segment, self.register
        assert segment is not None
        assert register is not None
        good = self._good()
        tail = max(a.tail for a in good.values())
        told = max(a.high_watermark for a in self._answers.values())
        holders = sum(1 for broker in self._answers if segment.member(broker) is not None)
        if told < tail and holders < segment.write:
            return f"the tail of epoch {segment.epoch} has to be repaired on {segment.write} brokers, and {holders} answer"
        replicas = self._next_replicas()
        quorum = Quorum(len(replicas), register.write, register.read)
        if fault := quorum.fault():
            return f"no epoch can follow {segment.epoch}: {fault}"
        answered = sum(1 for m in replicas if m.broker in self._answers)
        needed = reopen_quorum(replicas=quorum.replicas, write=quorum.write)
        if answered < needed:
            return f"the next epoch needs {needed} of its replicas to answer, and {answered} do"
        return None

    def _digest(self, good: dict[str, _Answer], now: float) -> list[TakeoverEffect]:
        """Step 2: L is the largest local tail; everything acked in e is below it, because the seals intersect every W."""
        assert self._segment is not None
        self._grace_until = None
        self.tail = max(a.tail for a in good.values())
        self.high_watermark = max(self._segment.base, *(a.high_watermark for a in self._answers.values()))
        if self.high_watermark > self.tail:
            return self._impossible(self.high_watermark, self.tail)
        own = good[self._me.broker].tail
        if self._defer_above is not None and self.tail - own > self._defer_above:
            return self._defer(good, f"this broker lacks {self.tail - own} offsets")
        self._deadline = now + self._step_timeout_s
        if own < self.tail:
            self.phase = Phase.COPY
            others = sorted((a for a in good.values() if a.tail > own), key=lambda a: -a.tail)
            return [StartCopy(self._segment, own, self.tail, tuple(a.member.broker for a in others))]
        self.phase = Phase.REPAIR
        return self._go_on_repairing(now)

    # --- steps 3 and 4: copy, repair -----------------------------------------------------------------------------------

    def on_copied(self, local_tail: int, now: float) -> list[TakeoverEffect]:
        """The own replica holds everything of e below `local_tail`, durably."""
        if self.phase is not Phase.COPY:
            return []
        self._hold(self._me.broker, local_tail)
        self._deadline = now + self._step_timeout_s
        if local_tail < self.tail:
            return []
        self.phase = Phase.REPAIR
        return self._go_on_repairing(now)

    def on_copy_failed(self, now: float) -> list[TakeoverEffect]:
        return self._again("no replica that holds the tail can be reached", now) if self.phase is Phase.COPY else []

    def on_repaired(self, member: Member, repaired: Repaired, now: float) -> list[TakeoverEffect]:
        """Each answer to a `Repair`; only the incarnation that was asked to seal counts."""
        if self.phase is not Phase.REPAIR or repaired.epoch != self._epoch:
            return []
        if repaired.end is not None:
            return self._again("the epoch is closed, a replica says", now)
        broker = member.broker
        answer = self._answers.get(broker)
        if answer is None or answer.member != member:
            return []
        if repaired.local_tail > answer.tail:
            self._hold(broker, repaired.local_tail)
            self._deadline = now + self._step_timeout_s
        elif repaired.local_tail < self.tail:
            # It takes repairs from its own tail on only (P-13), which is not where this one began.
            self._resent[broker] = resent = self._resent.get(broker, 0) + 1
            if resent > RESENDS_MAX:
                return self.on_unreachable(broker, now)
            assert self._segment is not None
            return [SendRepair(broker, self._segment, repaired.local_tail, self.tail)]
        return self._go_on_repairing(now)

    def _hold(self, broker: str, tail: int) -> None:
        answer = self._answers[broker]
        self._answers[broker] = answer._replace(tail=max(answer.tail, tail))

    def _go_on_repairing(self, now: float) -> list[TakeoverEffect]:
        """Step 4: everything between the high watermark and L on W brokers, replicas of e before those that take their place."""
        segment = self._segment
        assert segment is not None
        good = self._good()
        candidates = list(good)
        if len(good) < segment.write:
            candidates += [b for b in self._answers if b not in good and segment.member(b) is not None]
        holding = [b for b in candidates if self._answers[b].tail >= self.tail]
        if self.high_watermark >= self.tail or len(holding) >= segment.write:
            return self._close(now)
        if len(candidates) < segment.write:
            return self._again(f"{len(candidates)} brokers are left to repair on, and {segment.write} are needed", now)
        lacking = [b for b in candidates if b not in holding and b not in self._repairing]
        self._repairing.update(lacking)
        return [SendRepair(b, segment, self._answers[b].tail, self.tail) for b in lacking]

    # --- steps 5 and 6: close, open ------------------------------------------------------------------------------------

    def _close(self, now: float) -> list[TakeoverEffect]:
        segment, register = self._segment, self.register
        assert segment is not None
        assert register is not None
        assert self._me.broker in self._good()
        if lack := self._lack_of_next():
            return self._again(lack, now)
        closed = msgspec.structs.replace(segment, end=self.tail, replicas=tuple(self._holder(m) for m in segment.replicas))
        opened = Segment(
            epoch=segment.epoch + 1,
            base=self.tail,
            end=None,
            replicas=self._next_replicas(),
            write=register.write,
            read=register.read,
            durability=register.durability,
            sequencer=self._me.broker,
            attempt=self._attempt,
        )
        self.phase = Phase.CLOSE
        self._deadline = now + self._change_timeout_s
        self._change = ChangeRegister(closed, opened)
        return [self._change]

    def _lack_of_next(self) -> str | None:
        register = self.register
        assert register is not None
        replicas = self._next_replicas()
        answered = sum(1 for m in replicas if m.broker in self._answers)
        needed = reopen_quorum(replicas=len(replicas), write=register.write)
        return None if answered >= needed else f"{answered} of the {needed} replicas that the next epoch needs are left"
