"""The state of one partition as the model sees it: what the trace check knows while it reads a trace.

It stands for the variables of `StreamqPartition.tla` and holds what the rules (`rules_of_*.py`) look at. Of streamq only values of
`streamq.model` occur here.

    reg            AbstractLog.register, and Epoch.segment as the epoch was opened
    stores         Epoch.stores
    log, told      Copy.durable, Copy.opened                 of one member: a broker in one incarnation
    seal, limbo    Copy.sealed, Copy.owes                    (inc: another incarnation is another member)
    stored         Epoch.stored                              local tails while unsealed
    sTail, rTail   Epoch.first_sealed, Epoch.furthest
    seen, rd       AbstractLog.seen, AbstractLog.floors
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1.events import BatchId

__all__ = ["AbstractLog", "Broken", "Copy", "Epoch", "Placed", "Producers", "invariant", "require"]

Producers = dict[bytes, tuple[int, int]]
"""The idempotence table as the gap rule sees it (P-35): producer -> its epoch and last sequence."""


class Broken(Exception):
    """An event happened that the model does not allow; `rule` is what forbids it."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(f"{rule}: {why}")
        self.rule = rule


def require(holds: bool, rule: str, why: str) -> None:
    """A guard: the enabling condition of an action."""
    if not holds:
        raise Broken(rule, why)


def invariant(holds: bool, rule: str, why: str) -> None:
    """What the guards imply, as TLC has shown for small instances: if it fails and no guard did, a guard is too weak."""
    if not holds:
        raise Broken(rule, why)


class Placed(NamedTuple):
    base: int
    end: int
    batch: BatchId


@dataclass
class Copy:
    """What one member holds of the partition. The dictionaries are by epoch; an epoch that is absent has the tail of its base."""

    member: Member
    start: int = 0
    taken: dict[int, int] = field(default_factory=dict)
    """The end of what was taken, durable or not."""
    durable: dict[int, int] = field(default_factory=dict)
    """The local tails."""
    held: dict[int, int] = field(default_factory=dict)
    """The largest local tail there ever was."""
    reached: dict[int, int] = field(default_factory=dict)
    """The largest end ever taken: what a replay of the journal may bring back."""
    sealed: int = 0
    promised: int = 0
    """The sealed mark that was told to anybody, or that a durable `Open` implies: no restart may forget it (P-16)."""
    opened: int = 0
    opening: int = 0
    """The newest epoch whose chain was taken, durable or not."""
    limbo: set[int] = field(default_factory=set)
    """The epochs that it said durably to be in limbo for."""
    limbo_everywhere: bool = False
    losses: set[str] = field(default_factory=set)
    """What its disk lost and the next start will find out."""
    owes: set[int] = field(default_factory=set)
    """The epochs that it has to be in limbo for (P-29)."""
    owes_everywhere: bool = False
    watermark: tuple[int, int] = (0, 0)
    """What this process shows."""
    shown: dict[int, int] = field(default_factory=dict)
    """The largest high watermark that it ever showed, by epoch."""


class Epoch:
    """One epoch: as it was opened, what its sequencer assigned, and the messages about it."""

    def __init__(self, segment: Segment, table: Producers) -> None:
        self.segment = segment
        self.stores: dict[int, Placed] = {}
        self.next_offset = segment.base
        self.placed: dict[BatchId, int] = {}
        """Where this epoch's sequencer put idempotent batches."""
        self.first_table = table
        """The fold over the log below the base (P-34)."""
        self.table = dict(table)
        self.end: int | None = None
        self.sequencer: Member | None = None
        self.has_stopped = False
        self.stored: dict[Member, int] = {}
        self.reported: dict[Member, int] = {}
        """What left of `stored`: all that the sequencer can have heard."""
        self.first_sealed: dict[Member, int] = {}
        self.furthest: dict[Member, int] = {}
        self.repaired: dict[Member, int] = {}
        self.answered: set[Member] = set()
        """Who answered a seal at all, counting in the epoch or not."""
        self.digests: dict[tuple[bytes, int], int] = {}
        """(attempt, L) -> the high watermark told to it."""
        self.told = segment.base
        """The largest high watermark that anybody told."""
        self.seen_end = segment.base

    @property
    def number(self) -> int:
        return self.segment.epoch

    @property
    def base(self) -> int:
        return self.segment.base

    def wth_tail(self, tails: dict[Member, int]) -> int:
        """4.5: the W-th largest over the segment's replicas, named with their incarnation (P-10)."""
        told = sorted((tails.get(member, self.base) for member in self.segment.replicas), reverse=True)
        return told[self.segment.write - 1]

    @property
    def high_watermark(self) -> int:
        """The largest that can be concluded: from the local tails of unsealed replicas (P-11, P-17)."""
        return self.wth_tail(self.stored)

    def batches(self, base: int, end: int, *, may_begin_inside: bool = False) -> list[Placed]:
        """The batches assigned that fill `[base, end)` exactly; P-12, P-13 if none do."""
        found: list[Placed] = []
        at = base
        while at < end:
            place = self.stores.get(at)
            if place is None and may_begin_inside and not found:
                place = next((p for p in self.stores.values() if p.base < at < p.end), None)
            if place is None:
                raise Broken("P-12", f"no batch was assigned at offset {at} of epoch {self.number}")
            found.append(place)
            at = place.end
        require(at == max(base, end), "P-13", f"offset {end} lies inside a batch of epoch {self.number}")
        return found


class AbstractLog:
    """One partition."""

    def __init__(self, register: PartitionRegister) -> None:
        self.register = register
        self.epochs = {segment.epoch: Epoch(segment, {}) for segment in register.chain}
        self.copies: dict[Member, Copy] = {}
        self.attempts: dict[bytes, tuple[Member, int]] = {}
        """Which process began a takeover's attempt: member and start."""
        self.kept: dict[BatchId, int] = {}
        """Where the idempotent batches of closed segments lie: what every table knows (P-34)."""
        self.acked: dict[BatchId, int] = {}
        self.acked_end = 0
        self.seen: dict[int, BatchId] = {}
        self.floors: dict[str, int] = {}

    def copy(self, member: Member) -> Copy:
        return self.copies.setdefault(member, Copy(member))

    def epoch(self, number: int) -> Epoch:
        found = self.epochs.get(number)
        if found is None:
            raise Broken("P-8", f"no register change has created epoch {number}")
        return found

    @property
    def last(self) -> Epoch:
        return self.epochs[self.register.last.epoch]

    def is_dropped(self, number: int) -> bool:
        """Whether the epoch has left the chain (P-41)."""
        return number < self.register.chain[0].epoch

    def raised(self, epoch: Epoch, tail: int) -> int:
        """P-41: what lies below the start offset counts as held."""
        trimmed = self.register.start_offset if epoch.end is None else min(self.register.start_offset, epoch.end)
        return max(tail, trimmed)

    def taken(self, copy: Copy, epoch: Epoch) -> int:
        return copy.taken.get(epoch.number, epoch.base)

    def durable(self, copy: Copy, epoch: Epoch) -> int:
        return copy.durable.get(epoch.number, epoch.base)

    def has_whole(self, copy: Copy, epoch: Epoch) -> bool:
        """Whether it holds all of a closed epoch."""
        return epoch.end is not None and self.raised(epoch, self.durable(copy, epoch)) >= epoch.end

    def must_be_in_limbo(self, copy: Copy, epoch: Epoch) -> bool:
        """P-29: after a loss, until the epoch is closed and all of it is held."""
        return (copy.owes_everywhere or epoch.number in copy.owes) and not self.has_whole(copy, epoch)

    def cover(self, offset: int) -> Epoch:
        """The epoch that holds the offset, by the register; the offset lies in its chain."""
        return next(self.epochs[s.epoch] for s in reversed(self.register.chain) if s.base <= offset and (s.end is None or offset < s.end))

    def observe(self, place: Placed) -> None:
        """Somebody concluded that this batch is committed there (I-1, I-2, I-6)."""
        before = self.seen.setdefault(place.base, place.batch)
        invariant(before == place.batch, "I-2", f"{before} and {place.batch} were both seen at offset {place.base}")
        if place.base < self.register.chain[0].base:
            return  # trimmed meanwhile
        epoch = self.cover(place.base)
        there = epoch.stores.get(place.base)
        invariant(there == place, "I-1", f"{place.batch} was seen at offset {place.base}, where epoch {epoch.number} has {there}")
        epoch.seen_end = max(epoch.seen_end, place.end)
