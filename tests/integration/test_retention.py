"""Retention on real disks: what is stored stays bounded, what was trimmed is told clearly, and a broker made anew knows old producers."""

import json
import os
import shutil

import pytest
import trio

from streamq.model.messages import Ack, Metadata, MetadataView
from tests.broker.wire_client import make_batch, new_producer, wire_client
from tests.integration.local import LocalCluster, local_cluster, wait_until

MiB = 1 << 20
SETTINGS = {"log_file_bytes": MiB, "flush_bytes": 2 * MiB, "flush_interval_s": 0.2, "preferred_return_after_s": 1.0}
RETAINED = 4 * MiB
BOUND = 3 * RETAINED
"""What retention keeps, an eighth and a file of that, a flush, and what comes between two sweeps."""
LINE = 700


def stored_bytes(cluster: LocalCluster, name: str) -> int:
    return sum(path.stat().st_size for path in (cluster.data(name) / "logs").rglob("*.log"))


def load(cluster: LocalCluster, size: int) -> None:
    """So many bytes that do not compress."""
    cluster.produce("t", [os.urandom(LINE // 2).hex().encode() for _ in range(size // LINE)], "--compression", "none")


def start_offset(cluster: LocalCluster) -> int:
    return int(cluster.describe("t")[0]["start_offset"])


async def produce_once(cluster: LocalCluster, producer: bytes) -> Ack:
    """The same first batch of the producer, wherever the sequencer is now."""
    with trio.fail_after(20):
        while True:
            await trio.sleep(0.1)
            for name in cluster.names:
                host, _, port = cluster.address(name).rpartition(":")
                try:
                    async with wire_client((host, int(port))) as client:
                        view = await client.ask(Metadata(("t",)))
                        assert isinstance(view, MetadataView)
                        [outcome] = await client.produce(make_batch(view.topics[0].partitions[0].id, [b"first"], producer=producer))
                except (OSError, trio.TooSlowError, BaseExceptionGroup):
                    continue
                if isinstance(outcome, Ack):
                    return outcome


def make_anew(cluster: LocalCluster, name: str) -> None:
    cluster.kill(name)
    shutil.rmtree(cluster.data(name))
    cluster.run("broker", "rejoin", name, "--data", str(cluster.directory), "--yes")


def until_bounded(cluster: LocalCluster) -> None:
    wait_until(lambda: max(stored_bytes(cluster, name) for name in cluster.names) < BOUND, timeout_s=20, what="files are removed")


@pytest.mark.long
def test_a_topic_with_retention_stays_bounded_through_restarts_and_a_broker_made_anew() -> None:
    """The latter is behind the start offset: it has the table from another, sequences in the end, and knows a retry of what is gone."""
    with local_cluster(**SETTINGS) as cluster:
        cluster.run("topic", "create", "t", "--retention-bytes", "4MiB", "--retention-time", "7d")
        row = json.loads(cluster.run("topic", "describe", "t", "-o", "json").stdout)
        assert (row["retention_bytes"], row["retention_ms"]) == (RETAINED, 7 * 86_400_000)
        assert "retention 4.0 MiB or 7d" in cluster.run("topic", "describe", "t").stdout.decode()
        producer = new_producer()
        first = trio.run(produce_once, cluster, producer)
        for _ in range(4):
            load(cluster, 6 * MiB)
        until_bounded(cluster)
        start = start_offset(cluster)
        assert start > 0
        assert min(stored_bytes(cluster, name) for name in cluster.names) >= RETAINED // 2
        refused = cluster.run("tail", "t", "--from", "0", "--exit-at-end", "-o", "json", expect=7)
        assert "offset_trimmed" in refused.stderr.decode()
        tailed = [int(offset) for offset in cluster.tail("t", "-F", "%o\n")]
        assert tailed == list(range(tailed[0], tailed[-1] + 1))
        assert start <= tailed[0] <= start_offset(cluster)

        cluster.kill(*cluster.names)
        for name in cluster.names:
            cluster.run("log", "verify", str(cluster.data(name)))
            assert b"batch" in cluster.run("log", "dump", str(cluster.data(name)), "-n", "200").stdout
        cluster.start()
        assert cluster.tail("t")

        anew, epoch = cluster.sequencer("t"), cluster.describe("t")[0]["epoch"]
        make_anew(cluster, anew)
        wait_until(lambda: "took the idempotence table" in cluster.log(anew), timeout_s=20, what="a table")
        wait_until(lambda: cluster.describe("t")[0]["epoch"] > epoch, timeout_s=20, what="an epoch without its former self")
        while (sequencer := cluster.sequencer("t")) != anew:
            cluster.kill(sequencer)
            wait_until(lambda gone=sequencer: cluster.sequencer("t") not in ("", gone), timeout_s=20, what="a takeover")  # type: ignore[misc]
            cluster.start(sequencer)
        assert trio.run(produce_once, cluster, producer).base == first.base
        load(cluster, 8 * MiB)
        wait_until(lambda: start_offset(cluster) > start, timeout_s=20, what="more is trimmed")
        until_bounded(cluster)


@pytest.mark.long
def test_a_slow_topic_forgets_by_time_what_no_full_file_holds() -> None:
    """The file that is still written is closed early, and an idle partition is emptied."""
    with local_cluster(**SETTINGS) as cluster:
        cluster.run("topic", "create", "t", "--retention-time", "2s")
        cluster.produce("t", [b"old"])
        wait_until(lambda: start_offset(cluster) == 1, timeout_s=20, what="what is old is gone")
        cluster.produce("t", [b"new"])
        assert cluster.tail("t") == [b"new"]
        wait_until(lambda: not any(stored_bytes(cluster, name) for name in cluster.names), timeout_s=20, what="nothing is left")
