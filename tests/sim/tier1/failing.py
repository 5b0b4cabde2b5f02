"""What to show of a run of tier 1 that failed: the shortest plan that still fails, and a time line of the cluster with it."""

from typing import Final

from tests.sim.tier1 import events
from tests.sim.tier1.plan import Action, Plan, plan_of
from tests.sim.tier1.run import run_plan
from tests.sim.tier1.timeline import line

__all__ = ["account", "shorten"]

TRIES_MAX: Final = 400
"""Runs that shortening may take: some ten seconds."""
LINES_MAX: Final = 300
QUIET: Final = (events.Taken, events.Durable, events.Reported, events.WatermarkTold, events.Assigned, events.Acked, events.Consumed)
"""What happens with every batch; of these the last ones are shown."""
QUIET_TAIL: Final = 60


def fails(plan: Plan) -> bool:
    return run_plan(plan)[0].violation is not None


def shorten(plan: Plan) -> Plan:
    """Leaves out faults, in halves and then one by one, then producers and readers, as long as the run still fails, in whatever way."""
    tries = 0
    actions: list[Action] = list(plan.actions)
    size = max(1, len(actions) // 2)
    while size and tries < TRIES_MAX:
        at = 0
        while at < len(actions) and tries < TRIES_MAX:
            shorter = actions[:at] + actions[at + size :]
            tries += 1
            if fails(plan._replace(actions=tuple(shorter))):
                actions = shorter
            else:
                at += size
        size //= 2
    plan = plan._replace(actions=tuple(actions))
    for less in [*({"producers": plan.producers[:count]} for count in range(1, len(plan.producers))), {"consumers": 0}, {"tip_readers": 0}]:
        smaller = plan._replace(**less)  # type: ignore[arg-type]
        if len(smaller.producers) <= len(plan.producers) and fails(smaller):
            plan = smaller
    return plan


def account(seed: int, *, is_shortened: bool = True) -> str:
    """For a seed that fails: runs it again, with less, and tells it so that a person can follow."""
    whole = plan_of(seed)
    if not fails(whole):
        return f"seed {seed} does not fail when it is run again: a run is not deterministic any more (tests/sim/test_tier1.py)"
    plan = shorten(whole) if is_shortened else whole
    report, run = run_plan(plan, is_traced=True)
    assert run is not None
    lines: list[tuple[float, str]] = [(at, f"nemesis    {what}") for at, what in run.nemesis.record]
    trace = run.world.trace
    quiet_from = len(trace) - QUIET_TAIL
    lines += [(each.at, line(each.event)) for i, each in enumerate(trace) if i >= quiet_from or not isinstance(each.event, QUIET)]
    lines.sort(key=lambda told: told[0])
    quorum = f"N = {plan.replicas}, W = {plan.write}, R = {plan.read}"
    head = f"{plan.brokers} brokers, {quorum}, {plan.durability}, {plan.partitions} partitions"
    return "\n".join(
        [
            f"seed {seed}: {head}",
            report.violation or "",
            f"with {len(plan.actions)} of {len(whole.actions)} faults, {len(plan.producers)} of {len(whole.producers)} producers",
            "time line:",
            *(f"    {at:9.4f}  {what}" for at, what in lines[-LINES_MAX:]),
            f"again: python -m tests.sim replay tier1 {seed}",
        ]
    )
