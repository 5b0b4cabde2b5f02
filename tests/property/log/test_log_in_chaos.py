"""I-1 to I-6, I-8 and P-24 hold whatever the network, the disks and the brokers do (`log_world` raises `Violation` when they do not)."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.log_chaos import Chaos
from tests.support.log_world import World

QUORUMS = [(3, 2), (3, 3), (3, 1), (4, 2), (5, 3), (2, 2), (1, 1)]
"""Replicas and write quorum."""


@given(seed=st.integers(0, 1 << 32), quorum=st.sampled_from(QUORUMS), steps=st.integers(100, 2_500), losses=st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_nothing_that_was_concluded_is_ever_untrue(*, seed: int, quorum: tuple[int, int], steps: int, losses: int) -> None:
    """With at most W - 1 disks lost: acked and read records stay where they were seen, in order, once; and everything heals in the end."""
    replicas, write = quorum
    world = World(brokers=replicas, write=write, seed=seed)
    chaos = Chaos(world, losses=min(losses, write - 1))
    chaos.run(steps)
    chaos.heal()


@pytest.mark.parametrize("quorum", QUORUMS[:5])
def test_the_chaos_is_one(quorum: tuple[int, int]) -> None:
    """Pitfall 60: what the test above is about does happen, and a seed tells the same story twice."""
    counts: Counter[str] = Counter()
    for seed in range(40):
        stories = []
        for _ in range(1 if seed else 2):
            world = World(brokers=quorum[0], write=quorum[1], seed=seed)
            chaos = Chaos(world, losses=quorum[1] - 1)
            chaos.run(2_000)
            chaos.heal()
            stories.append((world.register, world.acked, world.seen))
        assert all(story == stories[0] for story in stories)
        counts.update(world.counts)
    happened = {"takeovers", "lost_races", "crashes", "acks", "tips"} | ({"losses", "repairs", "limbo_ended"} if quorum[1] > 1 else set())
    assert {what for what in happened if counts[what] == 0} == set()
