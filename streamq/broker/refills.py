"""Copies what this broker should hold of closed segments and does not (P-22, P-29), throttled, and then has it named as their holder."""

import logging
from typing import Final

import trio

from streamq.broker.lookout import Lookout
from streamq.broker.node import FORGOTTEN_KEY, Node
from streamq.broker.partition import Partition, nothing
from streamq.log.replica import Wanted
from streamq.log.replica_state import ReplicaState
from streamq.metadata.changes import name_holders
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.registers import PartitionRegister, partition_key

__all__ = ["Refills"]

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 0.3
COPIES_AT_ONCE: Final = 2
PAUSE_S: Final = 0.004
"""Between two pieces, so that copying leaves the foreground its share."""
DURABLE_S: Final = 10.0


class Refills:
    def __init__(self, node: Node) -> None:
        self.node = node
        self._limiter = trio.CapacityLimiter(COPIES_AT_ONCE)
        self._lookout = Lookout(node, interval_s=CHECK_INTERVAL_S)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            if self.node.state != "serving":
                continue
            if self.node.has_forgotten:
                try:
                    await self.pin_limbo()
                except StreamqError as error:
                    log.info("which partitions were lost could not be read yet: %s", error)
                    continue
            for partition in self._lookout.due():
                if not self._is_due(partition):
                    continue
                self._lookout.keep(partition)
                if "refill" not in partition.busy:
                    partition.busy.add("refill")
                    self.node.nursery.start_soon(self._refill, partition, name=f"refill {partition.name}")

    async def pin_limbo(self) -> None:
        """P-29: by quorum reads begun after the loss, this broker is in limbo for what the registers name and for nothing later."""
        node = self.node
        for key in await node.registers.list("partition/"):
            register = await node.registers.get_as(PartitionRegister, key)
            if register is None or register.deleted or all(s.member(node.broker) is None for s in register.chain):
                continue
            partition = node.partitions.get(register.id)
            if partition is None:
                partition = node.partitions[register.id] = Partition(node, ReplicaState(register.id, limbo_everywhere=True))
            if partition.replica.state.limbo_everywhere:
                partition.carry_out(partition.replica.on_limbo_read(register))
        node.storage.append((), ((FORGOTTEN_KEY, None),), nothing)
        node.has_forgotten = False

    def _is_due(self, partition: Partition) -> bool:
        replica = partition.replica
        return (
            replica.state.limbo_everywhere
            or bool(replica.state.damaged)
            or replica.wanted() is not None
            or bool(replica.renames())
            or replica.fold_needed() is not None
            or replica.table_needed()
        )

    async def _refill(self, partition: Partition) -> None:
        try:
            async with self._limiter:
                await self._read_limbo(partition)
                while not partition.is_dropped and (wanted := partition.replica.wanted()) is not None:
                    await self._copy(partition, wanted)
                await partition.mend_all()
                await partition.fold()
                await self._rename(partition)
        except StreamqError as error:
            log.info("%s: refilling paused: %s", partition.name, error)
            await trio.sleep(CHECK_INTERVAL_S)
        finally:
            partition.busy.discard("refill")

    async def _read_limbo(self, partition: Partition) -> None:
        """P-29: what was lost belongs to the epochs that the register names, by a quorum read begun now."""
        state = partition.replica.state
        if not state.limbo_everywhere:
            return
        register = await self._register_of(partition)
        partition.carry_out(partition.replica.on_limbo_read(register))
        log.warning("%s: in limbo for epochs %s", partition.name, list(partition.replica.state.limbo))

    async def _register_of(self, partition: Partition) -> PartitionRegister:
        """By name, or by looking through all partitions if even the name was lost."""
        registers, state = self.node.registers, partition.replica.state
        keys = [partition_key(state.topic, state.index)] if state.topic else await registers.list("partition/")
        for key in keys:
            register = await registers.get_as(PartitionRegister, key)
            if register is not None and register.id == partition.id and not register.deleted:
                return register
        raise UnavailableError(f"no register names {partition.name}", code="unavailable")

    async def _copy(self, partition: Partition, wanted: Wanted) -> None:
        refusal = self.node.storage.refusal()
        if refusal is not None:
            raise UnavailableError(refusal, code="disk_full")
        sources = sorted(wanted.holders, key=lambda broker: not self.node.peers.is_alive(broker))
        for source in sources:
            try:
                batches = await partition.fetch(source, wanted.epoch, wanted.offset, wanted.end)
            except StreamqError as error:
                log.info("%s: copying epoch %d from %s: %s", partition.name, wanted.epoch, source, error)
                continue
            if not batches:
                continue
            before = partition.replica.local_tail(wanted.epoch)
            effects = partition.replica.on_copied(wanted.epoch, batches)
            partition.carry_out(effects)
            self.node.metrics.bytes_copied += sum(batch.size for batch in batches)
            with trio.move_on_after(DURABLE_S):
                while effects and partition.replica.local_tail(wanted.epoch) == before and not partition.is_dropped:
                    await partition.stored.park()
            await trio.sleep(PAUSE_S)
            return
        # It may have been trimmed, and the news of it was missed here (P-41).
        partition.learn(await self._register_of(partition))
        if partition.replica.wanted() != wanted:
            return
        raise UnavailableError(
            f"no replica can give epoch {wanted.epoch} from offset {wanted.offset} on (asked: {', '.join(sources) or 'nobody'})",
            code="unavailable",
        )

    async def _rename(self, partition: Partition) -> None:
        """One change for all segments that are held by now: a partition may have thousands."""
        state, me = partition.replica.state, self.node.me
        gone = {segment.epoch: named for segment in partition.replica.renames() if (named := segment.member(me.broker)) is not None}
        if not gone or partition.is_dropped:
            return
        change = name_holders(state.topic, state.index, partition=partition.id, gone=gone, holder=me)
        register = await self.node.registers.change_as(PartitionRegister, partition_key(state.topic, state.index), change)
        self.node.metrics.renames += 1
        partition.learn(register)
        log.info("%s: holder of epochs %d to %d again", partition.name, min(gone), max(gone))
