"""A bound on the bytes of incomplete frames over all client connections together, so that many half-sent frames cannot fill the memory."""

import trio

__all__ = ["ByteBudget"]


class ByteBudget:
    """Invariant: 0 <= free <= total. Who waits is served in order; a request for more than the total waits for all of it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._lot = trio.lowlevel.ParkingLot()

    async def acquire(self, count: int) -> int:
        """Waits for so many bytes and returns what to give back; cancellation takes nothing."""
        count = min(count, self.total)
        while self.free < count:
            await self._lot.park()
        self.free -= count
        return count

    def release(self, count: int) -> None:
        self.free += count
        assert self.free <= self.total
        self._lot.unpark_all()
