"""Log lines about what remote sides did wrong, at a bounded rate, so that nobody can make a broker log without bound."""

import logging
from typing import Final

import trio

__all__ = ["Complaints"]

COMPLAINTS_PER_S: Final = 1.0
LINE_CHARS_MAX: Final = 1_000


class Complaints:
    """Lines beyond the rate are counted and summed up in the next."""

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._next = 0.0
        self._hidden = 0

    def log(self, text: str) -> None:
        now = trio.current_time()
        if now < self._next:
            self._hidden += 1
            return
        self._logger.log(self._level, "%s%s", text[:LINE_CHARS_MAX], f" (and {self._hidden} more such)" if self._hidden else "")
        self._next, self._hidden = now + 1 / COMPLAINTS_PER_S, 0
