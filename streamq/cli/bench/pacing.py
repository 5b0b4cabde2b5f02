"""Offered load: when which record is due, and being woken in time.

In an open loop the load does not wait for answers. What a record waits because the client or the cluster stood still is part of its
latency, so latency counts from the instant at which the record was due, not from when it was sent at last (coordinated omission).
"""

import threading
import time
from types import TracebackType
from typing import Final, Self

import trio

__all__ = ["SLICE_S", "Schedule", "Ticker"]

SLICE_S: Final = 0.001
"""Records that are due within so long are sent together."""


class Schedule:
    """Evenly spaced records from `begun` on, `rate` a second. Times are those of `time.perf_counter`."""

    def __init__(self, rate: float, *, begun: float) -> None:
        self.rate: Final = rate
        self.begun: Final = begun

    def due_at(self, number: int) -> float:
        """When record `number`, counted from 0, has to be sent."""
        return self.begun + number / self.rate

    def due_by(self, now: float) -> int:
        """How many records have become due until then."""
        return max(0, int((now - self.begun) * self.rate) + 1)


class Ticker:
    """Wakes its task at regular instants, within about 0.1 ms: the event loop's own timers may be late by 1 ms.

    Ticks that nobody waited for are one tick: whoever was late sees at once that it is.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._tick = trio.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(trio.lowlevel.current_trio_token(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_over.set()

    async def wait(self) -> None:
        await self._tick.wait()
        self._tick = trio.Event()

    def _set(self) -> None:
        self._tick.set()

    def _run(self, token: trio.lowlevel.TrioToken) -> None:
        due = time.perf_counter()
        while not self._is_over.is_set():
            due = max(due + self._interval_s, time.perf_counter() - 1.0)
            if (delay := due - time.perf_counter()) > 0:
                time.sleep(delay)
            try:
                token.run_sync_soon(self._set, idempotent=True)
            except trio.RunFinishedError:
                return
