"""The durable facts of one replica, apart from its batches, and pure questions about the chain that it was told.

Kept in storage under `replica/<partition hex>`; a new value is written whenever one of its fields changes.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from streamq.model.ids import PartitionId
from streamq.model.registers import PartitionRegister, Segment

__all__ = ["DAMAGED_RANGES_MAX", "DamagedRange", "ReplicaState", "contradiction", "learned", "locate", "with_damage", "without_damage"]

DAMAGED_RANGES_MAX: Final = 256
"""Damaged ranges kept apart; past it those of an epoch are joined into one that spans them."""


class DamagedRange(NamedTuple):
    """Offsets `[base, end)` of an epoch whose bytes fail their checksum here and have not been restored yet (P-30)."""

    epoch: int
    base: int
    end: int


class ReplicaState(msgspec.Struct, frozen=True, array_like=True):
    """`topic` is empty until an `Open` or `Repair` told it. `sealed` is the sealed mark: no store is taken in an epoch at or below it.

    `chain` is the register's, as far as told; its last segment is the newest epoch that this replica has opened.
    `limbo` are the epochs in limbo (P-29); with `limbo_everywhere` the register was not read yet after a loss and all of them are.
    """

    id: PartitionId
    topic: str = ""
    index: int = 0
    sealed: int = 0
    start_offset: int = 0
    chain: tuple[Segment, ...] = ()
    limbo: tuple[int, ...] = ()
    limbo_everywhere: bool = False
    damaged: tuple[DamagedRange, ...] = ()

    @property
    def opened(self) -> int:
        """The newest epoch that was opened here; 0 if none was."""
        return self.chain[-1].epoch if self.chain else 0

    def segment(self, epoch: int) -> Segment | None:
        if not self.chain:
            return None
        place = epoch - self.chain[0].epoch
        return self.chain[place] if 0 <= place < len(self.chain) else None

    def in_limbo(self, epoch: int) -> bool:
        return self.limbo_everywhere or epoch in self.limbo or any(d.epoch == epoch for d in self.damaged)

    def is_dropped(self, epoch: int) -> bool:
        """Whether the epoch has left the chain: nothing of it is kept (P-41)."""
        return bool(self.chain) and epoch < self.chain[0].epoch


def locate(chain: tuple[Segment, ...], offset: int) -> Segment | None:
    """The segment that `offset` lies in, or, at the very end, the one that it will lie in; None below the chain."""
    place = bisect_right(chain, offset, key=_base) - 1
    return chain[place] if place >= 0 else None


def _base(segment: Segment) -> int:
    return segment.base


def contradiction(state: ReplicaState, register: PartitionRegister) -> str | None:
    """What in `register` cannot be, after what was told before (I-8, P-9, P-39); None when they agree."""
    if register.id != state.id:
        return f"a register of partition {register.id.hex()} was told to partition {state.id.hex()}"
    if not register.chain:
        return "a register without a segment was told"
    if fault := register.fault():
        return f"the chain told is broken: {fault}"
    if not register.last.is_open:
        return f"a chain was told whose last epoch, {register.last.epoch}, is closed"  # one change closes an epoch and opens the next
    for told in state.chain:
        now = register.segment(told.epoch)
        if now is None:
            continue
        if now.base != told.base:
            return f"epoch {told.epoch} was told with base {told.base}, and now with {now.base}"
        if told.end is not None and now.end is not None and now.end != told.end:
            return f"epoch {told.epoch} was told to end at {told.end}, and now at {now.end}"
    return None


def learned(state: ReplicaState, register: PartitionRegister, *, also: Iterable[int] = ()) -> ReplicaState:
    """The state after a completed change or quorum read showed `register` (step 6); `also` are epochs that are in limbo from now on.

    A register older than what is known teaches nothing but its start offset. The sealed mark rises to the epoch before the newest.
    """
    last, known = register.last, state.chain[-1] if state.chain else None
    is_older = known is not None and (last.epoch < known.epoch or (last.epoch == known.epoch and last.is_open and not known.is_open))
    chain = state.chain if is_older else register.chain
    first, newest = chain[0].epoch, chain[-1].epoch
    start_offset = max(state.start_offset, register.start_offset)
    ends = {segment.epoch: segment.end for segment in chain if segment.end is not None}
    # P-9, P-41: what is void or trimmed is not missing, and nobody could give it.
    clipped = (
        d._replace(base=max(d.base, start_offset), end=min(d.end, ends.get(d.epoch, d.end))) for d in state.damaged if d.epoch >= first
    )
    return msgspec.structs.replace(
        state,
        topic=register.topic,
        index=register.index,
        sealed=max(state.sealed, newest - 1),
        start_offset=start_offset,
        chain=chain,
        limbo=tuple(sorted(e for e in {*state.limbo, *also} if e >= first)),
        damaged=tuple(d for d in clipped if d.base < d.end),
    )


def limbo_epochs(register: PartitionRegister, *, broker: str, held: Iterable[int]) -> tuple[int, ...]:
    """The epochs named in the register that a broker which lost something is in limbo for (P-29).

    Left out are those that name it in no incarnation and of which it holds nothing: it counts in none of their quorums anyway (P-10).
    """
    runs = set(held)
    return tuple(s.epoch for s in register.chain if s.member(broker) is not None or s.epoch in runs)


def with_damage(ranges: tuple[DamagedRange, ...], new: DamagedRange) -> tuple[DamagedRange, ...]:
    """All ranges, those that touch joined; past the bound each epoch's into one."""
    joined: list[DamagedRange] = []
    for r in sorted({*ranges, new}):
        if joined and joined[-1].epoch == r.epoch and r.base <= joined[-1].end:
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, r.end))
        else:
            joined.append(r)
    if len(joined) <= DAMAGED_RANGES_MAX:
        return tuple(joined)
    epochs = sorted({r.epoch for r in joined})
    spans = [[r for r in joined if r.epoch == e] for e in epochs]
    return tuple(DamagedRange(rs[0].epoch, rs[0].base, rs[-1].end) for rs in spans)


def without_damage(ranges: tuple[DamagedRange, ...], restored: DamagedRange) -> tuple[DamagedRange, ...]:
    """What is left of the ranges when `restored` is good again."""
    left: list[DamagedRange] = []
    for r in ranges:
        if r.epoch != restored.epoch or restored.end <= r.base or r.end <= restored.base:
            left.append(r)
            continue
        if r.base < restored.base:
            left.append(r._replace(end=restored.base))
        if restored.end < r.end:
            left.append(r._replace(base=restored.end))
    return tuple(left)


def holders(segment: Segment, *, except_broker: str) -> tuple[str, ...]:
    return tuple(m.broker for m in segment.replicas if m.broker != except_broker)
