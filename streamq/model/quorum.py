"""Quorum arithmetic: which counts of answers prove what. Pure functions over numbers; the tests compare them with a dumb twin."""

from collections.abc import Sequence
from typing import NamedTuple

from streamq.model.limits import REPLICAS_MAX

__all__ = ["Quorum", "Survives", "high_watermark", "majority", "reopen_quorum", "seal_quorum", "survives"]


class Quorum(NamedTuple):
    """N replicas, a write quorum W and a read quorum R, with W + R > N."""

    replicas: int
    write: int
    read: int

    def fault(self) -> str | None:
        """The reason why these numbers are refused, with numbers that would do; None when they are sound."""
        n, w, r = self
        if not 1 <= n <= REPLICAS_MAX:
            return f"replicas must be between 1 and {REPLICAS_MAX}, not {n}"
        if not 1 <= w <= n:
            return f"write quorum {w} must be between 1 and the number of replicas, {n}; try {majority(n)}"
        if not 1 <= r <= n:
            return f"read quorum {r} must be between 1 and the number of replicas, {n}; try {max(1, n - w + 1)}"
        if w + r <= n:
            return f"write quorum {w} + read quorum {r} must exceed the number of replicas, {n}; try a read quorum of {n - w + 1}"
        return None


def majority(n: int) -> int:
    return n // 2 + 1


def seal_quorum(*, replicas: int, write: int) -> int:
    """Answers that a seal needs: N - W + 1, however large R is (P-36). No W others can then store without one of them."""
    return replicas - write + 1


def reopen_quorum(*, replicas: int, write: int) -> int:
    """Of the replicas of a new epoch, as many as must have answered its takeover (section 5, step 5)."""
    return max(write, seal_quorum(replicas=replicas, write=write))


def high_watermark(tails: Sequence[int], *, write: int, base: int) -> int:
    """The W-th largest local tail: everything below it is on W replicas. `base` while fewer than W have reported."""
    if len(tails) < write:
        return base
    return max(base, sorted(tails, reverse=True)[write - 1])


class Survives(NamedTuple):
    """How many replicas may be down or lost with each service still given (I-1, I-7)."""

    data_loss: int
    append: int
    takeover: int
    tip: int


def survives(quorum: Quorum) -> Survives:
    """What a topic with this quorum survives, as `topic create` and `describe` show it (I-7)."""
    n, w, r = quorum
    # Step 4 lets a takeover do with N - W + 1 replicas, but step 5 wants max(W, N - W + 1) of those of the next epoch to have answered, and
    # without brokers to take the place of the lost ones those are the same: I-7 promises more only where there are such.
    return Survives(data_loss=w - 1, append=n - w, takeover=n - reopen_quorum(replicas=n, write=w), tip=n - r)
