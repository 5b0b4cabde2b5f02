"""The disk that a benchmark may take: topics keep no more than fits, and what takes more all the same is ended before it does."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from streamq.cli.output import size
from streamq.model.errors import RefusedError, UnavailableError
from streamq.model.limits import RETENTION_BYTES_MIN

__all__ = ["Budget"]

LOOK_S: Final = 0.25
AHEAD_S: Final = 1.0
"""The brokers have to be ended while there is room for what they write in so long."""
JOURNALS_BYTES: Final = 3 * 5 * (64 << 20)
"""What the journals of three brokers take at most, beside what is stored."""
RETAINED_SHARE: Final = 6
"""Each of three replicas keeps this part of what is left: an eighth more than asked for stays, and what comes in some four seconds."""


class Budget:
    """`used` tells how many bytes are taken now; at most `limit_bytes` are, or what the disk has free."""

    def __init__(self, limit_bytes: int, used: Callable[[], int], directory: Path | None) -> None:
        self.limit_bytes: Final = limit_bytes
        self._used = used
        self._directory = directory
        self._last_look = 0.0
        self._last_used = 0

    def refuse_over(self, wanted_bytes: int, *, what: str) -> None:
        """Raises RefusedError if what is going to be stored cannot fit."""
        wanted = wanted_bytes + JOURNALS_BYTES
        if wanted > self.limit_bytes:
            raise RefusedError(
                f"{what} takes about {size(wanted)} of disk, over --disk-budget {size(self.limit_bytes)}",
                code="usage",
                hint="ask for less, or allow more",
            )
        if self._directory is not None and wanted > (free := shutil.disk_usage(self._directory).free):
            raise UnavailableError(
                f"{what} takes about {size(wanted)} of disk, {size(free)} are free", code="disk_full", hint="--data names another disk"
            )

    def retained_bytes(self, partitions: int, *, stored_bytes: int = 0) -> int:
        """What a topic of so many partitions may keep, per partition and replica, so that a load into it can go on for ever.

        `stored_bytes` are those of other topics, over all directories together.
        """
        return max(RETENTION_BYTES_MIN, (self.limit_bytes - JOURNALS_BYTES - stored_bytes) // (RETAINED_SHARE * partitions))

    def check(self) -> None:
        """To be called often. Raises UnavailableError shortly before the budget is used up."""
        now = time.monotonic()
        if now - self._last_look < LOOK_S:
            return
        used = self._used()
        growth = (used - self._last_used) / (now - self._last_look) if self._last_look else 0.0
        self._last_look, self._last_used = now, used
        if used + max(0.0, growth) * AHEAD_S > self.limit_bytes:
            raise UnavailableError(
                f"stopped with {size(used)} on the disk: more would be over --disk-budget {size(self.limit_bytes)}",
                code="disk_full",
                hint="fewer records or seconds, or a larger budget",
            )
