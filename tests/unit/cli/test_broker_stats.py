"""`streamq broker stats`: differences between two looks are what happened in between; brokers that do not answer are told."""

import json

import pytest

from streamq.cli.__main__ import main
from streamq.cli.broker_stats import Look, change_of
from streamq.model.messages import BrokerAddress, Message, MetadataView, Metrics
from streamq.model.metrics import Histogram
from tests.unit.cli.test_admin import FakeBroker, dead_address, listening


def metrics_of(taken: int, uptime_s: float, *latencies_us: int) -> Metrics:
    histogram = Histogram(1_000_000)
    for latency in latencies_us:
        histogram.record(latency)
    gauges = {"uptime_seconds": uptime_s, "process_memory_bytes": 3 << 20}
    return Metrics({"batches_taken": taken, "bytes_taken": taken * 1024, "cuts": 0}, gauges, {"ack_seconds": histogram.snapshot()})


def test_a_change_is_what_came_after_the_look_before() -> None:
    change = change_of(Look(10.0, metrics_of(100, 5.0, 50, 9_000)), Look(12.0, metrics_of(150, 7.0, 50, 9_000, 70)))
    assert change.counters == {"batches_taken": 50, "bytes_taken": 50 * 1024, "cuts": 0}
    assert change.gauges["uptime_seconds"] == 7.0
    assert change.seconds == 2.0
    assert (change.histograms["ack_seconds"].count, change.histograms["ack_seconds"].largest) == (1, 70e-6)


def test_a_broker_that_was_started_anew_has_done_all_that_it_tells_since() -> None:
    change = change_of(Look(10.0, metrics_of(100, 500.0, 50, 60)), Look(12.0, metrics_of(7, 1.0, 80)))
    assert change.counters["batches_taken"] == 7
    assert change.histograms["ack_seconds"].count == 1


def asked(metrics: Metrics, *, silent: bool, words: list[str]) -> int:
    """The exit code of `broker stats` where b1 tells these metrics, and b2, if there is one, does not answer."""
    dead = dead_address()
    answers: list[Message | None] = []
    with listening(FakeBroker(answers)) as address:
        known = [BrokerAddress("b1", *address, "", True), *([BrokerAddress("b2", *dead, "", True)] if silent else [])]
        answers += [MetadataView(bytes(16), tuple(known), ()), *[metrics] * 5]
        return main(["broker", "stats", "--bootstrap", str(address), *words])


def test_json_has_everything_and_text_leaves_out_what_never_happened(capsys: pytest.CaptureFixture[str]) -> None:
    told = metrics_of(2_000, 5.0, *[300] * 98, 1_500, 4_000_000)
    assert asked(told, silent=False, words=["-o", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["broker"], row["counters"]) == ("b1", {"batches_taken": 2_000, "bytes_taken": 2_048_000, "cuts": 0})
    assert row["histograms"]["ack_seconds"]["count"] == 100
    assert row["histograms"]["ack_seconds"]["max"] == 4.0
    assert asked(told, silent=False, words=[]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["batches_taken", "2,000"] in lines
    assert ["bytes_taken", "2.0", "MiB"] in lines
    assert ["process_memory_bytes", "3.0", "MiB"] in lines
    assert next(line for line in lines if line[0] == "ack_seconds")[-3:] == ["4.0", "s", "(100)"]
    assert "cuts" not in [line[0] for line in lines]


def test_watching_tells_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(metrics_of(5, 5.0), silent=False, words=["-o", "json", "--watch", "0.05", "-n", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rates"]["batches_taken"] for row in rows] == [0, 0]


def test_a_broker_that_does_not_answer_is_named_and_the_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(metrics_of(5, 5.0), silent=True, words=[]) == 6
    shown = capsys.readouterr()
    assert "no answer from b2" in shown.err
    assert "batches_taken" in shown.out
    assert asked(metrics_of(5, 5.0), silent=True, words=["b2"]) == 4
