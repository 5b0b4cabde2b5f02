"""Takeover (protocol section 5) as a state machine, run by one replica B of the open epoch e. Times are seconds of a steady clock.

    READ ──► SEAL ──► COPY ──► REPAIR ──► CLOSE ──► OPEN ──► DONE
                └────────────────^ nothing to copy
    from SEAL: DEFERRED; from anywhere: LOST, STUCK; from COPY and REPAIR back to READ when holders are lost (step 3)

Any number of these may run at once, on any brokers, and stop anywhere: what decides is the register change alone (P-19). All that safety
needs is here: who is counted (`Digest.good`), L and its check (`_read_digest`), that the register is changed only after the repair (P-18),
and that L and the answers it came from are dropped when somebody else was first.
"""

import enum
from collections.abc import Collection
from typing import Final

from streamq.log.digest import Digest, SealAnswer
from streamq.log.next_epoch import closed_segment, lack_of_replicas, next_replicas, opened_segment
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
from streamq.model.registers import PartitionRegister

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


class Takeover:
    """Carry out each effect, feed each outcome, call `on_deadline(now)` at `next_deadline`, until `is_over`. Late and repeated outcomes do
    no harm. When the phase leaves COPY or REPAIR, cancel what is left of StartCopy and SendRepair.

    `attempt` is 16 fresh random bytes for each Takeover (P-5). `epoch` is the one to take over from; if the register is past it: LOST.
    Invariant: `tail` (L) and `high_watermark` are those of the present round; once CLOSE was reached they never change.
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
        not_to: Collection[str] = (),
    ) -> None:
        """`grace_s`: how long to wait for the answers beyond those needed; `step_timeout_s`: a step without progress; `change_timeout_s`:
        the register change with its retries; `defer_above`: when more offsets than this are lacking below L, the most complete replica is
        asked instead; `not_to`: brokers that were asked for this epoch already, and did not take over: one that does not hold all that lies
        before the epoch cannot (P-34), however far its tail goes."""
        self._me = me
        self._partition = partition
        self._epoch = epoch
        self._attempt = attempt
        self._grace_s = grace_s
        self._step_timeout_s = step_timeout_s
        self._change_timeout_s = change_timeout_s
        self._defer_above = defer_above
        self._not_to = frozenset(not_to)
        self.phase = Phase.READ
        self.register: PartitionRegister | None = None
        """The newest one seen; in OPEN and DONE the one whose last segment is this broker's."""
        self.reason = ""
        self.successor = ""
        self.tail = 0
        """L, from COPY on."""
        self.high_watermark = 0
        self._digest: Digest
        self._asked: tuple[str, ...] = ()
        self._grace_until: float | None = None
        self._waits_for_all = False
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
        return self._deadline if self._grace_until is None or self._waits_for_all else min(self._deadline, self._grace_until)

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
        self._digest = Digest(last)
        self._repairing.clear()
        self._resent.clear()
        self._grace_until = None
        self._waits_for_all = False
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
        if member.broker in self._digest.answers:
            return []
        self._digest.add(member, sealed)
        if self.phase is Phase.SEAL:
            return self._weigh(now)
        if sealed.high_watermark > self.tail:
            return self._impossible(sealed.high_watermark)
        return self._go_on_repairing(now) if self.phase is Phase.REPAIR else []

    def on_unreachable(self, broker: str, now: float) -> list[TakeoverEffect]:
        """`SendSeal` or `SendRepair` got no answer."""
        if self.phase is Phase.SEAL:
            if broker not in self._digest.answers:
                self._digest.unreachable.add(broker)
            return self._weigh(now)
        if self.phase is Phase.REPAIR and broker in self._repairing:
            self._repairing.discard(broker)
            self._digest.forget(broker)
            return self._go_on_repairing(now)
        return []

    def _weigh(self, now: float) -> list[TakeoverEffect]:
        """Step 1: whether the answers are enough, and all that need be waited for."""
        digest = self._digest
        may_wait = now < self._deadline and any(b not in digest.answers and b not in digest.unreachable for b in self._asked)
        lack = digest.lack_of_seals()
        if lack is None and self._me.broker not in digest.answers:
            lack = "this broker's own replica did not answer"
        if lack is not None:
            return [] if may_wait else self._stuck(lack)
        if self._me.broker not in digest.good():
            return self._defer("this broker's own replica does not count in the epoch")
        if self._grace_until is None:
            self._grace_until = now + self._grace_s
        if may_wait and now < self._grace_until:
            return []
        if lack := self._lack():
            self._waits_for_all = True
            return [] if may_wait else self._stuck(lack)
        return self._read_digest(now)

    def _lack(self) -> str | None:
        """Why steps 4 and 5 cannot be done with the brokers that have answered; None if they can."""
        digest = self._digest
        keepers, needed = len(digest.keepers()), digest.segment.write
        if digest.high_watermark() < digest.tail() and keepers < needed:
            return f"the tail of epoch {self._epoch} has to be repaired on {needed} brokers, and {keepers} answer"
        return self._lack_of_replicas()

    def _read_digest(self, now: float) -> list[TakeoverEffect]:
        """Step 2."""
        digest = self._digest
        self._grace_until = None
        self.tail = digest.tail()
        self.high_watermark = digest.high_watermark()
        if self.high_watermark > self.tail:
            return self._impossible(self.high_watermark)
        good = digest.good()
        own = good[self._me.broker].tail
        if self._defer_above is not None and any(a.tail - own > self._defer_above for a in self._successors()):
            return self._defer(f"this broker lacks {self.tail - own} offsets")
        self._deadline = now + self._step_timeout_s
        if own < self.tail:
            self.phase = Phase.COPY
            others = sorted((a for a in good.values() if a.tail > own), key=_tail, reverse=True)
            return [StartCopy(digest.segment, own, self.tail, tuple(a.member.broker for a in others))]
        self.phase = Phase.REPAIR
        return self._go_on_repairing(now)

    # --- steps 3 and 4: copy, repair -----------------------------------------------------------------------------------

    def on_copied(self, local_tail: int, now: float) -> list[TakeoverEffect]:
        """The own replica holds everything of e below `local_tail`, durably."""
        if self.phase is not Phase.COPY:
            return []
        self._digest.hold(self._me.broker, local_tail, below=self.tail)
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
        if self._digest.members.get(broker) != member:
            return []
        if self._digest.hold(broker, repaired.local_tail, below=self.tail):
            self._deadline = now + self._step_timeout_s
        elif repaired.local_tail < self.tail:
            # It takes repairs from its own tail on only (P-13), which is not where this one began.
            self._resent[broker] = resent = self._resent.get(broker, 0) + 1
            if resent > RESENDS_MAX:
                return self.on_unreachable(broker, now)
            return [SendRepair(broker, self._digest.segment, repaired.local_tail, self.tail)]
        return self._go_on_repairing(now)

    def _go_on_repairing(self, now: float) -> list[TakeoverEffect]:
        """Step 4: everything between the high watermark and L on W brokers, replicas of e before those that take their place."""
        digest = self._digest
        keepers, holding, needed = digest.keepers(), digest.holding(self.tail), digest.segment.write
        if self.high_watermark >= self.tail or len(holding) >= needed:
            return self._close(now)
        if len(keepers) < needed:
            return self._again(f"{len(keepers)} brokers are left to repair on, and {needed} are needed", now)
        lacking = [b for b in keepers if b not in holding and b not in self._repairing]
        self._repairing.update(lacking)
        return [SendRepair(b, digest.segment, digest.answers[b].tail, self.tail) for b in lacking]

    # --- steps 5 and 6: close, open ------------------------------------------------------------------------------------

    def _replicas(self) -> tuple[Member, ...]:
        assert self.register is not None
        return next_replicas(self.register, self._digest.segment, me=self._me, answered=self._digest.members)

    def _lack_of_replicas(self) -> str | None:
        assert self.register is not None
        return lack_of_replicas(self.register, self._replicas(), self._digest.answers)

    def _close(self, now: float) -> list[TakeoverEffect]:
        """P-18: only reached when the repair is complete."""
        digest, register = self._digest, self.register
        assert register is not None
        assert digest.good()[self._me.broker].tail >= self.tail
        if lack := self._lack_of_replicas():
            return self._again(lack, now)
        closed = closed_segment(digest.segment, end=self.tail, replacements=digest.replacements())
        opened = opened_segment(register, closed, self._replicas(), sequencer=self._me.broker, attempt=self._attempt)
        self.phase = Phase.CLOSE
        self._deadline = now + self._change_timeout_s
        self._change = ChangeRegister(closed, opened)
        return [self._change]

    def on_changed(self, register: PartitionRegister, now: float) -> list[TakeoverEffect]:
        """The register after the change, whoever made it."""
        return self._on_outcome(register, now) if self.phase is Phase.CLOSE else []

    def on_change_failed(self, now: float) -> list[TakeoverEffect]:
        """The outcome is unknown: the register says (P-5)."""
        return [ReadRegister()] if self.phase is Phase.CLOSE else []

    def _on_outcome(self, register: PartitionRegister, now: float) -> list[TakeoverEffect]:
        assert self._change is not None
        self.register = register
        last = register.last
        if last.epoch == self._epoch and last.is_open:
            # The same change once more, with the same L: applied twice it is the same as once.
            self._changes += 1
            if self._changes > CHANGES_MAX:
                return self._stuck("the register change failed again and again")
            return [self._change]
        if last.epoch != self._epoch + 1 or last.attempt != self._attempt:
            return self._lost()
        assert last == self._change.opened, (last, self._change.opened)
        self.phase = Phase.OPEN
        self._deadline = now + self._change_timeout_s
        return [OpenEpoch(register)]

    def on_opened(self, now: float) -> list[TakeoverEffect]:
        """The own replica has opened the new epoch, durably."""
        if self.phase is Phase.OPEN:
            self.phase = Phase.DONE
        return []

    # --- ends and new beginnings ---------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> list[TakeoverEffect]:
        """Call it at `next_deadline` or later; earlier it does nothing."""
        deadline = self.next_deadline
        if deadline is None or now < deadline:
            return []
        if self.phase is Phase.SEAL:
            return self._weigh(now)
        if self.phase in (Phase.COPY, Phase.REPAIR):
            return self._again(f"{self.phase.name.lower()} made no progress", now)
        return self._stuck(f"nothing came back in phase {self.phase.name}")

    def _again(self, reason: str, now: float) -> list[TakeoverEffect]:
        """From step 1: L and the answers it came from are dropped."""
        assert self.phase in (Phase.SEAL, Phase.COPY, Phase.REPAIR)
        self._rounds += 1
        if self._rounds >= ROUNDS_MAX:
            return self._stuck(reason)
        self.reason = reason
        self.phase = Phase.READ
        self._grace_until = None
        self._deadline = now + self._step_timeout_s
        return [ReadRegister()]

    def _impossible(self, told: int) -> list[TakeoverEffect]:
        reason = f"epoch {self._epoch}: a high watermark of {told} was told, but no replica holds more than {self.tail} (I-6)"
        return [*self._stuck(reason), TakeoverAlarm(reason)]

    def _defer(self, reason: str) -> list[TakeoverEffect]:
        others = self._successors() or [a for broker, a in self._digest.good().items() if broker != self._me.broker]
        if not others:
            return self._stuck(reason)
        best = max(others, key=_tail)
        self.phase = Phase.DEFERRED
        self.reason = reason
        self.successor = best.member.broker
        return [AskTakeOver(self.successor, self._epoch)]

    def _successors(self) -> list[SealAnswer]:
        return [a for broker, a in self._digest.good().items() if broker != self._me.broker and broker not in self._not_to]

    def _lost(self) -> list[TakeoverEffect]:
        self.phase = Phase.LOST
        self.reason = "another takeover was first"
        return []

    def _stuck(self, reason: str) -> list[TakeoverEffect]:
        self.phase = Phase.STUCK
        self.reason = reason
        return []


def _tail(answer: SealAnswer) -> int:
    return answer.tail
