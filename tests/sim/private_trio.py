"""The only file that touches trio's private names: a seeded scheduler, and processes that can be stopped like SIGSTOP does.

What is needed, tried with trio 0.35: the scheduler shuffles each batch of runnable tasks with a private random generator, and sorts it
first by a private counter if a private flag is set (else the order of sets of objects would show through). A stopped process is one whose
tasks are kept out of the run queue: its deadlines pass and its sockets fill meanwhile, as with a real one, and on SIGCONT all of it runs.
"""

import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import trio
import trio.testing
from trio._core import _run

__all__ = ["PROCESS", "Stoppable", "run_seeded"]

T = TypeVar("T")


class Stoppable:
    """A process of the simulation. Tasks belong to the one that `PROCESS` names in their context."""

    def __init__(self) -> None:
        self.is_stopped = False
        self._held: list[Any] = []

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        self.is_stopped = False
        held, self._held = self._held, []
        if held:
            _runner().runq.extend(held)

    def hold(self, task: Any) -> None:
        self._held.append(task)


PROCESS: Final[contextvars.ContextVar[Stoppable | None]] = contextvars.ContextVar("process", default=None)


class _RunQueue(deque[Any]):
    """Where trio puts every task that may run."""

    def append(self, task: Any) -> None:
        process = task.context.get(PROCESS)
        if process is not None and process.is_stopped:
            process.hold(task)
        else:
            super().append(task)


def _runner() -> Any:
    return _run.GLOBAL_RUN_CONTEXT.runner


def run_seeded(main: Callable[[], Awaitable[T]], *, seed: int, instruments: Sequence[trio.abc.Instrument] = ()) -> T:
    """`trio.run` under a virtual clock that leaps whenever nothing is runnable; the same seed makes the same run, in any process."""

    async def with_stops() -> T:
        runner = _runner()
        runner.runq = _RunQueue(runner.runq)
        return await main()

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    try:
        return trio.run(with_stops, clock=trio.testing.MockClock(autojump_threshold=0), instruments=instruments)
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
