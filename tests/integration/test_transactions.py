"""The consume-transform-produce example, killed anywhere and started again beside brokers that are: each result is there once."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamq_producer.sync import Producer
from tests.integration.local import LocalCluster, environment, local_cluster, wait_until

EXAMPLE = Path(__file__).parents[1] / "examples" / "consume_transform_produce.py"
WORKERS = ("w1", "w2")


class Workers:
    """The example's processes, each under its name."""

    def __init__(self, cluster: LocalCluster, log: Path) -> None:
        self._variables = environment(STREAMQ_BOOTSTRAP=cluster.bootstrap)
        self._log = log
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with self._log.open("ab") as log:
            self.running[name] = subprocess.Popen([sys.executable, EXAMPLE, name], env=self._variables, stderr=log)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        assert process.poll() is None, self._log.read_text()[-3000:]
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def workers(cluster: LocalCluster, log: Path) -> Iterator[Workers]:
    made = Workers(cluster, log)
    try:
        yield made
    finally:
        for process in made.running.values():
            process.kill()
            process.wait()


def lag(cluster: LocalCluster) -> int | None:
    """Of the group; None if it cannot be told now."""
    told = cluster.run("group", "lag", "invoicing", "-o", "json", expect=None)
    if told.returncode != 0:
        return None
    return sum(json.loads(line)["lag"] for line in told.stdout.splitlines())


def transform_under_kills(cluster: LocalCluster, log: Path, *, records: int, kills: int, rng: random.Random) -> None:
    """A worker or a broker at a time is killed, at a random moment."""
    for topic in ("orders", "invoices", "audit"):
        cluster.run("topic", "create", topic, "--partitions", "1" if topic == "audit" else "3")
    lines = [b"k%d:order %d" % (number % 11, number) for number in range(records)]
    feed = cluster.start_command(
        "produce", "orders", "-q", "--key-sep", ":", "--rate", str(max(50, records // (kills + 1))), stdin=subprocess.PIPE
    )
    assert feed.stdin is not None
    feed.stdin.write(b"".join(line + b"\n" for line in lines))
    feed.stdin.close()
    with workers(cluster, log) as made:
        for name in WORKERS:
            made.start(name)
        down = ""
        for number in range(kills):
            time.sleep(rng.uniform(0.3, 1.4))
            if number % 3 == 2:
                if down:
                    cluster.start(down)
                down = rng.choice([name for name in cluster.names if name != down])
                cluster.kill(down)
            else:
                name = rng.choice(WORKERS)
                made.kill(name)
                made.start(name)
        if down:
            cluster.start(down)
        assert feed.wait(timeout=120) == 0
        wait_until(lambda: lag(cluster) == 0, timeout_s=90, what=f"every order is handled: {log.read_text()[-2000:]}")
    orders = [line.partition(b":")[2] for line in lines]
    assert Counter(cluster.tail("orders")) == Counter(orders)
    assert Counter(cluster.tail("invoices")) == Counter(b"invoice for " + order for order in orders)
    ends = {row["partition"]: row["high_watermark"] for row in cluster.describe("orders")}
    assert Counter(cluster.tail("audit")) == Counter(b"%d/%d" % (p, offset) for p, end in ends.items() for offset in range(end))
    for partition in ("0", "1", "2"):
        told = [int(value.rsplit(b" ", 1)[1]) for value in cluster.tail("invoices", "-p", partition)]
        source = [int(value.rsplit(b" ", 1)[1]) for value in cluster.tail("orders", "-p", partition)]
        assert told == source, "orders with equal keys keep their order"


def test_killed_with_brokers_and_started_again_each_order_has_one_invoice(tmp_path: Path) -> None:
    with local_cluster(3) as cluster:
        transform_under_kills(cluster, tmp_path / "log", records=2_000, kills=7, rng=random.Random(3))


def test_commands_tell_what_an_open_transaction_holds_back() -> None:
    with local_cluster(3) as cluster:
        cluster.run("topic", "create", "t")
        with Producer(cluster.bootstrap, name="teller", transactional=True) as producer, Producer(cluster.bootstrap) as other:
            other.send("t", b"before")
            with producer.transaction() as transaction:
                producer.send("t", b"open", partition=0)
                other.send("t", b"behind")
                assert cluster.tail("t") == [b"before"]
                assert cluster.run("tail", "t").stdout == b"before\n"
                assert cluster.tail("t", "--uncommitted") == [b"before", b"open", b"behind"]
                [row] = cluster.describe("t")
                assert (row["stable_offset"], row["open_transaction"]["producer"]) == (2, "teller")
                assert "holds back what lies at 2" in cluster.run("topic", "describe", "t").stderr.decode()
                transaction.abort()
            assert cluster.tail("t") == [b"before", b"behind"]
            [row] = cluster.describe("t")
            assert (row["stable_offset"], row["open_transaction"]) == (row["high_watermark"], None)


@pytest.mark.long
def test_many_kills_of_workers_and_brokers(tmp_path: Path) -> None:
    with local_cluster(3) as cluster:
        transform_under_kills(cluster, tmp_path / "log", records=12_000, kills=60, rng=random.Random(4))
