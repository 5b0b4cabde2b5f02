"""A producer and a consumer take what their bounds say and little more, as the system counts it, whatever the brokers do.

Each runs in a process of its own (`support/memory_probe.py`) against brokers that are faked here: none that replicates could stand as
still, or send as fast. Without its bound each would take several times the limit.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.model.batches import BatchHeader
from streamq.model.limits import KiB, MiB
from streamq.wire.batch_format import encode_batch
from streamq.wire.records import pack_rows
from tests.integration.local import ROOT, environment
from tests.support.fake_cluster import LOST, FakeCluster, FakePartition, fake_cluster

BESIDE_BYTES = 64 * MiB
"""What a client may take beside its bound; the interpreter and the libraries are in it."""
TOLD_TIMEOUT_S = 40


class Probe:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def told(self) -> dict[str, int]:
        """Its next figures."""
        assert self._process.stdout is not None
        with trio.fail_after(TOLD_TIMEOUT_S):
            line = await trio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        assert line, "the probe ended"
        figures: dict[str, int] = json.loads(line)
        return figures

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()


@asynccontextmanager
async def probe(name: str, cluster: FakeCluster, **options: object) -> AsyncIterator[Probe]:
    """Gone when the block ends."""
    words = [sys.executable, "-m", "tests.support.memory_probe", name, cluster.bootstrap, "t", json.dumps(options)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=ROOT) as process:
        try:
            yield Probe(process)
        finally:
            process.kill()


def answers_nobody(cluster: FakeCluster, partition: FakePartition) -> None:
    partition.fault = lambda broker, batch: LOST


def reads_nothing(cluster: FakeCluster, partition: FakePartition) -> None:
    for broker in cluster.brokers.values():
        broker.pause()


@pytest.mark.parametrize(("stand_still", "record_bytes"), [(answers_nobody, 100), (reads_nothing, 1_000)])
async def test_a_producer_before_brokers_that_stand_still_takes_its_buffer_and_no_more(
    stand_still: Callable[[FakeCluster, FakePartition], None], record_bytes: int
) -> None:
    bound = 32 * MiB
    async with fake_cluster() as cluster:
        [partition] = cluster.create("t")
        async with probe(
            "produce", cluster, record_bytes=record_bytes, records_max=8 * bound // record_bytes, buffer_bytes=bound
        ) as producer:
            await producer.told()
            stand_still(cluster, partition)
            producer.go_on()
            full = await producer.told()
            later = await producer.told()
    assert 0.75 * bound < full["waiting"] * record_bytes <= bound
    assert later["waiting"] == full["waiting"]
    assert later["peak_bytes"] < min(bound + BESIDE_BYTES, full["peak_bytes"] + 2 * MiB)


async def test_a_consumer_of_a_log_that_comes_faster_than_it_reads_takes_its_prefetch_and_no_more() -> None:
    bound, partitions, batch_bytes, record_bytes, log_bytes = 2 * MiB, 4, 256 * KiB, 1_000, 256 * MiB
    async with fake_cluster() as cluster:
        cluster.batches_per_frame = 1
        for partition in cluster.create("t", partitions):
            fill(partition, log_bytes // partitions, batch_bytes, record_bytes)
        records = sum(partition.end for partition in cluster.topics["t"])
        async with probe("consume", cluster, records=records, prefetch_bytes=bound) as consumer:
            await consumer.told()
            consumer.go_on()
            still = await consumer.told()
            through = await consumer.told()
    assert 0 < still["buffered"] * record_bytes <= bound + partitions * batch_bytes
    assert through["taken"] == records
    assert through["peak_bytes"] < bound + BESIDE_BYTES


def fill(partition: FakePartition, log_bytes: int, batch_bytes: int, record_bytes: int) -> None:
    """The log is one payload over and over, which takes no memory here."""
    raw = pack_rows([(None, None, os.urandom(record_bytes), None) for _ in range(batch_bytes // record_bytes)])
    header = BatchHeader(partition.id, batch_bytes // record_bytes, 0, len(raw), 0, bytes(16), 0, 0, 1_000, 1_000, 0, 0, 0, compression=0)
    batch = encode_batch(header, raw)
    while partition.end * record_bytes < log_bytes:
        partition.append(batch)
