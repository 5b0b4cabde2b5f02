"""What a run comes to: figures per kind of fault, and the verdict."""

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.nemesis.nemesis import Episode
from tests.sim.history import History, Outcome

__all__ = ["Gap", "Quiet", "Report", "longest_gaps", "table"]


class Gap(NamedTuple):
    """The longest time that some partition went without an ack because of one fault: in all, and as far as it lies after the mending."""

    kind: str
    whole_s: float
    after_s: float


class Quiet(NamedTuple):
    """The longest time without an ack in a partition that touches no fault, and where to look for it."""

    gap_s: float = 0.0
    partition: int = 0
    began: float = 0.0
    after: str = ""
    """The fault before it."""


class Report(NamedTuple):
    seed: int
    brokers: int
    write: int
    seconds: float
    records: int
    outcomes: dict[str, int]
    read: int
    tips: int
    epochs: int
    happened: dict[str, int]
    troubles: dict[str, int]
    unavailable: dict[str, dict[str, float]]
    quiet: "Quiet"
    skipped: list[str]
    violations: list[str]

    @property
    def verdict(self) -> str:
        return "VIOLATED" if self.violations else "nothing lost, repeated or reordered"


def longest_gaps(history: History, episodes: Sequence[Episode]) -> tuple[list[Gap], Quiet]:
    """A gap for each episode; and the longest between two acks of a partition that touches no episode."""
    acks: dict[int, list[float]] = {}
    for send in history.sends:
        if send.outcome is Outcome.ACKED and send.ended is not None:
            acks.setdefault(send.partition, []).append(send.ended)
    gaps = [Gap(episode.kind, 0.0, 0.0) for episode in episodes]
    quiet = Quiet()
    for partition, times in acks.items():
        times.sort()
        at = 0
        for before, after in itertools.pairwise(times):
            while at < len(episodes) and episodes[at].steady < before:
                at += 1
            if at == len(episodes) or episodes[at].began > after:
                quiet = max(quiet, Quiet(after - before, partition, before, episodes[at - 1].kind if at else ""))
                continue
            gap, episode = gaps[at], episodes[at]
            gaps[at] = Gap(gap.kind, max(gap.whole_s, after - before), max(gap.after_s, after - max(before, episode.healed)))
    return gaps, quiet


def unavailability(gaps: Sequence[Gap]) -> dict[str, dict[str, float]]:
    """By kind: how often, the median and the longest gap, and the longest of what lay after the mending."""
    result = {}
    for kind in sorted({gap.kind for gap in gaps}):
        these = [gap for gap in gaps if gap.kind == kind]
        whole = [gap.whole_s for gap in these]
        result[kind] = {
            "count": len(these),
            "median_s": round(statistics.median(whole), 3),
            "longest_s": round(max(whole), 3),
            "longest_after_s": round(max(gap.after_s for gap in these), 3),
        }
    return result


def outcomes(history: History) -> dict[str, int]:
    counted = Counter(send.outcome.name.lower() for send in history.sends)
    return dict(sorted(counted.items()))


def table(report: Report) -> str:
    told = ", ".join(f"{count} {name}" for name, count in report.outcomes.items())
    happened = ", ".join(f"{count} {what}" for what, count in report.happened.items())
    lines = [
        f"seed {report.seed}, {report.brokers} brokers, W = {report.write}, {report.seconds:.0f} s under faults",
        f"{report.records} records in the log ({told}); {report.read} read on the way, {report.tips} tips",
        f"{report.epochs} epochs; {happened}",
        f"longest gap between acks without a fault: {report.quiet.gap_s:.3f} s, in partition {report.quiet.partition} "
        f"at {report.quiet.began:.1f}, after {report.quiet.after}",
        "",
        f"{'fault':24}{'count':>6}{'median gap':>12}{'longest':>10}{'after mending':>15}",
    ]
    for kind, row in report.unavailable.items():
        lines.append(f"{kind:24}{row['count']:6.0f}{row['median_s']:10.3f} s{row['longest_s']:8.3f} s{row['longest_after_s']:13.3f} s")
    lines += ["", *(f"left out: {each}" for each in report.skipped)]
    lines += [f"met on the way: {what}, {count} times" for what, count in sorted(report.troubles.items())]
    lines += ["", *report.violations, f"verdict: {report.verdict}"]
    return "\n".join(lines)
