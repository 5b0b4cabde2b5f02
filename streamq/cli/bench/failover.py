"""`streamq bench failover`: the sequencer is killed, stopped or cut off under load; how long until its partitions are acked again.

A gap is the longest time without an ack in any one partition, from the fault on; the load has a batch due in each partition every few
milliseconds. What was acked is read back in the end: nothing may be missing, there twice, or out of order.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, NamedTuple

from streamq.cli.bench.chart import Mark
from streamq.cli.bench.clients import Client, run_together
from streamq.cli.bench.cluster import BenchCluster, bench_cluster
from streamq.cli.bench.forwarder import Forwarder
from streamq.cli.bench.plan import Outcome, Plan
from streamq.cli.bench.plot import check_plot, write_plot
from streamq.cli.bench.preparing import prime_topic
from streamq.cli.bench.report import figures_of, print_run
from streamq.cli.bench.steady import GAP_MIN_S
from streamq.cli.bench.verbs import budget_of, plan_of
from streamq.cli.local_cluster import LocalCluster
from streamq.cli.output import note

__all__ = ["longest_gap_s", "offered_rate", "run"]

WARM_UP_S: Final = 1.5
CALIBRATION_S: Final = 3.0
OUT_S: Final = {"kill": 1.5, "stop": 3.0, "silent": 3.0}
"""How long a broker stays away; longer than anybody should need to go on without it."""
BACK_S: Final = 2.0
"""From when it serves again until the next fault: it has to catch up."""
LOOK_S: Final = 0.05
READ_RATE: Final = 100_000
"""Records per second that reading back reaches at the very least."""
NEEDS_OWN: Final = "its brokers are killed"


class Fault(NamedTuple):
    """One round, in seconds of the system's monotonic clock."""

    broker: str
    begun: float
    over: float
    """When its broker was let back, or started again; later gaps are not the fault's."""


def longest_gap_s(gaps: Sequence[tuple[float, float, int]], fault: Fault) -> float:
    """Of the gaps that were going on, or began, between the fault and its end: the longest; `GAP_MIN_S` if there is none, as nothing
    shorter is kept."""
    return max((until - since for since, until, _ in gaps if until > fault.begun and since < fault.over), default=GAP_MIN_S)


def offered_rate(options: argparse.Namespace, cluster: BenchCluster, look: Callable[[], None]) -> float:
    """`--rate`, or `--share` of what a topic of the same kind takes now."""
    if options.rate:
        return float(options.rate)
    topic = cluster.create_topic(options.partitions)
    prime_topic(cluster, topic, options.partitions)
    plan = plan_of(options, cluster, topic, load="produce", api="enqueue-many", rate=0.0, seconds=CALIBRATION_S, warm_up_s=1.0)
    [outcome] = run_together([plan], look)
    cluster.remove_topics()
    most = outcome.records / outcome.seconds
    note(f"takes {most:,.0f} records/s at most; offering {most * float(options.share):,.0f}")
    return most * float(options.share)


def run(options: argparse.Namespace) -> int:
    check_plot(options.plot)
    is_silent = options.kind == "silent"
    forwarder = Forwarder() if is_silent else None
    start = forwarder.start_cluster if forwarder is not None else LocalCluster.start
    outer: AbstractContextManager[object] = forwarder if forwarder is not None else nullcontext()
    with outer, bench_cluster(options, needs_own=NEEDS_OWN, start=start) as cluster:
        budget = budget_of(options, cluster)
        rate = offered_rate(options, cluster, budget.check)
        topic = cluster.create_topic(options.partitions)
        prime_topic(cluster, topic, options.partitions)
        plan = plan_of(options, cluster, topic, load="steady", rate=rate, seconds=0.0, warm_up_s=0.0)
        with Client(plan) as client:
            client.wait_ready()
            begun = time.monotonic()
            client.go()

            def pause(seconds: float) -> None:
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline:
                    client.check()
                    budget.check()
                    time.sleep(LOOK_S)

            pause(WARM_UP_S)
            faults = [_hurt(options.kind, cluster, forwarder, topic, options.partitions, number, pause) for number in range(options.rounds)]
            client.stop()
            outcome = client.outcome(budget.check)
        _report(options, plan, outcome, faults)
        _verify(plan, outcome, budget.check)
        if options.plot:
            marks = [Mark(fault.begun - begun, fault.broker) for fault in faults]
            write_plot(Path(options.plot), f"{options.kind} of the sequencer, {rate:,.0f} records/s", [("", outcome.series)], marks=marks)
    return 0


def _hurt(
    kind: str, cluster: BenchCluster, forwarder: Forwarder | None, topic: str, partitions: int, number: int, pause: Callable[[float], None]
) -> Fault:
    victim = cluster.sequencer(topic, number % partitions)
    begun = time.monotonic()
    if kind == "kill":
        cluster.own.kill([victim])
    elif kind == "stop":
        cluster.own.pause([victim])
    else:
        assert forwarder is not None
        forwarder.silence(victim)
    pause(OUT_S[kind])
    over = time.monotonic()
    if kind == "kill":
        cluster.own.start([victim])
    elif kind == "stop":
        cluster.own.resume([victim])
    else:
        assert forwarder is not None
        forwarder.heal()
    pause(BACK_S)
    return Fault(victim, begun, over)


def _report(options: argparse.Namespace, plan: Plan, outcome: Outcome, faults: Sequence[Fault]) -> None:
    as_json = options.output == "json"
    gaps_ms = [round(longest_gap_s(outcome.gaps, fault) * 1000, 1) for fault in faults]
    for number, (fault, gap_ms) in enumerate(zip(faults, gaps_ms, strict=True), 1):
        print_run({"round": number, "kind": options.kind, "broker": fault.broker, "gap_ms": gap_ms}, as_json=as_json)
    others = [until - since for since, until, _ in outcome.gaps if not any(until > fault.begun and since < fault.over for fault in faults)]
    summary = {
        "summary": len(faults),
        "kind": options.kind,
        "partitions": options.partitions,
        "offered_records_per_s": round(plan.rate),
        "gap_median_ms": round(statistics.median(gaps_ms), 1),
        "gap_worst_ms": max(gaps_ms),
        "gap_otherwise_worst_ms": round(max(others, default=GAP_MIN_S) * 1000, 1),
        **figures_of(plan, outcome),
    }
    print_run(summary, as_json=as_json)


def _verify(plan: Plan, outcome: Outcome, look: Callable[[], None]) -> None:
    """Raises CorruptDataError for the first record that is not where it has to be."""
    reading = Plan(
        load="verify", bootstrap=plan.bootstrap, topic=plan.topic, partitions=plan.partitions, expected=outcome.acked,
        seconds=outcome.records / READ_RATE,
    )  # fmt: skip
    run_together([reading], look)
    note(f"read back {outcome.records:,} records: none is missing, repeated or out of order")
