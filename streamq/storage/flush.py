"""A flush: from memory to log files, then a checkpoint, then the journal is released (P-27). A worker does it, beside the group commits.

The order is what makes it safe. Batches are written behind what the last checkpoint names, and synced; then both copies of the new
checkpoint are made durable; only then is the journal released, are cut files shortened, and files removed that no checkpoint names any
more. A crash or a full disk anywhere before leaves the old checkpoint, and a journal that reaches back to it. From the moment when the
first copy may name what was written, none of that is overwritten, even if the second copy finds no room.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from streamq.model.errors import CorruptDataError
from streamq.model.ids import Incarnation, PartitionId
from streamq.storage.appender import Piece
from streamq.storage.checkpoint import COPIES, Checkpoint, RunRow, encode_checkpoint, load_copy, save_copy
from streamq.storage.disk_runs import DiskRun, FlushedRun, RunFlush, Snapshot
from streamq.storage.file_ops import FileOps
from streamq.storage.interface import StorageFailedError
from streamq.storage.journal import DISK_FULL, Journal
from streamq.storage.journal_format import JournalPosition
from streamq.storage.log_file import LOG_HEADER_BYTES, LogFile, LogWriter, log_path, partition_directory
from streamq.storage.log_index import INDEX_SUFFIX, Anchor, IndexCache, index_path, load_index, save_index
from streamq.storage.log_reader import LogSource, find_offset
from streamq.storage.metrics import StorageMetrics

__all__ = ["FlushOrder", "FlushResult", "Flusher", "open_source"]


class FlushOrder(NamedTuple):
    """What to make durable: the runs, states and derived values of one moment, and where the journal stood then."""

    snapshot: Snapshot
    states: dict[str, bytes]
    derived: dict[str, bytes]
    replay_from: JournalPosition
    is_last: bool


class FlushResult(NamedTuple):
    """`is_complete`: both copies of the checkpoint are durable, and the journal is released.

    `tidy` blocks too. It may be called then, when nobody reads any more by what was there before.
    """

    flushed: list[FlushedRun]
    is_complete: bool
    tidy: Callable[[], None]


class Flusher:
    """Everything that a flush needs; one flush at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        incarnation: Incarnation,
        start: int,
        number: int,
        journal: Journal,
        log_file_bytes: int,
        indexes: IndexCache,
        may_overwrite: bool,
        ops: FileOps,
    ) -> None:
        """`number` of the newest checkpoint. Without `may_overwrite` no file is removed or overwritten that no checkpoint names."""
        self._directory = directory
        self._incarnation = incarnation
        self._start = start
        self._number = number
        self._journal = journal
        self._metrics: StorageMetrics = journal.metrics
        self._log_file_bytes = log_file_bytes
        self._indexes = indexes
        self._may_overwrite = may_overwrite
        self._has_swept = False
        self._ops = ops
        self._piece = Piece(ops)
        self._durable_folders: set[Path] = set()

    def flush(self, order: FlushOrder) -> FlushResult:
        """Blocks until all of it is durable and the journal released. Raises OSError; nothing counts then, and it may be tried again.

        Raises StorageFailedError if nobody can tell whether it counts.
        """
        writer = LogWriter(
            self._directory,
            incarnation=self._incarnation,
            file_bytes=self._log_file_bytes,
            ops=self._ops,
            piece=self._piece,
            indexes=self._indexes,
            durable_folders=self._durable_folders,
        )
        flushed: list[FlushedRun] = []
        shortened: list[tuple[Path, int]] = []
        began_us = self._ops.now_us()
        try:
            self._write(order.snapshot, writer, flushed, shortened)
            rows = [*order.snapshot.rows.values(), *(_row(run) for run in flushed)]
            copies = self._save(order, rows)
        except OSError:
            writer.abandon()
            raise
        writer.save_indexes()
        self._metrics.flushes += 1
        self._metrics.flush_seconds.record(self._ops.now_us() - began_us)
        if copies == len(COPIES):
            self._journal.release(order.replay_from)
        return FlushResult(flushed, copies == len(COPIES), partial(self._tidy, order, rows, shortened))

    def _write(self, snapshot: Snapshot, writer: LogWriter, flushed: list[FlushedRun], shortened: list[tuple[Path, int]]) -> None:
        taken: defaultdict[PartitionId, set[str]] = defaultdict(set)
        for partition, name in snapshot.doomed:
            taken[partition].add(name)
        for flush in snapshot.flushes:
            run = flush.run
            files = self._clipped(flush, shortened) if flush.must_clip else flush.files
            names = {*taken[run.partition], *(file.name for file in flush.files), *self._found(run.partition)}
            files = writer.append(run.partition, run.epoch, files, flush.batches, taken=names, roll=flush.must_clip or flush.must_roll)
            flushed.append(FlushedRun(flush, files))
        writer.sync()
        self._metrics.log_bytes += writer.written

    def _save(self, order: FlushOrder, rows: list[RunRow]) -> int:
        """Returns how many copies of the checkpoint were written: one if the disk was too full for the other."""
        checkpoint = Checkpoint(
            number=self._number + 1,
            incarnation=self._incarnation,
            start=self._start,
            stopped=order.is_last,
            replay_from=order.replay_from,
            states=order.states,
            derived=order.derived,
            runs=rows,
        )
        content = encode_checkpoint(checkpoint)
        first, second = COPIES
        try:
            save_copy(self._ops, self._directory, first, content)
        except OSError as error:
            stored = load_copy(self._ops, self._directory, first, incarnation=self._incarnation).checkpoint
            if stored is None or stored.number == checkpoint.number:
                raise StorageFailedError(f"{first} was written and its directory could not be synced: {error}") from error
            raise
        self._number = checkpoint.number
        try:
            save_copy(self._ops, self._directory, second, content)
        except OSError as error:
            if error.errno in DISK_FULL:
                return 1
            raise StorageFailedError(f"{second} could not be written: {error}") from error
        self._metrics.checkpoint_bytes += len(COPIES) * len(content)
        return 2

    def _tidy(self, order: FlushOrder, rows: list[RunRow], shortened: list[tuple[Path, int]]) -> None:
        """An error leaves something over that is in nobody's way."""
        with suppress(OSError):
            for path, size in shortened:
                self._shorten(path, size)
            for partition, name in sorted(order.snapshot.doomed):
                self._remove(partition, name)
            self._sweep(rows)
            if order.is_last:
                self._save_open_indexes(rows)

    def _clipped(self, flush: RunFlush, shortened: list[tuple[Path, int]]) -> tuple[LogFile, ...]:
        """The run's files without what lies past `flushed`: it was cut. The last file may have to be shortened, after the checkpoint."""
        files = [file for file in flush.files if file.base < flush.flushed]
        if files and files[-1].end > flush.flushed:
            last = files.pop()
            source = open_source(self._ops, self._directory, self._indexes, incarnation=self._incarnation, run=flush.run, file=last)
            try:
                size = find_offset(source, flush.flushed)
            except CorruptDataError:
                # Damage before the cut: what was cut stays in the file, where no reader gets to it, until the damage is restored.
                files.append(msgspec.structs.replace(last, end=flush.flushed))
            else:
                shortened.append((source.path, size))
                files.append(msgspec.structs.replace(last, end=flush.flushed, size=size))
            self._indexes.forget(source.path)
        return tuple(files)

    def _found(self, partition: PartitionId) -> list[str]:
        """Files that are there and must not be overwritten, though no checkpoint names them (pitfall 48)."""
        return [] if self._may_overwrite else self._ops.names(partition_directory(self._directory, partition))

    def _shorten(self, path: Path, size: int) -> None:
        fd = self._ops.open(path)
        try:
            self._ops.truncate(fd, size)
        finally:
            self._ops.close(fd)

    def _remove(self, partition: PartitionId, name: str) -> None:
        path = log_path(self._directory, partition, name)
        self._indexes.forget(path)
        for gone in (path, index_path(path)):
            if self._ops.exists(gone):
                self._ops.unlink(gone)
        if self._ops.exists(path.parent) and not self._ops.names(path.parent):
            self._ops.remove_directory(path.parent)
            self._durable_folders.discard(path.parent)

    def _sweep(self, rows: list[RunRow]) -> None:
        """Once after a start: log files that a flush had begun before a crash. What they hold was in the journal, or never acknowledged."""
        if self._has_swept or not self._may_overwrite:
            return
        self._has_swept = True
        named = {(row.partition.hex(), file.name) for row in rows for file in row.files}
        for folder in self._ops.names(self._directory / "logs"):
            for name in self._ops.names(self._directory / "logs" / folder):
                if (folder, name.removesuffix(".new").removesuffix(INDEX_SUFFIX)) not in named:
                    self._ops.unlink(self._directory / "logs" / folder / name)

    def _save_open_indexes(self, rows: list[RunRow]) -> None:
        for row in rows:
            for file in row.files[-1:]:
                path = log_path(self._directory, row.partition, file.name)
                index = self._indexes.known(path)
                if index is not None and (index.is_misled or index.covered.offset > index.saved_until):
                    save_index(self._ops, path, index, incarnation=self._incarnation)


def _row(flushed: FlushedRun) -> RunRow:
    flush = flushed.flush
    return RunRow(flush.run.partition, flush.run.epoch, flush.base, flush.tail, flushed.files)


def open_source(ops: FileOps, directory: Path, indexes: IndexCache, *, incarnation: Incarnation, run: DiskRun, file: LogFile) -> LogSource:
    """A file of the run to read, with its index from the cache or its sidecar."""
    path = log_path(directory, run.partition, file.name)
    end = Anchor(file.end, file.size)
    index = indexes.get(
        path, lambda: load_index(ops, path, incarnation=incarnation, base=file.base, end=end, first_position=LOG_HEADER_BYTES)
    )
    return LogSource(path, incarnation, run.partition, run.epoch, file, index, ops, run.start)
