"""Reading and restoring what lies in log files, for `DiskStorage`: by workers, beside everything else that goes on.

A reader works on what the run's files were when it began. If they change meanwhile (a flush, a cut, a drop), what it met may be the change
and not damage: it looks again. Only what is found twice over the same files is damage.
"""

import errno
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import Incarnation, PartitionId
from streamq.storage.disk_runs import DiskRun, DiskRuns
from streamq.storage.file_ops import FileOps
from streamq.storage.flush import open_source
from streamq.storage.interface import DamagedRangeError
from streamq.storage.log_file import LogFile
from streamq.storage.log_index import IndexCache, save_index
from streamq.storage.log_reader import LogSource, find_time, read_batches, read_headers, restore
from streamq.storage.metrics import StorageMetrics
from streamq.storage.workers import Workers

__all__ = ["DiskReader"]

READERS_MAX: Final = 4
T = TypeVar("T")


class DiskReader:
    """The reading half of `interface.Storage`; what its methods promise stands there."""

    def __init__(
        self,
        directory: Path,
        runs: DiskRuns,
        *,
        incarnation: Incarnation,
        indexes: IndexCache,
        ops: FileOps,
        workers: Workers,
        metrics: StorageMetrics,
    ) -> None:
        self._directory = directory
        self._runs = runs
        self._incarnation = incarnation
        self._indexes = indexes
        self._ops = ops
        self._workers = workers
        self._metrics = metrics
        self._limiter = trio.CapacityLimiter(READERS_MAX)

    def recent(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch] | None:
        run = self._runs.get(partition, epoch)
        return None if run is None else run.window.at(offset, max_bytes=max_bytes)

    async def read(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        await trio.lowlevel.checkpoint()
        while (run := self._runs.get(partition, epoch)) is not None and run.base <= offset < run.tail:
            batches = run.window.at(offset, max_bytes=max_bytes)
            if batches is not None:
                return batches
            batches = await self._in_file(run, offset, partial(read_batches, offset=offset, max_bytes=max_bytes))
            if batches is not None:
                self._metrics.log_read_bytes += sum(batch.size for batch in batches)
                return [batch for batch in batches if batch.end <= run.tail]
        return []

    async def headers(self, partition: PartitionId, epoch: int, offset: int, *, max_batches: int) -> list[BatchHeader]:
        await trio.lowlevel.checkpoint()
        while (run := self._runs.get(partition, epoch)) is not None and run.base <= offset < run.tail:
            batches = run.window.count_at(offset, max_batches=max_batches)
            if batches is not None:
                return [batch.header for batch in batches]
            headers = await self._in_file(run, offset, partial(read_headers, offset=offset, max_batches=max_batches))
            if headers is not None:
                return [header for header in headers if header.end <= run.tail]
        return []

    async def find_time(self, partition: PartitionId, epoch: int, timestamp_ms: int) -> int | None:
        await trio.lowlevel.checkpoint()
        offset = 0
        while (run := self._runs.get(partition, epoch)) is not None:
            file = next((f for f in run.files if f.end > offset and f.max_time >= timestamp_ms and f.base < run.flushed), None)
            if file is None:
                pinned = run.window.since(run.flushed)
                return next((batch.base for batch in pinned if batch.header.max_timestamp >= timestamp_ms), None)
            found = await self._in_file(run, file.base, partial(_find_time, timestamp_ms=timestamp_ms))
            if found is not None and found[0] is not None and found[0] < run.tail:
                return found[0]
            offset = file.end if found is not None else offset
        return None

    async def restore(self, partition: PartitionId, epoch: int, batches: Sequence[Batch]) -> None:
        run = self._runs.get(partition, epoch)
        for file in () if run is None else run.files:
            copies = [batch for batch in batches if file.base <= batch.base < file.end]
            if run is not None and copies:
                try:
                    # A restore that was begun is finished, also when it is cancelled: half of it would be damage again.
                    await self._workers.run(partial(self._restore_file, run, file, copies), limiter=self._limiter)
                except FileNotFoundError:
                    if any(each.name == file.name for each in run.files):
                        raise  # else it was trimmed meanwhile

    async def _in_file(self, run: DiskRun, offset: int, read: Callable[[LogSource], T]) -> T | None:
        """What `read` returns for the file that holds the offset; None if the run has changed meanwhile: look again."""
        files = run.files
        file = next((file for file in files if file.base <= offset < file.end), None)
        assert file is not None, f"offset {offset} of [{run.base}, {run.tail}) is neither in memory nor in {files}"
        if file.end > run.tail:
            file = LogFile(file.name, file.base, run.tail, file.size, file.max_time)  # cut, and not shortened yet
        began_us = self._ops.now_us()
        try:
            return await self._workers.run(partial(self._read_file, run, file, read), limiter=self._limiter)
        except DamagedRangeError:
            if run.files is not files or self._runs.get(run.partition, run.epoch) is not run:
                return None
            raise
        finally:
            self._metrics.log_read_seconds.record(self._ops.now_us() - began_us)

    def _read_file(self, run: DiskRun, file: LogFile, read: Callable[[LogSource], T]) -> T:
        source = self._source(run, file)
        try:
            result = read(source)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise source.all_damaged() from error
        index = source.index
        if index.covered.offset == file.end and (index.is_misled or (index.saved_until == file.base and len(index) > 1)):
            save_index(self._ops, source.path, index, incarnation=self._incarnation)
        return result

    def _restore_file(self, run: DiskRun, file: LogFile, copies: Sequence[Batch]) -> None:
        restore(self._source(run, file), copies)

    def _source(self, run: DiskRun, file: LogFile) -> LogSource:
        return open_source(self._ops, self._directory, self._indexes, incarnation=self._incarnation, run=run, file=file)


def _find_time(source: LogSource, timestamp_ms: int) -> tuple[int | None]:
    """In a tuple: not found is an answer too."""
    return (find_time(source, timestamp_ms),)
