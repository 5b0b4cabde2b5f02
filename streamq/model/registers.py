"""What the registers hold (P-1), and how their keys are spelt. Values are encoded by `wire.codec`; acceptors see opaque bytes."""

from typing import Literal

import msgspec

from streamq.model.fields import U63, Copies, Epoch, Id16, Identity, Name, Port
from streamq.model.ids import Member
from streamq.model.limits import DEDUP_MS_DEFAULT
from streamq.model.quorum import Quorum

__all__ = [
    "BrokerRegister",
    "ClusterRegister",
    "Durability",
    "PartitionRegister",
    "ProducerRegister",
    "Segment",
    "TopicRegister",
    "Voter",
    "Voters",
    "broker_key",
    "partition_key",
    "producer_key",
    "topic_key",
]

Durability = Literal["fsync", "memory"]


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """The stretch of log written in one epoch, `[base, end)`; `end` is None while it is open.

    `replicas` of an open segment never change; of a closed one they are its holders, each of which holds all of it (P-22).
    `sequencer` names the broker, `attempt` the takeover attempt that opened the epoch (P-5, P-8).
    """

    epoch: Epoch
    base: U63
    end: U63 | None
    replicas: tuple[Member, ...]
    write: Copies
    read: Copies
    durability: Durability
    sequencer: Name
    attempt: Identity

    @property
    def is_open(self) -> bool:
        return self.end is None

    @property
    def quorum(self) -> Quorum:
        return Quorum(len(self.replicas), self.write, self.read)

    def member(self, broker: str) -> Member | None:
        """The replica named for this broker, in whatever incarnation; None if it is none."""
        return next((m for m in self.replicas if m.broker == broker), None)


class PartitionRegister(msgspec.Struct, frozen=True, array_like=True):
    """`partition/<topic>/<p>`: settings, start offset, chain of segments oldest first. A tombstone keeps the id (P-6)."""

    id: Id16
    topic: Name
    index: U63
    replicas: tuple[Name, ...]
    write: Copies
    read: Copies
    durability: Durability
    start_offset: U63
    chain: tuple[Segment, ...]
    deleted: bool = False
    retention_bytes: U63 | None = None
    """Of one replica, compressed; None: whatever it takes is kept."""
    retention_ms: U63 | None = None
    """By append times; None: kept for ever."""
    settings: U63 = 0
    """Which of the topic's settings these are: `TopicRegister.settings`."""
    dedup_ms: U63 = DEDUP_MS_DEFAULT
    """For how long the ids of records count; zero: records with ids are refused."""

    @property
    def last(self) -> Segment:
        return self.chain[-1]

    def segment(self, epoch: int) -> Segment | None:
        first = self.chain[0].epoch if self.chain else 0
        return self.chain[epoch - first] if self.chain and 0 <= epoch - first < len(self.chain) else None

    def fault(self) -> str | None:
        """I-8: epochs are consecutive, each base is the end before it, only the last is open. Each has replicas enough to write to.

        None when it holds; a tombstone has no chain."""
        if not self.deleted and not (self.chain and self.replicas):
            return f"partition {self.id.hex()} has {len(self.chain)} segments and {len(self.replicas)} replicas"
        for segment in self.chain:
            if segment.end is not None and segment.end < segment.base:
                return f"epoch {segment.epoch} begins at {segment.base} and ends at {segment.end}"
            if segment.write > len(segment.replicas):
                return f"epoch {segment.epoch} has {len(segment.replicas)} replicas and a write quorum of {segment.write}"
        for before, after in zip(self.chain, self.chain[1:], strict=False):
            if after.epoch != before.epoch + 1:
                return f"epoch {after.epoch} follows epoch {before.epoch}"
            if before.end is None or before.end != after.base:
                return f"epoch {before.epoch} ends at {before.end}, epoch {after.epoch} begins at {after.base}"
        return None


class TopicRegister(msgspec.Struct, frozen=True, array_like=True):
    """`topic/<name>`: the settings new partitions were made with, and their ids in order. A tombstone is `deleted`."""

    name: Name
    id: Identity
    partitions: tuple[Id16, ...]
    replicas: Copies
    write: Copies
    read: Copies
    durability: Durability
    created_ms: U63
    deleted: bool = False
    retention_bytes: U63 | None = None
    retention_ms: U63 | None = None
    settings: U63 = 0
    """How often its settings were altered."""
    dedup_ms: U63 = DEDUP_MS_DEFAULT

    def fault(self) -> str | None:
        """Why its numbers cannot be those of a topic; None when they can."""
        return Quorum(self.replicas, self.write, self.read).fault()


class ProducerRegister(msgspec.Struct, frozen=True, array_like=True):
    """`producer/<name>`: the id that a named producer keeps, how often it was opened, and by which attempt last (P-33, P-5).

    Of its transactions those up to `decided` are decided: committed, but for the `aborted` ones and, up to `moved`, those that are in the
    registers of their blocks (`model.transactions`).
    """

    id: Id16
    epoch: U63
    attempt: Identity
    timeout_ms: U63 = 0
    """How old a transaction may become; 0: it was never opened for transactions."""
    decided: U63 = 0
    aborted: tuple[U63, ...] = ()
    moved: U63 = 0

    @property
    def is_transactional(self) -> bool:
        return self.timeout_ms > 0


class BrokerRegister(msgspec.Struct, frozen=True, array_like=True):
    """`broker/<id>`: where a broker is, in which incarnation, and how often its directory was started (P-31)."""

    broker: Name
    incarnation: Identity
    host: Name
    port: Port
    rack: Name
    starts: U63


class ClusterRegister(msgspec.Struct, frozen=True, array_like=True):
    """`cluster`: the id and the brokers that may hold replicas."""

    id: Identity
    brokers: tuple[Name, ...]


class Voter(msgspec.Struct, frozen=True, array_like=True):
    """A metadata voter: a broker in one incarnation, with the address it was first known by."""

    broker: Name
    incarnation: Identity
    host: Name
    port: Port

    @property
    def member(self) -> Member:
        return Member(self.broker, self.incarnation)


class Voters(msgspec.Struct, frozen=True, array_like=True):
    """A numbered voter configuration (P-40); number 1 is written once, when the cluster is made."""

    number: U63
    voters: tuple[Voter, ...]

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    def voter(self, broker: str) -> Voter | None:
        return next((v for v in self.voters if v.broker == broker), None)

    def names(self, member: Member) -> bool:
        """Whether this configuration names that broker in that incarnation."""
        return any(v.member == member for v in self.voters)


def broker_key(broker: str) -> str:
    return f"broker/{broker}"


def topic_key(topic: str) -> str:
    return f"topic/{topic}"


def partition_key(topic: str, index: int) -> str:
    return f"partition/{topic}/{index}"


def producer_key(name: str) -> str:
    return f"producer/{name}"
