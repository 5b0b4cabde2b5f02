"""How far each epoch's run goes here: the end of what was taken, and the local tail, the end of what is durable (P-13: always a prefix)."""

from collections.abc import Mapping

from streamq.log.effects import Cut
from streamq.log.replica_state import ReplicaState

__all__ = ["Tails", "end_of"]


class Tails:
    """Invariant: for each run base <= durable <= taken, and taken <= the epoch's end if `cuts` was called since that was told.

    An epoch without a run has the tail of one that begins: its base, or the start offset if that lies higher (P-41).
    """

    def __init__(self, runs: Mapping[int, tuple[int, int]]) -> None:
        self._bases = {epoch: base for epoch, (base, _) in runs.items()}
        self._taken = {epoch: tail for epoch, (_, tail) in runs.items()}
        self._durable = dict(self._taken)
        self._told_bases: dict[int, int] = {}

    def epochs(self) -> list[int]:
        return list(self._taken)

    def has_run(self, epoch: int) -> bool:
        return epoch in self._taken

    def contains(self, epoch: int, offset: int) -> bool:
        """Whether `offset` lies here durably."""
        return epoch in self._taken and self._bases[epoch] <= offset < self._durable.get(epoch, 0)

    def tell_base(self, epoch: int, base: int) -> int:
        """`Seal`, `Repair` or `Tip` carried the base of an epoch that was not opened here. Returns the one told first."""
        return self._told_bases.setdefault(epoch, base)

    def base_of(self, state: ReplicaState, epoch: int) -> int | None:
        segment = state.segment(epoch)
        if segment is not None:
            return segment.base
        told = self._told_bases.get(epoch)
        return self._bases.get(epoch) if told is None else told

    def taken(self, state: ReplicaState, epoch: int) -> int | None:
        """The end of what was taken; None if the base is not known."""
        end = self._taken.get(epoch)
        return end if end is not None and end >= state.start_offset else self._raised(state, epoch, end)

    def durable(self, state: ReplicaState, epoch: int) -> int | None:
        """The local tail; None if the base is not known."""
        end = self._durable.get(epoch)
        return end if end is not None and end >= state.start_offset else self._raised(state, epoch, end)

    def _raised(self, state: ReplicaState, epoch: int, end: int | None) -> int | None:
        """P-41: what lies below the start offset counts as held."""
        if end is None:
            end = self.base_of(state, epoch)
        if end is None or end >= state.start_offset:
            return end
        cap = end_of(state, epoch)
        return state.start_offset if cap is None else max(end, min(state.start_offset, cap))

    def take(self, epoch: int, base: int, end: int) -> None:
        if epoch not in self._taken:
            self._bases[epoch] = base
        self._taken[epoch] = end

    def settle(self, epoch: int, end: int) -> tuple[int, int]:
        """What was taken up to `end` is durable. Returns the local tail before and after; a cut in between is respected."""
        taken = self._taken.get(epoch)
        before = self._durable.get(epoch, 0)
        if taken is None or end <= self._bases[epoch]:
            return before, before
        after = max(before, min(end, taken))
        self._durable[epoch] = after
        return before, after

    def cuts(self, state: ReplicaState) -> list[Cut]:
        """Step 6, P-41: each run is cut at its own epoch's end; forgotten is one that leaves the chain or lies behind the start offset."""
        cuts: list[Cut] = []
        for epoch, taken in list(self._taken.items()):
            end = end_of(state, epoch)
            trimmed = state.start_offset if end is None else min(state.start_offset, end)
            if state.is_dropped(epoch) or taken < trimmed or (end is not None and end <= self._bases[epoch]):
                cuts.append(Cut(state.id, epoch, 0))
                del self._taken[epoch], self._bases[epoch]
                self._durable.pop(epoch, None)
            elif end is not None and end < taken:
                cuts.append(Cut(state.id, epoch, end))
                self._taken[epoch] = end
                if self._durable.get(epoch, 0) > end:
                    self._durable[epoch] = end
        self._told_bases = {e: base for e, base in self._told_bases.items() if e > state.opened}
        return cuts

    def check(self, state: ReplicaState) -> None:
        for epoch, taken in self._taken.items():
            assert self._bases[epoch] <= taken, (epoch, self._bases[epoch], taken)
            assert self._durable.get(epoch, 0) <= taken, (epoch, self._durable.get(epoch), taken)
            end = end_of(state, epoch)
            assert end is None or taken <= end, (epoch, taken, end)


def end_of(state: ReplicaState, epoch: int) -> int | None:
    """The end of a closed epoch, if known here. Of one that has left the chain only a bound is known: the base of the oldest in it."""
    segment = state.segment(epoch)
    if segment is not None:
        return segment.end
    return state.chain[0].base if state.is_dropped(epoch) else None
