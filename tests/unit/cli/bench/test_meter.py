"""Latencies as reports show them."""

from streamq.cli.bench.meter import US_PER_S, milliseconds
from streamq.model.metrics import Histogram


def test_latencies_are_told_in_milliseconds() -> None:
    histogram = Histogram(US_PER_S)
    histogram.record(1_000, 990)
    histogram.record(20_000, 9)
    histogram.record(5_000_000)
    told = milliseconds(histogram.snapshot())
    assert (told["p50_ms"], told["max_ms"]) == (1.003, 5000.0)
    assert 20 <= told["p999_ms"] <= 20.16
