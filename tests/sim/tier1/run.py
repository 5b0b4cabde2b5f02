"""Runs one seed from its plan to its verdict."""

import traceback

from tests.sim.report import Report
from tests.sim.tier1.checks import Violation
from tests.sim.tier1.clients import Consumer, TipReader
from tests.sim.tier1.conditions import producer_of
from tests.sim.tier1.healing import Healing
from tests.sim.tier1.nemesis import Nemesis
from tests.sim.tier1.plan import Plan, plan_of
from tests.sim.tier1.world import World

__all__ = ["MUST_HAPPEN", "run_plan", "run_seed"]

MUST_HAPPEN = (
    "acks", "consumed", "tips", "takeovers", "takeovers_lost", "repairs", "truncations",
    "torn_tails", "limbo", "losses",
    "register_conflicts", "readmissions", "retries", "duplicates_refused", "unknown_outcomes",
    "fenced", "trims", "failed_syncs", "damage_mended",
    "ids_new", "ids_known", "ids_again", "appended_at_offset", "appended_with_token", "append_conflicts", "append_fenced",
    "append_precondition_failed", "append_past_the_end",
)  # fmt: skip
"""Counters that have to be above zero over all seeds of a run, or it has proved nothing (pitfall 60)."""


class Run:
    def __init__(self, plan: Plan, *, is_traced: bool = False) -> None:
        self.plan = plan
        self.world = world = World(plan, is_traced=is_traced)
        self.producers = [producer_of(world, each) for each in plan.producers]
        self.consumers = [Consumer(world, f"c{i}", i % plan.partitions) for i in range(plan.consumers)]
        self.tip_readers = [TipReader(world, f"t{i}", i % plan.partitions, 4.0) for i in range(plan.tip_readers)]
        self.nemesis = Nemesis(world, plan.actions)
        self.nemesis.links.clients = [client.name for client in (*self.producers, *self.consumers, *self.tip_readers)]
        self.nemesis.storm = self._storm

    def run(self) -> None:
        """Raises Violation."""
        self.world.run_until(self.plan.duration_s)
        Healing(self.world, self.nemesis, self.producers).run()

    def _storm(self, count: int) -> None:
        """Everybody wants everything at once."""
        for producer in self.producers:
            producer.hurry(count // len(self.producers))
        for reader in self.tip_readers:
            reader.hurry(count // 8)


def run_plan(plan: Plan, *, is_traced: bool = False) -> tuple[Report, Run | None]:
    run = Run(plan, is_traced=is_traced)
    violation: str | None = None
    try:
        run.run()
    except Violation as found:
        violation = str(found)
    except Exception:  # of the cores or of the simulation: it is told like a violation, with its time line
        violation = f"an exception\n{traceback.format_exc()}"
    world = run.world
    return Report(plan.seed, world.counters, world.now, world.messages, run.nemesis.applied, violation), run


def run_seed(seed: int) -> Report:
    return run_plan(plan_of(seed))[0]
