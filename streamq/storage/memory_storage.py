"""Storage in memory, for simulation and tests: the same behaviour as `DiskStorage`, a trio task instead of threads, and crashes on demand.

It keeps what a disk would keep: an image (the last checkpoint) and a journal (what was appended since), of which only a prefix is durable.
What a restart sees is the image plus a prefix of the journal, at least as long as what is durable: `crash` returns that as a new storage.
Cuts and drops are journal entries too, so one that was not durable is undone by a crash, as on a disk.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from streamq.model.batches import Batch, BatchHeader
from streamq.model.files import StoredFile
from streamq.model.ids import PartitionId
from streamq.storage.interface import DamagedRangeError, Identity, Lost, Run, RunsView, StorageFailedError
from streamq.storage.memory_image import Cut, Damage, Drop, Entry, Image, State
from streamq.storage.metrics import StorageMetrics

__all__ = ["MemoryStorage"]

CHECKPOINT_ENTRIES: Final = 1_000


class MemoryStorage:
    """`write_s` passes before entries are written, `sync_s` more before they are durable; both on trio's clock.

    `crash` and `fail` simulate what disks do; `damage` makes a range unreadable until `restore`; `refuse` simulates a full disk; nothing is
    written from `hold` to `go_on`.
    """

    def __init__(self, identity: Identity, *, write_s: float = 0.0, sync_s: float = 0.0) -> None:
        self.metrics = StorageMetrics()
        self._identity = identity
        self._write_s = write_s
        self._sync_s = sync_s
        self._lost: tuple[Lost, ...] = ()
        self._clean = False
        self._now = Image()
        self._image = Image()
        self._journal: list[Entry] = []
        self._written = 0  # of the journal's entries: which prefix is written, and which is durable
        self._durable = 0
        self._queue: list[tuple[int, object, bool]] = []  # (entries in the journal with it, token, sync)
        self._wake = trio.Event()
        self._held: trio.Event | None = None
        self._failure: str | None = None
        self._refusal: str | None = None
        self._stopped_cleanly = False
        self._dead = False
        self._collect: Callable[[], Sequence[tuple[str, bytes]]] | None = None
        self._kept: Callable[[], None] | None = None
        self._checkpoint: tuple[int, dict[str, bytes], dict[tuple[PartitionId, int], int]] | None = None
        self._trims: dict[tuple[PartitionId, int], int] = {}
        self._is_checkpoint_due = False
        self._damaged: list[Damage] = []

    # --- what is there -------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def lost(self) -> tuple[Lost, ...]:
        return self._lost

    @property
    def was_stopped_cleanly(self) -> bool:
        return self._clean

    @property
    def unsynced(self) -> int:
        """Entries (batches, states, cuts, drops) that a crash may take away."""
        return len(self._journal) - self._durable

    @property
    def unsynced_written(self) -> int:
        """Of these, how many the operating system has: a process that is killed keeps them, a host that crashes may not."""
        return self._written - self._durable

    def states(self) -> Mapping[str, bytes]:
        now = self._now
        return {**now.derived, **now.states} if now.derived else now.states

    def runs(self, partition: PartitionId) -> Mapping[int, Run]:
        return RunsView(self._now.runs.get(partition, {}))

    def partitions(self) -> Sequence[PartitionId]:
        return list(self._now.runs)

    def gauges(self) -> Mapping[str, int]:
        return {}

    # --- writing -------------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[Batch], states: Sequence[tuple[str, bytes | None]], token: object, *, sync: bool = True) -> None:
        if self._dead or self._failure is not None:
            return
        for batch in batches:
            run = self._now.run(batch.header.partition, batch.header.epoch)
            assert run is None or run.tail == batch.base, f"a batch at {batch.base} does not continue a run that ends at {run and run.tail}"
            self._add(batch)
        for key, value in states:
            self._add(State(key, value))
        self._queue.append((len(self._journal), token, sync))
        self._wake.set()

    def cut(self, partition: PartitionId, epoch: int, end: int) -> None:
        run = self._now.run(partition, epoch)
        if run is not None and end < run.tail:
            self._add(Cut(partition, epoch, end))

    def trim(self, partition: PartitionId, start_offset: int) -> None:
        for epoch, run in list(self._now.runs.get(partition, {}).items()):
            base = max((end for end in (*run.ends, run.tail) if end <= start_offset), default=0)
            if base > run.base:
                self._now.begin_at(partition, epoch, base)
                self._trims[partition, epoch] = base
        self._is_checkpoint_due = True
        self._wake.set()

    def roll(self, partition: PartitionId) -> None:
        runs = self._now.runs.get(partition)
        if runs:
            runs[max(runs)].roll()

    def files(self, partition: PartitionId) -> Sequence[StoredFile]:
        runs = self._now.runs.get(partition, {})
        newest = max(runs, default=0)
        return [file for epoch in sorted(runs) for file in runs[epoch].files(epoch, is_newest=epoch == newest)]

    def drop(self, partition: PartitionId) -> None:
        self._add(Drop(partition))

    def _add(self, entry: Entry) -> None:
        self._now.apply(entry)
        self._journal.append(entry)

    async def run(self, on_durable: Callable[[list[object]], None]) -> None:
        """One group commit after the other; what is appended meanwhile goes with the next."""
        while True:
            if self._failure is not None:
                raise StorageFailedError(self._failure)
            if not self._queue or self._dead:
                if self._is_checkpoint_due and not self._dead:
                    self._durable = self._written = len(self._journal)  # nothing but cuts and drops can be left
                    self._advance_checkpoint()
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            group, self._queue = self._queue, []
            entries = group[-1][0]
            await trio.sleep(self._write_s)
            await self._until_let_go()
            self._written = max(self._written, entries)
            self._give(on_durable, [token for _, token, sync in group if not sync])
            await trio.sleep(self._sync_s)
            await self._until_let_go()
            if self._failure is not None or self._dead:
                continue
            self.metrics.journal_groups += 1
            self.metrics.journal_entries += entries - self._durable
            self._durable = max(self._durable, entries)
            self._give(on_durable, [token for _, token, sync in group if sync])
            self._advance_checkpoint()

    async def _until_let_go(self) -> None:
        while self._held is not None:
            await self._held.wait()

    def _give(self, on_durable: Callable[[list[object]], None], tokens: list[object]) -> None:
        if tokens and not self._dead and self._failure is None:
            on_durable(tokens)

    def _advance_checkpoint(self) -> None:
        """Begins one when the journal is long; ends it once all that it covers is durable."""
        if self._checkpoint is None and (self._is_checkpoint_due or len(self._journal) >= CHECKPOINT_ENTRIES):
            self.checkpoint()
        if self._checkpoint is not None and self._durable >= self._checkpoint[0]:
            entries, derived, trims = self._checkpoint
            self._checkpoint = None
            for entry in self._journal[:entries]:
                self._image.apply(entry)
            for (partition, epoch), base in trims.items():
                self._image.begin_at(partition, epoch, base)
            self._image.derived = derived
            del self._journal[:entries]
            self._durable -= entries
            self._written -= entries
            self._queue = [(count - entries, token, sync) for count, token, sync in self._queue]
            if self._kept is not None:
                self._kept()

    def checkpoint(self) -> None:
        """Begins a checkpoint of all that was appended so far; it counts once that is durable."""
        self._now.derived = self._image.derived if self._collect is None else dict(self._collect())
        self._checkpoint = (len(self._journal), self._now.derived, self._trims)
        self._trims = {}
        self._is_checkpoint_due = False

    async def close(self) -> None:
        """After `run` has ended."""
        await trio.lowlevel.checkpoint()
        if self._dead or self._failure is not None:
            return
        self._durable = self._written = len(self._journal)
        self._kept = None
        self.checkpoint()
        self._advance_checkpoint()
        self._queue.clear()
        self._stopped_cleanly = True
        self._dead = True

    def backlog(self) -> trio.Event | None:
        return None

    def refusal(self) -> str | None:
        return self._refusal

    async def restore(self, partition: PartitionId, epoch: int, batches: Sequence[Batch]) -> None:
        await trio.sleep(self._write_s + self._sync_s)
        for batch in batches:
            held = self.recent(partition, epoch, batch.base, max_bytes=1)
            assert held is None or (held[0].head, held[0].payload) == (batch.head, batch.payload), "these bytes were not there"
            self._damaged = [rest for damage in self._damaged for rest in damage.without(partition, epoch, batch.base, batch.end)]

    def at_checkpoint(self, collect: Callable[[], Sequence[tuple[str, bytes]]], kept: Callable[[], None] | None = None) -> None:
        self._collect = collect
        self._kept = kept

    # --- reading -------------------------------------------------------------------------------------------------------

    def recent(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch] | None:
        run = self._now.run(partition, epoch)
        return None if run is None else run.window.at(offset, max_bytes=max_bytes)

    async def read(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        await trio.lowlevel.checkpoint()
        batches = self.recent(partition, epoch, offset, max_bytes=max_bytes) or []
        return batches[: self._whole(partition, epoch, [b.header for b in batches])]

    async def headers(self, partition: PartitionId, epoch: int, offset: int, *, max_batches: int) -> list[BatchHeader]:
        await trio.lowlevel.checkpoint()
        run = self._now.run(partition, epoch)
        batches = None if run is None else run.window.count_at(offset, max_batches=max_batches)
        headers = [batch.header for batch in batches or ()]
        return headers[: self._whole(partition, epoch, headers)]

    async def find_time(self, partition: PartitionId, epoch: int, timestamp_ms: int) -> int | None:
        await trio.lowlevel.checkpoint()
        run = self._now.run(partition, epoch)
        batches = () if run is None else run.window.batches
        return next((batch.base for batch in batches if batch.header.max_timestamp >= timestamp_ms), None)

    def _whole(self, partition: PartitionId, epoch: int, headers: Sequence[BatchHeader]) -> int:
        """How many of them come before the first damaged one; raises DamagedRangeError if that is the first."""
        for count, header in enumerate(headers):
            for of, in_epoch, base, end in self._damaged:
                if (of, in_epoch) == (partition, epoch) and header.base < end and base < header.end:
                    if count:
                        return count
                    raise DamagedRangeError(
                        partition=partition, epoch=epoch, base=header.base, end=header.end, file="memory", first_byte=0, last_byte=0
                    )
        return len(headers)

    # --- what disks do -------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        if self._held is None:
            self._held = trio.Event()

    def go_on(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.set()

    def fail(self, reason: str) -> None:
        """A write or sync fails: no token is given back any more, and `run` raises StorageFailedError."""
        self._failure = reason
        self._wake.set()

    def refuse(self, reason: str | None) -> None:
        self._refusal = reason

    def damage(self, partition: PartitionId, epoch: int, base: int, end: int) -> None:
        """These offsets fail their checksum when they are read by `read` or `headers`, until restored."""
        self._damaged.append(Damage(partition, epoch, base, end))

    def crash(self, *, keep_unsynced: int = 0, lost: Sequence[Lost] = ()) -> "MemoryStorage":
        """What a restart sees: everything durable, and the first `keep_unsynced` of the entries that were not. This object is dead then.

        `lost` is what the restart reports as lost, and it is lost. After `close` the restart follows a clean stop.
        """
        self._dead = True
        after = MemoryStorage(self._identity._replace(starts=self._identity.starts + 1), write_s=self._write_s, sync_s=self._sync_s)
        image = self._image.copy()
        for entry in self._journal[: self._durable + keep_unsynced]:
            image.apply(entry)
        image.lose(lost)
        after._image = image
        after._now = image.copy()
        after._lost = tuple(lost)
        after._clean = self._stopped_cleanly
        after._damaged = list(self._damaged)
        return after
