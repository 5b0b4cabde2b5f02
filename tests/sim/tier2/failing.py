"""What to show of a run that failed: the shortest schedule of faults that still fails, and a time line of the cluster with it."""

from typing import Final

from tests.sim.tier2.run import Run
from tests.sim.tier2.schedule import Fault

__all__ = ["account", "shorten"]

TRIES_MAX: Final = 40
"""Runs that shortening may take: a minute or two."""
LINES_MAX: Final = 400


def shorten(seed: int, schedule: list[Fault]) -> list[Fault]:
    """Leaves out faults, in halves and then one by one, as long as the run still fails, in whatever way."""
    tries = 0
    size = max(1, len(schedule) // 2)
    while size and tries < TRIES_MAX:
        at = 0
        while at < len(schedule) and tries < TRIES_MAX:
            shorter = schedule[:at] + schedule[at + size :]
            tries += 1
            if Run(seed, schedule=shorter).run().violation is not None:
                schedule = shorter
            else:
                at += size
        size //= 2
    return schedule


def account(seed: int, *, is_shortened: bool = True) -> str:
    """For a seed that fails: runs it again, with less, and tells it so that a person can follow."""
    whole = Run(seed, is_verbose=True)
    report = whole.run()
    if report.violation is None:
        return f"seed {seed} does not fail when it is run again: a run is not deterministic any more (tests/sim/test_tier2.py)"
    schedule = shorten(seed, whole.schedule) if is_shortened else whole.schedule
    run = Run(seed, schedule=schedule, is_verbose=True)
    violation = run.run().violation or report.violation
    lines = [
        f"seed {seed}: {run.brokers} brokers, {run.replicas} replicas, W = {run.write}, {run.partitions} partitions",
        violation,
        f"with {len(schedule)} of {len(whole.schedule)} faults:",
        *(f"    {fault.at:9.4f}  {fault}" for fault in schedule),
        "time line:",
        *(f"    {at:9.4f}  {who:10} {what}" for at, who, what in run.timeline[-LINES_MAX:]),
        f"again: python -m tests.sim replay tier2 {seed}",
    ]
    return "\n".join(lines)
