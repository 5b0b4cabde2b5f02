"""Latencies in a bounded number of buckets, each within 0.8 % of what it holds: cheap to record, exact enough for any percentile."""

from collections.abc import Mapping
from typing import Final

__all__ = ["Histogram"]

TICKS_PER_S: Final = 1_000_000
"""Latencies are counted in microseconds."""
HALF_BITS: Final = 7
"""A power of two is divided into so many bits' worth of buckets."""
HALF: Final = 1 << HALF_BITS
BUCKETS: Final = (40 - HALF_BITS) * HALF
"""Up to 2**39 microseconds, more than six days; what is longer counts as that."""


class Histogram:
    """Durations in seconds. Invariant: `count` is the sum of all buckets, and none of them is above `max_s`."""

    __slots__ = ("_buckets", "count", "max_s", "sum_s")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0

    def record(self, duration_s: float, count: int = 1) -> None:
        """`count` times the same duration; a negative one, as of a clock that was set, counts as none."""
        ticks = int(duration_s * TICKS_PER_S) if duration_s > 0 else 0
        shift = max(0, ticks.bit_length() - HALF_BITS - 1)
        bucket = min((shift << HALF_BITS) + (ticks >> shift), BUCKETS - 1)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += count
        self.sum_s += duration_s * count
        if duration_s > self.max_s:
            self.max_s = duration_s

    def percentile(self, share: float) -> float:
        """The smallest duration, in seconds, that so large a share (0 to 1) does not exceed; 0 when nothing was recorded."""
        if not self.count:
            return 0.0
        rank = max(1, -int(-share * self.count // 1))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(_upper_end_s(bucket), self.max_s)
        return self.max_s

    @property
    def mean_s(self) -> float:
        return self.sum_s / self.count if self.count else 0.0

    def add(self, other: "Histogram") -> None:
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count
        self.sum_s += other.sum_s
        self.max_s = max(self.max_s, other.max_s)

    def summary(self) -> Mapping[str, float]:
        """In milliseconds, as reports show it."""
        places = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
        return {name: round(self.percentile(share) * 1000, 3) for name, share in places.items()} | {"max_ms": round(self.max_s * 1000, 3)}


def _upper_end_s(bucket: int) -> float:
    shift = max(0, (bucket >> HALF_BITS) - 1)
    return (((bucket - (shift << HALF_BITS)) + 1) << shift) / TICKS_PER_S
