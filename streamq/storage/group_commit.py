"""Group commits: the one thread that writes to the journal.

Everything queued while a group is being written and synced goes into the next one (P-27), so a busy disk makes larger groups, not longer
queues. The event loop puts work into a queue that wakes the thread without a system call of its own, and gets all tokens of a group back in
one call: a hop between threads costs as much as a whole small group otherwise.

    event loop   put(work) ......................... deliver(tokens)
    journal thread     take all that is queued, write_group, sync; the idle mark when nothing has come for a while
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

import trio

from streamq.storage.journal import Journal
from streamq.storage.journal_format import JournalEntry, JournalPosition

__all__ = ["NOTHING", "Barrier", "GroupCommit", "Work"]

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
    """`passed` is called in the journal's thread with the position behind everything that was put before."""

    passed: Callable[[JournalPosition], None]


class _Signal(Enum):
    STOP = "no more work"
    IDLE = "nothing else is queued"


Give = Callable[[list[object]], None]


class GroupCommit:
    """The queue and the thread. `start` and `stop` may follow each other; what is queued meanwhile stays queued."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: SimpleQueue[Work | Barrier | _Signal] = SimpleQueue()
        self._unwritten: list[Work] = []  # taken from the queue when it was time to stop
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._gate = threading.Event()
        self._gate.set()
        self._needs_mark = False

    def put(self, work: Work | Barrier) -> None:
        self._queue.put(work)

    def hold(self) -> None:
        """No further group begins until `go_on`: memory is full of what no log file holds yet."""
        self._gate.clear()

    def go_on(self) -> None:
        self._gate.set()

    def start(self, deliver: Give, failed: Callable[[BaseException], None]) -> None:
        """Both are called in the event loop that calls this."""
        assert self._thread is None
        self._is_stopping = False
        loop = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, args=(loop, deliver, failed), name="streamq journal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Blocks until the group under way is done. The rest stays queued."""
        if self._thread is not None:
            self._is_stopping = True
            self._gate.set()
            self._queue.put(_Signal.STOP)
            self._thread.join()
            self._thread = None

    def drain(self) -> None:
        """Blocks until all that is queued is durable; only while no thread runs. Nobody is told."""
        assert self._thread is None
        unwritten, self._unwritten = self._unwritten, []
        while not self._queue.empty():
            work = self._queue.get_nowait()
            if isinstance(work, Work):
                unwritten.append(work)
        if unwritten:
            self._journal.write_group([entry for work in unwritten for entry in work.entries])
        self._journal.write_mark()

    def _run(self, loop: trio.lowlevel.TrioToken, deliver: Give, failed: Callable[[BaseException], None]) -> None:
        try:
            self._commit(lambda tokens: loop.run_sync_soon(deliver, tokens))
        except BaseException as error:  # whatever it is, the owner has to know that nothing is written any more
            with suppress(trio.RunFinishedError):
                loop.run_sync_soon(failed, error)

    def _commit(self, give: Give) -> None:
        while True:
            ended_by = self._next()
            if isinstance(ended_by, Work):
                self._gate.wait()
                if self._is_stopping:
                    self._unwritten.append(ended_by)
                    return
                ended_by = self._write_group(ended_by, give)
            if isinstance(ended_by, Barrier):
                ended_by.passed(self._journal.position)
            elif ended_by is _Signal.STOP:
                return

    def _next(self) -> Work | Barrier | _Signal:
        if self._needs_mark:
            try:
                return self._queue.get(timeout=IDLE_MARK_S)
            except Empty:
                self._journal.write_mark()
                self._needs_mark = False
        return self._queue.get()

    def _write_group(self, work: Work, give: Give) -> Barrier | _Signal:
        """Writes this work and what else is queued as one group. Returns what ended it."""
        queue = self._queue
        entries: list[JournalEntry] = []
        tokens: list[object] = []
        early: list[object] = []
        cost = 0
        following: Work | Barrier | _Signal = work
        while isinstance(following, Work):
            entries += following.entries
            if following.token is not NOTHING:
                (tokens if following.sync else early).append(following.token)
            cost += following.cost
            try:
                following = queue.get_nowait() if cost < GROUP_BYTES else _Signal.IDLE
            except Empty:
                following = _Signal.IDLE
        self._journal.write_group(entries, written=(lambda: give(early)) if early else None)
        self._needs_mark = True
        if tokens:
            give(tokens)
        return following
