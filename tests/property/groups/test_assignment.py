"""Assignments are even, complete, sticky, and their own result."""

import time

from hypothesis import given
from hypothesis import strategies as st

from streamq.groups.assignment import Place, assign

TOPICS = ("a", "b", "c")


@st.composite
def groups(draw: st.DrawFn) -> tuple[dict[Place, tuple[int, int]], dict[int, frozenset[str]]]:
    members = draw(st.lists(st.integers(1, 9), unique=True, max_size=6))
    subscriptions = {m: frozenset(draw(st.sets(st.sampled_from(TOPICS), min_size=1))) for m in members}
    numbers = st.sampled_from([0, *range(1, 10)])
    places = {(t, i): (draw(numbers), draw(numbers)) for t in TOPICS for i in range(draw(st.integers(0, 7)))}
    return places, subscriptions


@given(groups())
def test_whoever_is_wanted_has_one_target_that_subscribes(group: tuple[dict[Place, tuple[int, int]], dict[int, frozenset[str]]]) -> None:
    places, subscriptions = group
    targets = assign(places, subscriptions)
    wanted = {topic for topics in subscriptions.values() for topic in topics}
    assert set(targets) == {place for place in places if place[0] in wanted}
    assert all(place[0] in subscriptions[member] for place, member in targets.items())


@given(groups())
def test_nobody_has_two_more_than_a_fellow(group: tuple[dict[Place, tuple[int, int]], dict[int, frozenset[str]]]) -> None:
    places, subscriptions = group
    targets = assign(places, subscriptions)
    loads = {m: sum(1 for t in targets.values() if t == m) for m in subscriptions}
    for place, member in targets.items():
        for other in subscriptions:
            if place[0] in subscriptions[other]:
                assert loads[member] - loads[other] < 2, (place, member, other, loads)


@given(groups())
def test_the_result_is_its_own_result(group: tuple[dict[Place, tuple[int, int]], dict[int, frozenset[str]]]) -> None:
    places, subscriptions = group
    targets = assign(places, subscriptions)
    taken = {place: (holder, targets.get(place, 0)) for place, (holder, _) in places.items()}
    assert assign(taken, subscriptions) == targets
    given_out = {place: (holder if holder in subscriptions else target, target) for place, (holder, target) in taken.items()}
    assert assign(given_out, subscriptions) == targets


@given(st.integers(1, 60), st.integers(1, 12))
def test_a_joining_member_takes_its_share_and_nothing_else_moves(partitions: int, members: int) -> None:
    everybody = {m: frozenset({"a"}) for m in range(1, members + 1)}
    before = assign({("a", i): (0, 0) for i in range(partitions)}, everybody)
    after = assign({p: (m, m) for p, m in before.items()}, {**everybody, members + 1: frozenset({"a"})})
    moved = [place for place in before if before[place] != after[place]]
    assert {after[place] for place in moved} <= {members + 1}
    assert len(moved) == partitions // (members + 1)


@given(st.integers(1, 60), st.integers(2, 12))
def test_a_leaving_member_moves_nothing_but_its_own(partitions: int, members: int) -> None:
    everybody = {m: frozenset({"a"}) for m in range(1, members + 1)}
    before = assign({("a", i): (0, 0) for i in range(partitions)}, everybody)
    del everybody[1]
    after = assign({p: (m, m) for p, m in before.items()}, everybody)
    assert all(after[place] == m for place, m in before.items() if m != 1)


def test_what_was_on_its_way_goes_back_to_who_still_has_it() -> None:
    """1 holds all, 2 joins and is to get half; before 1 has let go of anything, 2 leaves again."""
    both = {1: frozenset({"a"}), 2: frozenset({"a"})}
    targets = assign({("a", i): (1, 1) for i in range(4)}, both)
    back = assign({place: (1, target) for place, target in targets.items()}, {1: both[1]})
    assert set(back.values()) == {1}


def test_the_largest_group_is_assigned_in_reasonable_time() -> None:
    began = time.process_time()
    everybody = {m: frozenset({"a"}) for m in (1, 2)}
    assign({("a", i): (1, 1) for i in range(20_000)}, everybody)
    assert time.process_time() - began < 2
