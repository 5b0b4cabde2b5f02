"""One task that reads every socket that has something, instead of a task for each socket.

Many clients with one small batch in flight each would cost a task's turn, a registration with the system and frames to every replica for
each batch. Here what has arrived by the time one pass begins is read in that pass, and what it leads to leaves together at its end.
"""

import selectors
from collections.abc import Callable

import trio

__all__ = ["Poller"]


class Poller:
    """`after_pass` runs when all that was readable has been read once. Everything here belongs to one event loop."""

    def __init__(self, after_pass: Callable[[], None]) -> None:
        self._after_pass = after_pass
        self._selector = selectors.DefaultSelector()
        self._has_begun = trio.Event()

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """From now on `on_readable` is called in each pass that finds the socket readable. It must not block, or raise."""
        self._selector.register(fd, selectors.EVENT_READ, on_readable)
        self._has_begun.set()

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed. Nothing happens if it is not watched."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    async def run(self) -> None:
        """Until cancelled."""
        await self._has_begun.wait()
        with self._selector:
            waiting_at = self._selector.fileno()
            while True:
                await trio.lowlevel.wait_readable(waiting_at)
                for key, _ in self._selector.select(0):
                    key.data()
                self._after_pass()
