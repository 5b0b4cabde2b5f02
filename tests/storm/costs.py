"""What a large group costs: ingest beside 1,000 partitions that are committed all the time, and the join of the hundredth member."""

import json
import statistics
import subprocess
import sys
import time
from typing import Final

import trio

from streamq_consumer import Consumer
from tests.integration.local import LocalCluster, environment, local_cluster

__all__ = ["measure_commits", "measure_joins"]

SLOWER_MAX: Final = 0.10
JOIN_S_MAX: Final = 1.0
SETTLES_S: Final = 0.5
"""Between two joins: all members are in one process here, which has to carry out what they are told."""
COMMITTER: Final = """
import os, sys, trio
from streamq_consumer import Consumer

async def main():
    async with Consumer(sys.argv[1], topics=["wide"], group=f"wide-{os.getpid()}", commit_interval_s=1.0) as consumer:
        while len(consumer.partitions) < int(sys.argv[2]):
            await consumer.fetch(timeout=0.1)
        print("ready", flush=True)
        offset = 0
        while True:
            await trio.sleep(1.0)
            offset += 1
            await consumer.commit({place: offset for place in consumer.partitions})
            print("committed", flush=True)

trio.run(main)
"""
"""Commits a new position of each partition once a second, as a group does whose members have handled something of each."""


def measure_commits(*, pairs: int, partitions: int, seconds: float) -> int:
    with local_cluster(3) as cluster:
        _make(cluster, partitions)
        cluster.run("topic", "create", "ingest", "--partitions", "6")
        variables = environment(STREAMQ_BOOTSTRAP=cluster.bootstrap)
        without, beside = [], []
        for pair in range(pairs):
            for is_committing in (False, True) if pair % 2 else (True, False):
                (beside if is_committing else without).append(_ingest(cluster, variables, partitions, seconds, is_committing))
            print(f"pair {pair + 1}: {without[-1]:.0f} records/s, beside commits {beside[-1]:.0f}", flush=True)
    ratios = [with_ / plain for with_, plain in zip(beside, without, strict=True)]
    ratio = statistics.median(ratios)
    print(f"ingest beside a group that commits {partitions} partitions a second: {ratio:.3f} of that without (median of {pairs} pairs)")
    print(f"min {min(ratios):.3f}, max {max(ratios):.3f}")
    return 0 if ratio >= 1 - SLOWER_MAX else 1


def _make(cluster: LocalCluster, partitions: int) -> None:
    """On a busy machine the answer may come too late; what is made is made."""
    cluster.run("topic", "create", "wide", "--partitions", str(partitions), expect=None)
    cluster.run("produce", "wide", "-p", str(partitions - 1), stdin=b"it is there\n", timeout_s=300)


def _ingest(cluster: LocalCluster, variables: dict[str, str], partitions: int, seconds: float, is_committing: bool) -> float:
    committer: subprocess.Popen[str] | None = None
    try:
        if is_committing:
            committer = subprocess.Popen(
                [sys.executable, "-c", COMMITTER, cluster.bootstrap, str(partitions)], env=variables, stdout=subprocess.PIPE, text=True
            )
            assert committer.stdout is not None
            told = [committer.stdout.readline(), committer.stdout.readline()]
            if told != ["ready\n", "committed\n"]:
                raise RuntimeError(f"the committing member ended with {committer.wait()}")
        done = cluster.run("bench", "produce", "--bootstrap", cluster.bootstrap, "--seconds", str(seconds), "--warm-up", "1", "-o", "json")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return float(rows[0]["records_per_s"])
    finally:
        if committer is not None:
            committer.kill()
            committer.wait()


def measure_joins(*, members: int, partitions: int) -> int:
    took: list[float] = []

    async def live(cluster: LocalCluster) -> None:
        async with trio.open_nursery() as nursery:
            joined = trio.Event()

            async def member() -> None:
                nonlocal joined
                async with Consumer(cluster.bootstrap, topics=["wide"], group="joins") as consumer:
                    joined.set()
                    while True:
                        await consumer.fetch(timeout=0.2)

            for _ in range(members):
                joined = trio.Event()
                began = time.monotonic()
                nursery.start_soon(member)
                await joined.wait()
                took.append(time.monotonic() - began)
                if len(took) % 10 == 0:
                    print(f"{len(took)} members, the last joined in {took[-1]:.3f} s", flush=True)
                await trio.sleep(SETTLES_S)
            nursery.cancel_scope.cancel()

    with local_cluster(3) as cluster:
        _make(cluster, partitions)
        trio.run(live, cluster)
    print(f"member {members} joined in {took[-1]:.3f} s; all: median {statistics.median(took):.3f} s, slowest {max(took):.3f} s")
    return 0 if took[-1] < JOIN_S_MAX else 1
