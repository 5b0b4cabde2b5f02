"""Several ways to the same answer, tried one after the other without waiting for the slow ones (RFC 8305's happy eyeballs).

The next attempt starts when the one before has failed or has had its head start; the first answer wins and the others are cancelled.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import anyio

from streamq.model.errors import ProtocolError, StreamqError, UnavailableError

__all__ = ["AllFailedError", "is_answer", "race"]

T = TypeVar("T")


class AllFailedError(UnavailableError):
    """Every attempt failed, and each might succeed later or elsewhere; `causes` has one error per attempt."""

    def __init__(self, causes: list[StreamqError]) -> None:
        super().__init__("; ".join(dict.fromkeys(cause.message for cause in causes)), code="unavailable")
        self.causes = causes


def is_answer(error: StreamqError) -> bool:
    """Whether another broker would say the same: whatever is not just "not now, not here", or no answer at all."""
    return not isinstance(error, UnavailableError | ProtocolError)


async def race(
    attempts: Iterable[Callable[[], Awaitable[T]]], *, stagger_s: float, is_final: Callable[[StreamqError], bool] = is_answer
) -> T:
    """The first answer. An error that `is_final` is raised at once; when nothing else is left, AllFailedError."""
    runners = _Race[T](is_final)
    async with anyio.create_task_group() as tasks:
        for attempt in attempts:
            ended = anyio.Event()
            tasks.start_soon(runners.run, attempt, ended, tasks.cancel_scope)
            with anyio.move_on_after(stagger_s):
                await ended.wait()
    if runners.answers:
        return runners.answers[0]
    if runners.final is not None:
        raise runners.final
    raise AllFailedError(runners.causes)


class _Race(Generic[T]):
    def __init__(self, is_final: Callable[[StreamqError], bool]) -> None:
        self.is_final = is_final
        self.answers: list[T] = []
        self.final: StreamqError | None = None
        self.causes: list[StreamqError] = []

    async def run(self, attempt: Callable[[], Awaitable[T]], ended: anyio.Event, scope: anyio.CancelScope) -> None:
        try:
            self.answers.append(await attempt())
            scope.cancel()
        except StreamqError as error:
            if self.is_final(error):
                self.final = self.final or error
                scope.cancel()
            else:
                self.causes.append(error)
        finally:
            ended.set()
