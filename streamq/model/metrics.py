"""What is counted: plain numbers and histograms that cost next to nothing to keep.

A counter is an `int` attribute of a `MetricSet`, added to once a batch, a frame or a group commit, never once a record, by one thread.
A histogram has buckets that are at most 1/128 as wide as what falls into them: any percentile of any load is known to within that, in a few
kilobytes, and recording a value takes 145 ns.
"""

from collections import Counter, defaultdict
from typing import Annotated, Final

import msgspec

from streamq.model.fields import U63, Name, Number
from streamq.model.limits import OFFSET_MAX

__all__ = [
    "BUCKETS",
    "RELATIVE_ERROR",
    "Histogram",
    "HistogramSnapshot",
    "MetricSet",
    "NamedHistograms",
    "NamedNumbers",
    "bucket_of",
    "highest_in",
]

SUB_BITS: Final = 7
RELATIVE_ERROR: Final = 1 / (1 << SUB_BITS)
BUCKETS: Final = (63 - SUB_BITS + 1) << SUB_BITS
METRICS_MAX: Final = 1_000
"""Of each kind, in what one broker tells."""

Bucket = Annotated[int, msgspec.Meta(ge=0, le=BUCKETS - 1)]
NamedNumbers = Annotated[dict[Name, Number], msgspec.Meta(max_length=METRICS_MAX)]


def bucket_of(value: int) -> int:
    """Below 256 each value has a bucket of its own; from there on each power of two has 128."""
    shift = max(0, value.bit_length() - SUB_BITS - 1)
    return (shift << SUB_BITS) + (value >> shift)


def highest_in(bucket: int) -> int:
    """The highest value that falls into this bucket."""
    shift = max(0, (bucket >> SUB_BITS) - 1)
    return ((bucket - (shift << SUB_BITS) + 1) << shift) - 1


class HistogramSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """How often each bucket was met. Values are integers; `per_unit` of them are one of what the metric's name says (seconds, bytes).

    `percentile`, `mean` and `largest` are in its unit, `total` and `max` are not. After `since`, `max` is a bucket's highest value.
    """

    per_unit: Annotated[int, msgspec.Meta(ge=1, le=OFFSET_MAX)]
    total: U63
    max: U63
    buckets: Annotated[dict[Bucket, U63], msgspec.Meta(max_length=BUCKETS)]

    def __repr__(self) -> str:
        p50, p99 = self.percentile(0.5), self.percentile(0.99)
        return f"HistogramSnapshot(count={self.count}, p50={p50:g}, p99={p99:g}, max={self.largest:g})"

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    @property
    def mean(self) -> float:
        """0.0 when nothing was recorded."""
        return self.total / self.per_unit / (self.count or 1)

    @property
    def largest(self) -> float:
        """Exact."""
        return self.max / self.per_unit

    def percentile(self, fraction: float) -> float:
        """What this fraction of the values, above 0 and at most 1, does not exceed; at most RELATIVE_ERROR too high. 0.0 without values."""
        wanted = fraction * self.count
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return min(highest_in(bucket), self.max) / self.per_unit
        return 0.0

    def merged(self, other: "HistogramSnapshot") -> "HistogramSnapshot":
        """As if both had been recorded by one. They must measure the same."""
        assert self.per_unit == other.per_unit, "these do not measure the same"
        buckets = Counter(self.buckets)
        buckets.update(other.buckets)
        return HistogramSnapshot(self.per_unit, self.total + other.total, max(self.max, other.max), dict(buckets))

    def since(self, earlier: "HistogramSnapshot") -> "HistogramSnapshot":
        """What was recorded after an earlier snapshot of the same histogram."""
        buckets = {b: n - earlier.buckets.get(b, 0) for b, n in self.buckets.items() if n > earlier.buckets.get(b, 0)}
        largest = min(highest_in(max(buckets)), self.max) if buckets else 0
        return HistogramSnapshot(self.per_unit, max(0, self.total - earlier.total), largest, buckets)


class Histogram:
    """Of values from 0 to below 2**63. `per_unit` is 1_000_000 where a metric of seconds is recorded in microseconds."""

    __slots__ = ("_buckets", "max", "per_unit", "total")

    def __init__(self, per_unit: int = 1) -> None:
        self.per_unit = per_unit
        self.total = 0
        self.max = 0
        self._buckets: defaultdict[int, int] = defaultdict(int)

    def record(self, value: int, count: int = 1) -> None:
        """`count` times the same value."""
        shift = value.bit_length() - 8  # `bucket_of`, written out: this is called for each batch
        self._buckets[(shift << 7) + (value >> shift) if shift > 0 else value] += count
        self.total += value * count
        if value > self.max:
            self.max = value

    def snapshot(self) -> HistogramSnapshot:
        # Copied in one step, whatever another thread records meanwhile.
        return HistogramSnapshot(self.per_unit, min(self.total, OFFSET_MAX), self.max, dict(self._buckets))

    def percentile(self, fraction: float) -> float:
        return self.snapshot().percentile(fraction)

    def merge(self, other: "Histogram | HistogramSnapshot") -> None:
        """Adds all that the other has recorded; it must measure the same."""
        added = other.snapshot() if isinstance(other, Histogram) else other
        assert self.per_unit == added.per_unit, "these do not measure the same"
        for bucket, count in added.buckets.items():
            self._buckets[bucket] += count
        self.total += added.total
        self.max = max(self.max, added.max)


NamedHistograms = Annotated[dict[Name, HistogramSnapshot], msgspec.Meta(max_length=METRICS_MAX)]


class MetricSet:
    """The base of a set of metrics: every attribute is a counter, a `Counter` by word (told as `attribute_word`), or a histogram."""

    def counters(self) -> dict[str, int]:
        """By name, as they stand now."""
        found: dict[str, int] = {}
        for name, value in vars(self).items():
            if isinstance(value, int):
                found[name] = value
            elif isinstance(value, Counter):
                found |= {f"{name}_{word}": count for word, count in value.copy().items()}
        return found

    def histograms(self) -> dict[str, HistogramSnapshot]:
        return {name: value.snapshot() for name, value in vars(self).items() if isinstance(value, Histogram)}
