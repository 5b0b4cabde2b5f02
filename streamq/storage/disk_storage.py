"""Storage on a disk: journal, log files and checkpoints, composed (P-27 to P-32).

    append ──> queue ──> journal worker: group commit ──> tokens back
       │                                                     memory (recent, read)
       └─────> memory, pinned ── flush worker: log files, checkpoint, release of the journal ──> log files (read)

The event loop owns all bookkeeping; workers (threads, see `workers`) get snapshots and give back results. Every byte is written twice: once
to the journal before it is acknowledged, once to its log file in a large write. What bounds the parts: a flush begins when `flush_bytes`
are pinned, and while one is under way no group begins once `cache_bytes` are; so memory, journal and restart are bounded together.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from streamq.model.batches import Batch, BatchHeader
from streamq.model.files import StoredFile
from streamq.model.ids import PartitionId
from streamq.storage.disk_reader import DiskReader
from streamq.storage.disk_runs import DiskRuns
from streamq.storage.file_ops import FileOps
from streamq.storage.flush import Flusher, FlushOrder, FlushResult
from streamq.storage.group_commit import NOTHING, Barrier, GroupCommit, Work
from streamq.storage.identity import DirectoryLock, load_identity
from streamq.storage.interface import Identity, Lost, LostUnknown, Run, StorageFailedError
from streamq.storage.journal import DISK_FULL
from streamq.storage.journal_format import JournalEntry, JournalPosition, StateEntry
from streamq.storage.log_index import IndexCache
from streamq.storage.restart import Restarted, cut_entry, drop_entry, restart
from streamq.storage.workers import ThreadWorkers, Workers

__all__ = ["DiskSettings", "DiskStorage"]

KiB: Final = 1 << 10
MiB: Final = 1 << 20
SPACE_CHECK_BYTES: Final = 1 * MiB
"""Free space is looked at again when so much was taken: a second is long enough to fill what a disk keeps in reserve."""
TICK_S: Final = 1.0
"""How often free space and the age of what is not flushed are looked at."""
ENTRIES_MAX: Final = 50_000
"""Journal entries between two checkpoints: a restart replays some 100,000 in a second."""
STATE_COST_BYTES: Final = 200


class DiskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Memory taken is about `cache_bytes` and what is on its way to the journal; a restart reads the journal of at most that much."""

    journal_file_bytes: int = 64 * MiB
    log_file_bytes: int = 64 * MiB
    """A log file is closed once it is larger."""
    cache_bytes: int = 64 * MiB
    """Batches in memory, those not yet in log files included."""
    flush_bytes: int = 32 * MiB
    """Batches in memory that lie in no log file yet: a flush begins."""
    flush_interval_s: float = 10.0
    """A flush begins in any case when something is older than this."""
    reserve_bytes: int = 128 * MiB
    """Free space on the file system below which no new batches are taken: it stays for seals and for the journal."""
    journal_bytes: int = 96 * MiB
    """Journal that a restart would read: a flush begins. At four times this, because flushes fail, no new batches are taken."""

    def __post_init__(self) -> None:
        if not 0 < self.flush_bytes <= self.cache_bytes:
            raise ValueError(f"flush_bytes ({self.flush_bytes}) must be above zero and at most cache_bytes ({self.cache_bytes})")


class DiskStorage:
    """See `interface.Storage`. `open` blocks for as long as the journal takes to replay; call it in a thread."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        settings: DiskSettings | None = None,
        ops: FileOps | None = None,
        workers: Workers | None = None,
    ) -> "DiskStorage":
        """Takes the directory's lock, counts the start, reads checkpoint and journal. Damage is reported in `lost`.

        If `lost` is not empty, what is appended before `run` begins must include the owner's limbo (P-29): until something is appended, no
        checkpoint is made. Raises what `identity` raises for a directory that is not a broker's or is open elsewhere; OSError.
        """
        settings = settings or DiskSettings()
        ops = ops or FileOps()
        lock = DirectoryLock(directory, ops=ops)
        try:
            runs = DiskRuns(cache_bytes=settings.cache_bytes)
            identity = load_identity(directory, ops=ops)
            found = restart(directory, identity, runs, journal_file_bytes=settings.journal_file_bytes, ops=ops)
            return cls(directory, found, lock=lock, settings=settings, ops=ops, workers=workers or ThreadWorkers())
        except BaseException:
            lock.release()
            raise

    def __init__(
        self,
        directory: Path,
        found: Restarted,
        *,
        lock: DirectoryLock,
        settings: DiskSettings,
        ops: FileOps,
        workers: Workers,
    ) -> None:
        """Use `open`."""
        self._directory = directory
        self._settings = settings
        self._ops = ops
        self._workers = workers
        self._lock = lock
        self._identity = found.identity
        self._lost = found.lost
        self._was_stopped_cleanly = found.was_stopped_cleanly
        self._may_checkpoint = not found.lost
        self._runs = found.replay.runs
        self._states = found.replay.states
        self._derived = found.checkpoint.derived
        self._journal = found.journal
        self.metrics = found.journal.metrics
        indexes = IndexCache()
        self._reader = DiskReader(
            directory,
            self._runs,
            incarnation=found.identity.incarnation,
            indexes=indexes,
            ops=ops,
            workers=workers,
            metrics=self.metrics,
        )
        self._commit = GroupCommit(found.journal, workers.worker())
        self._flusher = Flusher(
            directory,
            incarnation=found.identity.incarnation,
            start=found.identity.starts,
            number=found.checkpoint.number,
            journal=found.journal,
            log_file_bytes=settings.log_file_bytes,
            indexes=indexes,
            may_overwrite=not any(isinstance(loss, LostUnknown) for loss in found.lost),
            ops=ops,
        )
        self._collect: Callable[[], Sequence[tuple[str, bytes]]] | None = None
        self._kept: Callable[[], None] = _nobody_asks
        self._on_durable: Callable[[list[object]], None] | None = None
        self._failure: BaseException | None = None
        self._failed = trio.Event()
        self._due = trio.Event()
        self._room = trio.Event()
        """Set when the flush has ended that `backlog` lets others wait for."""
        self._flushing = trio.Lock()
        self._entries = found.replay.entries
        self._flushed_at = 0.0
        self._may_hold = False
        self._is_closed = False
        self._no_space: str | None = None
        self._no_spare: str | None = None
        self._unchecked_bytes = 0
        self._no_flush: str | None = None

    # --- what is there -------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def lost(self) -> tuple[Lost, ...]:
        return self._lost

    @property
    def was_stopped_cleanly(self) -> bool:
        return self._was_stopped_cleanly

    def states(self) -> Mapping[str, bytes]:
        return ChainMap(self._states, self._derived) if self._derived else self._states

    def runs(self, partition: PartitionId) -> Mapping[int, Run]:
        return self._runs.view(partition)

    def partitions(self) -> Sequence[PartitionId]:
        return self._runs.partitions()

    def files(self, partition: PartitionId) -> Sequence[StoredFile]:
        return self._runs.files(partition, full_bytes=self._settings.log_file_bytes)

    def gauges(self) -> dict[str, int]:
        return {
            "journal_unreleased_bytes": self._journal.bytes_in_use,
            "journal_files": self._journal.files,
            "memory_batches_bytes": self._runs.memory_cost,
            "memory_unflushed_bytes": self._runs.pinned_cost,
            "disk_free_bytes": self._ops.free_bytes(self._directory),
        }

    # --- writing -------------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[Batch], states: Sequence[tuple[str, bytes | None]], token: object, *, sync: bool = True) -> None:
        if self._failure is not None or self._is_closed:
            return
        cost = self._runs.append(batches) if batches else 0
        entries: list[JournalEntry] = list(batches)
        for key, value in states:
            entries.append(StateEntry(key, value))
            cost += STATE_COST_BYTES
            if value is None:
                self._states.pop(key, None)
            else:
                self._states[key] = value
                cost += len(value)
        self._put(Work(entries, cost, token, sync))
        self._may_checkpoint = True

    def cut(self, partition: PartitionId, epoch: int, end: int) -> None:
        if self._runs.cut(partition, epoch, end):
            self._put(Work([cut_entry(partition, epoch, end)], STATE_COST_BYTES, NOTHING, True))

    def trim(self, partition: PartitionId, start_offset: int) -> None:
        if self._failure is None and not self._is_closed:
            self._runs.trim(partition, start_offset)
            self._entries += 1  # a checkpoint is due

    def roll(self, partition: PartitionId) -> None:
        self._runs.roll(partition)

    def drop(self, partition: PartitionId) -> None:
        self._runs.drop(partition)
        # Also of one without a run: the last checkpoint may name what was trimmed since.
        self._put(Work([drop_entry(partition)], STATE_COST_BYTES, NOTHING, True))

    def _put(self, work: Work) -> None:
        self._commit.put(work)
        self._unchecked_bytes += work.cost
        self._entries += len(work.entries)
        pinned = self._runs.pinned_cost
        if self._may_hold:
            if pinned > self._settings.cache_bytes:
                self._commit.hold()
        elif pinned >= self._settings.flush_bytes or self._entries >= ENTRIES_MAX:
            self._due.set()

    async def run(self, on_durable: Callable[[list[object]], None]) -> None:
        self._on_durable = on_durable
        self._flushed_at = trio.current_time()
        # The group under way is finished, not broken off; its tokens are not given back, which loses nothing.
        async with self._commit.running(self._deliver, self._fail):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._maintain)
                    await self._failed.wait()
                    nursery.cancel_scope.cancel()
            finally:
                self._on_durable = None
        assert self._failure is not None
        raise self._failure

    def _deliver(self, tokens: list[object]) -> None:
        """Called by the event loop for each group commit."""
        if self._on_durable is None or self._failure is not None:
            return
        try:
            self._on_durable(tokens)
        except BaseException as error:  # here it would end trio itself; `run` raises it instead
            self._fail(error)
        if self._journal.bytes_in_use > self._settings.journal_bytes or self._journal.spare_needed():
            self._due.set()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = StorageFailedError(str(error)) if isinstance(error, OSError) else error
            self._failed.set()

    # --- upkeep --------------------------------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        """Spares, free space and flushes, one after the other."""
        try:
            while True:
                with trio.move_on_after(TICK_S):
                    await self._due.wait()
                self._due = trio.Event()
                self._no_space = self._space_fault()
                self._no_spare = await self._spare_fault()
                if self._flush_is_due():
                    await self.flush()
                self._room.set()
                if self._no_flush is not None or self._no_spare is not None:
                    await trio.sleep(TICK_S)
        except (StorageFailedError, OSError) as error:
            self._fail(error)

    def _space_fault(self) -> str | None:
        """Room must be left for what was taken already, once in log files and perhaps once more in the journal, and for its next file."""
        self._unchecked_bytes = 0
        free, reserve = self._ops.free_bytes(self._directory), self._settings.reserve_bytes
        next_file = self._settings.journal_file_bytes if self._journal.spare_needed() else 0
        if free >= reserve + 2 * self._runs.pinned_cost + next_file:
            return None
        return f"the disk is full: {free >> 20} MiB are free, and {reserve >> 20} MiB are kept for seals"

    async def _spare_fault(self) -> str | None:
        if not self._journal.spare_needed():
            return None
        with self._holding_groups():
            if await self._workers.run(self._journal.prepare_spare) or self._journal.has_spare:
                return None
        return "the disk is full: there is no room for another journal file"

    @contextmanager
    def _holding_groups(self) -> Iterator[None]:
        """Until the block ends no group begins once memory is full. The block waits for none, and a flush follows or ends with it."""
        self._may_hold = True
        try:
            yield
        finally:
            self._may_hold = False
            self._commit.go_on()

    def refusal(self) -> str | None:
        if self._unchecked_bytes >= SPACE_CHECK_BYTES:
            self._no_space = self._space_fault()
        fault = self._no_space or self._no_spare or self._no_flush
        if fault is None and self._journal.bytes_in_use > 4 * self._settings.journal_bytes:
            return "the journal is full: the log files do not keep up"
        return fault

    def backlog(self) -> trio.Event | None:
        if self._runs.pinned_cost <= self._settings.cache_bytes or self.refusal() is not None:
            return None
        if self._room.is_set():
            self._room = trio.Event()
        return self._room

    def _flush_is_due(self) -> bool:
        if not self._entries or not self._may_checkpoint:
            return False
        settings = self._settings
        return (
            self._runs.pinned_cost >= settings.flush_bytes
            or self._entries >= ENTRIES_MAX
            or self._journal.bytes_in_use > settings.journal_bytes
            or trio.current_time() - self._flushed_at >= settings.flush_interval_s
            or self._no_flush is not None
        )

    async def flush(self) -> None:
        """While `run` runs: moves all that was appended so far into log files and a checkpoint. It does so by itself when it is due.

        If the disk is full nothing changes but `refusal`, and it is tried again later (P-15). Raises StorageFailedError, and so does `run`.
        """
        try:
            async with self._flushing:
                await self._flush()
        except (OSError, StorageFailedError) as error:
            self._fail(error)
            raise StorageFailedError(str(error)) from error

    async def _flush(self) -> None:
        derived = self._collected()
        snapshot = self._runs.begin_flush()
        states, entries = dict(self._states), self._entries
        self._entries = 0
        self._flushed_at = trio.current_time()
        result: FlushResult | None = None
        try:
            order = FlushOrder(snapshot, states, derived, await self._barrier(), False)
            with self._holding_groups():
                result = await self._workers.run(partial(self._flusher.flush, order))
        except BaseException as error:
            self._runs.fail_flush(snapshot)
            self._entries += entries
            if not isinstance(error, OSError) or error.errno not in DISK_FULL:
                raise
            self._no_flush = f"the disk is full: log files cannot be written ({error.strerror})"
        else:
            self._derived = derived
            self._runs.end_flush(snapshot, result.flushed, is_complete=result.is_complete)
            self._no_flush = None
            if self._runs.is_dirty:
                self._entries = max(1, self._entries)  # files that were trimmed meanwhile wait for another checkpoint
            if result.is_complete:
                self._kept()
            else:
                self._entries += 1
                self._no_flush = "the disk is full: there is no room for a checkpoint"
        self._room.set()
        if result is not None and result.is_complete:
            await self._workers.run(result.tidy)

    async def _barrier(self) -> JournalPosition:
        """The journal's position behind everything appended so far, once that is durable."""
        passed = trio.Event()
        positions: list[JournalPosition] = []

        def on_passed(position: JournalPosition) -> None:
            positions.append(position)
            passed.set()

        self._commit.put(Barrier(on_passed))
        await passed.wait()
        return positions[0]

    def at_checkpoint(self, collect: Callable[[], Sequence[tuple[str, bytes]]], kept: Callable[[], None] | None = None) -> None:
        self._collect = collect
        self._kept = kept or _nobody_asks

    def _collected(self) -> dict[str, bytes]:
        return dict(self._derived) if self._collect is None else dict(self._collect())

    # --- reading -------------------------------------------------------------------------------------------------------

    def recent(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch] | None:
        return self._reader.recent(partition, epoch, offset, max_bytes=max_bytes)

    async def read(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        return await self._reader.read(partition, epoch, offset, max_bytes=max_bytes)

    async def headers(self, partition: PartitionId, epoch: int, offset: int, *, max_batches: int) -> list[BatchHeader]:
        return await self._reader.headers(partition, epoch, offset, max_batches=max_batches)

    async def find_time(self, partition: PartitionId, epoch: int, timestamp_ms: int) -> int | None:
        return await self._reader.find_time(partition, epoch, timestamp_ms)

    async def restore(self, partition: PartitionId, epoch: int, batches: Sequence[Batch]) -> None:
        try:
            await self._reader.restore(partition, epoch, batches)
        except OSError as error:
            self._fail(error)
            raise StorageFailedError(str(error)) from error

    # --- the end -------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """After `run` has ended. On a full disk the journal keeps everything, and the stop is not a clean one."""
        if self._is_closed:
            return
        self._is_closed = True
        derived = self._collected()
        with trio.CancelScope(shield=True):
            await self._workers.run(partial(self._close, derived))

    def _close(self, derived: dict[str, bytes]) -> None:
        try:
            if self._failure is None and self._may_checkpoint:
                self._commit.drain()
                snapshot = self._runs.begin_flush()
                self._flusher.flush(FlushOrder(snapshot, self._states, derived, self._journal.position, True)).tidy()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise StorageFailedError(str(error)) from error
        finally:
            self._journal.close()
            self._lock.release()


def _nobody_asks() -> None:
    """Nobody wants to know that a checkpoint is durable."""
