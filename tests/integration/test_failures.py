"""Real broker processes, real files, real TCP: whatever is killed, stopped or damaged, what was acked is there, once, in order."""

import json
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.integration.local import LocalCluster, flip_byte, local_cluster, wait_until

GAP_MAX_S = 5.0
"""Generous, for a busy machine; the figures that count are measured by `streamq bench failover`."""


class Stream:
    """A producer process that is fed numbered lines at a rate, so that faults happen while it runs."""

    def __init__(self, cluster: LocalCluster, topic: str, directory: Path, rate: int = 2_000) -> None:
        self.receipts = directory / f"receipts-{topic}-{time.monotonic_ns()}"
        self.sent = 0
        self._stop = threading.Event()
        self._process = cluster.start_command(
            "produce", topic, "-o", "json", "--receipts", str(self.receipts), stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._thread = threading.Thread(target=self._feed, args=(rate,))
        self._thread.start()

    def _feed(self, rate: int) -> None:
        assert self._process.stdin is not None
        while not self._stop.is_set():
            for _ in range(rate // 50):
                self._process.stdin.write(b"line-%09d\n" % self.sent)
                self.sent += 1
            self._process.stdin.flush()
            time.sleep(0.02)

    def end(self) -> dict[str, object]:
        """Waits until everything is acked; the summary."""
        self._stop.set()
        self._thread.join()
        _, errors = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, errors.decode()[-2000:]
        summary: dict[str, object] = json.loads(errors.decode().splitlines()[-1])
        assert summary["acked"] == self.sent
        return summary

    def lines(self) -> list[bytes]:
        return [b"line-%09d" % i for i in range(self.sent)]


def check_receipts(stream: Stream, tailed: list[bytes]) -> None:
    """Every receipt's offset holds the very record that it was given for."""
    offsets = [json.loads(line)["offset"] for line in stream.receipts.read_text().splitlines()]
    assert sorted(offsets) == list(range(stream.sent))
    assert tailed == stream.lines()


def test_each_broker_killed_in_turn_and_then_all_at_once(tmp_path: Path) -> None:
    with local_cluster() as cluster, (tmp_path / "followed").open("w+b") as followed:
        cluster.run("topic", "create", "t")
        follower = cluster.start_command("tail", "t", "--from", "start", "-f", stdout=followed)
        stream = Stream(cluster, "t", tmp_path)
        time.sleep(0.5)
        for name in cluster.names:
            cluster.kill(name)
            time.sleep(1)
            cluster.start(name)
            time.sleep(0.5)
        summary = stream.end()
        assert float(str(summary["longest_gap_s"])) < GAP_MAX_S
        check_receipts(stream, cluster.tail("t"))
        # A consumer that followed through all of it has seen each record once, in order.
        wait_until(lambda: followed.seek(0, 2) >= stream.sent * len(b"line-000000000\n"), timeout_s=10, what="the follower has caught up")
        follower.terminate()
        follower.wait()
        followed.seek(0)
        assert followed.read().split(b"\n")[:-1] == stream.lines()
        cluster.kill(*cluster.names)
        cluster.start()
        for name in cluster.names:
            assert cluster.tail("t", bootstrap=cluster.address(name)) == stream.lines()


def test_each_broker_paused_in_turn(tmp_path: Path) -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        stream = Stream(cluster, "t", tmp_path)
        time.sleep(0.5)
        for name in cluster.names:
            cluster.cluster("pause", name)
            time.sleep(2.5)
            cluster.cluster("resume", name)
            time.sleep(0.5)
        summary = stream.end()
        assert float(str(summary["longest_gap_s"])) < GAP_MAX_S
        check_receipts(stream, cluster.tail("t"))


@pytest.mark.parametrize("rounds", [3, pytest.param(6, marks=pytest.mark.long)])
def test_a_tail_by_any_single_broker_sees_what_was_acked_before_it_began(rounds: int) -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        expected: list[bytes] = []
        for i in range(rounds):
            victim = cluster.names[i % 3]
            how = ("kill", "pause", "pause")[i % 3]
            if i % 3 == 2:
                cluster.cluster("pause", victim)
                time.sleep(1.5)
                cluster.cluster("resume", victim)
            else:
                cluster.cluster(how, victim)
            value = b"round-%d" % i
            cluster.produce("t", [value])
            expected.append(value)
            others = [name for name in cluster.names if name != victim] + ([victim] if i % 3 == 2 else [])
            for name in others:
                assert cluster.tail("t", bootstrap=cluster.address(name)) == expected
            if how == "kill":
                cluster.start(victim)
            elif i % 3 != 2:
                cluster.cluster("resume", victim)


@pytest.mark.long
def test_fifty_rounds_of_tails_by_single_brokers_see_what_was_acked_before_they_began() -> None:
    """A broker killed, paused, or just resumed: each other broker alone, and the one resumed, shows every record acked before."""
    rng = random.Random(50)
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        expected: list[bytes] = []
        for number in range(50):
            victim, how = rng.choice(cluster.names), rng.choice(("kill", "pause", "resumed"))
            cluster.cluster("kill" if how == "kill" else "pause", victim)
            if how == "resumed":
                time.sleep(rng.random() * 1.5)
                cluster.cluster("resume", victim)
            expected.append(b"round-%d" % number)
            cluster.produce("t", expected[-1:])
            for name in cluster.names:
                if name != victim or how == "resumed":
                    assert cluster.tail("t", bootstrap=cluster.address(name)) == expected, (number, how, victim, name)
            if how != "resumed":
                cluster.cluster("start" if how == "kill" else "resume", victim)


def test_a_dead_or_paused_first_bootstrap_address_costs_at_most_a_second() -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        cluster.produce("t", [b"x"])
        for how in ("kill", "pause"):
            cluster.cluster(how, "b1")
            time.sleep(1)
            began = time.monotonic()
            assert cluster.tail("t", bootstrap=cluster.bootstrap) == [b"x"]
            baseline_began = time.monotonic()
            assert cluster.tail("t", bootstrap=cluster.address("b2")) == [b"x"]
            baseline = time.monotonic() - baseline_began
            assert (baseline_began - began) - baseline < 1.0
            cluster.start("b1") if how == "kill" else cluster.cluster("resume", "b1")


def grow(cluster: LocalCluster, topic: str, megabytes: int) -> list[bytes]:
    """Incompressible lines, so that log files fill."""
    import random

    rng = random.Random(megabytes)
    lines = [rng.randbytes(500).hex().encode() for _ in range(megabytes * 1000)]
    cluster.produce(topic, lines, "--compression", "none")
    return lines


def files_of(cluster: LocalCluster, name: str, *words: str) -> list[dict[str, object]]:
    out = cluster.run("log", "dump", str(cluster.data(name)), "--files", "-o", "json", *words).stdout.decode()
    return [json.loads(line) for line in out.splitlines()]


def test_a_flipped_byte_in_a_closed_log_file_is_named_read_around_and_repaired() -> None:
    with local_cluster(log_file_bytes=1 << 20, flush_interval_s=0.3) as cluster:
        cluster.run("topic", "create", "t")
        lines = grow(cluster, "t", 4)
        time.sleep(1)
        victim = next(n for n in cluster.names if n != cluster.sequencer("t"))
        cluster.cluster("stop", victim)
        closed = next(f for f in files_of(cluster, victim) if f["kind"] == "log" and f["state"] == "closed")
        path = cluster.data(victim) / str(closed["path"])
        flip_byte(path, path.stat().st_size // 2)
        found = cluster.run("log", "verify", str(cluster.data(victim)), "-o", "json", expect=8)
        assert path.name in found.stdout.decode()
        cluster.start(victim)
        assert cluster.tail("t") == lines
        assert cluster.tail("t", "--broker", victim) == lines
        assert cluster.tail("t", "--broker", victim) == lines
        cluster.cluster("stop", victim)
        cluster.run("log", "verify", str(cluster.data(victim)))


def test_a_flipped_byte_in_the_journal_puts_the_broker_in_limbo_until_it_has_healed() -> None:
    with local_cluster(flush_interval_s=600.0) as cluster:
        cluster.run("topic", "create", "t")
        lines = [b"%d" % i for i in range(200)]
        for i in range(0, 200, 20):
            cluster.produce("t", lines[i : i + 20])
        time.sleep(0.3)
        victim = cluster.sequencer("t")
        cluster.kill(victim)
        journal = [f for f in files_of(cluster, victim, "--entries") if f["kind"] == "journal"]
        entries = [(f, e) for f in journal for e in f.get("entries", ()) if e["kind"] == "batch" and not e["checkpointed"]]  # type: ignore[attr-defined]
        file, entry = entries[len(entries) // 2]
        flip_byte(cluster.data(victim) / str(file["path"]), (entry["first_byte"] + entry["last_byte"]) // 2)
        cluster.start(victim)
        assert "limbo" in cluster.log(victim)
        cluster.produce("t", [b"after"])
        lines.append(b"after")
        wait_until(lambda: all("limbo" not in json.dumps(p) for p in cluster.describe("t")), timeout_s=20, what="limbo ends")
        wait_until(lambda: str(_limbo(cluster, victim)) == "0", timeout_s=20, what="the broker holds everything again")
        others = [n for n in cluster.names if n != victim]
        cluster.kill(others[0])
        assert cluster.tail("t", bootstrap=cluster.address(victim)) == lines
        assert cluster.tail("t", "--broker", victim, bootstrap=cluster.address(victim)) == lines


def _limbo(cluster: LocalCluster, name: str) -> int:
    out = cluster.run("broker", "ls", "-o", "json").stdout.decode()
    rows = json.loads(out) if out.lstrip().startswith("[") else [json.loads(line) for line in out.splitlines()]
    return int(next(row for row in rows if row.get("id", row.get("broker")) == name)["limbo"])


def test_a_deleted_directory_is_refused_and_rejoins_and_then_another_may_be_lost() -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        lines = [b"%d" % i for i in range(5_000)]
        cluster.produce("t", lines)
        cluster.kill("b1")
        shutil.rmtree(cluster.data("b1"))
        refused = cluster.cluster("start", "b1", expect=None)
        assert refused.returncode != 0
        assert b"rejoin" in refused.stderr
        cluster.produce("t", [b"without b1"])
        cluster.run("broker", "rejoin", "b1", "--data", str(cluster.directory), "--yes")
        cluster.produce("t", [b"with b1"])
        cluster.kill("b2")
        shutil.rmtree(cluster.data("b2"))
        expected = [*lines, b"without b1", b"with b1"]
        assert cluster.tail("t", bootstrap=cluster.address("b3")) == expected
        assert cluster.tail("t", "--broker", "b1", bootstrap=cluster.address("b1")) == expected
        cluster.run("broker", "rejoin", "b2", "--data", str(cluster.directory), "--yes")
        cluster.kill("b3")
        assert cluster.tail("t", bootstrap=cluster.address("b2")) == expected


@pytest.mark.parametrize("partitions", [6])
def test_six_partitions_keep_the_multiset_and_the_order_per_key(partitions: int) -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t", "--partitions", str(partitions))
        lines = [b"k%d:%d" % (i * 7919 % 97, i) for i in range(50_000)]
        cluster.produce("t", lines, "--key-sep", ":")
        tailed = [json.loads(row) for row in cluster.tail("t", "-o", "json")]
        pairs = [(row["key"].encode(), row["value"].encode()) for row in tailed]
        assert sorted(k + b":" + v for k, v in pairs) == sorted(lines)
        for key in {k for k, _ in pairs}:
            mine = [int(v) for k, v in pairs if k == key]
            assert mine == sorted(mine)
