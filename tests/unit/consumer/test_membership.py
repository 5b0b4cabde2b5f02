"""What a member holds: when it may hand out, what it commits, and what it lets go of, whatever order the answers come in."""

from streamq.model.groups import Entry, Held, HeldTopic
from streamq.model.messages import GroupView
from streamq_consumer.membership import Membership


def view(generation: int, *held: Held) -> GroupView:
    return GroupView(generation, (HeldTopic("t", held),) if held else ())


def opened(member: Membership, *held: Held, generation: int = 1) -> Membership:
    changes = member.on_view(view(generation, *held), asked_at=0.0)
    for place in changes.opens:
        assert member.on_opened(place, member.holds[place].since)
    return member


def entries(member: Membership, offset: int | None, *, in_hand: bool = False) -> tuple[Entry, ...]:
    return member.entries(lambda place, hold: offset, lambda place: in_hand)


def test_what_is_held_is_opened_once_at_its_position() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 17, False))
    assert member.holds["t", 0].next_offset == 17
    assert member.on_view(view(1, Held(0, 1, 17, False)), asked_at=1.0).opens == []


def test_a_partition_that_is_wanted_back_is_closed_at_once_and_released_when_nothing_is_in_hand() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False))
    changes = member.on_view(view(2, Held(0, 1, 3, True)), asked_at=1.0)
    assert [place for place, _ in changes.closes] == [("t", 0)]
    assert entries(member, 8, in_hand=True) == (Entry("t", 0, 1, 8, False),)
    said = entries(member, 9)
    assert said == (Entry("t", 0, 1, 9, True),)
    member.on_committed(said, ())
    assert member.holds == {}


def test_what_is_being_let_go_of_is_not_read_on_even_if_it_may_stay_after_all() -> None:
    """Found by the simulation of groups: the release was on its way when the next view said that the partition stays; it was opened
    again, and the answer to the release then took away the hold of an open partition, which was read on with the group elsewhere."""
    member = opened(Membership(session_s=5), Held(0, 1, 3, False))
    member.on_view(view(2, Held(0, 1, 3, True)), asked_at=1.0)
    member.holds["t", 0].next_offset = 8
    said = entries(member, 8)
    assert said[0].releases
    assert member.on_view(view(3, Held(0, 1, 3, False)), asked_at=2.0).opens == []
    assert entries(member, 8)[0].releases, "a release whose answer was lost is said again"
    member.on_committed(said, ())
    assert member.on_view(view(4, Held(0, 4, 8, False)), asked_at=3.0).opens == [("t", 0)]
    assert member.holds["t", 0].next_offset == 8


def test_a_partition_that_may_stay_goes_on_where_it_was_broken_off() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False))
    member.on_view(view(2, Held(0, 1, 3, True)), asked_at=1.0)
    member.holds["t", 0].next_offset = 8
    assert entries(member, None, in_hand=True) == ()
    assert member.on_view(view(3, Held(0, 1, 3, False)), asked_at=2.0).opens == [("t", 0)]
    assert member.holds["t", 0].next_offset == 8


def test_a_partition_that_was_lost_and_is_got_again_begins_at_the_committed_position() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False))
    old = member.holds["t", 0]
    changes = member.on_view(view(5, Held(0, 5, 20, False)), asked_at=1.0)
    assert changes.closes == [(("t", 0), old)]
    assert changes.opens == [("t", 0)]
    assert member.holds["t", 0].next_offset == 20
    assert not member.on_opened(("t", 0), 1), "what was opened for the former hold is not for this one"


def test_an_older_view_that_comes_late_changes_nothing_but_says_that_somebody_answers() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False), generation=4)
    assert member.on_view(view(3), asked_at=7.0) == ([], [])
    assert member.stops_at == 12.0


def test_nothing_is_open_while_nobody_answers_and_all_goes_on_afterwards() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False), Held(1, 1, None, False))
    assert member.stops_at == 5.0
    for _, hold in member.suspend():
        hold.next_offset = 6
    assert not any(hold.is_open for hold in member.holds.values())
    assert not member.on_opened(("t", 0), 1)
    assert member.on_view(view(1, Held(0, 1, 3, False), Held(1, 1, None, False)), asked_at=9.0).opens == [("t", 0), ("t", 1)]
    assert member.holds["t", 0].next_offset == 6


def test_only_what_moved_is_committed_and_what_was_fenced_stays_owed() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False))
    assert entries(member, 3) == ()
    said = entries(member, 4)
    member.on_committed(said, said)
    assert entries(member, 4) == said
    member.on_committed(said, ())
    assert entries(member, 4) == ()


def test_who_is_lost_holds_nothing() -> None:
    member = opened(Membership(session_s=5), Held(0, 1, 3, False))
    assert [place for place, _ in member.lose()] == [("t", 0)]
    assert entries(member, 9) == ()
