"""Altering a topic: its settings in the topic's register first, then in those of its partitions, each safe to do again (P-5, P-36).

The register of the topic decides and is numbered, so that whoever is late with a partition never puts older settings over newer ones, and
whoever alters it again, or alters nothing, finishes what another left undone.
"""

import logging
from typing import Final

import msgspec

from streamq.broker.each import each
from streamq.broker.topics import Topics, check_name, check_settings
from streamq.metadata.changes import alter_topic, take_settings
from streamq.model.errors import RefusedError, StreamqError
from streamq.model.messages import AlterTopic, Open, TakeOver, TopicAltered
from streamq.model.quorum import Quorum, majority
from streamq.model.registers import PartitionRegister, TopicRegister, partition_key, topic_key

__all__ = ["alter"]

log = logging.getLogger(__name__)

AT_ONCE: Final = 32
TAKEOVER_S: Final = 3.0


async def alter(topics: Topics, message: AlterTopic) -> TopicAltered:
    """Raises RefusedError for settings that cannot be, NotFoundError, UnavailableError (`conflict`: somebody else altered it just now)."""
    check_name(message.name)
    check_settings(message)
    node = topics.node
    before = await topics.register(message.name)
    after = _altered(before, message)
    if not message.dry_run:
        after = await node.registers.change_as(TopicRegister, topic_key(after.name), alter_topic(after)) if after != before else after
        await each(range(len(after.partitions)), lambda index: _alter_partition(topics, after, index), at_once=AT_ONCE)
    pending: list[int] = []

    async def look(index: int) -> None:
        register = await node.registers.get_as(PartitionRegister, partition_key(after.name, index))
        if register is None or register.deleted or not _is_pending(register, after):
            return
        if message.now and not message.dry_run:
            register = await _begin_epoch(topics, register)
        if _is_pending(register, after):
            pending.append(index)

    await each(range(len(after.partitions)), look, at_once=AT_ONCE)
    return TopicAltered(before, after, tuple(sorted(pending)))


def _altered(topic: TopicRegister, message: AlterTopic) -> TopicRegister:
    write, read = message.write or topic.write, message.read or topic.read
    fault = Quorum(topic.replicas, write, read).fault()
    if fault is not None:
        n = topic.replicas
        hint = f"for example: streamq topic alter {topic.name} --write-quorum {majority(n)} --read-quorum {majority(n)}"
        raise RefusedError(fault, code="bad_quorum", hint=hint)
    altered = msgspec.structs.replace(
        topic,
        write=write,
        read=read,
        retention_bytes=topic.retention_bytes if message.retention_bytes is None else message.retention_bytes or None,
        retention_ms=topic.retention_ms if message.retention_ms is None else message.retention_ms or None,
        dedup_ms=topic.dedup_ms if message.dedup_ms is None else message.dedup_ms,
    )
    return topic if altered == topic else msgspec.structs.replace(altered, settings=topic.settings + 1)


async def _alter_partition(topics: Topics, topic: TopicRegister, index: int) -> None:
    node, key = topics.node, partition_key(topic.name, index)
    if await node.registers.get_as(PartitionRegister, key) is None:
        await topics.create_partitions(topic, await topics.brokers(), [index])  # its creator did not come so far
    register = await node.registers.change_as(PartitionRegister, key, take_settings(topic, index))
    if not register.last.sequencer:
        return  # nobody has opened it yet; who does reads the register
    partition = node.partitions.get(register.id)
    if partition is not None:
        partition.learn(register)
    for broker in {m.broker: None for segment in register.chain for m in segment.replicas}:
        peer = node.peers.get(broker)
        if peer is not None and peer.channel is not None:
            peer.channel.send(Open(register))
    node.flush()


def _is_pending(register: PartitionRegister, topic: TopicRegister) -> bool:
    return (register.last.write, register.last.read) != (topic.write, topic.read)


async def _begin_epoch(topics: Topics, register: PartitionRegister) -> PartitionRegister:
    """Has the sequencer take over from itself, as it does when a replica is back (P-22). Not while a replica is down: with the new quorum
    nobody may be able to end a takeover without it, once the present epoch is sealed."""
    node, last = topics.node, register.last
    if not all(member.broker == node.broker or node.peers.is_alive(member.broker) for member in last.replicas):
        return register
    try:
        if last.sequencer == node.broker:
            await node.take_over_here(register.topic, register.index, last.epoch, "its quorums were altered")
        else:
            await node.peers.request(last.sequencer, TakeOver(register.topic, register.index, last.epoch), TAKEOVER_S)
    except StreamqError as error:
        log.info("%s/%d: no new epoch for now: %s", register.topic, register.index, error)
    return await node.registers.get_as(PartitionRegister, partition_key(register.topic, register.index)) or register
