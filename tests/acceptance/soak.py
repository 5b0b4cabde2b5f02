"""Producers and a consumer on a local cluster of real processes while brokers are killed, paused and stopped; then everything is checked.

    python -m tests.acceptance.soak --seconds 120 --seed 1

Checked: every acked record lies at its acked offset, nothing is there twice, each sender's records are in order, and the consumer that
followed through all of it saw exactly what lies in the log. Ends with an assertion that says what was violated.
"""

import argparse
import collections
import json
import random
import sys
import time
from pathlib import Path
from typing import Final

import trio

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

from streamq_consumer import Consumer  # noqa: E402
from streamq_producer import Producer  # noqa: E402
from tests.integration.local import LocalCluster, local_cluster  # noqa: E402

SENDERS: Final = 24
PARTITIONS: Final = 6
SETTLE_S: Final = 3.0
FAULTS: Final = ("kill", "kill", "pause", "all", "stop", "double")
Place = tuple[int, int]


class Soak:
    def __init__(self, cluster: LocalCluster, *, seconds: float, seed: int) -> None:
        self.cluster = cluster
        self.seconds = seconds
        self.rng = random.Random(seed)
        self.acked: dict[Place, bytes] = {}
        self.seen: list[tuple[Place, bytes]] = []
        self.faults: collections.Counter[str] = collections.Counter()
        self.is_over = False

    async def run(self) -> None:
        async with Producer(self.cluster.bootstrap) as producer, trio.open_nursery() as nursery:
            for number in range(SENDERS):
                nursery.start_soon(self.send, producer, number)
            nursery.start_soon(self.follow)
            deadline = time.monotonic() + self.seconds
            while time.monotonic() < deadline:
                await trio.sleep(self.rng.random() * 2)
                await self.fault()
            await trio.sleep(SETTLE_S)
            self.is_over = True
            await trio.sleep(SETTLE_S)
            nursery.cancel_scope.cancel()

    async def send(self, producer: Producer, number: int) -> None:
        sent = 0
        while not self.is_over:
            value = b"%d-%d" % (number, sent)
            receipt = await producer.send("t", value, key=b"sender %d" % number)
            self.acked[receipt.partition, receipt.offset] = value
            sent += 1

    async def follow(self) -> None:
        async with Consumer(self.cluster.bootstrap, topics=["t"], start="earliest") as consumer:
            async for record in consumer:
                assert record.value is not None
                self.seen.append(((record.partition, record.offset), record.value))

    async def fault(self) -> None:
        names = self.cluster.names
        kind = self.rng.choice(FAULTS)
        self.faults[kind] += 1
        first, second = self.rng.sample(names, 2)
        if kind == "all":
            await self.do("kill", *names)
            await self.do("start")
            return
        if kind == "double":
            await self.do("kill", first)
            await self.do("pause", second)
            await trio.sleep(self.rng.random() * 2)
            await self.do("resume", second)
            await self.do("start", first)
            return
        await self.do(kind, first)
        await trio.sleep(self.rng.random() * (4 if kind == "pause" else 3))
        await self.do("resume" if kind == "pause" else "start", first)

    async def do(self, *words: str) -> None:
        await trio.to_thread.run_sync(lambda: self.cluster.cluster(*words))

    def check(self) -> int:
        """How many records lie in the log."""
        rows = [json.loads(line) for line in self.cluster.tail("t", "-o", "json")]
        log = {(row["partition"], row["offset"]): row["value"].encode() for row in rows}
        assert len(set(log.values())) == len(rows), "a record is there twice"
        lost = [(place, value) for place, value in self.acked.items() if log.get(place) != value]
        assert not lost, f"{len(lost)} acked records are not where they were acked, first {lost[0]}"
        latest: dict[bytes, int] = {}
        for place in sorted(log):
            sender, number = log[place].split(b"-")
            assert int(number) > latest.get(sender, -1), f"{log[place]!r} at {place} is out of order"
            latest[sender] = int(number)
        for partition in range(PARTITIONS):
            offsets = [offset for (p, offset), _ in self.seen if p == partition]
            assert offsets == list(range(len(offsets))), f"the consumer of partition {partition} saw a hole or a repeat"
        assert all(log[place] == value for place, value in self.seen), "the consumer saw another record than lies there"
        assert len(self.seen) == len(log), f"the consumer saw {len(self.seen)} of {len(log)} records"
        for name in self.cluster.names:
            assert "ALARM" not in self.cluster.log(name)
            assert "Traceback" not in self.cluster.log(name)
        return len(log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with local_cluster(log_file_bytes=1 << 20, flush_interval_s=0.3, flush_bytes=1 << 20, cache_bytes=2 << 20) as cluster:
        cluster.run("topic", "create", "t", "--partitions", str(PARTITIONS))
        soak = Soak(cluster, seconds=options.seconds, seed=options.seed)
        trio.run(soak.run)
        total = soak.check()
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.faults.items()))
    print(f"soak: {total} records, {sum(soak.faults.values())} faults ({told}): nothing acked lost, repeated or out of order")


if __name__ == "__main__":
    main()
