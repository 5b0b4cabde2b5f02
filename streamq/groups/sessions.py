"""Whose session is over, as the coordinator of one group sees it. Pure; `now` is monotonic, in seconds.

A member stops handing records out when none of its questions, counted from when it sent them, was answered within its session. The
coordinator counts from when it heard the question, which is later; and it answers only while a look at the register, not older than
`CONFIRMED_WITHIN` of the session, has shown that it still is the coordinator. Whoever takes over counts `GRACE` sessions from then on, so
that no member that the one before has answered to can still be at work when its partitions are given away.
"""

from collections.abc import Mapping
from typing import Final

__all__ = ["CONFIRMED_WITHIN", "GRACE", "Sessions"]

CONFIRMED_WITHIN: Final = 0.5
GRACE: Final = 1.0 + CONFIRMED_WITHIN
NEVER: Final = float("inf")


class Sessions:
    """Invariant: a deadline for each member, and for nobody else."""

    def __init__(self, members: Mapping[bytes, float], now: float) -> None:
        """`members`: tokens, with the length of each session in seconds. They are those of the register when this broker took over."""
        self._session_s = dict(members)
        self._ends = {token: now + GRACE * session_s for token, session_s in members.items()}

    def on_members(self, members: Mapping[bytes, float], now: float) -> None:
        """The register's members after a change; those that are new begin now."""
        self._ends = {token: self._ends.get(token, now + session_s) for token, session_s in members.items()}
        self._session_s = dict(members)

    def on_heard(self, token: bytes, now: float) -> None:
        if token in self._ends:
            self._ends[token] = max(self._ends[token], now + self._session_s[token])

    def expired(self, now: float) -> frozenset[bytes]:
        return frozenset(token for token, end in self._ends.items() if end <= now)

    def on_stall(self, late_s: float) -> None:
        """This loop stood still for so long: members may have spoken meanwhile, unheard."""
        self._ends = {token: end + late_s for token, end in self._ends.items()}

    @property
    def next_deadline(self) -> float:
        return min(self._ends.values(), default=NEVER)

    @property
    def shortest_s(self) -> float:
        return min(self._session_s.values(), default=NEVER)
