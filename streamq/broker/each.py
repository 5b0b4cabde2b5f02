"""The same work for many items, a bounded number at a time, with errors as plain as those of a loop."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from streamq.model.errors import StreamqError

__all__ = ["each", "plain_error"]

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Runs `work` for every item. The first StreamqError cancels the rest and is raised itself, not in a group."""
    limiter = trio.CapacityLimiter(at_once)

    async def one(item: T) -> None:
        async with limiter:
            await work(item)

    try:
        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(one, item)
    except BaseExceptionGroup as group:
        error = plain_error(group)
        if error is None:
            raise
        raise error from None


def plain_error(group: BaseExceptionGroup[BaseException]) -> StreamqError | None:
    """The first StreamqError of a group that holds nothing else; None for any other group, which is a bug of ours or a cancellation."""
    _, others = group.split(StreamqError)
    if others is not None:
        return None
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, StreamqError)
    return first
