"""`Consumer.run`: a handler for each record, so many at a time, retried, and drained when it ends. `handling` decides which is next."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from types import CoroutineType
from typing import Final, Protocol

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from streamq.client.settings import refuse_unless
from streamq.model.errors import DecodeError, HandlerError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq_consumer.dead_letter import DeadLetter
from streamq_consumer.handling import Handling, Order, Task
from streamq_consumer.records import Record

__all__ = ["Handler", "Reject", "Retry", "Runner", "Source"]

log = logging.getLogger("streamq_consumer")

CONCURRENCY_MAX: Final = 10_000
AHEAD_PER_HANDLER: Final = 16
"""Records that wait here for their turn, for each handler that may run; more of them stay packed."""
LOOKS_PER_STUCK: Final = 4

Handler = Callable[[Record], Awaitable[object]]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and when a record is tried again: after a random part of `first_s`, of twice that, and so on up to `max_s`."""

    attempts: int = 5
    """In all; 1 is no retry."""
    first_s: float = 0.1
    max_s: float = 10.0

    def __post_init__(self) -> None:
        refuse_unless(self.attempts >= 1, f"attempts must be at least 1, not {self.attempts}")
        refuse_unless(0 <= self.first_s <= self.max_s, f"first_s must be 0 to max_s, not {self.first_s}")

    def pause_s(self, attempt: int, jitter: float) -> float:
        """After so many attempts; `jitter` in [0, 1)."""
        return jitter * min(self.max_s, self.first_s * 2.0 ** min(attempt - 1, 32))


class Reject(Exception):
    """Raised by a handler, `raise Reject("no such customer")`: the record is known to be poison, and trying it again is of no use. It is
    a dead letter at once; without a place for these, `run` ends with HandlerError."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


class Source(Protocol):
    """What the consumer does for its runner."""

    def take(self, max_records: int) -> Sequence[Record]:
        """What is there now. Raises StreamqError when a partition, or the group, is at its end."""

    async def wait(self) -> None:
        """Until there may be something to take, or `wake` was called."""

    def wake(self) -> None: ...

    def on_progress(self) -> None:
        """A record is done."""

    def on_stuck(self) -> None:
        """A handler is found stuck."""

    def jitter(self) -> float: ...


class _Running:
    __slots__ = ("began", "coroutine", "scope", "task", "told")

    def __init__(self, task: Task, began: float) -> None:
        self.task = task
        self.began = began
        self.scope = anyio.CancelScope(shield=True)
        self.coroutine: Awaitable[object] | None = None
        self.told = 1


class Runner:
    """One call of `run`. Invariant: every task that `handling` counts as running is in `_running`."""

    def __init__(
        self,
        source: Source,
        handler: Handler,
        *,
        concurrency: int,
        order: Order,
        retry: Retry,
        dead_letter: DeadLetter | None,
        stuck_after_s: float,
        drain_s: float,
    ) -> None:
        refuse_unless(1 <= concurrency <= CONCURRENCY_MAX, f"concurrency must be 1 to {CONCURRENCY_MAX}, not {concurrency}")
        refuse_unless(order in ("partition", "key", "none"), f"order is partition, key or none, not {order!r}")
        refuse_unless(stuck_after_s > 0 and drain_s >= 0, "stuck_after_s must be above 0, and drain_s not negative")
        self.handling = Handling(order)
        self._source = source
        self._handler = handler
        self._concurrency = concurrency
        self._ahead = concurrency * AHEAD_PER_HANDLER
        self._retry = retry
        self._dead_letter = dead_letter
        self._stuck_after_s = stuck_after_s
        self._drain_s = drain_s
        self._running: dict[Task, _Running] = {}
        self._error: StreamqError | None = None
        self._idle = anyio.Event()

    async def run(self) -> None:
        """Until cancelled, or until something ends it: then raises that one error, after what runs has ended or `drain_s` has passed."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            try:
                while self._error is None:
                    await self._step(tasks)
            except StreamqError as error:
                self._error = self._error or error
            finally:
                # Cancelled or not: what was begun is finished, if it can be in time.
                with anyio.CancelScope(shield=True):
                    await self._drain()
            tasks.cancel_scope.cancel()
        if self._error is not None:
            raise self._error

    async def _step(self, tasks: TaskGroup) -> None:
        now = anyio.current_time()
        while len(self._running) < self._concurrency and (task := self.handling.next(now)) is not None:
            running = self._running[task] = _Running(task, now)
            tasks.start_soon(self._handle, running)
        room = self._ahead - self.handling.waiting
        if room > 0 and (records := self._source.take(room)):
            self.handling.add(records)
            await anyio.lowlevel.checkpoint()
            return
        # A retry that is due finds no room while all handlers are busy: the end of one of them wakes this up.
        is_full = len(self._running) >= self._concurrency
        with anyio.move_on_after(None if is_full else max(0.0, self.handling.next_deadline - now)):
            await self._source.wait()

    async def _drain(self) -> None:
        with anyio.move_on_after(self._drain_s):
            while self._running:
                self._idle = anyio.Event()
                await self._idle.wait()
        for running in self._running.values():
            log.warning("%s is cancelled: it has not ended in %g s", self._name(running), self._drain_s)
            running.scope.cancel()

    async def _handle(self, running: _Running) -> None:
        task = running.task
        failure: Exception | None = None
        is_over = False
        try:
            with running.scope:  # shielded: what is begun is cancelled by `_drain` alone
                try:
                    running.coroutine = self._handler(task.record)
                    await running.coroutine
                except Exception as error:
                    failure = error
                    if task.attempts >= self._retry.attempts or isinstance(error, (DecodeError, Reject)):
                        await self._bury(running, error)
                        failure = None
                is_over = True
        except StreamqError as error:
            self._error = self._error or error
        finally:
            self._ended(running, failure, is_over)

    def _ended(self, running: _Running, failure: Exception | None, is_over: bool) -> None:
        task = running.task
        del self._running[task]
        if is_over and failure is None:
            self.handling.on_done(task)
            self._source.on_progress()
        elif is_over:
            pause_s = self._retry.pause_s(task.attempts, self._source.jitter())
            log.info("%s failed (attempt %d): %r; again in %.3f s", self._name(running), task.attempts, failure, pause_s)
            self.handling.on_failed(task, again_at=anyio.current_time() + pause_s)
        else:
            self.handling.on_given_up(task)
        self._idle.set()
        self._source.wake()

    async def _bury(self, running: _Running, error: Exception) -> None:
        """Raises HandlerError unless there is a place for dead letters."""
        task, record = running.task, running.task.record
        where = f"{record.topic}/{record.partition}@{record.offset}"
        if self._dead_letter is None:
            hint = "mend the handler, or give `run` a dead_letter; the record comes again"
            is_rejected = isinstance(error, Reject)
            what = f"was rejected: {error}" if is_rejected else f"could not be handled in {task.attempts} attempts: {error!r}"
            raise HandlerError(f"{where} {what}", record=record, hint=hint) from error
        failures = 0
        while True:
            try:
                await self._dead_letter.send(record, error, task.attempts)
            except (UnavailableError, UnknownOutcomeError) as trouble:
                failures += 1
                log.warning("the dead letter of %s is not stored yet: %s", where, trouble)
                await anyio.sleep(Retry().pause_s(failures, self._source.jitter()))
            except StreamqError as refused:
                message = f"{where} could not be handled ({error!r}), and its dead letter was refused: {refused.message}"
                raise HandlerError(message, record=record, hint=refused.hint) from error
            else:
                log.warning("%s is a dead letter now, in %s: %r", where, self._dead_letter.topic, error)
                return

    # --- what hangs ----------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Names each handler that is stuck, again whenever it has been so for twice as long."""
        while True:
            await anyio.sleep(self._stuck_after_s / LOOKS_PER_STUCK)
            now = anyio.current_time()
            for running in self._running.values():
                if now - running.began >= self._stuck_after_s * running.told:
                    running.told *= 2
                    self._source.on_stuck()
                    place = _where(running.coroutine)
                    log.warning("%s has not ended in %.1f s; it is at %s", self._name(running), now - running.began, place)

    def _name(self, running: _Running) -> str:
        record = running.task.record
        name = getattr(self._handler, "__qualname__", type(self._handler).__name__)
        key = f" (key {record.key[:100]!r})" if record.key is not None else ""
        return f"{name} of {record.topic}/{record.partition}@{record.offset}{key}"


def _where(coroutine: object) -> str:
    """The innermost line of ours or the handler's that waits."""
    place = "an unknown place"
    while isinstance(coroutine, CoroutineType):
        if coroutine.cr_frame is not None:
            place = f"{coroutine.cr_frame.f_code.co_filename}:{coroutine.cr_frame.f_lineno}"
        coroutine = coroutine.cr_await
    return place
