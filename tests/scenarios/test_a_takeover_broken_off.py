"""Pitfall 28: whoever takes over crashes after each step in turn; another, who comes afterwards or was at it too, finishes the work.

Every run begins with P acked and a tail that one replica alone holds and nobody acked; a second batch of the crashed sequencer. What
happens is one event at a time: a message arrives, or one write of one broker becomes durable.
"""

import pytest

from streamq.log.takeover import Phase
from tests.scenarios.test_log_counterexamples import P2, P
from tests.support.log_chaos import Chaos, header
from tests.support.log_takeovers import TakeoverRun
from tests.support.log_world import World

STEPS_MAX = 200


def with_a_tail_at(holder: str) -> World:
    """P is acked by all; P2 lies at one replica, and its sequencer b1 is gone (or, as that replica, deposed)."""
    world = World(faults=0)
    b1 = world.brokers["b1"]
    b1.produce(header(P), P)
    world.deliver_all()
    b1.produce(header(P2), P2)
    world.deliver_all("store ", to=holder)
    world.mail.clear()
    assert world.acked == {P: 0}
    if holder != "b1":
        b1.crash(0)
    b1.sequencer = None
    return world


def step(world: World, *runs: TakeoverRun) -> None:
    """The oldest message of all arrives; without one a write becomes durable; without either a deadline passes."""
    if world.mail:
        world.deliver(0)
        return
    busy = next((b for b in world.brokers.values() if b.is_up and b.disk.pending), None)
    if busy is not None:
        busy.settle(1)
        return
    for run in runs:
        deadline = run.core.next_deadline
        if deadline is not None:
            world.now_ms = max(world.now_ms, round(deadline * 1000) + 1)
            run.carry_out(run.core.on_deadline(deadline))


def settled(world: World, *runs: TakeoverRun) -> None:
    for _ in range(STEPS_MAX):
        if all(run.core.is_over for run in runs):
            return
        step(world, *runs)
    raise AssertionError(f"takeovers that do not end: {[run.core.phase for run in runs]}")


@pytest.mark.parametrize("keep", [0, 9], ids=["what was on its way to the disk is lost", "it is not"])
@pytest.mark.parametrize("rival", ["comes afterwards", "is at it too"])
@pytest.mark.parametrize("holder", ["b1", "b2"])
def test_a_takeover_broken_off_at_any_step_is_finished_by_another(holder: str, rival: str, keep: int) -> None:
    phases: list[Phase] = []
    for steps in range(STEPS_MAX):
        world = with_a_tail_at(holder)
        run = world.begin_takeover("b2")
        other = world.begin_takeover("b3") if rival == "is at it too" else None
        for _ in range(steps):
            step(world, *(r for r in (run, other) if r is not None))
        phases.append(run.core.phase)
        world.brokers["b2"].crash(keep)
        if holder == "b2":
            world.brokers["b1"].start()  # two of three are up, whoever holds the tail
        finisher = other or world.begin_takeover("b3")
        settled(world, finisher)
        if finisher.core.phase is Phase.STUCK and other is not None:
            finisher = world.begin_takeover("b3")  # it had found b1 away; its runner tries again
            settled(world, finisher)
        assert finisher.core.phase in (Phase.DONE, Phase.LOST), (steps, finisher.core.reason)
        assert world.register.last.epoch > 1
        world.brokers["b2"].start()
        Chaos(world).heal()
        assert world.acked[P] == 0
        if run.core.is_over:
            break
    assert run.core.is_over
    wanted = {Phase.READ, Phase.SEAL, Phase.COPY if holder == "b1" else Phase.REPAIR, Phase.CLOSE}
    assert wanted <= set(phases), phases
    assert other is not None or Phase.OPEN in phases
