"""Histograms say of any load what a sorted list of it would say, to within 1/128; sets of metrics tell what they hold, by name."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamq.model.errors import ProtocolError
from streamq.model.limits import OFFSET_MAX
from streamq.model.messages import Metrics
from streamq.model.metrics import BUCKETS, RELATIVE_ERROR, Histogram, HistogramSnapshot, MetricSet, bucket_of, highest_in
from streamq.wire.codec import decode_message, encode_message

LARGEST = OFFSET_MAX
values = st.lists(st.integers(0, 600) | st.integers(0, 1 << 50), min_size=1, max_size=200)
fractions = st.sampled_from([0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0]) | st.floats(0.0001, 1)


def histogram_of(recorded: list[int], per_unit: int = 1) -> Histogram:
    histogram = Histogram(per_unit)
    for value in recorded:
        histogram.record(value)
    return histogram


def rank(recorded: list[int], fraction: float) -> int:
    """The smallest of the values that so large a share of them does not exceed."""
    return next(value for at, value in enumerate(sorted(recorded), 1) if at >= fraction * len(recorded))


@given(values, fractions)
def test_a_percentile_is_that_of_the_sorted_list_or_hardly_more(recorded: list[int], fraction: float) -> None:
    true = rank(recorded, fraction)
    assert true <= histogram_of(recorded).percentile(fraction) <= true * (1 + RELATIVE_ERROR)


@given(values)
def test_count_mean_and_largest_are_exact(recorded: list[int]) -> None:
    told = histogram_of(recorded, 1_000_000).snapshot()
    assert told.count == len(recorded)
    assert told.mean == pytest.approx(sum(recorded) / len(recorded) / 1e6)
    assert told.largest == told.percentile(1) == max(recorded) / 1e6


@given(values, values)
def test_merging_is_recording_both(some: list[int], others: list[int]) -> None:
    both = histogram_of([*some, *others]).snapshot()
    merged = histogram_of(some)
    merged.merge(histogram_of(others))
    assert merged.snapshot() == both
    assert histogram_of(some).snapshot().merged(histogram_of(others).snapshot()) == both


@given(values, values)
def test_since_an_earlier_snapshot_there_is_what_came_after_it(before: list[int], after: list[int]) -> None:
    histogram = histogram_of(before)
    earlier = histogram.snapshot()
    for value in after:
        histogram.record(value)
    later = histogram.snapshot().since(earlier)
    expected = histogram_of(after).snapshot()
    assert (later.buckets, later.total, later.per_unit) == (expected.buckets, expected.total, expected.per_unit)
    assert max(after) <= later.max <= max(after) * (1 + RELATIVE_ERROR)
    assert histogram.snapshot().since(histogram.snapshot()) == Histogram().snapshot()


@given(st.integers(0, LARGEST))
@example(LARGEST)
def test_a_value_lies_in_its_bucket_and_buckets_leave_no_gap(value: int) -> None:
    bucket = bucket_of(value)
    assert value <= highest_in(bucket)
    assert bucket == 0 or highest_in(bucket - 1) < value
    assert list(histogram_of([value]).snapshot().buckets) == [bucket]


def test_the_largest_value_has_the_last_bucket_and_totals_stay_within_what_can_be_told() -> None:
    histogram = histogram_of([LARGEST, LARGEST])
    assert histogram.snapshot() == HistogramSnapshot(1, OFFSET_MAX, LARGEST, {BUCKETS - 1: 2})
    assert histogram.percentile(0.5) == float(LARGEST)


@given(st.integers(0, LARGEST), st.integers(1, 1_000))
def test_many_at_once_are_as_many_one_by_one(value: int, count: int) -> None:
    histogram = Histogram()
    histogram.record(value, count)
    assert histogram.snapshot() == histogram_of([value] * count).snapshot()


def test_an_empty_histogram_says_zero() -> None:
    told = Histogram(1_000_000).snapshot()
    assert (told.count, told.mean, told.largest, told.percentile(0.99)) == (0, 0.0, 0.0, 0.0)


class Boiler(MetricSet):
    def __init__(self) -> None:
        self.boils = 0
        self.failed: Counter[str] = Counter()
        self.boil_seconds = Histogram(1_000)


def test_a_set_tells_numbers_words_and_histograms_by_their_names() -> None:
    boiler = Boiler()
    boiler.boils += 2
    boiler.failed["dry"] += 1
    boiler.boil_seconds.record(180_000)
    assert boiler.counters() == {"boils": 2, "failed_dry": 1}
    assert boiler.histograms()["boil_seconds"].largest == 180


@given(values)
def test_metrics_come_back_from_the_wire_as_they_were(recorded: list[int]) -> None:
    metrics = Metrics({"a": 1, "b_seconds": 0.25}, {"c": 0}, {"d": histogram_of(recorded, 1_000_000).snapshot()})
    assert decode_message(encode_message(metrics)) == metrics


@pytest.mark.parametrize(
    "metrics",
    [
        Metrics({"a": float("nan")}, {}, {}),
        Metrics({"a": float("inf")}, {}, {}),
        Metrics({"a": -1}, {}, {}),
        Metrics({f"n{i}": 1 for i in range(1_001)}, {}, {}),
        Metrics({}, {f"n{i}": 1 for i in range(1_001)}, {}),
        Metrics({}, {}, {f"n{i}": Histogram().snapshot() for i in range(1_001)}),
        Metrics({}, {}, {"h": Histogram(0).snapshot()}),
    ],
)
def test_metrics_beyond_their_bounds_are_refused(metrics: Metrics) -> None:
    with pytest.raises(ProtocolError):
        decode_message(encode_message(metrics))


def test_a_bucket_that_there_is_not_is_refused() -> None:
    told = Histogram().snapshot()
    for bucket in (-1, BUCKETS):
        told.buckets.clear()
        told.buckets[bucket] = 1
        with pytest.raises(ProtocolError):
            decode_message(encode_message(Metrics({}, {}, {"h": told})))
