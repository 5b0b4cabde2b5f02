"""How a replica keeps its idempotence table up to date: headers of stored batches wait here until they are committed, then they are folded.

Only what is both committed (below the high watermark of the open epoch, or below the end of a closed one) and durable here is folded, in
offset order, so void batches never enter the table (P-34). A header that is not in memory (after a start, after refilling, past the bound)
has to be read from storage.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from streamq.log.idempotence import IdempotenceTable
from streamq.model.batches import BatchHeader

__all__ = ["UNFOLDED_HEADERS_MAX", "Fold"]

UNFOLDED_HEADERS_MAX: Final = 8_192
"""Headers per epoch that wait in memory; past it the oldest are forgotten and read from storage again when it is their turn."""


class Fold:
    """Invariant: `waiting[e]` holds the newest headers taken in epoch e, contiguous up to the end of what was taken; maybe none."""

    def __init__(self, table: IdempotenceTable) -> None:
        self.table = table
        self._waiting: dict[int, deque[BatchHeader]] = {}

    def add(self, epoch: int, header: BatchHeader) -> None:
        """A batch was taken (it need not be durable yet)."""
        waiting = self._waiting.get(epoch)
        if waiting is None:
            waiting = self._waiting[epoch] = deque(maxlen=UNFOLDED_HEADERS_MAX)
        waiting.append(header)

    def cut(self, epoch: int, end: int) -> None:
        """What was taken at or past `end` is void."""
        waiting = self._waiting.get(epoch)
        while waiting and waiting[-1].base >= end:
            waiting.pop()

    def keep_from(self, epoch: int) -> None:
        """Forgets the headers of earlier epochs; storage has them if they are ever needed."""
        self._waiting = {e: waiting for e, waiting in self._waiting.items() if e >= epoch}

    def advance(self, epoch: int, limit: int) -> None:
        """Folds what waits of `epoch` from the table's position on, up to `limit`. The position must lie in that epoch."""
        waiting = self._waiting.get(epoch)
        if waiting is None:
            return
        table = self.table
        while waiting and waiting[0].base < table.position:
            waiting.popleft()
        while waiting and waiting[0].base == table.position and waiting[0].base + waiting[0].records <= limit:
            table.fold(waiting.popleft())

    def take(self, headers: Iterable[BatchHeader], limit: int) -> None:
        """Folds headers that were read from storage, those that continue the table and end at or below `limit`."""
        for header in headers:
            if header.base == self.table.position and header.base + header.records <= limit:
                self.table.fold(header)

    def begin_again(self, table: IdempotenceTable) -> None:
        """With the table of another replica, which is further: both are folds over the same headers. Keeps the object that others read."""
        self.table.become(table)

    def lacks(self, epoch: int) -> bool:
        """Whether the header at the table's position, which lies in that epoch, is not in memory."""
        waiting = self._waiting.get(epoch)
        return not waiting or waiting[0].base > self.table.position
