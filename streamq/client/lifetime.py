"""Background tasks that belong to an object used with `async with`, without showing through.

A task group wraps whatever leaves its block into a group of exceptions, the user's own exception included. Here the user's exception never
enters the task group: the block's end cancels the tasks and lets the exception pass by. A background task that fails (a bug) ends the block
with that one exception.

Nor does a cancellation from outside reach them: the block ends first, and what it does at its end (a member commits, and leaves its group)
needs connections that live.
"""

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup

__all__ = ["Lifetime"]


class Lifetime:
    """A task group from `open` to `close`, which have to be called in the same task, nested like blocks."""

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def is_open(self) -> bool:
        return self._tasks is not None

    async def open(self) -> None:
        assert self._tasks is None, "opened twice"
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks

    def start(self, task: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
        assert self._tasks is not None, "not open"
        scope = anyio.CancelScope(shield=True)
        self._scopes.add(scope)
        self._tasks.start_soon(self._run, scope, task, args, name=getattr(task, "__qualname__", None))

    async def _run(self, scope: anyio.CancelScope, task: Callable[..., Coroutine[Any, Any, object]], args: tuple[object, ...]) -> None:
        try:
            with scope:
                await task(*args)
        finally:
            self._scopes.discard(scope)

    async def close(self, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Cancels the tasks and waits until they have ended, which they do without waiting for anything outside."""
        tasks, self._tasks = self._tasks, None
        if tasks is None:
            return
        for scope in list(self._scopes):
            scope.cancel()
        tasks.cancel_scope.shield = True
        passes = error if isinstance(error, anyio.get_cancelled_exc_class()) else None
        try:
            await tasks.__aexit__(type(passes) if passes else None, passes, traceback if passes else None)
        except BaseExceptionGroup as group:
            raise _only(group) from None


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
