"""The functions that change a group's register: pure, and safe to apply to their own result (P-5).

A `Step` takes the register to the next one and has an outcome for whoever asked; the coordinator applies all that wait for it in one
change (`apply_steps`). What fences whom:

- A commit moves a position only where the member holds the partition in the register and got it in the generation that it says. A member
  that was thought dead, and whose partition went to another, commits to nothing: two may handle a record, only one moves the position.
- A partition goes from one living member to another only when the first lets go of it, with what it has handled: nobody waits for more
  than that partition, and no position is lost.
- A register names its coordinator; the changes of another, which may have an old idea of who lives, are refused.
- Positions only grow, but by `seek`, for which the group has to be without members.

A position that is committed in a transaction is written beside the old one, with the transaction's name: which of the two counts is what
became of the transaction (`metadata.transactions`), so it moves in the very change that commits it. What that leads to:

- The pending position was written by who held the partition, so a transaction of a member that lost it before has nothing to commit.
- Who is no longer a member may still commit the transaction whose position it wrote when it was one. So the partition goes to nobody
  until that is decided, and to decide it the coordinator aborts the transaction unless it is: either its position counts and the next
  member begins behind it, or the next member begins before it and nothing of the transaction is ever seen.
- Nothing else is written over a pending position. A step that would do so raises UndecidedError; the coordinator has the transactions
  decided (`settled`) and applies the step again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from streamq.groups.assignment import Place, assign
from streamq.model.errors import (
    AlreadyExistsError,
    GroupLostError,
    NotCoordinatorError,
    NotFoundError,
    RefusedError,
    StreamqError,
    UnavailableError,
)
from streamq.model.groups import NOBODY, Entry, GroupMember, GroupPartition, GroupRegister, GroupTopic, Pending
from streamq.model.limits import GROUP_MEMBERS_MAX, GROUP_NAMES_BYTES_MAX, GROUP_PARTITIONS_MAX, GROUP_PENDING_MAX
from streamq.model.transactions import Transaction

__all__ = [
    "Joining",
    "Step",
    "TopicSeen",
    "UndecidedError",
    "apply_steps",
    "commit",
    "coordinate",
    "delete",
    "expire",
    "join",
    "leave",
    "lost",
    "orphans",
    "pending",
    "place",
    "refresh",
    "settled",
    "unknown_group",
    "with_outcomes",
]

Step = Callable[[GroupRegister], tuple[GroupRegister, object]]
"""From a register to the next and the outcome. Raises StreamqError to leave it as it is."""
Change = Callable[[GroupRegister | None], GroupRegister]


class TopicSeen(NamedTuple):
    """A topic as its register was read; no partitions: it is gone."""

    name: str
    id: bytes
    partitions: int


class UndecidedError(UnavailableError):
    """These transactions have to be decided first."""

    def __init__(self, transactions: Collection[Transaction]) -> None:
        super().__init__("a transaction is not decided yet", code="not_ready", hint="try again")
        self.transactions = frozenset(transactions)


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
            if known is not None:
                _need_decided(p for topic in register.topics for p in topic.partitions if p.holder == known.number)
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
        committed = _committed(register, member.number, entries, None)
        return _settled(register, _without(committed, {member.number})), None

    return step


def expire(tokens: Collection[bytes]) -> Step:
    """Takes members out whose sessions are over, with what they have handled as last committed."""

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        numbers = {member.number for member in register.members if member.token in tokens}
        return (_settled(register, _without(register, numbers)) if numbers else register), len(numbers)

    return step


def commit(token: bytes, entries: Sequence[Entry], transaction: Transaction | None = None) -> Step:
    """Moves positions and lets go of partitions. The outcome is the entries that were fenced: those whose position is not reached.

    With a `transaction` positions are pending until that is decided, and no partition is let go of. What was applied before is found
    applied, whoever holds the partition by then. Raises GroupLostError for who is no member, UndecidedError.
    """

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        member = register.member(token)
        if member is None:
            raise lost(register.name)
        for entry in entries:
            if register.partition(entry.topic, entry.partition) is None:
                raise NotFoundError(f"group {register.name!r} has no partition {entry.topic}/{entry.partition}", code="unknown_partition")
        changed = _settled(register, _committed(register, member.number, entries, transaction))
        if transaction is not None and sum(p.pending is not None for t in changed.topics for p in t.partitions) > GROUP_PENDING_MAX:
            message = f"{GROUP_PENDING_MAX} positions of group {register.name!r} wait for transactions, the most there may be"
            raise RefusedError(message, code="limit_reached", hint="commit the positions of fewer partitions in one transaction")
        return changed, tuple(entry for entry in entries if not _is_reached(changed, entry, transaction, member.number))

    return step


def settled(outcomes: Mapping[Transaction, bool]) -> Step:
    """Makes the pending positions of transactions count that are committed, and drops those of aborted ones; the others stay."""

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        return _settled(register, with_outcomes(register, outcomes)), None

    return step


def with_outcomes(register: GroupRegister, outcomes: Mapping[Transaction, bool]) -> GroupRegister:
    """The positions as they are when these transactions are committed (True) or aborted."""

    def decided(partition: GroupPartition) -> GroupPartition:
        pending = partition.pending
        if pending is None or pending.transaction not in outcomes:
            return partition
        position = max(pending.position, partition.position or 0) if outcomes[pending.transaction] else partition.position
        return msgspec.structs.replace(partition, position=position, pending=None)

    topics = tuple(
        msgspec.structs.replace(topic, partitions=tuple(decided(p) for p in topic.partitions)) if _is_pending(topic) else topic
        for topic in register.topics
    )
    return msgspec.structs.replace(register, topics=topics)


def pending(register: GroupRegister) -> frozenset[Transaction]:
    """The transactions on which positions hang."""
    return frozenset(p.pending.transaction for topic in register.topics for p in topic.partitions if p.pending is not None)


def orphans(register: GroupRegister) -> frozenset[Transaction]:
    """Those of them that keep a partition from who is to have it."""
    found = [p for topic in register.topics for p in topic.partitions if p.holder == NOBODY]
    return frozenset(p.pending.transaction for p in found if p.pending is not None)


def refresh(seen: Sequence[TopicSeen]) -> Step:
    """Takes note of topics that were created again, or have gone."""

    def step(register: GroupRegister) -> tuple[GroupRegister, object]:
        return _settled(register, _with_topics(register, seen)), None

    return step


def place(
    name: str, positions: Mapping[Place, int], seen: Sequence[TopicSeen], *, fresh_id: bytes, outcomes: Mapping[Transaction, bool]
) -> Change:
    """Sets positions, backwards too, of a group that has no members; makes the group where there is none. Raises group_in_use, and
    UndecidedError for pending positions whose transactions are not among `outcomes`."""

    def change(current: GroupRegister | None) -> GroupRegister:
        register = current
        if register is None or register.deleted:
            register = GroupRegister(fresh_id, name, 1, "", 0, (), ())
        _need_no_members(register, "its positions cannot be set")
        register = with_outcomes(_with_topics(register, seen), outcomes)
        for topic, index in positions:
            if (partition := register.partition(topic, index)) is not None:
                _need_decided([partition])
            else:
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


def _need_decided(partitions: Iterable[GroupPartition], but: Transaction | None = None) -> None:
    """Raises UndecidedError if a position is pending, in another transaction than `but`."""
    found = {p.pending.transaction for p in partitions if p.pending is not None} - {but}
    if found:
        raise UndecidedError(found)


def _is_pending(topic: GroupTopic) -> bool:
    return any(partition.pending is not None for partition in topic.partitions)


def _committed(register: GroupRegister, number: int, entries: Sequence[Entry], transaction: Transaction | None) -> GroupRegister:
    by_place = {(entry.topic, entry.partition): entry for entry in entries}

    def is_fenced(entry: Entry, partition: GroupPartition | None) -> bool:
        return partition is None or partition.holder != number or partition.since != entry.since

    named_partitions = [(entry, register.partition(*place)) for place, entry in by_place.items()]
    _need_decided((p for entry, p in named_partitions if p is not None and not is_fenced(entry, p)), transaction)

    def changed(topic: str, index: int, partition: GroupPartition) -> GroupPartition:
        entry = by_place.get((topic, index))
        if entry is None or is_fenced(entry, partition):
            return partition
        position = partition.position
        if transaction is not None:
            before = partition.pending.position if partition.pending is not None else -1 if position is None else position
            if entry.position is None or entry.position <= before:
                return partition
            return msgspec.structs.replace(partition, pending=Pending(*transaction, entry.position))
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


def _is_reached(register: GroupRegister, entry: Entry, transaction: Transaction | None, number: int) -> bool:
    partition = register.partition(entry.topic, entry.partition)
    if entry.position is None:
        return True
    if partition is None:
        return False
    if transaction is not None:
        if partition.pending is not None and partition.pending.transaction == transaction:
            return partition.pending.position >= entry.position
        if partition.holder != number or partition.since != entry.since:
            return False  # whoever has come so far meanwhile: it was not this transaction
    return partition.position is not None and partition.position >= entry.position


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
        if holder != NOBODY or target == NOBODY or partition.pending is not None:
            # Who no longer subscribes to a topic still lets go of it in its own time.
            return GroupPartition(holder, target, partition.since if holder != NOBODY else 0, partition.position, partition.pending)
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
