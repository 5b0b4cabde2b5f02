"""Tests of the clients run under both event loops: `both` marks them, `run` runs their body."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

__all__ = ["both", "run"]

TIME_LIMIT_S = 15.0

both = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def run(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(TIME_LIMIT_S):
            await body()

    try:
        anyio.run(limited, backend=backend)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        error.__context__ = error.__cause__ = None
        raise error from None
