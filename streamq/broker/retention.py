"""Trims (P-41): the sequencer raises its partition's start offset, and every broker gives back the space of what lies below.

    the sequencer's files ──► register ──► told to the replicas ──► durable there ──► files removed with a checkpoint that holds the table

The start offset goes only as far as W replicas hold the idempotence table in a durable checkpoint (P-34): the headers that it was folded
from are given up then, and whoever lacks it later, having been away or made anew, has it from one of them. With less than W one loss after
a trim, which the protocol bears, could take the last one.
"""

import logging
from typing import TYPE_CHECKING, Final

import trio

from streamq.broker.lookout import Lookout
from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.log.retention import Retention, new_start, wants_roll
from streamq.metadata.changes import trim
from streamq.model.errors import NotSequencerError, OffsetError, StreamqError, UnavailableError
from streamq.model.messages import KeepTable, Open, Tip, TipAnswer
from streamq.model.quorum import high_watermark
from streamq.model.registers import PartitionRegister, partition_key

if TYPE_CHECKING:
    from streamq.broker.follower import Follower
    from streamq.broker.sequencing import Sequencing

__all__ = ["SWEEP_INTERVAL_S", "Trims", "keep_table"]

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S: Final = 2.0
"""Between two looks at the files, give or take half of it, so that brokers do not all look at once."""
TRIMS_AT_ONCE: Final = 4
BY_HAND_S: Final = 25.0
"""How long a trim by hand waits for checkpoints, which are made every 10 s at least where something was written."""
BY_HAND_PAUSE_S: Final = 0.1


def keep_table(partition: Partition) -> None:
    """Has a checkpoint made that holds the table as it is now, unless there is one. Of an idle partition none would come by itself."""
    replica = partition.replica
    if replica.table_kept < replica.table.position:
        partition.node.storage.trim(partition.id, min(replica.start_offset, replica.trimmable))


class Trims:
    """One sweep over the partitions that keep nothing for ever, and those that changed; a task only for one of which something goes."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._limiter = trio.CapacityLimiter(TRIMS_AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        lookout = Lookout(self.node, interval_s=SWEEP_INTERVAL_S)
        while True:
            await trio.sleep(SWEEP_INTERVAL_S * (0.5 + self.node.clock.random()))
            now_ms = self.node.clock.now_ms()
            for partition in lookout.due():
                partition.give_back()
                sequencing = partition.sequencing
                if sequencing is None or sequencing.retention.is_for_ever:
                    continue
                lookout.keep(partition)
                if "trim" in partition.busy:
                    continue
                wanted = self._wanted(partition, sequencing.retention, now_ms)
                if wanted > partition.replica.start_offset:
                    partition.busy.add("trim")
                    self.node.nursery.start_soon(self._trim, partition, sequencing, wanted, name=f"trim {partition.name}")

    def _wanted(self, partition: Partition, retention: Retention, now_ms: int) -> int:
        """Where retention would have the log begin, as far as this replica alone may say."""
        storage, replica = self.node.storage, partition.replica
        files = storage.files(partition.id)
        if files and not files[-1].is_closed and wants_roll(files[-1], retention, now_ms=now_ms):
            storage.roll(partition.id)
        limit = min(replica.high_watermark[1], replica.table_kept)
        return new_start(files, retention, start=replica.start_offset, limit=limit, now_ms=now_ms)

    async def _trim(self, partition: Partition, sequencing: "Sequencing", wanted: int) -> None:
        try:
            async with self._limiter:
                limit = await self._table_limit(partition, sequencing)
                ends = [file.end for file in self.node.storage.files(partition.id) if file.end <= min(wanted, limit)]
                if ends:
                    await self.raise_start(partition, max(ends))
        except StreamqError as error:
            log.info("%s: not trimmed for now: %s", partition.name, error)
        finally:
            partition.busy.discard("trim")

    async def trim_to(self, partition: Partition, before: int) -> int:
        """By hand, on the sequencer: returns the new start offset, once it stands in the register.

        Raises OffsetError for an offset past the high watermark, NotSequencerError, UnavailableError when too few tables became durable in
        time (P-34); nothing was trimmed then, or less than asked for by whoever was first.
        """
        replica = partition.replica
        with trio.move_on_after(BY_HAND_S):
            while before > replica.start_offset:
                sequencing = partition.sequencing
                if sequencing is None:
                    raise NotSequencerError(f"broker {self.node.broker} is not the sequencer of {partition.name}")
                if before > replica.high_watermark[1]:
                    message = f"offset {before} is past the tip of {partition.name}, {replica.high_watermark[1]}"
                    raise OffsetError(message, code="offset_ahead", hint="--before=end trims all there is")
                if "trim" not in partition.busy:
                    partition.busy.add("trim")
                    try:
                        if await self._table_limit(partition, sequencing) >= before:
                            return (await self.raise_start(partition, before)).start_offset
                    finally:
                        partition.busy.discard("trim")
                    self._ask_for_tables(partition, sequencing)
                await trio.sleep(BY_HAND_PAUSE_S)
        if before <= replica.start_offset:
            return replica.start_offset
        raise UnavailableError(
            f"{partition.name} is not trimmed: fewer than a write quorum of replicas hold its table in a checkpoint after {BY_HAND_S:g} s",
            code="timed_out",
            hint="are all its replicas up? try again",
        )

    def _ask_for_tables(self, partition: Partition, sequencing: "Sequencing") -> None:
        keep_table(partition)
        for broker in sequencing.followers:
            peer = self.node.peers.get(broker)
            if peer is not None and peer.channel is not None:
                peer.channel.send(KeepTable(partition.id))
        self.node.flush()

    async def _table_limit(self, partition: Partition, sequencing: "Sequencing") -> int:
        """The position that the durable tables of W replicas of the open epoch, this one among them, have come to (P-34)."""
        kept = [partition.replica.table_kept]

        async def ask(follower: "Follower") -> None:
            peer = self.node.peers.get(follower.member.broker)
            if peer is None or peer.channel is None or peer.member != follower.member:
                return  # P-10
            tip = Tip(partition.id, sequencing.epoch, sequencing.segment.base)
            try:
                frame = await peer.channel.request(tip, timeout_s=self.node.config.request_timeout_s)
            except StreamqError:
                return
            if isinstance(frame.message, TipAnswer):
                kept.append(frame.message.table)

        async with trio.open_nursery() as nursery:
            for follower in sequencing.followers.values():
                nursery.start_soon(ask, follower)
        return high_watermark(kept, write=sequencing.segment.write, base=0)

    async def raise_start(self, partition: Partition, start_offset: int) -> PartitionRegister:
        """Moves the start offset in the register, then tells everybody who may hold something of the partition. Raises StreamqError.

        The caller knows that `start_offset` is committed, and that W replicas hold a table at or past it (`_table_limit`). Who is not told
        now learns of it when its connection is back (`Sequencing`), when it next misses something (`Refills`), or from the news.
        """
        node, state = self.node, partition.replica.state
        change = trim(state.topic, state.index, partition=partition.id, start_offset=start_offset)
        register = await node.registers.change_as(PartitionRegister, partition_key(state.topic, state.index), change)
        node.metrics.trims += 1
        partition.learn(register)
        for broker in partition.others():
            peer = node.peers.get(broker)
            if peer is not None and peer.channel is not None:
                peer.channel.send(Open(register))
        node.flush()
        log.info("%s: begins at offset %d now", partition.name, register.start_offset)
        return register
