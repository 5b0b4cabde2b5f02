"""Spreading records evenly over time."""

import sys
import time
from typing import Final

import anyio

__all__ = ["Pace"]

PACE_S: Final = 0.02
"""With a rate, as many records as are due are sent so often."""


class Pace:
    """Records per second; no rate means at once."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._begun = time.monotonic()
        self._sent = 0

    def slice(self) -> int:
        """How many to send in one go."""
        return sys.maxsize if self._rate is None else max(1, int(self._rate * PACE_S))

    async def wait(self, records: int) -> None:
        """Until so many more are due."""
        if self._rate is None:
            return
        delay = self._begun + self._sent / self._rate - time.monotonic()
        self._sent += records
        if delay > 0:
            await anyio.sleep(delay)
