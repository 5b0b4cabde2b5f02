"""Consumer groups as values: the register of a group, which holds its members, who has which partition, and the committed positions.

All of it lies in one register, so that a commit is fenced by the very value that it changes: whoever does not hold a partition in it any
more cannot move its position (P-1, P-5). `streamq.groups` has the functions that change it.
"""

from typing import Annotated, NamedTuple

import msgspec

from streamq.model.fields import U63, Id16, Identity, Name
from streamq.model.limits import GROUP_MEMBERS_MAX, GROUP_PARTITIONS_MAX, GROUP_TOPICS_MAX, NAME_FRAME_BYTES_MAX
from streamq.model.transactions import Transaction

__all__ = [
    "NOBODY",
    "Entry",
    "GroupMember",
    "GroupPartition",
    "GroupRegister",
    "GroupTopic",
    "Held",
    "HeldTopic",
    "Pending",
    "Subscription",
    "group_key",
    "held_by",
]

NOBODY = 0
"""The number of no member."""

Subscription = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=GROUP_TOPICS_MAX)]


class GroupMember(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`token` is drawn by the member for each joining; `name` is empty, or what a static member keeps over restarts, `number` with it."""

    number: U63
    token: Id16
    name: Name
    topics: Subscription
    session_ms: U63


class Pending(NamedTuple):
    """A position that counts if this transaction is committed."""

    producer: Id16
    number: U63
    position: U63

    @property
    def transaction(self) -> Transaction:
        return Transaction(self.producer, self.number)


class GroupPartition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One partition in a group. `holder` alone may commit; while it is not `target` it is to finish what it has in hand and let go.

    `since` is the generation in which the holder got it. `position` is the next offset to be handled, None before the first commit.
    Nobody else gets the partition while a position is `pending`: it would not know where to begin.
    """

    holder: U63 = NOBODY
    target: U63 = NOBODY
    since: U63 = 0
    position: U63 | None = None
    pending: Pending | None = None


class GroupTopic(msgspec.Struct, frozen=True, array_like=True):
    """`id` is the topic register's: a topic that is created again starts without positions."""

    name: Name
    id: Identity
    partitions: tuple[GroupPartition, ...]


class GroupRegister(msgspec.Struct, frozen=True, array_like=True):
    """`group/<name>`. `generation` grows whenever members or their partitions change, `coordinator` alone may change these.

    Topics stay, with their positions, when nobody subscribes to them any more. A tombstone is `deleted` and keeps the id.
    """

    id: Id16
    name: Name
    generation: U63
    coordinator: Name
    last_number: U63
    members: Annotated[tuple[GroupMember, ...], msgspec.Meta(max_length=GROUP_MEMBERS_MAX)]
    topics: tuple[GroupTopic, ...]
    deleted: bool = False

    def member(self, token: bytes) -> GroupMember | None:
        return next((member for member in self.members if member.token == token), None)

    def topic(self, name: str) -> GroupTopic | None:
        return next((topic for topic in self.topics if topic.name == name), None)

    def partition(self, topic: str, index: int) -> GroupPartition | None:
        known = self.topic(topic)
        return known.partitions[index] if known is not None and 0 <= index < len(known.partitions) else None

    @property
    def names_bytes(self) -> int:
        """What its names come to, encoded; GROUP_NAMES_BYTES_MAX bounds it."""
        of_members = sum(_bytes_of(member.name) + sum(map(_bytes_of, member.topics)) for member in self.members)
        return of_members + sum(_bytes_of(topic.name) for topic in self.topics)

    def fault(self) -> str | None:
        """Why no group has this value; None if one may."""
        numbers = {member.number for member in self.members}
        if len(numbers) != len(self.members) or NOBODY in numbers or max(numbers, default=0) > self.last_number:
            return f"members {sorted(numbers)} of which the last is {self.last_number}"
        if len({member.token for member in self.members}) != len(self.members):
            return "two members have one token"
        known = numbers | {NOBODY}
        for topic in self.topics:
            for index, partition in enumerate(topic.partitions):
                if partition.holder not in known or partition.target not in known or partition.since > self.generation:
                    return f"{topic.name}/{index} is {partition} in generation {self.generation} with members {sorted(numbers)}"
        return None


class Held(NamedTuple):
    """A partition that a member has: begin at `position` (None: nobody has committed one), let go of it if `is_leaving`."""

    partition: U63
    since: U63
    position: U63 | None
    is_leaving: bool


class HeldTopic(NamedTuple):
    topic: Name
    partitions: Annotated[tuple[Held, ...], msgspec.Meta(max_length=GROUP_PARTITIONS_MAX)]


class Entry(NamedTuple):
    """What a member says of a partition that it got in generation `since`: handled up to `position` (None: nothing new), and whether it
    lets go of it."""

    topic: Name
    partition: U63
    since: U63
    position: U63 | None
    releases: bool = False


def held_by(register: GroupRegister, number: int) -> tuple[HeldTopic, ...]:
    """What the member with this number has."""
    held = []
    for topic in register.topics:
        partitions = tuple(
            Held(index, p.since, p.position, p.target != number) for index, p in enumerate(topic.partitions) if p.holder == number
        )
        if partitions:
            held.append(HeldTopic(topic.name, partitions))
    return tuple(held)


def _bytes_of(name: str) -> int:
    return len(name.encode()) + NAME_FRAME_BYTES_MAX


def group_key(name: str) -> str:
    return f"group/{name}"
