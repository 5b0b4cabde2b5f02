"""Measures what the README and ARCHITECTURE.md state, on a local cluster of three real brokers.

    python -m tests.acceptance.measure              # everything, about ten minutes
    python -m tests.acceptance.measure kills stops  # some of it: throughput, sync, kills, stops, rounds, ingest

Each prints one line of figures; a wrong record ends it with an error. `ingest` needs 16 GB of disk. Run it on a quiet machine.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

from streamq_producer import Producer  # noqa: E402
from tests.integration.local import LocalCluster, local_cluster  # noqa: E402

SENDERS: Final = 8
INGEST_BYTES: Final = 5 * 10**9


def log_lines(count: int, size: int = 100) -> list[bytes]:
    """Seeded, log-like, compressible by a factor of about four."""
    rng = random.Random(1)
    lines = []
    for _ in range(count):
        text = json.dumps(
            {"ts": rng.random(), "level": rng.choice(["INFO", "WARN"]), "svc": rng.choice(["api", "auth"]), "ms": rng.random()}
        )
        while len(text) < size:
            text += f" {rng.randrange(10**9):x}"
        lines.append(text[:size].encode())
    return lines


def throughput() -> None:
    async def run(bootstrap: str) -> list[float]:
        values, rates = log_lines(5_000), []
        async with Producer(bootstrap) as producer:
            for _ in range(5):
                began = time.perf_counter()
                for _ in range(400):
                    await producer.enqueue_many("t", values)
                await producer.flush()
                rates.append(400 * len(values) / (time.perf_counter() - began))
        return rates

    with local_cluster(journal_file_bytes=64 << 20) as cluster:
        cluster.run("topic", "create", "t")
        rates = sorted(trio.run(run, cluster.bootstrap))
    low, middle, high = rates[0], statistics.median(rates), rates[-1]
    print(f"throughput: 100-byte records, zstd, acked: {low:,.0f} / {middle:,.0f} / {high:,.0f} records/s (min/median/max)")


def sync() -> None:
    async def run(bootstrap: str) -> list[float]:
        took = []
        async with Producer(bootstrap) as producer:
            for _ in range(200):
                await producer.send("t", b"x" * 100)
            for _ in range(3_000):
                began = time.perf_counter()
                await producer.send("t", b"x" * 100)
                took.append((time.perf_counter() - began) * 1000)
        return sorted(took)

    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        took = trio.run(run, cluster.bootstrap)
    print(f"sync: one send at a time: p50 {statistics.median(took):.2f} ms, p99 {took[int(len(took) * 0.99)]:.2f} ms")


class Gaps:
    """Producers that never stop, and the longest time without an ack in each window."""

    def __init__(self) -> None:
        self.acked: list[bytes] = []
        self.worst = 0.0
        self.last = time.perf_counter()
        self.is_over = False

    async def send(self, producer: Producer, number: int) -> None:
        sent = 0
        while not self.is_over:
            value = b"%d-%d" % (number, sent)
            await producer.send("t", value)
            sent += 1
            self.acked.append(value)
            now = time.perf_counter()
            self.worst, self.last = max(self.worst, now - self.last), now

    def begin(self) -> None:
        self.worst, self.last = 0.0, time.perf_counter()

    def gap(self) -> float:
        return max(self.worst, time.perf_counter() - self.last)


def faults(kind: str, count: int) -> None:
    async def run(cluster: LocalCluster) -> tuple[list[float], list[bytes]]:
        gaps, watched = [], Gaps()
        async with Producer(cluster.bootstrap) as producer, trio.open_nursery() as nursery:
            for number in range(SENDERS):
                nursery.start_soon(watched.send, producer, number)
            await trio.sleep(1)
            for _ in range(count):
                victim = await trio.to_thread.run_sync(cluster.sequencer, "t")
                watched.begin()
                await trio.to_thread.run_sync(lambda victim=victim: cluster.cluster("kill" if kind == "kills" else "pause", victim))  # type: ignore[misc]
                await trio.sleep(1.5 if kind == "kills" else 5)
                gaps.append(watched.gap() * 1000)
                await trio.to_thread.run_sync(lambda victim=victim: cluster.cluster("start" if kind == "kills" else "resume", victim))  # type: ignore[misc]
                await trio.sleep(1.5)
            watched.is_over = True
        return gaps, watched.acked

    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        gaps, acked = trio.run(run, cluster)
        tailed = cluster.tail("t")
    check(acked, tailed)
    print(f"{kind}: {count} of the sequencer: longest gap between acks median {statistics.median(gaps):.0f} ms, worst {max(gaps):.0f} ms")


def check(acked: list[bytes], tailed: list[bytes]) -> None:
    """Nothing acked is lost, nothing is there twice, and each sender's records are in the order sent."""
    assert len(set(tailed)) == len(tailed), "a record is there twice"
    assert set(acked) == set(tailed), f"{len(set(acked) - set(tailed))} acked records are lost"
    latest: dict[bytes, int] = {}
    for value in tailed:
        sender, number = value.split(b"-")
        assert latest.get(sender, -1) + 1 == int(number), "out of order"
        latest[sender] = int(number)


def rounds() -> None:
    """A broker killed, paused or just resumed; a tail by each other broker alone, begun after an ack, contains that record."""
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        expected: list[bytes] = []
        rng = random.Random(50)
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
    print("rounds: 50 rounds, every tail by every other broker contained what was acked before it began")


def ingest() -> None:
    with local_cluster(journal_file_bytes=64 << 20) as cluster, TemporaryDirectory() as directory:
        cluster.run("topic", "create", "t")
        source = Path(directory) / "lines"
        source.write_bytes(b"".join(line + b"\n" for line in log_lines(500_000)))
        began = time.perf_counter()
        feeder = subprocess.Popen(
            ["sh", "-c", f"for i in $(seq {INGEST_BYTES // source.stat().st_size + 1}); do cat {source}; done"], stdout=subprocess.PIPE
        )
        producer = cluster.start_command("produce", "t", "--compression", "none", "-q", stdin=feeder.stdout)
        assert producer.wait() == 0
        feeder.wait()
        took = time.perf_counter() - began
        peaks = []
        for name in cluster.names:
            status = Path(f"/proc/{cluster.pid(name)}/status").read_text()
            peaks.append(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) >> 10)
        restarts = []
        for _ in range(3):
            cluster.kill(*cluster.names)
            began = time.perf_counter()
            cluster.start()
            restarts.append(time.perf_counter() - began)
    print(
        f"ingest: 5 GB uncompressed in {took:.0f} s; peak memory of the brokers {', '.join(map(str, peaks))} MiB;"
        f" restart after SIGKILL of all: {', '.join(f'{r:.2f}' for r in sorted(restarts))} s"
    )


PARTS: Final[dict[str, Callable[[], None]]] = {
    "throughput": throughput,
    "sync": sync,
    "kills": lambda: faults("kills", 10),
    "stops": lambda: faults("stops", 5),
    "rounds": rounds,
    "ingest": ingest,
}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        if part not in PARTS:
            sys.exit(f"no such part: {part}; there are {', '.join(PARTS)}")
        PARTS[part]()


if __name__ == "__main__":
    main()
