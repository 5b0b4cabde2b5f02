"""Whether a peer is down: at once after a refused connection, after a reset that a probe confirms, and after a time of silence (P-20).

It never decides anything that safety depends on. A loop of our own that was held up (a paused process, a busy machine) has heard nobody in
that time and must not blame its peers for it: `on_tick` notices, and forgives the silence.
"""

from enum import Enum
from typing import Final

__all__ = ["SILENCE_TIMEOUT_S", "FailureDetector", "Opinion"]

SILENCE_TIMEOUT_S: Final = 0.5
STALL_FRACTION: Final = 0.4
"""A tick that comes so much of the timeout late says that our own loop was held up."""


class Opinion(Enum):
    UP = "heard of within the timeout"
    DOUBTED = "its connection was reset; a probe decides"
    DOWN = "silent for the timeout, or it refused a connection; only a sign of life ends it"


class FailureDetector:
    """The opinion of one peer. `now` is monotonic, in seconds. Until it is heard of for the first time it has `timeout_s` from the
    start."""

    def __init__(self, *, now: float, timeout_s: float = SILENCE_TIMEOUT_S) -> None:
        assert timeout_s > 0
        self._timeout_s = timeout_s
        self._heard = now
        self._expected = now + timeout_s
        self._is_doubted = False
        self._is_refused = False

    def on_heard(self, now: float) -> None:
        """Any message of the peer, or a probe that it answered."""
        self._heard = max(self._heard, now)
        self._is_doubted = self._is_refused = False

    def on_reset(self, now: float) -> None:
        """The connection broke: probe the peer now. It has no longer than the rest of its timeout."""
        self._is_doubted = True

    def on_probe_refused(self, now: float) -> None:
        """The peer's host answered that nobody listens there."""
        self._is_refused = True

    def on_tick(self, now: float) -> None:
        """Call at `next_deadline` or earlier. If it comes much later, our own loop was held up and the silence is forgiven for that
        time."""
        late = now - self._expected
        if late > self._timeout_s * STALL_FRACTION:
            self._heard = max(self._heard, now - self._timeout_s / 2)
        self._expected = self._next_tick(now)

    def opinion(self, now: float) -> Opinion:
        if self._is_refused or now >= self._heard + self._timeout_s:
            return Opinion.DOWN
        return Opinion.DOUBTED if self._is_doubted else Opinion.UP

    def suspect(self, now: float) -> bool:
        """Whether a replica may take over from this peer without being told to. A tick at the same time."""
        self.on_tick(now)
        return self.opinion(now) is Opinion.DOWN

    @property
    def next_deadline(self) -> float:
        """When to call `on_tick` next: the moment at which the opinion would become DOWN, or a quarter of the timeout, whichever is
        first."""
        return self._expected

    def _next_tick(self, now: float) -> float:
        silent_at = self._heard + self._timeout_s
        step = now + self._timeout_s / 4
        return min(silent_at, step) if silent_at > now else step
