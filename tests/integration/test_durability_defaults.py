"""What a topic gets that nobody asked anything for: a sync on each of a majority of three disks. The benchmark measures just that."""

from collections.abc import Callable

import pytest
import trio

from streamq.cli.__main__ import main
from streamq.cli.bench.cluster import BenchCluster
from streamq.cli.grammar import parser
from streamq.model.errors import RefusedError
from streamq.model.messages import DescribePartition, PartitionDescription
from streamq.testing.in_process import cluster
from tests.broker.wire_client import wire_client

PARTITIONS = 2


def from_the_command_line(bootstrap: str) -> str:
    assert main(["topic", "create", "t", "--partitions", str(PARTITIONS), "--bootstrap", bootstrap]) == 0
    return "t"


def from_the_benchmark(bootstrap: str) -> str:
    return BenchCluster(bootstrap, None, "bench").create_topic(PARTITIONS)


@pytest.mark.parametrize("create", [from_the_command_line, from_the_benchmark])
async def test_a_topic_that_nobody_asked_otherwise_for_is_acked_by_two_of_three_synced_disks(create: Callable[[str], str]) -> None:
    async with cluster(3) as running:
        topic = await trio.to_thread.run_sync(create, running.bootstrap)
        async with wire_client(running.brokers["b1"].config.address) as client:
            for index in range(PARTITIONS):
                told = await client.ask(DescribePartition(topic, index))
                assert isinstance(told, PartitionDescription)
                segment = told.register.last
                assert (segment.durability, segment.write, len(segment.replicas)) == ("fsync", 2, 3)


@pytest.mark.parametrize("verb", ["produce", "consume", "latency", "fan-in", "partitions", "failover", "restart", "soak"])
def test_the_benchmark_cannot_be_told_to_wait_for_less(verb: str) -> None:
    parser().parse_args(["bench", verb])
    for flag in ("--durability=memory", "--write-quorum=1", "-W=1"):
        with pytest.raises(RefusedError, match=f"unrecognized arguments: {flag}"):
            parser().parse_args(["bench", verb, flag])
