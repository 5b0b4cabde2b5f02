"""A group's register under random steps: nothing lost, nobody's position moved by who does not hold it, twice is once (P-5)."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from streamq.groups.changes import Joining, Step, TopicSeen, commit, coordinate, expire, join, leave, refresh
from streamq.model.errors import StreamqError
from streamq.model.groups import Entry, GroupRegister

TOPICS = ("a", "b")
TOKENS = [bytes([n]) * 16 for n in range(6)]
FRESH = b"g" * 16


class Act(NamedTuple):
    kind: str
    token: bytes
    name: str
    topics: tuple[str, ...]
    places: tuple[tuple[str, int, int, bool, bool], ...]
    """Topic, index, position, whether it lets go, whether it names an old generation."""
    partitions: int


partitions_named = st.tuples(st.sampled_from(TOPICS), st.integers(0, 4), st.integers(0, 50), st.booleans(), st.booleans())
acts = st.builds(
    Act,
    st.sampled_from(["join", "join", "commit", "commit", "commit", "leave", "expire", "refresh"]),
    st.sampled_from(TOKENS),
    st.sampled_from(["", "", "s1", "s2"]),
    st.sets(st.sampled_from(TOPICS), min_size=1).map(lambda s: tuple(sorted(s))),
    st.lists(partitions_named, max_size=4).map(tuple),
    st.integers(2, 5),
)


def entries_of(register: GroupRegister, act: Act) -> tuple[Entry, ...]:
    """What the member would say: with the generation in which the partition was got, by whoever, or an older one."""
    entries = []
    for topic, index, position, releases, is_old in act.places:
        partition = register.partition(topic, index)
        if partition is not None:
            since = max(0, partition.since - is_old)
            entries.append(Entry(topic, index, since, position, releases))
    return tuple(entries)


def step_of(register: GroupRegister, act: Act) -> Step:
    if act.kind == "join":
        return join(Joining(act.token, act.name, act.topics, 1000), [TopicSeen(t, t.encode(), act.partitions) for t in act.topics])
    if act.kind == "commit":
        return commit(act.token, entries_of(register, act))
    if act.kind == "leave":
        return leave(act.token, entries_of(register, act))
    if act.kind == "expire":
        return expire({act.token})
    return refresh([TopicSeen(t, t.encode(), act.partitions) for t in act.topics])


def begun() -> GroupRegister:
    return coordinate("g", by="b1", fresh_id=FRESH)(None)


def play(script: Sequence[Act]) -> list[tuple[GroupRegister, Act, Step, GroupRegister]]:
    register = begun()
    history = []
    for act in script:
        step = step_of(register, act)
        try:
            after, _ = step(register)
        except StreamqError:
            continue
        history.append((register, act, step, after))
        register = after
    return history


@given(st.lists(acts, max_size=25))
def test_every_register_is_sound(script: list[Act]) -> None:
    for _, _, _, after in play(script):
        assert after.fault() is None
        subscribed = {topic for member in after.members for topic in member.topics}
        for topic in after.topics:
            for partition in topic.partitions:
                assert (partition.holder != 0) or topic.name not in subscribed, "a partition that is wanted lies idle"


@given(st.lists(acts, max_size=25))
def test_twice_is_once(script: list[Act]) -> None:
    for _, _, step, after in play(script):
        again, _ = step(after)
        assert again == after


@given(st.lists(acts, max_size=25))
def test_positions_only_grow_and_only_by_who_holds_the_partition(script: list[Act]) -> None:
    for before, act, _, after in play(script):
        for topic in before.topics:
            for index, old in enumerate(topic.partitions):
                new = after.partition(topic.name, index)
                assert new is not None, "a position is lost"
                if new.position == old.position:
                    continue
                assert new.position is not None
                assert old.position is None or new.position > old.position, "a position moved back"
                member = before.member(act.token)
                assert member is not None
                assert old.holder == member.number, "who does not hold it moved its position"
                said = [e for e in entries_of(before, act) if (e.topic, e.partition) == (topic.name, index) and e.since == old.since]
                assert new.position in {entry.position for entry in said}


@given(st.lists(acts, max_size=25))
def test_a_living_holder_loses_a_partition_only_by_letting_go(script: list[Act]) -> None:
    for before, act, _, after in play(script):
        alive = {member.number for member in after.members}
        for topic in before.topics:
            for index, old in enumerate(topic.partitions):
                new = after.partition(topic.name, index)
                assert new is not None
                if old.holder in alive and (new.holder, new.since) != (old.holder, old.since):
                    released = {(e.topic, e.partition) for e in entries_of(before, act) if e.releases}
                    assert act.kind in ("commit", "leave")
                    assert (topic.name, index) in released


@given(st.lists(acts, max_size=25))
def test_whoever_gets_a_partition_gets_it_in_a_new_generation(script: list[Act]) -> None:
    for before, _, _, after in play(script):
        for topic in after.topics:
            for index, new in enumerate(topic.partitions):
                old = before.partition(topic.name, index)
                if new.holder and (old is None or (old.holder, old.since) != (new.holder, new.since)):
                    assert new.since == after.generation > before.generation


@given(st.lists(acts, max_size=25))
def test_when_all_let_go_what_they_should_the_group_comes_to_rest(script: list[Act]) -> None:
    history = play(script)
    register = history[-1][3] if history else begun()
    for _ in range(50):
        leaving = [
            (member, Entry(topic.name, index, p.since, None, True))
            for member in register.members
            for topic in register.topics
            for index, p in enumerate(topic.partitions)
            if p.holder == member.number and p.target != member.number
        ]
        if not leaving:
            break
        register, _ = commit(leaving[0][0].token, [leaving[0][1]])(register)
    else:
        raise AssertionError("partitions go round and round")
    loads = {m.number: 0 for m in register.members}
    for topic in register.topics:
        for partition in topic.partitions:
            if partition.holder:
                loads[partition.holder] += 1
    if len({frozenset(m.topics) for m in register.members}) == 1:
        assert max(loads.values()) - min(loads.values()) <= 1
