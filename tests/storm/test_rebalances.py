"""The storm itself in little, with processes that are killed and stopped; and its judge, which is not to be silent."""

import sys

import pytest

from tests.storm.members import STORM
from tests.storm.rebalances import Storm, _Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ONE, OTHER = "aa" * 16, "bb" * 16


@pytest.mark.slow
def test_members_of_many_processes_lose_nothing_while_some_are_killed_and_stopped() -> None:
    """How long gaps are is for a run by hand on a machine that does nothing else."""
    storm = Storm(members=12, partitions=6, rate=100, seed=3, phase_s=7.0, joins_s=4.0)
    storm.run(minutes=0.1)
    assert storm.faults == []
    assert storm.counts["killed"] + storm.counts["stopped"] > 0
    assert storm.counts["leave"] > 0
    assert len(storm.gaps.staying[STORM]) > 50
    assert sum(storm.acked) == sum(storm.observer.handled_to.values()) > 500


def judge() -> Storm:
    storm = Storm(members=2, partitions=1, rate=1, seed=1)
    for name in ("small0", "small1"):
        storm._processes[name] = _Process(0, name)
    return storm


def hand(storm: Storm, name: str, token: str, since: int, offset: int) -> None:
    storm._on_event("handed", 1.0, [name, token, {"0": [since, [offset]]}])


def test_two_owners_are_seen_over_the_bounds_of_processes() -> None:
    storm = judge()
    hand(storm, "small0-1.0.1", ONE, 2, 0)
    storm._on_event("handled", 1.0, ["small0-1.0.1", ONE, {"0": [0]}])
    hand(storm, "small1-1.0.1", OTHER, 3, 1)
    hand(storm, "small0-1.0.1", ONE, 2, 1)
    assert len(storm.faults) == 1
    assert storm.faults[0].startswith("two owners")


def test_who_was_stopped_with_records_in_hand_is_excused_once() -> None:
    storm = judge()
    storm._processes["small0"].excused = 1
    hand(storm, "small1-1.0.1", OTHER, 3, 0)
    hand(storm, "small0-1.0.1", ONE, 2, 0)
    assert storm.faults == []
    hand(storm, "small0-1.0.1", ONE, 2, 1)
    assert len(storm.faults) == 1


def test_what_is_passed_over_is_seen() -> None:
    storm = judge()
    hand(storm, "small0-1.0.1", ONE, 1, 0)
    hand(storm, "small1-1.0.1", OTHER, 2, 1)
    assert storm.faults[0].startswith("passed over")
