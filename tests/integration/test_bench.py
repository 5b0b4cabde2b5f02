"""`streamq bench` in small: each verb's figures agree with each other, and nothing of a benchmark stays behind."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.integration.local import LocalCluster, environment, local_cluster, wait_until

OWN = ["--set", "journal_file_bytes=16777216"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as running:
        yield running


def rows_of(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def bench(cluster: LocalCluster, *words: str) -> list[dict[str, Any]]:
    """On the shared cluster, as users name theirs."""
    return rows_of(cluster.run("bench", *words, "--bootstrap", cluster.bootstrap, "-o", "json"))


def own_bench(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """On a cluster of its own, of which nothing is left afterwards."""
    command = [*LocalCluster(tmp_path, 3, 0).command("bench", *words), "--data", str(tmp_path), *OWN, "-o", "json"]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert list(tmp_path.iterdir()) == [], "its data is still there"
    return rows_of(done)


def test_produce_counts_what_was_acked_and_draws_it(cluster: LocalCluster, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    first, second, summary = bench(cluster, "produce", "--records", "20000", "--runs", "2", "--warm-up", "0", "--plot", str(plot))
    for row in (first, second):
        assert row["records"] == 20_000
        assert abs(20_000 / row["records_per_s"] - row["seconds"]) < 0.001, "seconds are told in milliseconds"
        assert 0 < row["wire_MB_per_s"] < row["raw_MB_per_s"], "what is sent is compressed"
        assert row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"]
    rates = sorted((first["records_per_s"], second["records_per_s"]))
    assert [summary["records_per_s"]["min"], summary["records_per_s"]["max"]] == rates
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_brokers_alone_take_ready_made_batches(cluster: LocalCluster) -> None:
    row, _ = bench(cluster, "produce", "--raw", "64KiB", "--seconds", "0.5", "--warm-up", "0")
    assert row["wire_MB_per_s"] == pytest.approx(row["batches_per_s"] * 65_536 / 1e6, rel=0.2)


def test_consume_reads_each_record_that_was_stored(cluster: LocalCluster) -> None:
    row, _ = bench(cluster, "consume", "--records", "50000", "--warm-up", "0")
    assert row["records"] == 50_000


def test_an_open_loop_offers_its_rate_and_one_in_flight_is_one(cluster: LocalCluster) -> None:
    row, _ = bench(cluster, "latency", "--rate", "200", "--seconds", "1", "--warm-up", "0")
    assert row["latencies"] == pytest.approx(200, abs=10)
    row, _ = bench(cluster, "latency", "--records", "50", "--warm-up", "0")
    assert row["records"] == row["latencies"] == 50
    assert row["seconds"] >= 50 * row["p50_ms"] / 1000 * 0.5, "fifty one after another cannot take less than half of fifty medians"


@pytest.mark.parametrize("how", ["--tasks", "--producers", "--connections"])
def test_fan_in_measures_each_way_of_sending_at_once(cluster: LocalCluster, how: str) -> None:
    row, _ = bench(cluster, "fan-in", how, "4", "--seconds", "0.5", "--warm-up", "0")
    assert row["records"] == row["latencies"] > 0


def test_a_benchmark_on_a_running_cluster_leaves_no_topic(cluster: LocalCluster) -> None:
    bench(cluster, "latency", "--records", "5", "--warm-up", "0")
    assert b"bench-" not in cluster.run("topic", "ls").stdout


def test_verbs_that_end_brokers_never_touch_a_running_cluster(cluster: LocalCluster) -> None:
    before = cluster.status()
    for verb in ("failover", "restart"):
        refused = cluster.run("bench", verb, "--bootstrap", cluster.bootstrap, "-o", "json", expect=2)
        assert "cluster of its own" in json.loads(refused.stderr)["message"]
    assert {name: row["pid"] for name, row in cluster.status().items()} == {name: row["pid"] for name, row in before.items()}


def test_a_budget_that_is_too_small_is_told_first(tmp_path: Path) -> None:
    words = LocalCluster(tmp_path, 3, 0).command("bench", "restart", "--stored", "3GB", "--disk-budget", "2GB", "--data", str(tmp_path))
    done = subprocess.run(words, env=environment(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"--disk-budget" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_load_that_stores_more_than_the_budget_goes_on_as_its_topic_keeps_less(tmp_path: Path) -> None:
    """25 MB/s on each of three replicas are 1.2 GB in 16 s."""
    load = ["--rate", "25000", "--record-bytes", "1000", "--compression", "none", "--seconds", "16"]
    row = own_bench(tmp_path, "produce", *load, "--disk-budget", "1.1GB")[0]
    assert row["records"] * 1000 * 3 > 1.1e9


@pytest.mark.long
def test_failover_measures_a_gap_and_reads_everything_back(tmp_path: Path) -> None:
    rows = own_bench(tmp_path, "failover", "--rounds", "1", "--rate", "5000")
    summary = next(row for row in rows if "gap_worst_ms" in row)
    assert summary["records"] > 0
    assert 15 <= summary["gap_median_ms"] <= summary["gap_worst_ms"] < 10_000, "a shorter one is told as 15 ms"


def test_restart_waits_until_all_serves_again(tmp_path: Path) -> None:
    row = own_bench(tmp_path, "restart", "--stored", "30MB")[0]
    times = [value for key, value in row.items() if key.endswith("_s") and isinstance(value, float)]
    assert times
    assert all(0 < seconds < 30 for seconds in times)


@pytest.mark.long
def test_a_soak_sees_no_takeover_that_nobody_caused_and_partitions_cost_little(tmp_path: Path) -> None:
    rows = own_bench(tmp_path, "soak", "--minutes", "0.03", "--rate", "2000")
    summary = rows[-1]
    assert summary["takeovers_nobody_caused"] == summary["epochs_nobody_caused"] == 0
    rows = own_bench(tmp_path, "partitions", "--partitions", "1,8", "--idle", "8", "--idle-seconds", "0.5", "--seconds", "0.5")
    assert any(row.get("idle_partitions") == 8 for row in rows)


@pytest.mark.long
def test_a_broker_takes_less_than_256_MiB_while_it_takes_all_that_it_can(tmp_path: Path) -> None:
    """Large batches as fast as they go, and a record at a time over many connections."""
    for load in (("produce", "--raw", "1MiB", "--window", "32"), ("fan-in", "--connections", "64")):
        row, _ = own_bench(tmp_path, *load, "--seconds", "4", "--warm-up", "0")
        peaks = {name: peak for name, peak in row["peak_MiB"].items() if name != "client"}
        assert len(peaks) == 3
        assert all(0 < peak < 256 for peak in peaks.values()), peaks


def test_an_interrupted_benchmark_takes_its_brokers_and_its_data_with_it() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        words = LocalCluster(place, 3, 0).command("bench", "latency", "--seconds", "60", "--data", directory, *OWN)
        running = subprocess.Popen(
            words,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell has its background jobs ignore it
        )
        wait_until(lambda: list(place.rglob("broker.log")), timeout_s=30, what="its brokers have been started")
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        assert list(place.iterdir()) == []
