"""A bound on real time around what may spin."""

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["Hung", "ends_within"]


class Hung(BaseException):
    """Real time ran out: something spins. No `Exception`, so that nothing in between takes it for one of its own."""


@contextmanager
def ends_within(limit_s: float) -> Iterator[None]:
    """Raises Hung, with the place, when the block takes longer. Main thread only."""

    def on_alarm(number: int, frame: FrameType | None) -> NoReturn:
        where = "".join(traceback.format_stack(frame, limit=8))
        raise Hung(f"more than {limit_s:g} s of real time, at the end here:\n{where}")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
