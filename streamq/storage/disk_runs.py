"""Which runs there are, what of each lies in memory and what in log files: the bookkeeping of `DiskStorage`, without any I/O.

A run's batches `[base, tail)` lie in log files up to `flushed`; those from there on are pinned in memory until a flush has written them.
Flushed batches stay in memory as long as there is room, the oldest of all runs leave first.

    base ............. files .............. flushed ........ pinned ........ tail
                             window.base ....................................

A flush takes a snapshot (`begin_flush`), works on it in a thread, and what it has achieved is entered afterwards (`end_flush`); cuts, drops
and appends go on meanwhile. A file is removed only after a checkpoint that does not name it any more; until then its name is taken.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from streamq.model.batches import BATCH_HEADER_BYTES, Batch
from streamq.model.files import StoredFile
from streamq.model.ids import PartitionId
from streamq.storage.batch_window import BatchWindow
from streamq.storage.checkpoint import RunRow
from streamq.storage.interface import Run, RunsView
from streamq.storage.log_file import LogFile

__all__ = ["BATCH_MEMORY_BYTES", "DiskRun", "DiskRuns", "FlushedRun", "RunFlush", "RunKey", "Snapshot"]

BATCH_MEMORY_BYTES: Final = 750
"""What a batch takes in memory besides its bytes: three objects and their numbers (measured)."""
RunKey = tuple[PartitionId, int]


class DiskRun:
    """One run. `files` is what the newest flush has written, `must_clip` says that some of it lies past the tail.

    `must_roll`: nothing is added to the last file any more. `start`: files that end at or below it go; until then they count."""

    __slots__ = (
        "base",
        "epoch",
        "files",
        "flushed",
        "is_dirty",
        "is_flushing",
        "must_clip",
        "must_roll",
        "partition",
        "start",
        "tail",
        "window",
    )

    def __init__(self, partition: PartitionId, epoch: int, base: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self.base = base
        self.tail = base
        self.flushed = base
        self.files: tuple[LogFile, ...] = ()
        self.window = BatchWindow()
        self.is_dirty = False
        self.is_flushing = False
        self.must_clip = False
        self.must_roll = False
        self.start = 0


class RunFlush(NamedTuple):
    """What a flush has to do for one run: clip its files at `flushed`, then write these batches behind them."""

    run: DiskRun
    base: int
    flushed: int
    tail: int
    files: tuple[LogFile, ...]
    batches: list[Batch]
    must_clip: bool
    must_roll: bool
    cost: int


class Snapshot(NamedTuple):
    """Everything as of one moment. `rows` holds the runs that need no flush."""

    flushes: list[RunFlush]
    rows: dict[RunKey, RunRow]
    doomed: frozenset[tuple[PartitionId, str]]


class FlushedRun(NamedTuple):
    flush: RunFlush
    files: tuple[LogFile, ...]


class DiskRuns:
    """Invariants: `pinned_cost` and `memory_cost` are the sums over the windows of what is not flushed and of everything."""

    def __init__(self, *, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._partitions: dict[PartitionId, dict[int, DiskRun]] = {}
        self._rows: dict[RunKey, RunRow] = {}
        self._dirty: list[DiskRun] = []
        self._doomed: set[tuple[PartitionId, str]] = set()
        self._order: deque[DiskRun] = deque()
        self.pinned_cost = 0
        self.memory_cost = 0

    # --- what is there -------------------------------------------------------------------------------------------------

    def partitions(self) -> list[PartitionId]:
        return list(self._partitions)

    def view(self, partition: PartitionId) -> Mapping[int, Run]:
        return RunsView(self._partitions.get(partition, {}))

    def get(self, partition: PartitionId, epoch: int) -> DiskRun | None:
        runs = self._partitions.get(partition)
        return None if runs is None else runs.get(epoch)

    def of(self, partition: PartitionId) -> list[DiskRun]:
        return list(self._partitions.get(partition, {}).values())

    @property
    def is_dirty(self) -> bool:
        """Whether a flush would have something to do."""
        return bool(self._dirty)

    # --- changes -------------------------------------------------------------------------------------------------------

    def load(self, rows: Sequence[RunRow]) -> None:
        """The runs of a checkpoint."""
        for row in rows:
            run = self._add(row.partition, row.epoch, row.base)
            run.tail = run.flushed = row.tail
            run.files = row.files
            self._rows[row.partition, row.epoch] = row

    def append(self, batches: Sequence[Batch]) -> int:
        """Each begins a run or continues it (asserted). Returns what they cost in memory."""
        run: DiskRun | None = None
        order = self._order
        cost = 0
        for batch in batches:
            header = batch.header
            if run is None or header.epoch != run.epoch or header.partition != run.partition:
                run = self.get(header.partition, header.epoch) or self._add(header.partition, header.epoch, header.base)
                self._mark(run)
            base = header.base
            assert base == run.tail, f"a batch at {base} does not continue a run that ends at {run.tail}"
            run.tail = base + header.records
            run.window.append(batch, base)
            order.append(run)
            cost += BATCH_MEMORY_BYTES + header.payload_bytes
        self.pinned_cost += cost
        self.memory_cost += cost
        if self.memory_cost > self._cache_bytes:
            self._evict()
        return cost

    def cut(self, partition: PartitionId, epoch: int, end: int) -> bool:
        """Forgets what lies at or past `end`. False if there was nothing."""
        run = self.get(partition, epoch)
        if run is None or end >= run.tail:
            return False
        if end <= run.base:
            self._forget(run)
            return True
        self._free(run, end)
        run.tail = end
        if run.flushed > end:
            run.flushed = end
        if run.files and run.files[-1].end > end:
            run.must_clip = True
            self._mark(run)
        return True

    def trim(self, partition: PartitionId, start_offset: int) -> bool:
        """Forgets the files that end at or below `start_offset`; of a run that is being flushed, after that. False if none went."""
        has_gone = False
        for run in self.of(partition):
            run.start = max(run.start, start_offset)
            has_gone |= self._trim(run)
        return has_gone

    def _trim(self, run: DiskRun) -> bool:
        """A run is never left without a file or a batch. What lies in memory alone goes with the file that it comes to."""
        if run.is_flushing:
            return False
        count = 0
        while count < len(run.files) and min(run.files[count].end, run.tail) <= run.start:
            count += 1
        if not count:
            return False
        if count == len(run.files) and run.flushed == run.tail:
            self._forget(run)
            return True
        self._doomed.update((run.partition, file.name) for file in run.files[:count])
        run.base = min(run.files[count - 1].end, run.tail)
        run.files = run.files[count:]
        self._mark(run)
        return True

    def files(self, partition: PartitionId, *, full_bytes: int) -> list[StoredFile]:
        """What lies in log files, in offset order. The last one of the newest run is open, unless it is full or to be closed."""
        found: list[StoredFile] = []
        runs = self._partitions.get(partition, {})
        newest = max(runs, default=0)
        for epoch in sorted(runs):
            run = runs[epoch]
            for file in run.files:
                end = min(file.end, run.tail)
                is_closed = epoch != newest or file is not run.files[-1] or run.must_roll or file.size >= full_bytes
                found.append(StoredFile(epoch, file.base, end, file.size, file.first_append, file.last_append, is_closed))
        return found

    def roll(self, partition: PartitionId) -> None:
        """The next flush begins a new file in the newest run."""
        runs = self._partitions.get(partition)
        if runs:
            runs[max(runs)].must_roll = True

    def drop(self, partition: PartitionId) -> None:
        """Forgets all runs of the partition."""
        for run in self.of(partition):
            self._forget(run)

    def _add(self, partition: PartitionId, epoch: int, base: int) -> DiskRun:
        run = self._partitions.setdefault(partition, {})[epoch] = DiskRun(partition, epoch, base)
        return run

    def _mark(self, run: DiskRun) -> None:
        if not run.is_dirty:
            run.is_dirty = True
            self._dirty.append(run)

    def _forget(self, run: DiskRun) -> None:
        self._free(run, 0)
        runs = self._partitions[run.partition]
        del runs[run.epoch]
        if not runs:
            self._partitions.pop(run.partition)
        self._rows.pop((run.partition, run.epoch), None)
        self._doomed.update((run.partition, file.name) for file in run.files)

    def _free(self, run: DiskRun, end: int) -> None:
        """Takes the batches at or past `end` out of memory."""
        pinned = _cost(run.window.cut(max(end, run.flushed)))
        self.pinned_cost -= pinned
        self.memory_cost -= pinned + _cost(run.window.cut(end))

    def _evict(self) -> None:
        """The oldest flushed batches leave until the rest fits; pinned ones stay."""
        order = self._order
        while order and self.memory_cost > self._cache_bytes:
            run = order[0]
            base = run.window.base
            if base is not None:
                if base >= run.flushed:
                    return
                self.memory_cost -= BATCH_MEMORY_BYTES + run.window.take_first().header.payload_bytes
            order.popleft()

    # --- flushing ------------------------------------------------------------------------------------------------------

    def begin_flush(self) -> Snapshot:
        flushes = []
        for run in self._dirty:
            run.is_dirty = False
            if self.get(run.partition, run.epoch) is run:
                batches = run.window.since(run.flushed)
                cost = _cost(batches)
                run.is_flushing = True
                flushes.append(RunFlush(run, run.base, run.flushed, run.tail, run.files, batches, run.must_clip, run.must_roll, cost))
        self._dirty = []
        rows = dict(self._rows)
        for flush in flushes:
            rows.pop((flush.run.partition, flush.run.epoch), None)
        return Snapshot(flushes, rows, frozenset(self._doomed))

    def end_flush(self, snapshot: Snapshot, flushed: Sequence[FlushedRun], *, is_complete: bool) -> None:
        """Enters what a flush has made durable, its checkpoint included. What was cut or dropped meanwhile stays so.

        Files that were doomed are gone, unless it is not complete: then the older copy of the checkpoint may still name them.
        """
        for flush, files in flushed:
            run = flush.run
            run.is_flushing = False
            if self.get(run.partition, run.epoch) is not run:
                self._doomed.update((run.partition, file.name) for file in files)
                continue
            kept = {file.name for file in files}
            run.files = files
            if flush.batches:
                run.must_roll = False
            self._rows[run.partition, run.epoch] = RunRow(run.partition, run.epoch, flush.base, flush.tail, files)
            if run.tail >= flush.tail and run.flushed == flush.flushed:
                self.pinned_cost -= flush.cost
                run.flushed = flush.tail
                run.must_clip = False
            else:
                until = min(flush.tail, run.tail)
                self.pinned_cost -= _cost([batch for batch in run.window.since(run.flushed) if batch.end <= until])
                run.flushed = max(run.flushed, until)
                run.must_clip = files[-1].end > run.tail
                self._mark(run)
            self._doomed.update((run.partition, file.name) for file in flush.files if file.name not in kept)
            if run.start > run.base:
                self._trim(run)
        if is_complete:
            self._doomed -= snapshot.doomed
        self._evict()

    def fail_flush(self, snapshot: Snapshot) -> None:
        """Nothing of it counts; the next one begins anew."""
        for flush in snapshot.flushes:
            flush.run.is_flushing = False
            self._mark(flush.run)


def _cost(batches: Sequence[Batch]) -> int:
    return sum([BATCH_MEMORY_BYTES + batch.header.payload_bytes for batch in batches])


assert BATCH_MEMORY_BYTES > BATCH_HEADER_BYTES
