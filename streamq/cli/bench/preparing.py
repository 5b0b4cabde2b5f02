"""What has to be there before something is measured: partitions that have sequencers, records to read, a disk that is not empty."""

import argparse
import time
from typing import Final

import trio

from streamq.cli.bench.budget import Budget
from streamq.cli.bench.clients import run_together
from streamq.cli.bench.cluster import FLUSHED_AFTER_S, BenchCluster
from streamq.cli.bench.plan import Plan
from streamq.cli.bench.producing import prime
from streamq.cli.produce import parse_compression

__all__ = ["fill_records", "fill_stored", "prime_topic"]

REPLICAS: Final = 3
FILL_BATCH_BYTES: Final = 1 << 20
FILL_WINDOW: Final = 8


def prime_topic(cluster: BenchCluster, topic: str, partitions: int) -> None:
    trio.run(prime, cluster.bootstrap, topic, partitions)


def fill_stored(options: argparse.Namespace, cluster: BenchCluster, budget: Budget) -> None:
    """`--stored`: so many bytes over all directories together, in ready-made batches of one topic."""
    if not options.stored:
        return
    budget.refuse_over(options.stored, what=f"--stored {options.stored:,}")
    topic = cluster.create_topic()
    prime_topic(cluster, topic, 1)
    fill_topic(options, cluster, topic, options.stored, budget)
    cluster.keep_topics()


def fill_topic(options: argparse.Namespace, cluster: BenchCluster, topic: str, stored_bytes: int, budget: Budget) -> None:
    per_replica = stored_bytes // min(REPLICAS, len(cluster.local.brokers) if cluster.local is not None else REPLICAS)
    records = max(1, per_replica // (options.record_bytes + 8))
    plan = Plan(
        load="fill", bootstrap=cluster.bootstrap, topic=topic, records=records, record_bytes=options.record_bytes,
        raw_bytes=FILL_BATCH_BYTES, window=FILL_WINDOW, seconds=stored_bytes / 20e6,
    )  # fmt: skip
    run_together([plan], budget.check)
    time.sleep(FLUSHED_AFTER_S)


def fill_records(options: argparse.Namespace, cluster: BenchCluster, budget: Budget) -> str:
    """A topic to consume: `--stored`, or `--records` as a producer would have sent them."""
    topic = cluster.create_topic(options.partitions)
    prime_topic(cluster, topic, options.partitions)
    if options.stored:
        budget.refuse_over(options.stored, what=f"--stored {options.stored:,}")
        fill_topic(options, cluster, topic, options.stored, budget)
        return topic
    compression, level = parse_compression(options.compression)
    plan = Plan(
        load="fill", bootstrap=cluster.bootstrap, topic=topic, partitions=options.partitions, records=options.records,
        record_bytes=options.record_bytes, payload=options.payload, seed=options.seed, compression=compression, level=level,
        batch_bytes=options.batch_bytes, window=FILL_WINDOW, seconds=options.records / 100_000,
    )  # fmt: skip
    run_together([plan], budget.check)
    time.sleep(FLUSHED_AFTER_S)
    return topic
