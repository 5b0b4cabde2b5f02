"""Deadlines of many owners in one task: each owner sleeps at most once, and waking it too early does no harm."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["NEVER", "Sleeper", "Timers"]

NEVER: Final = float("inf")


class Sleeper(Protocol):
    wakes_at: float
    """When its timer is due; kept by `Timers`, NEVER to begin with."""

    @property
    def next_deadline(self) -> float: ...


S = TypeVar("S", bound=Sleeper)


class Timers(Generic[S]):
    """Invariant: an owner with a deadline that `schedule` was told of is in the heap, no later than its deadline, until it is woken."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, S]] = []
        self._order = count()
        self._wake = anyio.Event()

    def schedule(self, owner: S) -> None:
        """To be called whenever the owner's deadline may have come nearer."""
        at = owner.next_deadline
        if at < owner.wakes_at:
            if not self._heap or at < self._heap[0][0]:
                self._wake.set()
            owner.wakes_at = at
            heappush(self._heap, (at, next(self._order), owner))

    def wake(self) -> None:
        """Has `turn` called soon."""
        self._wake.set()

    async def run(self, on_time: Callable[[S, float], None], *, turn: Callable[[float], None]) -> None:
        """Until cancelled: calls `on_time` for each owner whose deadline has come, then `turn`; both are told the time."""
        while True:
            now = anyio.current_time()
            while self._heap and self._heap[0][0] <= now:
                at, _, owner = heappop(self._heap)
                if at == owner.wakes_at:  # else it was woken earlier, for a nearer deadline
                    owner.wakes_at = NEVER
                    on_time(owner, now)
                    self.schedule(owner)
            turn(now)
            self._wake = anyio.Event()
            with anyio.move_on_after(self._heap[0][0] - anyio.current_time() if self._heap else None):
                await self._wake.wait()
                await anyio.lowlevel.checkpoint()  # whoever was woken together with this task has its say before
