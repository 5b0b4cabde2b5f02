"""Copies what a simulated broker should hold of closed segments and does not (P-22, P-29), and has it named as holder: `broker.refills`."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from streamq.log.replica import Wanted
from streamq.log.replica_state import ReplicaState
from streamq.metadata.changes import name_holders
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.registers import PartitionRegister
from tests.sim.tier1.endpoint import Steps, Wait
from tests.sim.tier1.partition import TOPIC, Partition

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["Refills"]

CHECK_INTERVAL_S = 0.5
PAUSE_S = 0.004
DURABLE_S = 10.0


class Refills:
    def __init__(self, process: "Process") -> None:
        self.process = process
        self.world = process.world

    def start(self) -> None:
        self.process.after(CHECK_INTERVAL_S * (0.5 + self.world.random.random()), self._look_around)

    def _look_around(self) -> None:
        process = self.process
        process.after(CHECK_INTERVAL_S, self._look_around)
        if process.state != "serving":
            return
        if process.has_forgotten:
            process.spawn(self._pin_limbo())
            return
        for partition in list(process.partitions.values()):
            partition.give_back()
            if "refill" not in partition.busy and self._is_due(partition):
                partition.busy.add("refill")
                process.spawn(self._refill(partition))

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

    def _pin_limbo(self) -> Steps:
        """P-29: by quorum reads begun after the loss, this broker is in limbo for what the registers name and for nothing later."""
        process = self.process
        try:
            for key in (yield from process.registers.list_keys("partition/")):
                register = yield from process.registers.get_as(PartitionRegister, key)
                if register is None or all(s.member(process.name) is None for s in register.chain):
                    continue
                partition = process.partitions.get(register.id)
                if partition is None:
                    partition = process.partitions[register.id] = Partition(process, ReplicaState(register.id, limbo_everywhere=True))
                if partition.replica.state.limbo_everywhere:
                    self._read(partition, register)
        except StreamqError:
            return
        if process.has_forgotten:
            process.has_forgotten = False
            process.forget_forgotten()

    def _refill(self, partition: Partition) -> Steps:
        try:
            yield from self._read_limbo(partition)
            while (wanted := partition.replica.wanted()) is not None:
                yield from self._copy(partition, wanted)
            for damaged in partition.replica.state.damaged:
                yield from partition.mend(damaged)
            yield from partition.fold()
            yield from self._rename(partition)
        except StreamqError:
            yield self.process.sleep(CHECK_INTERVAL_S)
        finally:
            partition.busy.discard("refill")

    def _read_limbo(self, partition: Partition) -> Generator[Wait, Any, None]:
        """P-29: what was lost belongs to the epochs that the register names, by a quorum read begun now."""
        if partition.replica.state.limbo_everywhere:
            self._read(partition, (yield from self._register_of(partition)))

    def _register_of(self, partition: Partition) -> Generator[Wait, Any, PartitionRegister]:
        register = yield from self.process.registers.get_as(PartitionRegister, partition.key)
        if register is None or register.id != partition.id:
            raise UnavailableError("no register names it", code="unavailable")
        return register

    def _read(self, partition: Partition, register: PartitionRegister) -> None:
        self.world.counters["limbo_read"] += 1
        partition.carry_out(partition.replica.on_limbo_read(register))

    def _copy(self, partition: Partition, wanted: Wanted) -> Generator[Wait, Any, None]:
        if self.process.disk.is_full:
            raise UnavailableError("the disk is full", code="disk_full")
        sources = sorted(wanted.holders, key=lambda broker: not self.process.peers.is_alive(broker))
        for source in sources:
            try:
                batches = yield from partition.fetch(source, wanted.epoch, wanted.offset, wanted.end)
            except StreamqError:
                continue
            if not batches:
                continue
            before = partition.replica.local_tail(wanted.epoch)
            effects = partition.replica.on_copied(wanted.epoch, batches)
            partition.carry_out(effects)
            self.world.counters["copies"] += 1
            until = self.world.now + DURABLE_S
            while effects and partition.replica.local_tail(wanted.epoch) == before and self.world.now < until:
                yield partition.stored()
            yield self.process.sleep(PAUSE_S)
            return
        partition.learn((yield from self._register_of(partition)))
        if partition.replica.wanted() != wanted:
            return
        raise UnavailableError("no replica can give it", code="unavailable")

    def _rename(self, partition: Partition) -> Generator[Wait, Any, None]:
        me = self.process.me
        gone = {segment.epoch: named for segment in partition.replica.renames() if (named := segment.member(me.broker)) is not None}
        if not gone:
            return
        change = name_holders(TOPIC, partition.index, partition=partition.id, gone=gone, holder=me)
        register = yield from self.process.registers.change_as(PartitionRegister, partition.key, change)
        self.world.counters["holders_named"] += len(gone)
        partition.learn(register)
