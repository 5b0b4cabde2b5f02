"""The real `DiskStorage` in a simulation: on a simulated disk, its workers tasks that sleep for as long as the disk takes.

disk = SimulatedDisk(Random(seed))
format_directory(disk, cluster=..., broker="b1", first_voters=voters, incarnation=...)
storage = open_storage(disk)            no virtual time passes
... await storage.run(on_durable) ...   until cancelled, or HostCrashError or StorageFailedError comes out of it
disk.crash() or disk.kill()             then everything that still runs of the old one raises HostCrashError
storage = open_storage(disk)            the next start
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Generic, ParamSpec, TypeVar

import trio

from streamq.model.ids import Incarnation
from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskSettings, DiskStorage
from streamq.storage.identity import DirectoryLock, create_identity, new_incarnation
from streamq.storage.interface import Identity
from streamq.storage.workers import Loop, Worker
from tests.sim.disk import DATA, SimulatedDisk

__all__ = ["SETTINGS", "TaskWorkers", "format_directory", "open_storage", "rejoin_directory"]

KiB: Final = 1 << 10
SETTINGS: Final = DiskSettings(
    journal_file_bytes=1 << 20,
    log_file_bytes=24 * KiB,
    cache_bytes=64 * KiB,
    flush_bytes=24 * KiB,
    flush_interval_s=5.0,
    reserve_bytes=2 << 20,
    journal_bytes=3 << 19,
)
"""So small that flushes, checkpoints, changes of journal files and reads from log files come with a few hundred small batches."""
Item = TypeVar("Item")
T = TypeVar("T")
Parameters = ParamSpec("Parameters")


def format_directory(
    disk: SimulatedDisk,
    *,
    cluster: bytes,
    broker: str,
    first_voters: Voters,
    incarnation: Incarnation | None = None,
    directory: Path = DATA,
) -> Identity:
    """The empty directory becomes this broker's; the identity is durable, no start is counted yet."""
    return create_identity(directory, cluster=cluster, broker=broker, first_voters=first_voters, incarnation=incarnation, ops=disk.ops)


def rejoin_directory(disk: SimulatedDisk, *, cluster: bytes, broker: str, first_voters: Voters, directory: Path = DATA) -> Identity:
    """As `streamq broker rejoin` does it: a new incarnation, what lay there set aside. `first_voters` are those of now."""
    ops = disk.ops
    ops.make_directory(directory)
    lock = DirectoryLock(directory, ops=ops)
    try:
        return new_incarnation(directory, cluster=cluster, broker=broker, first_voters=first_voters, ops=ops)[0]
    finally:
        lock.release()


def open_storage(disk: SimulatedDisk, *, settings: DiskSettings = SETTINGS, directory: Path = DATA) -> DiskStorage:
    """A start of the process. Raises what `DiskStorage.open` raises, HostCrashError included if one was ordered."""
    return DiskStorage.open(directory, settings=settings, ops=disk.ops, workers=TaskWorkers(disk.latency_s))


class TaskWorkers:
    """Work is done in one step, in the event loop, after it has taken its time. Draws a time for each from `latency_s`."""

    def __init__(self, latency_s: Callable[[], float]) -> None:
        self._latency_s = latency_s

    async def run(self, work: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        if limiter is not None:
            async with limiter:
                return await self._finish(work)
        return await self._finish(work)

    async def _finish(self, work: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._latency_s())
        return work()

    def worker(self) -> Worker[Item]:
        return _TaskWorker(self._latency_s)


class _TaskWorker(Generic[Item]):
    """A write and its sync are two pieces of work: the host may crash between them, at an await."""

    def __init__(self, latency_s: Callable[[], float]) -> None:
        self._latency_s = latency_s
        self.queue: SimpleQueue[Item] = SimpleQueue()
        self.put: Callable[[Item], None] = self._put
        self._came = trio.Event()
        self._gate = trio.Event()
        self._gate.set()

    def _put(self, item: Item) -> None:
        self.queue.put(item)
        self._came.set()

    def hold(self) -> None:
        if self._gate.is_set():
            self._gate = trio.Event()

    def go_on(self) -> None:
        self._gate.set()

    @asynccontextmanager
    async def working(self, loop: Loop) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, loop)
            yield

    async def _work(self, loop: Loop) -> None:
        with trio.CancelScope(shield=True):
            await loop()

    async def take(self, timeout_s: float | None = None) -> Item | None:
        with trio.move_on_after(inf if timeout_s is None else timeout_s):
            while self.queue.empty():
                self._came = trio.Event()
                await self._came.wait()
        return None if self.queue.empty() else self.queue.get_nowait()

    async def passes_gate(self) -> None:
        await self._gate.wait()

    async def do(self, work: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        await trio.sleep(self._latency_s() / 2)
        work(*args, **kwargs)

    def tell(self, called: Callable[[T], object], argument: T) -> None:
        called(argument)
