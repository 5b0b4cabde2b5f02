"""What counts as a gap of a partition that does not move, and as a move, does; nothing else."""

from tests.storm.gaps import Gaps, percentile

ONE, OTHER = "aa", "bb"


def test_a_gap_counts_where_the_holder_is_the_same_before_and_after() -> None:
    gaps = Gaps()
    gaps.on_phase("calm", 0.0)
    gaps.on_handed(ONE, 0, 1, 1.0)
    gaps.on_handed(ONE, 0, 1, 1.5)
    gaps.on_handed(OTHER, 0, 2, 2.5)
    gaps.on_handed(ONE, 0, 3, 4.0)  # another hold, though the same member
    gaps.on_handed(ONE, 0, 3, 4.25)
    assert gaps.staying == {"calm": [0.5, 0.25]}
    assert gaps.other_moves == {"to a member that joined": [1.0, 1.5]}


def test_a_gap_counts_for_the_phase_in_which_it_lies_altogether() -> None:
    gaps = Gaps()
    gaps.on_handed(ONE, 0, 1, 1.0)
    gaps.on_phase("storm", 1.5)
    gaps.on_handed(ONE, 0, 1, 2.0)
    gaps.on_handed(ONE, 0, 1, 3.0)
    gaps.on_phase("", 3.5)
    gaps.on_handed(ONE, 0, 1, 9.0)
    assert gaps.staying == {"storm": [1.0]}


def test_a_member_that_stood_still_has_gaps_of_its_own() -> None:
    gaps = Gaps()
    gaps.on_phase("storm", 0.0)
    gaps.on_handed(ONE, 0, 1, 1.0)
    gaps.on_ill([ONE])
    gaps.on_well([ONE])
    gaps.on_handed(ONE, 0, 1, 8.0)
    gaps.on_handed(ONE, 0, 1, 8.5)
    assert gaps.staying == {"storm": [0.5]}


def test_a_move_counts_from_the_beginning_of_the_leave() -> None:
    gaps = Gaps()
    gaps.on_handed(ONE, 0, 1, 1.0)
    gaps.on_leaves([0], 2.0, "small0")
    gaps.on_handed(OTHER, 0, 2, 2.75)
    assert gaps.moves == [0.75]
    assert gaps.late_moves == 1


def test_a_move_to_a_member_that_is_ill_is_none() -> None:
    gaps = Gaps()
    gaps.on_handed(ONE, 0, 1, 1.0)
    gaps.on_leaves([0], 2.0, "small0")
    gaps.on_ill([OTHER])
    assert gaps.on_goes_to_the_ill([(0, OTHER)]) == 1
    gaps.on_handed("cc", 0, 3, 8.0)
    assert gaps.moves == []


def test_a_leave_in_the_midst_of_which_the_leaver_was_stopped_is_no_clean_one() -> None:
    gaps = Gaps()
    for partition in (0, 1):
        gaps.on_handed(ONE, partition, 1, 1.0)
        gaps.on_leaves([partition], 2.0, f"small{partition}")
    assert gaps.on_harm("small0") == 1
    gaps.on_handed(OTHER, 0, 2, 2.75)
    gaps.on_handed(OTHER, 1, 2, 2.25)
    assert gaps.moves == [0.25]
    assert gaps.other_moves == {"from the ill": [1.75]}


def test_the_last_percentile_of_few_values_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
