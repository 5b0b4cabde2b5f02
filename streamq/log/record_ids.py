"""Ids of records that one partition remembers: of those in the log (a part of `log.idempotence`), and of those on their way there.

A record that comes with an id is a batch of its own; its header has the id's hash, and, from the sequencer, for how long it counts. So
this, too, is a fold over headers, and expires by append times alone.
"""

from collections import OrderedDict
from collections.abc import Iterable

from streamq.model.ids import ProducerId
from streamq.model.tables import StoredId

__all__ = ["RecordIds"]


def _counts_at(stored: StoredId, at: int) -> bool:
    return stored.append_time + stored.window_ms >= at


class RecordIds:
    """Invariant: in the order of the log, so append times never fall. Where a window was shortened, one that has expired may wait behind
    one that has not: it takes up room, and counts no more."""

    def __init__(self, stored: Iterable[StoredId] = ()) -> None:
        self._stored: OrderedDict[ProducerId, StoredId] = OrderedDict((each.id, each) for each in stored)

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, id: ProducerId, *, at: int) -> StoredId | None:
        """The record of this id as it counts at the append time `at`."""
        stored = self._stored.get(id)
        return stored if stored is not None and _counts_at(stored, at) else None

    def add(self, stored: StoredId) -> None:
        """The newest; one of the same id before it has expired."""
        self._stored.pop(stored.id, None)
        self._stored[stored.id] = stored

    def expire(self, at: int) -> None:
        """The oldest is first, so each call looks at one or two."""
        while self._stored:
            id = next(iter(self._stored))
            if _counts_at(self._stored[id], at):
                return
            del self._stored[id]

    def count_at(self, at: int) -> int:
        """How many there would be after `expire`."""
        expired = 0
        for stored in self._stored.values():
            if _counts_at(stored, at):
                break
            expired += 1
        return len(self._stored) - expired

    def forget_below(self, offset: int) -> None:
        while self._stored:
            id = next(iter(self._stored))
            if self._stored[id].base >= offset:
                return
            del self._stored[id]

    def snapshot(self) -> tuple[StoredId, ...]:
        return tuple(self._stored.values())
