"""Lookouts give what has to be looked at, in time, and little else."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streamq.broker.lookout import ROUND_S, Lookout

INTERVALS_S = (0.5, 2.0)


def node_of(count: int) -> Any:
    node = SimpleNamespace(partitions={}, changed={}, lookouts=[])
    for number in range(count):
        add(node, number)
    return node


def add(node: Any, number: int) -> None:
    identity = number.to_bytes(16)
    node.partitions[identity] = SimpleNamespace(id=identity)
    node.changed[identity] = None


STEPS = st.lists(
    st.tuples(st.sampled_from(["change", "keep", "add", "drop", "all", "check", "other check"]), st.integers(0, 30)),
    min_size=1,
    max_size=60,
)


@given(steps=STEPS)
def test_what_changed_or_was_kept_is_due_at_the_next_check_of_every_lookout(steps: list[tuple[str, int]]) -> None:
    node = node_of(10)
    lookouts = [Lookout(node, interval_s=interval_s) for interval_s in INTERVALS_S]
    expected: list[set[bytes]] = [set(node.partitions) for _ in lookouts]
    for step, number in steps:
        identity = number.to_bytes(16)
        if step == "change":
            node.changed[identity] = None
            for due in expected:
                due.add(identity)
        elif step == "keep" and identity in node.partitions:
            lookouts[0].keep(node.partitions[identity])
            expected[0].add(identity)
        elif step == "add":
            add(node, number)
            for due in expected:
                due.add(identity)
        elif step == "drop":
            node.partitions.pop(identity, None)
        elif step == "all":
            lookouts[1].keep_all(node.partitions)
            expected[1] |= set(node.partitions)
        elif step in ("check", "other check"):
            which = int(step == "other check")
            due = [partition.id for partition in lookouts[which].due()]
            assert len(due) == len(set(due))
            assert set(due) <= set(node.partitions)
            assert set(due) >= expected[which] & set(node.partitions)
            expected[which].clear()


@given(count=st.integers(1, 500), interval_s=st.sampled_from(INTERVALS_S))
def test_each_settled_partition_has_its_turn_in_a_round_and_few_others_beside_it(count: int, interval_s: float) -> None:
    node = node_of(count)
    lookout = Lookout(node, interval_s=interval_s)
    assert len(lookout.due()) == count
    checks = [[partition.id for partition in lookout.due()] for _ in range(round(ROUND_S / interval_s) + 1)]
    assert set().union(*checks) == set(node.partitions)
    assert max(map(len, checks)) <= count * interval_s / ROUND_S + 1


def test_what_a_stranger_changed_is_looked_at_by_nobody() -> None:
    node = node_of(1)
    lookout = Lookout(node, interval_s=1.0)
    lookout.due()
    node.changed[b"s" * 16] = None
    assert b"s" * 16 not in {partition.id for partition in lookout.due()}
    assert not node.changed
