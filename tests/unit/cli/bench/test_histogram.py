"""Latencies in buckets: every percentile is within 0.8 % of the exact one, whatever was recorded."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.cli.bench.histogram import Histogram

MICROSECONDS = st.integers(0, 10**10)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value / 1e6)
    return histogram


@given(st.lists(MICROSECONDS, min_size=1, max_size=200), st.floats(0.001, 1.0))
def test_a_percentile_is_that_of_the_sorted_list_to_within_a_bucket(values: list[int], share: float) -> None:
    exact_s = sorted(values)[max(1, ceil(share * len(values))) - 1] / 1e6
    told_s = filled(values).percentile(share)
    assert exact_s - 2e-6 <= told_s <= exact_s * 1.0079 + 2e-6


@given(st.lists(MICROSECONDS, min_size=1, max_size=50), st.lists(MICROSECONDS, max_size=50))
def test_two_added_are_one_that_recorded_everything(first: list[int], second: list[int]) -> None:
    both, other = filled(first), filled(second)
    both.add(other)
    whole = filled(first + second)
    assert [both.percentile(p) for p in (0.01, 0.5, 0.99, 1)] == [whole.percentile(p) for p in (0.01, 0.5, 0.99, 1)]
    assert (both.count, both.max_s) == (whole.count, whole.max_s)


def test_nothing_recorded_has_percentiles_of_zero() -> None:
    assert Histogram().summary() == {"p50_ms": 0.0, "p99_ms": 0.0, "p999_ms": 0.0, "max_ms": 0.0}


def test_one_duration_recorded_many_times_counts_many_times() -> None:
    histogram = Histogram()
    histogram.record(0.001, 99)
    histogram.record(5.0)
    assert histogram.percentile(0.99) == pytest.approx(0.001, rel=0.01)
    assert histogram.percentile(1.0) == 5.0
