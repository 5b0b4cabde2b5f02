"""`streamq bench produce|consume|latency|fan-in`: loads that need nothing but clients and a topic."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from streamq.cli.bench.budget import Budget
from streamq.cli.bench.clients import run_together
from streamq.cli.bench.cluster import BenchCluster, bench_cluster
from streamq.cli.bench.plan import Outcome, Plan
from streamq.cli.bench.plot import check_plot, write_plot
from streamq.cli.bench.preparing import fill_records, fill_stored, prime_topic
from streamq.cli.bench.report import Row, figures_of, print_run, print_summary
from streamq.cli.produce import parse_compression
from streamq.model.errors import RefusedError

__all__ = ["budget_of", "consume", "fan_in", "latency", "plan_of", "produce", "repeat"]

ABOUT: Final = "each by a client process of its own"
SETTLE_S: Final = 1.5
"""Longer than brokers keep a batch from their log files (`flush_interval_s`)."""
RAW_WINDOW_BYTES: Final = 8 << 20
RAW_WINDOW_MAX: Final = 32
NO_RUNNING: Final = "its brokers are started anew, which is not done to a cluster that others use"


def plan_of(options: argparse.Namespace, cluster: BenchCluster, topic: str, **more: object) -> Plan:
    """The plan of a run, as far as options that verbs share say it."""
    names = ("record_bytes", "payload", "seed", "records", "seconds", "rate", "batch_bytes", "partitions", "api", "seeks", "by")
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if hasattr(options, "compression"):
        given["compression"], given["level"] = parse_compression(options.compression)
    if hasattr(options, "warm_up"):
        given["warm_up_s"] = options.warm_up
    return Plan(**{"load": "produce", "bootstrap": cluster.bootstrap, "topic": topic, "pids": cluster.pids, **given, **more})


def budget_of(options: argparse.Namespace, cluster: BenchCluster) -> Budget:
    directory = cluster.local.directory if cluster.local is not None else None
    return Budget(options.disk_budget, lambda: cluster.disk_bytes, directory)


def repeat(options: argparse.Namespace, run: Callable[[int], list[tuple[Plan, Outcome]]]) -> None:
    """Carries out `--runs` of them, prints each and their summary, and draws the last one."""
    rows: dict[str, list[Row]] = {}
    measured: list[tuple[Plan, Outcome]] = []
    as_json = options.output == "json"
    for number in range(1, options.runs + 1):
        measured = run(number)
        for plan, outcome in measured:
            row: Row = {"run": number, **figures_of(plan, outcome)}
            rows.setdefault(plan.load, []).append(row)
            print_run(row, as_json=as_json)
    for load in rows:
        print_summary(rows[load], as_json=as_json, about=f"{load}, {ABOUT}")
    if options.plot:
        write_plot(Path(options.plot), f"streamq bench, {', '.join(rows)}", [(plan.load, outcome.series) for plan, outcome in measured])


def produce(options: argparse.Namespace) -> int:
    check_plot(options.plot)
    if options.raw and (options.rate or options.records or options.payload):
        raise RefusedError("--raw sends as much as goes in for --seconds", code="usage", hint="leave --rate, --records and --payload out")
    with bench_cluster(options) as cluster:
        budget = budget_of(options, cluster)
        fill_stored(options, cluster, budget)
        retained = budget.retained_bytes(options.partitions, stored_bytes=options.stored)

        def run(number: int) -> list[tuple[Plan, Outcome]]:
            topic = cluster.create_topic(options.partitions, retention_bytes=retained)
            prime_topic(cluster, topic, options.partitions)
            counted = {"settle_s": SETTLE_S, "data_directory": str(cluster.local.directory)} if cluster.local is not None else {}
            if options.raw:
                window = options.window or max(1, min(RAW_WINDOW_MAX, RAW_WINDOW_BYTES // options.raw))
                plan = plan_of(options, cluster, topic, load="raw", raw_bytes=options.raw, window=window, **counted)
            else:
                plan = plan_of(options, cluster, topic, **counted)
            outcomes = run_together([plan], budget.check)
            if number < options.runs:
                cluster.remove_topics()
            return [(plan, outcomes[0])]

        repeat(options, run)
    return 0


def latency(options: argparse.Namespace) -> int:
    return _on_one_topic(options, lambda cluster, topic: plan_of(options, cluster, topic, load="latency"))


def fan_in(options: argparse.Namespace) -> int:
    def plan(cluster: BenchCluster, topic: str) -> Plan:
        if options.connections:
            return plan_of(options, cluster, topic, load="connections", producers=options.connections)
        if options.producers:
            return plan_of(options, cluster, topic, load="fan-in", tasks=options.producers, producers=options.producers)
        return plan_of(options, cluster, topic, load="fan-in", tasks=options.tasks)

    return _on_one_topic(options, plan)


def _on_one_topic(options: argparse.Namespace, make_plan: Callable[[BenchCluster, str], Plan]) -> int:
    """Every run goes on in the topic of the one before: what these measure does not depend on what is stored."""
    check_plot(options.plot)
    with bench_cluster(options) as cluster:
        budget = budget_of(options, cluster)
        topic = cluster.create_topic(options.partitions, retention_bytes=budget.retained_bytes(options.partitions))
        prime_topic(cluster, topic, options.partitions)
        plan = make_plan(cluster, topic)
        repeat(options, lambda number: [(plan, run_together([plan], budget.check)[0])])
    return 0


def consume(options: argparse.Namespace) -> int:
    check_plot(options.plot)
    if options.from_disk and (options.while_producing or options.seeks):
        raise RefusedError("--from-disk is for reading alone", code="usage", hint="leave --while-producing and --seeks out")
    if options.while_producing and options.seeks:
        raise RefusedError("--seeks are measured alone", code="usage", hint="leave --while-producing out")
    with bench_cluster(options, needs_own=NO_RUNNING if options.from_disk else "") as cluster:
        budget = budget_of(options, cluster)
        topic = fill_records(options, cluster, budget)

        def run(number: int) -> list[tuple[Plan, Outcome]]:
            if options.from_disk:
                cluster.start_cold()
            if options.seeks:
                plans = [plan_of(options, cluster, topic, load="seek")]
            elif options.while_producing:
                plans = [
                    plan_of(options, cluster, topic, load="consume", records=0, warm_up_s=0.0),
                    plan_of(options, cluster, topic, records=0, warm_up_s=0.0),
                ]
            else:
                warm_up = 0.0 if options.from_disk else options.warm_up
                plans = [plan_of(options, cluster, topic, load="consume", warm_up_s=warm_up)]
            return list(zip(plans, run_together(plans, budget.check), strict=True))

        repeat(options, run)
    return 0
