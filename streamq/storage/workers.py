"""Where the storage's blocking work is done: beside the event loop, in threads. A simulation has tasks there instead.

The storage asks for two things. `Workers.run` does one piece of work. A `Worker` has a queue of its own and an endless loop over it (the
group commits): that loop is an ordinary async function, so that the threads' driver and the simulation's share every decision in it. In a
thread none of its awaits ever suspends: they block.

    event loop   put(item) ............................. called(argument)
    worker            item = await take(); await do(work); tell(called, argument)
"""

import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, ParamSpec, Protocol, TypeVar

import trio

__all__ = ["Loop", "ThreadWorkers", "Worker", "Workers"]

Item = TypeVar("Item")
T = TypeVar("T")
Parameters = ParamSpec("Parameters")
Loop = Callable[[], Coroutine[object, object, None]]


class Worker(Protocol[Item]):
    """One worker with a queue. What is in the queue stays there while nobody works."""

    put: Callable[[Item], None]
    """In the event loop, at the cost of a queue's `put`."""
    queue: SimpleQueue[Item]
    """For the loop to take what is there without waiting; put nothing into it but by `put`."""

    def hold(self) -> None:
        """Closes the gate: `passes_gate` waits until `go_on`."""

    def go_on(self) -> None: ...

    def working(self, loop: Loop) -> AbstractAsyncContextManager[None]:
        """The loop works beside the block. Its end, shielded, waits until the loop has returned: the block must have told it to."""

    # --- in the loop ---------------------------------------------------------------------------------------------------

    async def take(self, timeout_s: float | None = None) -> Item | None:
        """The next item; None when none has come for so long."""

    async def passes_gate(self) -> None: ...

    async def do(self, work: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        """Blocking work. What it raises comes out here."""

    def tell(self, called: Callable[[T], object], argument: T) -> None:
        """Has the event loop call it, soon, in the order of the calls."""


class Workers(Protocol):
    async def run(self, work: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None) -> T:
        """Blocking work beside the event loop. Once begun it is finished, also when the caller is cancelled."""

    def worker(self) -> Worker[Item]: ...


class ThreadWorkers:
    """The system's."""

    async def run(self, work: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None) -> T:
        return await trio.to_thread.run_sync(work, limiter=limiter)

    def worker(self) -> Worker[Item]:
        return _ThreadWorker()


class _ThreadWorker(Generic[Item]):
    """A put wakes the thread without a system call of its own, and without a look from here at what it does."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Item] = SimpleQueue()
        self.put: Callable[[Item], None] = self.queue.put
        self._gate = threading.Event()
        self._gate.set()
        self._loop: trio.lowlevel.TrioToken | None = None

    def hold(self) -> None:
        self._gate.clear()

    def go_on(self) -> None:
        self._gate.set()

    @asynccontextmanager
    async def working(self, loop: Loop) -> AsyncIterator[None]:
        assert self._loop is None, "one thread at a time"
        self._loop = trio.lowlevel.current_trio_token()
        thread = threading.Thread(target=_finish, args=(loop(),), name="streamq journal", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(thread.join)
            self._loop = None

    async def take(self, timeout_s: float | None = None) -> Item | None:
        try:
            return self.queue.get(timeout=timeout_s)
        except Empty:
            return None

    async def passes_gate(self) -> None:
        self._gate.wait()

    async def do(self, work: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        work(*args, **kwargs)

    def tell(self, called: Callable[[T], object], argument: T) -> None:
        assert self._loop is not None
        with suppress(trio.RunFinishedError):
            self._loop.run_sync_soon(called, argument)


def _finish(loop: Coroutine[object, object, None]) -> None:
    try:
        loop.send(None)
    except StopIteration:
        return
    raise AssertionError("a worker's loop has suspended in a thread")
