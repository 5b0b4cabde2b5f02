"""The newest batches of one run, in memory: a contiguous stretch that ends at the run's tail.

New batches are added on the right, old ones leave on the left once they lie in log files, and a cut takes them from the right. The left end
moves by an index, and the lists are compacted now and then, so each step is cheap.
"""

from bisect import bisect_left, bisect_right
from typing import Final

from streamq.model.batches import BATCH_HEADER_BYTES, Batch

__all__ = ["BatchWindow"]

_COMPACT_BATCHES: Final = 256


class BatchWindow:
    """Invariant: `batches[start:]` are contiguous, and `bases` names the base of each."""

    __slots__ = ("bases", "batches", "start")

    def __init__(self) -> None:
        self.bases: list[int] = []
        self.batches: list[Batch] = []
        self.start = 0

    def __len__(self) -> int:
        return len(self.bases) - self.start

    @property
    def base(self) -> int | None:
        """Where the stretch begins; None when it is empty."""
        return self.bases[self.start] if self.start < len(self.bases) else None

    def append(self, batch: Batch, base: int) -> None:
        self.bases.append(base)
        self.batches.append(batch)

    def at(self, offset: int, *, max_bytes: int) -> list[Batch] | None:
        """From the batch that contains `offset` on: at least that one, then up to `max_bytes`. None if it is not here."""
        first = self._find(offset)
        if first is None:
            return None
        size = 0
        batches = self.batches
        for last in range(first, len(batches)):
            size += BATCH_HEADER_BYTES + batches[last].header.payload_bytes
            if size >= max_bytes:
                return batches[first : last + 1 if size == max_bytes or last == first else last]
        return batches[first:]

    def count_at(self, offset: int, *, max_batches: int) -> list[Batch] | None:
        """As `at`, bounded by a number of batches."""
        first = self._find(offset)
        return None if first is None else self.batches[first : first + max_batches]

    def since(self, offset: int) -> list[Batch]:
        """Every batch whose base is at or past `offset`."""
        return self.batches[bisect_left(self.bases, offset, self.start) :]

    def cut(self, end: int) -> list[Batch]:
        """Forgets the batches at or past `end`; returns them."""
        first = bisect_left(self.bases, end, self.start)
        gone = self.batches[first:]
        del self.bases[first:], self.batches[first:]
        return gone

    def take_first(self) -> Batch:
        """Forgets the oldest batch and returns it. There must be one."""
        start = self.start
        batch = self.batches[start]
        start += 1
        if start >= _COMPACT_BATCHES and start * 2 >= len(self.bases):
            del self.bases[:start], self.batches[:start]
            start = 0
        else:
            self.batches[start - 1] = _GONE  # frees the bytes at once
        self.start = start
        return batch

    def copy(self) -> "BatchWindow":
        other = BatchWindow()
        other.bases = self.bases[self.start :]
        other.batches = self.batches[self.start :]
        return other

    def _find(self, offset: int) -> int | None:
        index = bisect_right(self.bases, offset, self.start) - 1
        if index < self.start or offset >= self.batches[index].end:
            return None
        return index


_GONE: Final[Batch] = None  # type: ignore[assignment]
