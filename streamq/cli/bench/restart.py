"""`streamq bench restart`: all brokers are killed with so much stored; how long from starting them until every partition takes records."""

import argparse
import time
from typing import Final

from streamq.cli.bench.cluster import FLUSHED_AFTER_S, bench_cluster, drop_pages
from streamq.cli.bench.preparing import fill_topic, prime_topic
from streamq.cli.bench.report import Row, print_run, print_summary
from streamq.cli.bench.usage import read_process
from streamq.cli.bench.verbs import budget_of

__all__ = ["run"]

NEEDS_OWN: Final = "its brokers are killed"


def run(options: argparse.Namespace) -> int:
    as_json = options.output == "json"
    with bench_cluster(options, needs_own=NEEDS_OWN) as cluster:
        budget = budget_of(options, cluster)
        budget.refuse_over(options.stored, what=f"--stored {options.stored:,}")
        topic = cluster.create_topic(options.partitions)
        prime_topic(cluster, topic, options.partitions)
        fill_topic(options, cluster, topic, options.stored, budget)
        rows: list[Row] = []
        for number in range(1, options.runs + 1):
            cluster.own.kill([])
            if options.cold:
                drop_pages(cluster.own.directory)
            begun = time.perf_counter()
            cluster.own.start()
            serving_s = time.perf_counter() - begun
            prime_topic(cluster, topic, options.partitions)
            row: Row = {
                "run": number,
                "stored_bytes": cluster.stored_bytes,
                "partitions": options.partitions,
                "cold": options.cold,
                "serving_s": round(serving_s, 3),
                "all_partitions_acked_s": round(time.perf_counter() - begun, 3),
                "peak_MiB": {
                    broker: round((reading.peak_bytes or 0) / (1 << 20), 1)
                    for broker, pid in cluster.pids.items()
                    if (reading := read_process(pid)) is not None
                },
            }
            rows.append(row)
            print_run(row, as_json=as_json)
            time.sleep(FLUSHED_AFTER_S)
        print_summary(rows, as_json=as_json, about="each a SIGKILL of all brokers and a start of all")
    return 0
