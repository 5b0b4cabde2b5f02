"""What `MemoryStorage` would keep on a disk: runs and states at one moment, and how each entry of its journal changes them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from streamq.model.batches import Batch
from streamq.model.files import StoredFile
from streamq.model.ids import PartitionId
from streamq.storage.batch_window import BatchWindow
from streamq.storage.interface import Lost, LostBatches, LostState

__all__ = ["Cut", "Damage", "Drop", "Entry", "Image", "MemoryRun", "State"]

FILE_BYTES: Final = 64 << 10
"""On a disk a log file would be closed once it has so much; here it is what a trim takes at a time."""


class Cut(NamedTuple):
    partition: PartitionId
    epoch: int
    end: int


class Drop(NamedTuple):
    partition: PartitionId


class State(NamedTuple):
    key: str
    value: bytes | None


Entry = Batch | State | Cut | Drop


class Damage(NamedTuple):
    partition: PartitionId
    epoch: int
    base: int
    end: int

    def without(self, partition: PartitionId, epoch: int, base: int, end: int) -> "list[Damage]":
        """What is left of it when `[base, end)` is whole again."""
        if (partition, epoch) != (self.partition, self.epoch) or end <= self.base or base >= self.end:
            return [self]
        left = self._replace(end=base)
        right = self._replace(base=end)
        return [part for part in (left, right) if part.base < part.end]


class MemoryRun:
    """`ends`: where the files would end in which it would lie on a disk; what lies behind the last of them is still written."""

    __slots__ = ("base", "ends", "size", "tail", "window")

    def __init__(self, base: int) -> None:
        self.base = base
        self.tail = base
        self.window = BatchWindow()
        self.ends: list[int] = []
        self.size = 0

    def append(self, batch: Batch) -> None:
        self.window.append(batch, batch.header.base)
        self.tail = batch.end
        self.size += batch.size
        if self.size >= FILE_BYTES:
            self.roll()

    def roll(self) -> None:
        if self.size:
            self.ends.append(self.tail)
            self.size = 0

    def cut(self, end: int) -> None:
        self.window.cut(end)
        self.tail = self.window.batches[-1].end
        self.ends = [each for each in self.ends if each < self.tail]
        last = self.ends[-1] if self.ends else self.base
        self.size = sum(batch.size for batch in self.window.since(last))

    def begin_at(self, base: int) -> None:
        self.base = base
        self.ends = [end for end in self.ends if end > base]
        while self.window.base is not None and self.window.base < base:
            self.window.take_first()

    def files(self, epoch: int, *, is_newest: bool) -> list[StoredFile]:
        found: list[StoredFile] = []
        at = self.base
        for end in dict.fromkeys((*self.ends, self.tail)):
            held = [batch for batch in self.window.since(at) if batch.base < end]
            if held:
                first, last = held[0].header.append_time, held[-1].header.append_time
                is_closed = not is_newest or end in self.ends
                found.append(StoredFile(epoch, at, end, sum(batch.size for batch in held), first, last, is_closed))
            at = end
        return found

    def copy(self) -> "MemoryRun":
        other = MemoryRun(self.base)
        other.tail = self.tail
        other.window = self.window.copy()
        other.ends = list(self.ends)
        other.size = self.size
        return other


class Image:
    """Runs and states, and how each entry changes them."""

    def __init__(self) -> None:
        self.runs: dict[PartitionId, dict[int, MemoryRun]] = {}
        self.states: dict[str, bytes] = {}
        self.derived: dict[str, bytes] = {}

    def copy(self) -> "Image":
        other = Image()
        other.runs = {partition: {epoch: run.copy() for epoch, run in runs.items()} for partition, runs in self.runs.items()}
        other.states = dict(self.states)
        other.derived = dict(self.derived)
        return other

    def run(self, partition: PartitionId, epoch: int) -> MemoryRun | None:
        return self.runs.get(partition, {}).get(epoch)

    def apply(self, entry: Entry) -> None:
        """A batch below its run's tail is one that a cut or drop, undone by a crash, had made room for: the bytes are the same (P-12)."""
        if isinstance(entry, Batch):
            header = entry.header
            runs = self.runs.setdefault(header.partition, {})
            run = runs.get(header.epoch)
            if run is None:
                run = runs[header.epoch] = MemoryRun(header.base)
            if header.base == run.tail:
                run.append(entry)
            assert header.base < run.tail, f"a batch at {header.base} does not continue a run that ends at {run.tail}"
        elif isinstance(entry, State):
            if entry.value is None:
                self.states.pop(entry.key, None)
            else:
                self.states[entry.key] = entry.value
        elif isinstance(entry, Cut):
            self.cut(*entry)
        else:
            self.runs.pop(entry.partition, None)

    def cut(self, partition: PartitionId, epoch: int, end: int) -> None:
        run = self.run(partition, epoch)
        if run is None or end >= run.tail:
            return
        if end > run.base:
            run.cut(end)
        else:
            self._forget(partition, epoch)

    def begin_at(self, partition: PartitionId, epoch: int, base: int) -> None:
        run = self.run(partition, epoch)
        if run is not None:
            run.begin_at(base)
            if base >= run.tail:
                self._forget(partition, epoch)

    def _forget(self, partition: PartitionId, epoch: int) -> None:
        runs = self.runs[partition]
        del runs[epoch]
        if not runs:
            del self.runs[partition]

    def lose(self, lost: Sequence[Lost]) -> None:
        for loss in lost:
            if isinstance(loss, LostBatches):
                self.cut(loss.partition, loss.epoch, loss.base)
            elif isinstance(loss, LostState):
                self.states.pop(loss.key, None)
