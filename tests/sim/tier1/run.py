"""Runs one seed from its plan to its verdict."""

from tests.sim.report import Report
from tests.sim.tier1.checks import Violation
from tests.sim.tier1.clients import Consumer, Producer, TipReader
from tests.sim.tier1.nemesis import Nemesis
from tests.sim.tier1.plan import Plan, plan_of
from tests.sim.tier1.world import World

__all__ = ["run_plan", "run_seed"]


class Run:
    def __init__(self, plan: Plan, *, is_traced: bool = False) -> None:
        self.plan = plan
        self.world = world = World(plan, is_traced=is_traced)
        self.producers = [Producer(world, each) for each in plan.producers]
        self.consumers = [Consumer(world, f"c{i}", i % plan.partitions) for i in range(plan.consumers)]
        self.tip_readers = [TipReader(world, f"t{i}", i % plan.partitions, 4.0) for i in range(plan.tip_readers)]
        self.nemesis = Nemesis(world, plan.actions)

    def run(self) -> None:
        self.world.run_until(self.plan.duration_s)


def run_plan(plan: Plan, *, is_traced: bool = False) -> tuple[Report, Run | None]:
    run = Run(plan, is_traced=is_traced)
    violation: str | None = None
    try:
        run.run()
    except Violation as found:
        violation = str(found)
    world = run.world
    return Report(plan.seed, world.counters, world.now, world.messages, run.nemesis.applied, violation), run


def run_seed(seed: int) -> Report:
    return run_plan(plan_of(seed))[0]
