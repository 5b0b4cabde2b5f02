"""The functions that change a group's register: pure, and safe to apply to their own result (P-5).

A `Step` takes the register to the next one and has an outcome for whoever asked; the coordinator applies all that wait for it in one
change (`apply_steps`). What fences whom:

- A commit moves a position only where the member holds the partition in the register and got it in the generation that it says. A member
  that was thought dead, and whose partition went to another, commits to nothing: two may handle a record, only one moves the position.
- A partition goes from one living member to another only when the first lets go of it, with what it has handled: nobody waits for more
  than that partition, and no position is lost.
- A register names its coordinator; the changes of another, which may have an old idea of who lives, are refused.
- Positions only grow, but by `seek`, for which the group has to be without members.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from streamq.groups.assignment import Place, assign
from streamq.model.errors import AlreadyExistsError, GroupLostError, NotCoordinatorError, NotFoundError, RefusedError, StreamqError
from streamq.model.groups import NOBODY, Entry, GroupMember, GroupPartition, GroupRegister, GroupTopic
from streamq.model.limits import GROUP_MEMBERS_MAX, GROUP_NAMES_BYTES_MAX, GROUP_PARTITIONS_MAX

__all__ = [
    "Joining",
    "Step",
    "TopicSeen",
    "apply_steps",
    "commit",
    "coordinate",
    "delete",
    "expire",
    "join",
    "leave",
    "lost",
    "place",
    "refresh",
    "unknown_group",
]

Step = Callable[[GroupRegister], tuple[GroupRegister, object]]
"""From a register to the next and the outcome. Raises StreamqError to leave it as it is."""
Change = Callable[[GroupRegister | None], GroupRegister]


class TopicSeen(NamedTuple):
    """A topic as its register was read; no partitions: it is gone."""

    name: str
    id: bytes
    partitions: int


class Joining(NamedTuple):
    token: bytes
    name: str
    topics: tuple[str, ...]
    session_ms: int


# --- who changes it ---------------------------------------------------------------------------------------------------------


def coordinate(name: str, *, by: str, fresh_id: bytes | None) -> Change:
    """Names the broker `by` coordinator. One that is not there (or deleted) is created with `fresh_id`, if given; else unknown_group."""

    def change(current: GroupRegister | None) -> GroupRegister:
        if current is not None and not current.deleted:
            return current if current.coordinator == by else msgspec.structs.replace(current, coordinator=by)
        if fresh_id is None:
            raise unknown_group(name)
        return GroupRegister(fresh_id, name, 1, by, 0, (), ())

    return change


def apply_steps(name: str, steps: Sequence[Step], outcomes: list[object], *, by: str, group_id: bytes) -> Change:
    """All steps, one after the other, as one change; `outcomes` gets what each came to, an exception for those that refused.

    Raises NotCoordinatorError when the register names another coordinator, unknown_group when the group was deleted.
    """

    def change(current: GroupRegister | None) -> GroupRegister:
        outcomes.clear()
        if current is None or current.deleted or current.id != group_id:
            raise unknown_group(name)
        if current.coordinator != by:
            raise NotCoordinatorError(f"broker {current.coordinator} coordinates group {name!r} now", coordinator=current.coordinator)
        register = current
        for step in steps:
            try:
                register, outcome = step(register)
            except StreamqError as refusal:
                outcome = refusal
            outcomes.append(outcome)
        return register

    return change


# --- steps ------------------------------------------------------------------------------------------------------------------


def join(joining: Joining, seen: Sequence[TopicSeen]) -> Step:
    """Adds a member, or puts a static one in the place of its former self, whose partitions it keeps. The outcome is its number."""

    def step(before: GroupRegister) -> tuple[GroupRegister, object]:
        register = _with_topics(before, seen)
        known = register.member(joining.token)
        if known is None and joining.name:
            known = next((member for member in register.members if member.name == joining.name), None)
        number = known.number if known is not None else register.last_number + 1
        member = GroupMember(number, joining.token, joining.name, joining.topics, joining.session_ms)
        if known is not None:
            members = tuple(member if m.number == number else m for m in register.members)
        elif len(register.members) < GROUP_MEMBERS_MAX:
            members = (*register.members, member)
        else:
            raise RefusedError(f"group {register.name!r} has {GROUP_MEMBERS_MAX} members, the most there may be", code="limit_reached")
        joined = msgspec.structs.replace(register, members=members, last_number=max(register.last_number, number))
        _need_room(before, joined)
        return _settled(register, joined), number

    return step


def leave(token: bytes, entries: Sequence[Entry]) -> Step:
    """Commits what the member has handled and takes it out. Leaving twice is leaving once."""

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        member = register.member(token)
        if member is None:
            return register, None
        committed = _committed(register, member.number, entries)
        return _settled(register, _without(committed, {member.number})), None

    return step


def expire(tokens: Collection[bytes]) -> Step:
    """Takes members out whose sessions are over, with what they have handled as last committed."""

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        numbers = {member.number for member in register.members if member.token in tokens}
        return (_settled(register, _without(register, numbers)) if numbers else register), len(numbers)

    return step


def commit(token: bytes, entries: Sequence[Entry]) -> Step:
    """Moves positions and lets go of partitions. The outcome is the entries that were fenced: those whose position is not reached.

    What was applied before is found applied, whoever holds the partition by then. Raises GroupLostError for who is no member.
    """

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        member = register.member(token)
        if member is None:
            raise lost(register.name)
        for entry in entries:
            if register.partition(entry.topic, entry.partition) is None:
                raise NotFoundError(f"group {register.name!r} has no partition {entry.topic}/{entry.partition}", code="unknown_partition")
        changed = _settled(register, _committed(register, member.number, entries))
        return changed, tuple(entry for entry in entries if not _is_reached(changed, entry))

    return step


def refresh(seen: Sequence[TopicSeen]) -> Step:
    """Takes note of topics that were created again, or have gone."""

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        return _settled(register, _with_topics(register, seen)), None

    return step


def place(name: str, positions: Mapping[Place, int], seen: Sequence[TopicSeen], *, fresh_id: bytes) -> Change:
    """Sets positions, backwards too, of a group that has no members; makes the group where there is none. Raises group_in_use."""

    def change(current: GroupRegister | None) -> GroupRegister:
        register = current
        if register is None or register.deleted:
            register = GroupRegister(fresh_id, name, 1, "", 0, (), ())
        _need_no_members(register, "its positions cannot be set")
        register = _with_topics(register, seen)
        for topic, index in positions:
            if register.partition(topic, index) is None:
                raise NotFoundError(f"there is no partition {index} of topic {topic!r}", code="unknown_partition")
        topics = tuple(
            msgspec.structs.replace(
                topic,
                partitions=tuple(
                    msgspec.structs.replace(p, position=positions.get((topic.name, index), p.position))
                    for index, p in enumerate(topic.partitions)
                ),
            )
            for topic in register.topics
        )
        placed = msgspec.structs.replace(register, topics=topics)
        _need_room(current, placed)
        return placed

    return change


def delete(name: str, *, group_id: bytes) -> Change:
    """Leaves a tombstone, if the group still has this id and no members. Raises group_in_use."""

    def change(current: GroupRegister | None) -> GroupRegister:
        if current is None:
            raise unknown_group(name)
        if current.deleted or current.id != group_id:
            return current
        _need_no_members(current, "it cannot be removed")
        return msgspec.structs.replace(current, topics=(), deleted=True)

    return change


# --- errors -----------------------------------------------------------------------------------------------------------------


def lost(name: str) -> GroupLostError:
    return GroupLostError(
        f"this consumer is no member of group {name!r} any more: it was not heard of for its session, or another took its name",
        hint="open a new consumer: it goes on at the committed positions; what was handled and not committed comes again",
    )


def unknown_group(name: str) -> NotFoundError:
    return NotFoundError(f"there is no group {name!r}", code="unknown_group", hint="`streamq group ls` shows those that there are")


def _need_no_members(register: GroupRegister, what: str) -> None:
    if register.members:
        raise AlreadyExistsError(
            f"group {register.name!r} has {len(register.members)} members: {what}",
            code="group_in_use",
            hint="stop its consumers first; a member that was killed is gone after its session",
        )


def _need_room(before: GroupRegister | None, after: GroupRegister) -> None:
    """Whose names no longer fit is refused, or a later change would not fit into the register, and be refused for everybody in it."""
    size = after.names_bytes
    if size > GROUP_NAMES_BYTES_MAX and (before is None or size > before.names_bytes):
        raise RefusedError(
            f"with this the names in group {after.name!r} would come to {size} bytes; {GROUP_NAMES_BYTES_MAX} are the most there may be",
            code="limit_reached",
            hint="each member's list of topics counts: have members read fewer topics, with shorter names, or take more groups",
        )


# --- inside -----------------------------------------------------------------------------------------------------------------


def _committed(register: GroupRegister, number: int, entries: Sequence[Entry]) -> GroupRegister:
    by_place = {(entry.topic, entry.partition): entry for entry in entries}

    def changed(topic: str, index: int, partition: GroupPartition) -> GroupPartition:
        entry = by_place.get((topic, index))
        if entry is None or partition.holder != number or partition.since != entry.since:
            return partition
        position = partition.position
        if entry.position is not None:
            position = max(entry.position, position or 0)
        # Who lets go of what it may keep is given it anew: a member that restarts its reading.
        holder = NOBODY if entry.releases else partition.holder
        return msgspec.structs.replace(partition, position=position, holder=holder)

    named = {entry.topic for entry in entries}
    topics = tuple(
        msgspec.structs.replace(topic, partitions=tuple(changed(topic.name, i, p) for i, p in enumerate(topic.partitions)))
        if topic.name in named
        else topic
        for topic in register.topics
    )
    return msgspec.structs.replace(register, topics=topics)


def _is_reached(register: GroupRegister, entry: Entry) -> bool:
    partition = register.partition(entry.topic, entry.partition)
    return entry.position is None or (partition is not None and partition.position is not None and partition.position >= entry.position)


def _without(register: GroupRegister, numbers: Collection[int]) -> GroupRegister:
    members = tuple(member for member in register.members if member.number not in numbers)
    return msgspec.structs.replace(register, members=members)


def _with_topics(register: GroupRegister, seen: Sequence[TopicSeen]) -> GroupRegister:
    topics = {topic.name: topic for topic in register.topics}
    for each in seen:
        known = topics.get(each.name)
        if not each.partitions:
            topics.pop(each.name, None)
        elif known is None or known.id != each.id:
            topics[each.name] = GroupTopic(each.name, each.id, (GroupPartition(),) * each.partitions)
        elif len(known.partitions) < each.partitions:
            more = (GroupPartition(),) * (each.partitions - len(known.partitions))
            topics[each.name] = msgspec.structs.replace(known, partitions=known.partitions + more)
    count = sum(len(topic.partitions) for topic in topics.values())
    if count > GROUP_PARTITIONS_MAX:
        raise RefusedError(
            f"group {register.name!r} would have {count} partitions; {GROUP_PARTITIONS_MAX} are the most there may be", code="limit_reached"
        )
    return msgspec.structs.replace(register, topics=tuple(topics[name] for name in sorted(topics)))


def _settled(before: GroupRegister, after: GroupRegister) -> GroupRegister:
    """Targets made even, and what nobody holds given to its target. The generation grows if anything of it changed since `before`."""
    subscriptions = {member.number: frozenset(member.topics) for member in after.members}
    holders = {
        (topic.name, index): (p.holder if p.holder in subscriptions else NOBODY, p.target)
        for topic in after.topics
        for index, p in enumerate(topic.partitions)
    }
    targets = assign(holders, subscriptions)
    generation = before.generation + 1

    def settled(place: Place, partition: GroupPartition) -> GroupPartition:
        holder, target = holders[place][0], targets.get(place, NOBODY)
        if holder != NOBODY or target == NOBODY:
            # Who no longer subscribes to a topic still lets go of it in its own time.
            return GroupPartition(holder, target, partition.since if holder != NOBODY else 0, partition.position)
        return GroupPartition(target, target, generation, partition.position)

    topics = tuple(
        GroupTopic(topic.name, topic.id, tuple(settled((topic.name, i), p) for i, p in enumerate(topic.partitions)))
        for topic in after.topics
    )
    changed = msgspec.structs.replace(after, topics=topics)
    if _shape(changed) == _shape(before):
        return changed
    return msgspec.structs.replace(changed, generation=generation)


def _shape(register: GroupRegister) -> object:
    """All but the positions."""
    return register.members, [(t.name, t.id, [(p.holder, p.target, p.since) for p in t.partitions]) for t in register.topics]
