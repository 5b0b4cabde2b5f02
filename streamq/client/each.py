"""The same work for many items, a bounded number at a time, with errors as plain as those of a loop."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from streamq.model.errors import StreamqError

__all__ = ["each"]

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Runs `work` for every item. The first StreamqError cancels the rest and is raised itself, not in a group."""
    limiter = anyio.CapacityLimiter(at_once)
    errors: list[StreamqError] = []

    async def one(item: T) -> None:
        try:
            async with limiter:
                await work(item)
        except StreamqError as error:
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(one, item)
    if errors:
        raise errors[0]
