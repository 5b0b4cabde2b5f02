"""Group commits: the one worker that writes to the journal.

Everything queued while a group is being written and synced goes into the next one (P-27), so a busy disk makes larger groups, not longer
queues. The event loop puts work into a queue that wakes the worker without a system call of its own, and gets all tokens of a group back in
one call: a hop between threads costs as much as a whole small group otherwise.

    event loop   put(work) ......................... deliver(tokens)
    worker             take all that is queued, write, sync; the idle mark when nothing has come for a while
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from queue import Empty
from typing import Final, NamedTuple

from streamq.storage.journal import Journal
from streamq.storage.journal_format import JournalEntry, JournalPosition
from streamq.storage.workers import Worker

__all__ = ["NOTHING", "Barrier", "GroupCommit", "Queued", "Work"]

GROUP_BYTES: Final = 8 << 20
"""A group takes no more work once it has this much."""
IDLE_MARK_S: Final = 0.02


NOTHING: Final = object()
"""The token of work that nobody waits for."""


class Work(NamedTuple):
    """Entries that go together, and what to give back when they are durable (`sync`) or written."""

    entries: Sequence[JournalEntry]
    cost: int
    token: object
    sync: bool


class Barrier(NamedTuple):
    """`passed` is called in the event loop with the position behind everything that was put before, once that is durable."""

    passed: Callable[[JournalPosition], None]


class _Signal(Enum):
    STOP = "no more work"
    IDLE = "nothing else is queued"


Queued = Work | Barrier | _Signal
Give = Callable[[list[object]], None]


class GroupCommit:
    """The queue and what is made of it. `running` may follow `running`; what is queued meanwhile stays queued."""

    def __init__(self, journal: Journal, worker: Worker[Queued]) -> None:
        self._journal = journal
        self._worker = worker
        self._unwritten: list[Work] = []  # taken from the queue when it was time to stop
        self._is_running = False
        self._is_stopping = False
        self._needs_mark = False
        self.put: Callable[[Work | Barrier], None] = worker.put

    def hold(self) -> None:
        """No further group begins until `go_on`: memory is full of what no log file holds yet."""
        self._worker.hold()

    def go_on(self) -> None:
        self._worker.go_on()

    @asynccontextmanager
    async def running(self, deliver: Give, failed: Callable[[BaseException], None]) -> AsyncIterator[None]:
        """Groups are written beside the block. Its end waits, shielded, until the group under way is done; the rest stays queued.

        Both are called in the event loop.
        """
        assert not self._is_running
        self._is_running, self._is_stopping = True, False
        try:
            async with self._worker.working(partial(self._run, deliver, failed)):
                try:
                    yield
                finally:
                    self._is_stopping = True
                    self._worker.go_on()
                    self._worker.put(_Signal.STOP)
        finally:
            self._is_running = False

    def drain(self) -> None:
        """Blocks until all that is queued is durable; only while nothing runs. Nobody is told."""
        assert not self._is_running
        unwritten, self._unwritten = self._unwritten, []
        queue = self._worker.queue
        while not queue.empty():
            work = queue.get_nowait()
            if isinstance(work, Work):
                unwritten.append(work)
        if unwritten:
            self._journal.write_group([entry for work in unwritten for entry in work.entries])
        self._journal.write_mark()

    async def _run(self, deliver: Give, failed: Callable[[BaseException], None]) -> None:
        tell = self._worker.tell
        try:
            await self._commit(lambda tokens: tell(deliver, tokens))
        except BaseException as error:  # whatever it is, the owner has to know that nothing is written any more
            tell(failed, error)

    async def _commit(self, give: Give) -> None:
        while True:
            ended_by = await self._next()
            if isinstance(ended_by, Work):
                await self._worker.passes_gate()
                if self._is_stopping:
                    self._unwritten.append(ended_by)
                    return
                ended_by = await self._write_group(ended_by, give)
            if isinstance(ended_by, Barrier):
                self._worker.tell(ended_by.passed, self._journal.position)
            elif ended_by is _Signal.STOP:
                return

    async def _next(self) -> Queued:
        while True:
            following = await self._worker.take(IDLE_MARK_S if self._needs_mark else None)
            if following is not None:
                return following
            await self._worker.do(self._journal.write_mark)
            self._needs_mark = False

    async def _write_group(self, work: Work, give: Give) -> Barrier | _Signal:
        """Writes this work and what else is queued as one group. Returns what ended it."""
        queue = self._worker.queue
        entries: list[JournalEntry] = []
        tokens: list[object] = []
        early: list[object] = []
        cost = 0
        following: Queued = work
        while isinstance(following, Work):
            entries += following.entries
            if following.token is not NOTHING:
                (tokens if following.sync else early).append(following.token)
            cost += following.cost
            try:
                following = queue.get_nowait() if cost < GROUP_BYTES else _Signal.IDLE
            except Empty:
                following = _Signal.IDLE
        await self._worker.do(self._journal.write, entries)
        if early:
            give(early)  # P-37
        await self._worker.do(self._journal.sync)
        self._needs_mark = True
        if tokens:
            give(tokens)
        return following
