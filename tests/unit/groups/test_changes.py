"""Group registers, example by example: who is fenced, and how."""

import msgspec
import pytest

from streamq.groups.changes import (
    Joining,
    TopicSeen,
    apply_steps,
    commit,
    coordinate,
    delete,
    expire,
    join,
    leave,
    place,
    refresh,
    settled,
)
from streamq.model.errors import GroupLostError, NotCoordinatorError, StreamqError
from streamq.model.groups import Entry, GroupMember, GroupPartition, GroupRegister, GroupTopic, Pending, held_by
from streamq.model.limits import (
    GROUP_MEMBERS_MAX,
    GROUP_NAMES_BYTES_MAX,
    GROUP_PARTITIONS_MAX,
    GROUP_PENDING_MAX,
    GROUP_TOPICS_MAX,
    NAME_CHARS_MAX,
    OFFSET_MAX,
    REGISTER_BYTES_MAX,
)
from streamq.model.transactions import Transaction
from streamq.wire.codec import encode

SEEN = [TopicSeen("t", b"t1", 4)]
A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
FRESH = b"g" * 16
ITS_OWN, OTHERS = Transaction(b"p" * 16, 3), Transaction(b"q" * 16, 7)


def begun(*tokens: bytes) -> GroupRegister:
    register = coordinate("g", by="b1", fresh_id=FRESH)(None)
    for token in tokens:
        register, _ = join(Joining(token, "", ("t",), 1000), SEEN)(register)
    return register


def places(register: GroupRegister, token: bytes, *, leaving: bool = False) -> set[int]:
    member = register.member(token)
    assert member is not None
    return {h.partition for topic in held_by(register, member.number) for h in topic.partitions if h.is_leaving == leaving}


def since(register: GroupRegister, index: int) -> int:
    partition = register.partition("t", index)
    assert partition is not None
    return partition.since


def position(register: GroupRegister, index: int) -> int | None:
    partition = register.partition("t", index)
    assert partition is not None
    return partition.position


def test_the_first_member_has_everything_at_once() -> None:
    assert places(begun(A), A) == {0, 1, 2, 3}


def test_a_second_member_waits_for_what_the_first_lets_go_of() -> None:
    register = begun(A, B)
    assert len(places(register, A)) == len(places(register, A, leaving=True)) == 2
    assert places(register, B) == set()
    gone = min(places(register, A, leaving=True))
    register, fenced = commit(A, [Entry("t", gone, since(register, gone), 17, True)])(register)
    assert fenced == ()
    assert places(register, B) == {gone}
    assert position(register, gone) == 17


def test_who_was_thought_dead_commits_to_nothing() -> None:
    """Pitfall of every group protocol: the zombie that handles on, and then commits over the new owner's position."""
    register = begun(A, B)
    for index in places(register, A, leaving=True):
        register, _ = commit(A, [Entry("t", index, since(register, index), None, True)])(register)
    mine = min(places(register, A))
    got = since(register, mine)
    register, _ = expire({A})(register)
    assert mine in places(register, B)
    with pytest.raises(GroupLostError):
        commit(A, [Entry("t", mine, got, 99)])(register)
    register, fenced = commit(B, [Entry("t", mine, got, 99)])(register)
    assert [entry.position for entry in fenced] == [99], "a generation in which another had it counts for nobody"
    assert position(register, mine) is None


def test_a_static_member_takes_its_own_place() -> None:
    register = begun(B)
    register, _ = join(Joining(A, "s", ("t",), 1000), SEEN)(register)
    for index in places(register, B, leaving=True):
        register, _ = commit(B, [Entry("t", index, since(register, index), None, True)])(register)
    had = places(register, A)
    register, _ = join(Joining(C, "s", ("t",), 1000), SEEN)(register)
    assert places(register, C) == had
    assert not places(register, B, leaving=True)
    with pytest.raises(GroupLostError):
        commit(A, [])(register)


def test_leaving_gives_all_away_at_once_with_the_last_positions() -> None:
    register = begun(A, B)
    register, _ = leave(A, [Entry("t", i, since(register, i), 5) for i in places(register, A)])(register)
    assert places(register, B) == {0, 1, 2, 3}
    assert sorted(position(register, i) or 0 for i in range(4)) == [0, 0, 5, 5]


def test_a_release_whose_answer_was_lost_is_found_applied() -> None:
    register = begun(A, B)
    gone = min(places(register, A, leaving=True))
    entry = Entry("t", gone, since(register, gone), 17, True)
    once, _ = commit(A, [entry])(register)
    moved_on, _ = commit(B, [Entry("t", gone, since(once, gone), 30)])(once)
    again, fenced = commit(A, [entry])(moved_on)
    assert (again, fenced) == (moved_on, ())


def test_positions_do_not_go_back_but_by_placing() -> None:
    register = begun(A)
    register, _ = commit(A, [Entry("t", 0, since(register, 0), 9)])(register)
    register, _ = commit(A, [Entry("t", 0, since(register, 0), 3)])(register)
    assert position(register, 0) == 9
    with pytest.raises(StreamqError) as refused:
        place("g", {("t", 0): 3}, SEEN, fresh_id=FRESH, outcomes={})(register)
    assert refused.value.code == "group_in_use"
    register, _ = leave(A, [])(register)
    assert position(place("g", {("t", 0): 3}, SEEN, fresh_id=FRESH, outcomes={})(register), 0) == 3


def test_positions_outlive_all_members_and_a_topic_made_anew_has_none() -> None:
    register = begun(A)
    register, _ = commit(A, [Entry("t", 0, since(register, 0), 9)])(register)
    register, _ = leave(A, [])(register)
    register, _ = join(Joining(B, "", ("t",), 1000), SEEN)(register)
    assert position(register, 0) == 9
    register, _ = refresh([TopicSeen("t", b"t2", 4)])(register)
    assert position(register, 0) is None
    assert places(register, B) == {0, 1, 2, 3}


def test_another_coordinators_steps_are_refused() -> None:
    register = begun(A)
    outcomes: list[object] = []
    with pytest.raises(NotCoordinatorError) as refused:
        apply_steps("g", [expire({A})], outcomes, by="b2", group_id=FRESH)(register)
    assert refused.value.coordinator == "b1"


def test_steps_together_are_steps_one_by_one_and_one_refusal_stops_no_other() -> None:
    register = begun(A)
    outcomes: list[object] = []
    entry = Entry("t", 0, since(register, 0), 9)
    changed = apply_steps("g", [commit(B, []), commit(A, [entry])], outcomes, by="b1", group_id=FRESH)(register)
    assert position(changed, 0) == 9
    assert isinstance(outcomes[0], GroupLostError)
    assert outcomes[1] == ()


def test_a_group_with_members_is_not_removed_and_a_removed_one_begins_anew() -> None:
    register = begun(A)
    with pytest.raises(StreamqError) as refused:
        delete("g", group_id=FRESH)(register)
    assert refused.value.code == "group_in_use"
    register, _ = leave(A, [])(register)
    tombstone = delete("g", group_id=FRESH)(register)
    assert tombstone.deleted
    assert delete("g", group_id=FRESH)(tombstone) == tombstone
    with pytest.raises(StreamqError) as unknown:
        coordinate("g", by="b1", fresh_id=None)(tombstone)
    assert unknown.value.code == "unknown_group"
    assert coordinate("g", by="b1", fresh_id=b"h" * 16)(tombstone).topics == ()


def wide_names(count: int) -> tuple[str, ...]:
    return tuple(f"{number:0{NAME_CHARS_MAX}}" for number in range(count))


def test_whose_names_do_not_fit_is_refused_and_nobody_else() -> None:
    names = wide_names(GROUP_TOPICS_MAX)
    seen = [TopicSeen(name, b"t1", 1) for name in names]
    register = coordinate("g", by="b1", fresh_id=FRESH)(None)
    members = 0
    while register.names_bytes + GROUP_TOPICS_MAX * (NAME_CHARS_MAX + 3) <= GROUP_NAMES_BYTES_MAX:
        register, _ = join(Joining(members.to_bytes(16, "big"), "", names, 1000), seen)(register)
        members += 1
    assert 20 < members < 40
    with pytest.raises(StreamqError) as refused:
        join(Joining(C, "", names, 1000), seen)(register)
    assert refused.value.code == "limit_reached"
    assert refused.value.hint
    register, _ = join(Joining(bytes(16), "", names, 2000), seen)(register)  # who is in it may ask again
    register, _ = commit(bytes(16), [])(register)
    register, _ = leave(bytes(16), [])(register)
    register, _ = join(Joining(C, "", names, 1000), seen)(register)
    assert len(register.members) == members


def test_a_group_that_was_too_wide_before_there_was_a_bound_still_changes() -> None:
    names = wide_names(GROUP_TOPICS_MAX)
    members = tuple(GroupMember(number, number.to_bytes(16, "big"), "", names, 1000) for number in range(1, 60))
    register = GroupRegister(FRESH, "g", 1, "b1", 59, members, ())
    assert register.names_bytes > GROUP_NAMES_BYTES_MAX
    register, number = join(Joining(members[0].token, "", ("t",), 1000), SEEN)(register)
    assert number == 1


def test_positions_of_topics_whose_names_do_not_fit_are_refused() -> None:
    names = wide_names(4_000)
    seen = [TopicSeen(name, b"t1", 1) for name in names]
    with pytest.raises(StreamqError) as refused:
        place("g", dict.fromkeys(((name, 0) for name in names), 1), seen, fresh_id=FRESH, outcomes={})(None)
    assert refused.value.code == "limit_reached"


def test_the_largest_group_that_is_let_in_fits_into_its_register() -> None:
    """The bounds of `model/limits.py`, against bytes: the widest names, numbers and counts together."""
    largest = GroupPartition(OFFSET_MAX, OFFSET_MAX, OFFSET_MAX, OFFSET_MAX)
    pending = msgspec.structs.replace(largest, pending=Pending(bytes(16), OFFSET_MAX, OFFSET_MAX))
    partitions = [pending] * GROUP_PENDING_MAX + [largest] * (GROUP_PARTITIONS_MAX - GROUP_PENDING_MAX)
    topics = tuple(GroupTopic("t", bytes(16), (partition,)) for partition in partitions)
    members = tuple(GroupMember(OFFSET_MAX, bytes(16), "", ("t",), OFFSET_MAX) for _ in range(GROUP_MEMBERS_MAX))
    register = GroupRegister(FRESH, "g" * NAME_CHARS_MAX, OFFSET_MAX, "b" * NAME_CHARS_MAX, OFFSET_MAX, members, topics)
    short = len(encode(register))
    rest = GROUP_NAMES_BYTES_MAX - register.names_bytes
    assert rest > 0
    assert short + rest < REGISTER_BYTES_MAX


def test_a_position_that_another_has_reached_is_not_a_zombies_transaction() -> None:
    """Thought dead and let in again by a late copy of its joining, it asks for positions of its former hold, which the next holder has
    passed in a transaction of its own: told that they are reached, it would commit the same records again."""
    register = begun(A, B)
    for index in places(register, A, leaving=True):
        register, _ = commit(A, [Entry("t", index, since(register, index), None, True)])(register)
    mine = min(places(register, A))
    former = since(register, mine)
    register, _ = expire({A})(register)
    register, fenced = commit(B, [Entry("t", mine, since(register, mine), 9, False)], OTHERS)(register)
    assert fenced == ()
    register, _ = settled({OTHERS: True})(register)
    assert position(register, mine) == 9
    register, _ = join(Joining(A, "", ("t",), 1000), SEEN)(register)
    asked = Entry("t", mine, former, 4, False)
    register, fenced = commit(A, [asked], ITS_OWN)(register)
    assert fenced == (asked,)


def test_a_pending_position_whose_answer_was_lost_is_found_applied() -> None:
    register = begun(A)
    asked = Entry("t", 0, since(register, 0), 4, False)
    register, fenced = commit(A, [asked], ITS_OWN)(register)
    assert fenced == ()
    again, fenced = commit(A, [asked], ITS_OWN)(register)
    assert (again, fenced) == (register, ())
    assert position(register, 0) is None
