"""Which partitions are worth a look, so that the thousands of which nothing has changed cost nothing.

Whoever checks partitions now and then holds a `Lookout`. It gives those of which something changed since the last check (`Node.changed`)
and those that were not settled then. What else a check depends on is its owner's to watch, who calls `keep_all` when that changes. All
others have their turn within ROUND_S: no rule needs that, but a check that nobody thought to ask for is then late, and not left out.
"""

from math import ceil
from typing import TYPE_CHECKING, Final

from streamq.model.ids import PartitionId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamq.broker.node import Node
    from streamq.broker.partition import Partition

__all__ = ["ROUND_S", "Lookout"]

ROUND_S: Final = 30.0


class Lookout:
    """Invariant: a partition that is not due was found settled, and has neither changed nor been kept since. At first all are due."""

    def __init__(self, node: "Node", *, interval_s: float) -> None:
        """For checks that are made every `interval_s`."""
        self._node = node
        self._interval_s = interval_s
        self._due: dict[PartitionId, None] = dict.fromkeys(node.partitions)
        self._round: list[PartitionId] = []
        node.lookouts.append(self)

    def keep(self, partition: "Partition") -> None:
        """Not settled: it is due at the next check again."""
        self._due[partition.id] = None

    def keep_all(self, identities: "Iterable[PartitionId]") -> None:
        self._due |= dict.fromkeys(identities)

    def due(self) -> "Sequence[Partition]":
        """Those to look at now. Each counts as settled from now on, unless it is kept or changes."""
        node = self._node
        if node.changed:
            for lookout in node.lookouts:
                lookout._due |= node.changed
            node.changed.clear()
        self._take_turns()
        due, self._due = self._due, {}
        # What was dropped is not there any more; a stranger that only answered once never was.
        return [partition for identity in due if (partition := node.partitions.get(identity)) is not None]

    def _take_turns(self) -> None:
        if not self._round:
            self._round = list(self._node.partitions)
        for _ in range(min(len(self._round), ceil(len(self._node.partitions) * self._interval_s / ROUND_S))):
            self._due[self._round.pop()] = None
