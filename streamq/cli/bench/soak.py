"""`streamq bench soak`: a fixed load for minutes or hours; what nobody caused, and what grows or slows down meanwhile.

The load goes into one topic, whose retention keeps any length of time within the disk's budget; it is told in parts, so that something
is seen meanwhile.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from streamq.cli.admin import ask_metrics
from streamq.cli.bench.chart import Line, Panel
from streamq.cli.bench.clients import run_together
from streamq.cli.bench.cluster import BenchCluster, bench_cluster
from streamq.cli.bench.failover import offered_rate
from streamq.cli.bench.plan import Outcome, Sample
from streamq.cli.bench.plot import check_plot, write_plot
from streamq.cli.bench.preparing import prime_topic
from streamq.cli.bench.report import Row, figures_of, print_run
from streamq.cli.bench.steady import GAP_MIN_S
from streamq.cli.bench.usage import read_process
from streamq.cli.bench.verbs import budget_of, plan_of

__all__ = ["MemoryWatch", "drift", "run"]

TAKEOVERS: Final = "takeovers_won"
"""The brokers' counter of those that were carried out."""
PART_S_MAX: Final = 600.0
MEMORY_SAMPLES_MAX: Final = 600
NEEDS_OWN: Final = "memory and takeovers of its brokers are watched"


class MemoryWatch:
    """Resident memory of each broker over time, in at most `MEMORY_SAMPLES_MAX` points."""

    def __init__(self, cluster: BenchCluster) -> None:
        self.points: dict[str, list[tuple[float, float]]] = {broker: [] for broker in cluster.pids}
        self._pids = cluster.pids
        self._begun = time.monotonic()
        self._interval_s = 1.0
        self._due = self._begun

    def look(self) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._interval_s
        for broker, pid in self._pids.items():
            reading = read_process(pid)
            if reading is not None and reading.rss_bytes is not None:
                self.points[broker].append((round(now - self._begun, 1), round(reading.rss_bytes / (1 << 20), 1)))
        if max(map(len, self.points.values()), default=0) > MEMORY_SAMPLES_MAX:
            self._interval_s *= 2
            self.points = {broker: points[::2] for broker, points in self.points.items()}

    @property
    def growth_MiB(self) -> dict[str, float]:
        """From the middle of the first tenth of the time to that of the last."""
        growth = {}
        for broker, points in self.points.items():
            tenth = max(1, len(points) // 10)
            ends = [statistics.median(value for _, value in part) for part in (points[:tenth], points[-tenth:]) if part]
            growth[broker] = round(ends[-1] - ends[0], 1) if ends else 0.0
        return growth


def drift(series: Sequence[Sample]) -> float:
    """Throughput of the last quarter of the intervals as a share of the first quarter's: 1 when nothing slows down."""
    quarter = max(1, len(series) // 4)
    first, last = (statistics.fmean(sample.records_per_s for sample in part) for part in (series[:quarter], series[-quarter:]))
    return round(last / first, 4) if first else 0.0


class _Unrest:
    """Epochs and takeovers of a topic that nobody caused, since this was made."""

    def __init__(self, cluster: BenchCluster, topic: str, partitions: int) -> None:
        self._cluster = cluster
        self._topic = topic
        self._partitions = partitions
        self._before = self._now()

    def counted(self) -> tuple[int, int]:
        """How many epochs, and how many takeovers."""
        epochs, takeovers = self._now()
        return epochs - self._before[0], takeovers - self._before[1]

    def _now(self) -> tuple[int, int]:
        epochs = sum(self._cluster.epoch(self._topic, partition)[0] for partition in range(self._partitions))
        return epochs, sum(int(ask_metrics(broker.address).counters[TAKEOVERS]) for broker in self._cluster.own.brokers)


def run(options: argparse.Namespace) -> int:
    check_plot(options.plot)
    as_json = options.output == "json"
    with bench_cluster(options, needs_own=NEEDS_OWN) as cluster:
        budget = budget_of(options, cluster)
        rate = offered_rate(options, cluster, budget.check)
        topic = cluster.create_topic(options.partitions, retention_bytes=budget.retained_bytes(options.partitions))
        prime_topic(cluster, topic, options.partitions)
        memory, unrest = MemoryWatch(cluster), _Unrest(cluster, topic, options.partitions)

        def look() -> None:
            budget.check()
            memory.look()

        parts: list[Outcome] = []
        while (left := 60.0 * options.minutes - sum(part.seconds for part in parts)) > 0.5:
            plan = plan_of(options, cluster, topic, load="steady", rate=rate, seconds=min(left, PART_S_MAX), warm_up_s=0.0)
            [outcome] = run_together([plan], look)
            parts.append(outcome)
            gap_s = max((until - since for since, until, _ in outcome.gaps), default=GAP_MIN_S)
            print_run({"part": len(parts), "gap_worst_ms": round(gap_s * 1000, 1), **figures_of(plan, outcome)}, as_json=as_json)
        series = in_a_row(parts)
        print_run(_summary(rate, parts, series, unrest.counted(), memory), as_json=as_json)
        if options.plot:
            panel = Panel("resident memory, MiB", [Line(broker, points) for broker, points in memory.points.items()])
            write_plot(Path(options.plot), f"{rate:,.0f} records/s offered", [("", series)], more=[panel])
    return 0


def in_a_row(parts: Sequence[Outcome]) -> list[Sample]:
    """The samples of all parts, one part behind the other."""
    series: list[Sample] = []
    elapsed = 0.0
    for part in parts:
        series += [msgspec.structs.replace(sample, at_s=round(elapsed + sample.at_s, 3)) for sample in part.series]
        elapsed += part.seconds
    return series


def _summary(rate: float, parts: Sequence[Outcome], series: Sequence[Sample], unrest: tuple[int, int], memory: MemoryWatch) -> Row:
    seconds = sum(part.seconds for part in parts)
    return {
        "summary": len(parts),
        "seconds": round(seconds, 1),
        "offered_records_per_s": round(rate),
        "records_per_s": round(sum(part.records for part in parts) / seconds, 1),
        "p99_worst_ms": max(part.latency["p99_ms"] for part in parts),
        "max_ms": max(part.latency["max_ms"] for part in parts),
        "epochs_nobody_caused": unrest[0],
        "takeovers_nobody_caused": unrest[1],
        "throughput_drift": drift(series),
        "memory_growth_MiB": memory.growth_MiB,
        "memory_peak_MiB": {broker: max((value for _, value in points), default=0.0) for broker, points in memory.points.items()},
    }
