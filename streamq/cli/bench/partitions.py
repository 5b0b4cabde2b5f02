"""`streamq bench partitions`: the same load into more and more partitions, and what partitions cost that nobody uses."""

import argparse
import time
from typing import Final

from streamq.cli.bench.budget import Budget
from streamq.cli.bench.clients import run_together
from streamq.cli.bench.cluster import BenchCluster, bench_cluster
from streamq.cli.bench.preparing import prime_topic
from streamq.cli.bench.report import Row, figures_of, print_run, spread
from streamq.cli.bench.usage import read_process
from streamq.cli.bench.verbs import budget_of, plan_of

__all__ = ["run"]

QUIET_S: Final = 15.0
"""After partitions were made: until what was sent to them lies in log files (`flush_interval_s`), and brokers have nothing more to do."""
NEEDS_OWN: Final = "the CPU time of idle brokers is measured"


def run(options: argparse.Namespace) -> int:
    as_json = options.output == "json"
    with bench_cluster(options, needs_own=NEEDS_OWN if options.idle else "") as cluster:
        budget = budget_of(options, cluster)
        rates: dict[int, list[float]] = {count: [] for count in options.partitions}
        for number in range(1, options.runs + 1):
            for count in options.partitions:
                row = _load(options, cluster, budget, count)
                rates[count].append(float(str(row["records_per_s"])))
                print_run({"run": number, **row}, as_json=as_json)
        first = options.partitions[0]
        for count in options.partitions:
            ratios = [one / other for one, other in zip(rates[count], rates[first], strict=True)]
            summary: Row = {"summary": options.runs, "partitions": count, "records_per_s": spread(rates[count])}
            print_run({**summary, f"ratio_to_{first}": spread([round(ratio, 4) for ratio in ratios])}, as_json=as_json)
        if options.idle:
            print_run(_idle(options, cluster), as_json=as_json)
    return 0


def _load(options: argparse.Namespace, cluster: BenchCluster, budget: Budget, count: int) -> Row:
    topic = cluster.create_topic(count)
    prime_topic(cluster, topic, count)
    plan = plan_of(options, cluster, topic, partitions=count)
    [outcome] = run_together([plan], budget.check)
    cluster.remove_topics()
    return {"partitions": count, **figures_of(plan, outcome)}


def _idle(options: argparse.Namespace, cluster: BenchCluster) -> Row:
    topic = cluster.create_topic(options.idle)
    prime_topic(cluster, topic, options.idle)
    time.sleep(QUIET_S)
    pids = cluster.pids
    before = {broker: reading for broker, pid in pids.items() if (reading := read_process(pid)) is not None}
    begun = time.monotonic()
    time.sleep(options.idle_seconds)
    took = time.monotonic() - begun
    after = {broker: reading for broker, pid in pids.items() if (reading := read_process(pid)) is not None}
    return {
        "idle_partitions": options.idle,
        "seconds": round(took, 3),
        "percent_of_a_core": {broker: round(100 * (after[broker].cpu_s - before[broker].cpu_s) / took, 2) for broker in after},
        "rss_MiB": {broker: round((after[broker].rss_bytes or 0) / (1 << 20), 1) for broker in after},
    }
