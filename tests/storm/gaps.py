"""How long partitions wait, reckoned from what the storm's processes tell: pure.

A partition that does not move: its holder, and the generation in which that got it, are the same before and behind the gap. Gaps in which
the holder itself stood still (it was stopped) are no news of rebalances. A gap belongs to a phase if it lies in it altogether.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

__all__ = ["Gaps", "percentile", "percentiles"]

LEAVE_TO_HANDLED_S_MAX: Final = 0.5


class _Handed(NamedTuple):
    token: str
    since: int
    at: float


class Gaps:
    def __init__(self) -> None:
        self.staying: dict[str, list[float]] = {}
        """By phase, between two handouts of one partition to one member that keeps it."""
        self.moves: list[float] = []
        """From the beginning of a clean leave until another was handed records of the partition."""
        self.other_moves: dict[str, list[float]] = {}
        """By why: between the last handout to one member and the first to the next, where nobody left cleanly."""
        self._phase = ""
        self._phase_began = 0.0
        self._last: dict[int, _Handed] = {}
        self._left: dict[int, tuple[float, str]] = {}
        """When the leave began, and of which process."""
        self._ill: set[str] = set()
        self._held_by_ill: set[int] = set()

    def on_phase(self, phase: str, now: float) -> None:
        """An empty one: nothing is counted."""
        self._phase, self._phase_began = phase, now

    def on_ill(self, tokens: Iterable[str]) -> None:
        """These were killed, hang, or stood still: their last gaps are their own."""
        self._ill.update(tokens)

    def on_well(self, tokens: Iterable[str]) -> None:
        """They go on: what they were handed before counts no more."""
        well = set(tokens)
        self._ill -= well
        self._last = {partition: last for partition, last in self._last.items() if last.token not in well}

    def on_leaves(self, partitions: Iterable[int], now: float, process: str) -> None:
        for partition in partitions:
            self._left[partition] = now, process

    def on_harm(self, process: str) -> int:
        """It was stopped or killed: who was leaving in it has not left cleanly, though it began to. How many partitions that were."""
        harmed = [partition for partition, (_, by) in self._left.items() if by == process]
        for partition in harmed:
            del self._left[partition]
            self._held_by_ill.add(partition)
        return len(harmed)

    def on_goes_to_the_ill(self, holders: Sequence[tuple[int, str]]) -> int:
        """Who has which partition. One that went from a clean leave to a member that is ill says nothing of clean leaves: how many did."""
        self._held_by_ill.update(partition for partition, token in holders if token in self._ill)
        taken = [partition for partition, token in holders if token in self._ill and partition in self._left]
        for partition in taken:
            del self._left[partition]
        return len(taken)

    def on_handed(self, token: str, partition: int, since: int, now: float) -> None:
        before = self._last.get(partition)
        left = self._left.pop(partition, None)
        was_held_by_ill = partition in self._held_by_ill
        self._held_by_ill.discard(partition)
        if before is not None:
            if (before.token, before.since) == (token, since):
                if self._phase and before.at >= self._phase_began and token not in self._ill:
                    self.staying.setdefault(self._phase, []).append(now - before.at)
            elif left is not None:
                self.moves.append(now - left[0])
            elif since > before.since:
                why = "from the ill" if was_held_by_ill or before.token in self._ill else "to a member that joined"
                self.other_moves.setdefault(why, []).append(now - before.at)
        self._last[partition] = _Handed(token, since, now)

    @property
    def late_moves(self) -> int:
        return sum(move > LEAVE_TO_HANDLED_S_MAX for move in self.moves)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def percentiles(values: Sequence[float]) -> str:
    if not values:
        return "none"
    told = ((name, percentile(values, share)) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1)))
    return ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in told) + f" of {len(values)}"
