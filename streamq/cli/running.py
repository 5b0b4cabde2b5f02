"""Runs the commands that use the clients: under trio, until they are done or Ctrl-C stops them."""

import signal
from collections.abc import Awaitable, Callable

import anyio

__all__ = ["run_until_interrupted"]


def run_until_interrupted(work: Callable[[], Awaitable[None]]) -> bool:
    """Whether SIGINT or SIGTERM stopped it. `work` is cancelled then, and nothing more is waited for."""
    return anyio.run(_run, work, backend="trio")


async def _run(work: Callable[[], Awaitable[None]]) -> bool:
    was_interrupted = False

    async def watch(scope: anyio.CancelScope) -> None:
        nonlocal was_interrupted
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                was_interrupted = True
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, tasks.cancel_scope)
        await work()
        tasks.cancel_scope.cancel()
    return was_interrupted
