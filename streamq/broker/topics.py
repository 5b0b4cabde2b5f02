"""Topics: creating, deleting, listing, describing, and finding where their partitions live."""

import logging
import re
from collections.abc import Iterable
from typing import Final

import msgspec
import trio

from streamq.broker.each import each
from streamq.broker.node import Node
from streamq.broker.tips import read_tip
from streamq.metadata.changes import create_partition, create_topic, delete_partition, delete_topic
from streamq.metadata.placement import Load, Site, place
from streamq.model.errors import AlreadyExistsError, NotFoundError, RefusedError, StreamqError, UnavailableError
from streamq.model.ids import Member
from streamq.model.limits import (
    DEDUP_MS_DEFAULT,
    DEDUP_MS_MAX,
    DEDUP_MS_MIN,
    NAME_CHARS_MAX,
    PARTITIONS_PER_TOPIC_MAX,
    RETENTION_BYTES_MIN,
    RETENTION_MS_MIN,
    TOPICS_MAX,
)
from streamq.model.messages import (
    AlterTopic,
    BrokerAddress,
    CreateTopic,
    MetadataView,
    Open,
    PartitionDescription,
    PartitionView,
    ReplicaView,
    TakeOver,
    Tip,
    TipAnswer,
    TopicView,
)
from streamq.model.quorum import Quorum, majority
from streamq.model.registers import BrokerRegister, PartitionRegister, Segment, TopicRegister, broker_key, partition_key, topic_key

__all__ = ["Topics"]

log = logging.getLogger(__name__)

TOPIC_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_CHARS_MAX}}}")
AT_ONCE: Final = 32
"""Partitions of one request worked on at a time."""
TIP_TIMEOUT_S: Final = 3.0
REPLICA_TIMEOUT_S: Final = 0.5
HINTS_MAX: Final = 4 * PARTITIONS_PER_TOPIC_MAX
HINT_AGE_S: Final = 1.0
"""A hint about a partition of which no replica lies here is read again when it is older."""


def check_name(name: str) -> None:
    if not TOPIC_NAME.fullmatch(name) or name in (".", ".."):
        raise RefusedError(
            f"{name[:80]!r} is no topic name: 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes and underscores",
            code="bad_name",
            hint="for example: orders.v1",
        )


def check_settings(message: CreateTopic | AlterTopic) -> None:
    """Raises RefusedError for a retention under which there would be nothing but files, and for a window that is no use."""
    if message.dedup_ms and not DEDUP_MS_MIN <= message.dedup_ms <= DEDUP_MS_MAX:
        raise RefusedError(f"dedup_ms is {DEDUP_MS_MIN} to {DEDUP_MS_MAX}, or 0, not {message.dedup_ms}", code="bad_request")
    lasts_for_ever = 0 if isinstance(message, AlterTopic) else None
    if message.retention_bytes not in (None, lasts_for_ever) and message.retention_bytes < RETENTION_BYTES_MIN:
        raise RefusedError(f"retention_bytes is at least {RETENTION_BYTES_MIN}, not {message.retention_bytes}", code="bad_request")
    if message.retention_ms not in (None, lasts_for_ever) and message.retention_ms < RETENTION_MS_MIN:
        raise RefusedError(f"retention_ms is at least {RETENTION_MS_MIN}, not {message.retention_ms}", code="bad_request")


def unknown_topic(name: str) -> NotFoundError:
    return NotFoundError(
        f"topic {name!r} does not exist",
        code="unknown_topic",
        hint=f"`streamq topic ls` lists the topics; `streamq topic create {name}` makes this one",
    )


class Topics:
    def __init__(self, node: Node) -> None:
        self.node = node
        self._read_at: dict[str, float] = {}
        self._opening: set[str] = set()

    async def register(self, name: str) -> TopicRegister:
        """By a quorum read. Raises NotFoundError."""
        register = await self.node.registers.get_as(TopicRegister, topic_key(name))
        if register is None or register.deleted:
            raise unknown_topic(name)
        return register

    async def list(self) -> list[TopicRegister]:
        keys = await self.node.registers.list("topic/")
        found: dict[str, TopicRegister] = {}

        async def read(key: str) -> None:
            register = await self.node.registers.get_as(TopicRegister, key)
            if register is not None and not register.deleted:
                found[key] = register

        await each(keys, read, at_once=AT_ONCE)
        return [found[key] for key in sorted(found)]

    # --- creating and deleting

    async def create(self, message: CreateTopic) -> TopicRegister:
        """Writes the topic, then its partitions, then has their sequencers open them. May be asked again after any failure."""
        check_name(message.name)
        if not 1 <= message.partitions <= PARTITIONS_PER_TOPIC_MAX:
            raise RefusedError(f"a topic has 1 to {PARTITIONS_PER_TOPIC_MAX} partitions, not {message.partitions}", code="bad_request")
        brokers = await self.brokers()
        replicas = message.replicas or min(3, len(brokers))
        write = message.write or majority(replicas)
        quorum = Quorum(replicas, write, message.read or max(majority(replicas), replicas - write + 1))
        fault = quorum.fault()
        if fault is None and replicas > len(brokers):
            fault = f"{replicas} replicas need as many brokers, and there are {len(brokers)}"
        if fault is not None:
            n = min(3, len(brokers))
            hint = f"for example: --replicas {n} --write-quorum {majority(n)} --read-quorum {majority(n)}"
            raise RefusedError(fault, code="bad_quorum", hint=hint)
        check_settings(message)
        if len(await self.node.registers.list("topic/")) >= TOPICS_MAX:
            raise RefusedError(f"there have been {TOPICS_MAX} topics, the most that a cluster keeps names of", code="limit_reached")
        before = await self.node.registers.get_as(TopicRegister, topic_key(message.name))
        if before is not None and not before.deleted:
            raise AlreadyExistsError(f"topic {message.name!r} exists", code="topic_exists", hint="choose another name, or remove it first")
        clock = self.node.clock
        topic = TopicRegister(
            message.name, clock.token(), tuple(clock.token() for _ in range(message.partitions)),
            quorum.replicas, quorum.write, quorum.read, message.durability, clock.now_ms(),
            retention_bytes=message.retention_bytes, retention_ms=message.retention_ms,
            dedup_ms=DEDUP_MS_DEFAULT if message.dedup_ms is None else message.dedup_ms,
        )  # fmt: skip
        topic = await self.node.registers.change_as(
            TopicRegister, topic_key(topic.name), create_topic(topic, over=before.id if before is not None else None)
        )
        await self.create_partitions(topic, brokers, range(len(topic.partitions)))
        return topic

    async def brokers(self) -> dict[str, BrokerRegister]:
        found: dict[str, BrokerRegister] = {}
        for key in await self.node.registers.list("broker/"):
            register = await self.node.registers.get_as(BrokerRegister, key)
            if register is not None:
                found[register.broker] = register
        return found

    async def create_partitions(self, topic: TopicRegister, brokers: dict[str, BrokerRegister], indexes: Iterable[int]) -> None:
        """Those of these that do not exist yet; anybody may finish what a creator left undone: the first creation of an id stays."""
        # A broker that is down would leave its partitions one copy short from the start: only where there are not enough others.
        alive = [b for b in brokers.values() if self.node.peers.is_alive(b.broker)]
        sites = [Site(b.broker, b.rack) for b in (alive if len(alive) >= topic.replicas else brokers.values())]
        if len(sites) < topic.replicas:
            raise UnavailableError(f"{topic.replicas} replicas need as many brokers, and {len(sites)} are known", code="unavailable")
        seed = int.from_bytes(topic.id[:8], "little")
        placement = place(sites, partitions=len(topic.partitions), replicas=topic.replicas, seed=seed, load=self._load())

        async def make(index: int) -> None:
            await self._create_partition(topic, index, placement[index], brokers)

        await each(indexes, make, at_once=AT_ONCE)

    def _load(self) -> dict[str, Load]:
        """What each broker carries, as far as known here: only balance depends on it."""
        replicas: dict[str, int] = {}
        sequencers: dict[str, int] = {}
        for partition in self.node.partitions.values():
            opened = partition.open_segment
            if opened is not None:
                for member in opened.replicas:
                    replicas[member.broker] = replicas.get(member.broker, 0) + 1
                sequencers[opened.sequencer] = sequencers.get(opened.sequencer, 0) + 1
        return {broker: Load(replicas[broker], sequencers.get(broker, 0)) for broker in replicas}

    async def _create_partition(
        self, topic: TopicRegister, index: int, chosen: tuple[str, ...], brokers: dict[str, BrokerRegister]
    ) -> None:
        """The first epoch has no sequencer: the preferred one opens the second by an ordinary takeover (P-8)."""
        key = partition_key(topic.name, index)
        members = tuple(Member(broker, brokers[broker].incarnation) for broker in chosen)
        first = Segment(1, 0, None, members, topic.write, topic.read, topic.durability, "", self.node.clock.token())
        register = PartitionRegister(
            topic.partitions[index], topic.name, index, chosen, topic.write, topic.read, topic.durability, 0, (first,),
            retention_bytes=topic.retention_bytes, retention_ms=topic.retention_ms, settings=topic.settings,
            dedup_ms=topic.dedup_ms,
        )  # fmt: skip
        before = await self.node.registers.get_as(PartitionRegister, key)
        over = before.id if before is not None and before.id != register.id else None
        if before is not None and over is not None and not before.deleted:
            if (await self.register(topic.name)).id != topic.id:
                raise UnavailableError(f"topic {topic.name!r} was deleted while it was created", code="conflict")
            tombstone = msgspec.structs.replace(before, deleted=True, chain=())
            await self.node.registers.change_as(PartitionRegister, key, delete_partition(tombstone))
        await self.node.registers.change_as(PartitionRegister, key, create_partition(register, over=over))
        for broker in sorted(chosen, key=lambda b: not self.node.peers.is_alive(b)):
            try:
                await self._have_opened(broker, topic.name, index)
                return
            except StreamqError as error:
                log.info("%s/%d: %s could not open it: %s", topic.name, index, broker, error)
        raise UnavailableError(
            f"topic {topic.name!r} is created, but no replica could open partition {index}",
            code="unavailable",
            hint="it opens when brokers are back",
        )

    async def _open_at_last(self, key: str, register: PartitionRegister) -> None:
        """Whoever created it could not have it opened, and without a sequencer no replica knows of it: who asks for it brings it about."""
        try:
            for broker in sorted(register.replicas, key=lambda b: not self.node.peers.is_alive(b)):
                try:
                    await self._have_opened(broker, register.topic, register.index)
                    return
                except StreamqError as error:
                    log.info("%s/%d: %s could not open it: %s", register.topic, register.index, broker, error)
        finally:
            self._opening.discard(key)

    async def _have_opened(self, broker: str, topic: str, index: int) -> None:
        if broker == self.node.broker:
            await self.node.take_over_here(topic, index, 1, "it is new")
        else:
            await self.node.peers.request(broker, TakeOver(topic, index, 1), TIP_TIMEOUT_S)

    async def delete(self, name: str) -> None:
        """The topic's tombstone first: from then on it does not exist. Replicas drop their data when they learn of their partition's.

        Asked again after it was interrupted, it finishes what is left.
        """
        topic = await self.node.registers.get_as(TopicRegister, topic_key(name))
        if topic is None:
            raise unknown_topic(name)
        left: Iterable[int] = range(len(topic.partitions))
        if topic.deleted:
            left = await self._not_deleted(topic)
            if not left:
                raise unknown_topic(name)
        else:
            await self.node.registers.change_as(TopicRegister, topic_key(name), delete_topic(name, topic_id=topic.id))

        async def remove(index: int) -> None:
            await self._delete_partition(topic, index)

        await each(left, remove, at_once=AT_ONCE)

    async def _not_deleted(self, topic: TopicRegister) -> set[int]:
        """Partitions of this topic without a tombstone, never written ones included: a late creation must find theirs (P-6)."""
        left: set[int] = set()

        async def look(index: int) -> None:
            register = await self.node.registers.get_as(PartitionRegister, partition_key(topic.name, index))
            if register is None or (register.id == topic.partitions[index] and not register.deleted):
                left.add(index)

        await each(range(len(topic.partitions)), look, at_once=AT_ONCE)
        return left

    async def _delete_partition(self, topic: TopicRegister, index: int) -> None:
        tombstone = PartitionRegister(
            topic.partitions[index], topic.name, index, (), topic.write, topic.read, topic.durability, 0, (), deleted=True
        )
        register = await self.node.registers.change_as(PartitionRegister, partition_key(topic.name, index), delete_partition(tombstone))
        for peer in self.node.peers:
            if peer.channel is not None:
                peer.channel.send(Open(register))
        partition = self.node.partitions.get(tombstone.id)
        if partition is not None and register.deleted:
            partition.drop()

    # --- finding and describing

    async def metadata(self, names: tuple[str, ...]) -> MetadataView:
        """Hints for clients (P-1); a topic that is not known here is looked up by a quorum read."""
        node = self.node
        topics = [await self._view(name) for name in names] if names else [await self._view(t.name) for t in await self.list()]
        mine = BrokerAddress(node.broker, *node.config.address, node.config.rack, True)
        others = []
        for peer in node.peers:
            register = node.registers.cached_as(BrokerRegister, broker_key(peer.broker))
            rack = register.rack if register is not None else ""
            others.append(BrokerAddress(peer.broker, peer.host, peer.port, rack, node.peers.is_alive(peer.broker)))
        return MetadataView(node.identity.cluster, (mine, *others), tuple(topics))

    async def _view(self, name: str) -> TopicView:
        try:
            check_name(name)
            topic = self.node.registers.cached_as(TopicRegister, topic_key(name))
            if topic is None or topic.deleted or self._is_old(topic_key(name)):
                topic = await self.register(name)
            return TopicView(name, tuple([await self._partition_view(topic, index) for index in range(len(topic.partitions))]))
        except (NotFoundError, RefusedError) as error:
            return TopicView(name, (), error.code)

    def _is_old(self, key: str) -> bool:
        """Whether the hint should be read again now; if so, the next is not for HINT_AGE_S."""
        now = trio.current_time()
        if now <= self._read_at.get(key, -HINT_AGE_S) + HINT_AGE_S:
            return False
        if len(self._read_at) > HINTS_MAX:
            self._read_at.clear()
        self._read_at[key] = now
        return True

    async def _partition_view(self, topic: TopicRegister, index: int) -> PartitionView:
        partition = self.node.partitions.get(topic.partitions[index])
        opened = partition.open_segment if partition is not None else None
        if opened is not None and partition is not None and opened.sequencer:
            replicas = tuple(m.broker for m in opened.replicas)
            return PartitionView(partition.id, opened.epoch, opened.sequencer, replicas, partition.replica.state.start_offset)
        key = partition_key(topic.name, index)
        register = self.node.registers.cached_as(PartitionRegister, key)
        if register is None or register.deleted or not self.node.peers.is_alive(register.last.sequencer) or self._is_old(key):
            register = await self.node.registers.get_as(PartitionRegister, key)
        if register is None or (register.deleted and register.id != topic.partitions[index]):
            await self.create_partitions(topic, await self.brokers(), [index])
            register = await self.node.registers.get_as(PartitionRegister, key)
        if register is None or register.deleted:
            raise unknown_topic(topic.name)
        last = register.last
        if not last.sequencer and key not in self._opening:
            self._opening.add(key)
            self.node.nursery.start_soon(self._open_at_last, key, register)
        return PartitionView(register.id, last.epoch, last.sequencer, tuple(m.broker for m in last.replicas), register.start_offset)

    async def describe(self, name: str, index: int) -> PartitionDescription:
        topic = await self.register(name)
        if index >= len(topic.partitions):
            raise NotFoundError(f"topic {name!r} has partitions 0 to {len(topic.partitions) - 1}", code="unknown_partition")
        register = await self.node.registers.get_as(PartitionRegister, partition_key(name, index))
        if register is None or register.deleted:
            raise NotFoundError(f"partition {name}/{index} does not exist (yet)", code="unknown_partition")
        high_watermark: int | None = None
        error = ""
        try:
            result, register = await read_tip(self.node, name, index, deadline_s=TIP_TIMEOUT_S)
            high_watermark = result.high_watermark
        except StreamqError as problem:
            error = str(problem)
        views: dict[str, ReplicaView] = {}
        async with trio.open_nursery() as nursery:
            for member in register.last.replicas:
                nursery.start_soon(self._look_at, register, member, views)
        return PartitionDescription(register, high_watermark, error, tuple(views[m.broker] for m in register.last.replicas))

    async def _look_at(self, register: PartitionRegister, member: Member, views: dict[str, ReplicaView]) -> None:
        node, last, broker = self.node, register.last, member.broker
        peer = node.peers.get(broker)
        rejoined = peer is not None and peer.member is not None and peer.member != member
        try:
            if broker == node.broker:
                partition = node.partitions.get(register.id)
                if partition is None:
                    raise UnavailableError("not opened", code="not_replica")
                tail = partition.replica.local_tail(last.epoch)
                state = "limbo" if partition.replica.in_limbo(last.epoch) else "serving" if tail is not None else "not-opened"
                epoch, offset = partition.replica.high_watermark
                views[broker] = ReplicaView(broker, tail, offset if epoch == last.epoch else None, state)
                return
            answer = await node.peers.request(broker, Tip(register.id, last.epoch, last.base), REPLICA_TIMEOUT_S)
            if not isinstance(answer, TipAnswer):
                raise UnavailableError(f"{broker} answered a tip read with {type(answer).__name__}", code="unavailable")
            state = "rejoined" if rejoined else "limbo" if answer.limbo else "sealed" if answer.sealed else "serving"
            views[broker] = ReplicaView(broker, answer.local_tail, answer.high_watermark, state)
        except StreamqError:
            views[broker] = ReplicaView(broker, None, None, "rejoined" if rejoined else "unreachable")
