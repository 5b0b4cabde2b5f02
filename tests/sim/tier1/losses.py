"""How much may be lost (I-1): at most W - 1 brokers have a loss that was not copied again, and one voter at most is replaced (P-40)."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from streamq.log.replica_state import ReplicaState
from streamq.metadata.acceptor import AcceptorRecord, Standing
from streamq.model.ids import PartitionId
from tests.sim.tier1 import events
from tests.sim.tier1.acceptors import RECORD_KEY
from tests.sim.tier1.partition import replica_key

if TYPE_CHECKING:
    from tests.sim.tier1.disk import Disk
    from tests.sim.tier1.world import World

__all__ = ["Losses", "has_table"]


class Losses:
    """Keeps `World.wounded`: per broker, the (partition, epoch) up to which everything must be closed and held before its loss is over."""

    def __init__(self, world: "World", dead: set[str]) -> None:
        self.world = world
        self._dead = dead

    def may_lose(self, broker: str) -> bool:
        """Whether one more loss, of that broker, is within what the protocol bears: I-1, and I-7 for those that never come back."""
        self.look()
        world = self.world
        count = len({*world.wounded, *self._dead, broker})
        for index in range(world.plan.partitions):
            register = world.versions.register(index)
            if count > min(register.write, *(segment.write for segment in register.chain)) - 1:
                return False
            if not self.is_somebody_whole(index, without={*self._dead, *world.wounded, broker}):
                return False
        return True

    def is_somebody_whole(self, index: int, *, without: Collection[str]) -> bool:
        """Whether a replica of the open epoch is left that holds everything before it, as a sequencer must (P-34)."""
        last = self.world.versions.register(index).last
        return any(m.broker not in without and self.is_whole(index, m.broker) for m in last.replicas)

    def is_whole(self, index: int, broker: str) -> bool:
        """Whether its disk holds every closed segment, durably, and a table that goes on from what is kept."""
        disk, partition = self.world.disks[broker], self.world.partition_ids[index]
        register = self.world.versions.register(index)
        if disk.lost or not has_table(disk, partition, register.start_offset):
            return False
        runs = disk.raw_runs.get(partition, {})
        for segment in register.chain:
            if segment.end is not None and segment.end > max(segment.base, register.start_offset):
                run = runs.get(segment.epoch)
                if not run or run[-1].end < segment.end:
                    return False
        return True

    def may_lose_voter(self, broker: str) -> bool:
        """Every voter's disk says that it is ready, under one number, and enough are left to replace one."""
        world = self.world
        if world.first_voters.voter(broker) is None:
            return True
        if len(world.first_voters.voters) - 1 < world.first_voters.majority:
            return False
        if any(voter.broker in self._dead for voter in world.first_voters.voters):
            return False  # every survivor has to adopt the next number
        records = [self._record(world.disks[voter.broker]) for voter in world.first_voters.voters]
        numbers = {record.voters.number for record in records if record is not None}
        return all(record is not None and record.standing is Standing.READY for record in records) and len(numbers) == 1

    def _record(self, disk: "Disk") -> AcceptorRecord | None:
        process = self.world.processes.get(disk.broker)
        if process is not None and process.acceptor.standing is not Standing.READY:
            return None
        return None if disk.lost else disk.raw_states.get(RECORD_KEY)

    def enter(self, broker: str, what: str, *, of: Collection[PartitionId] | None = None) -> None:
        """That broker has lost something, of these partitions (None: of all): it counts as a loss of every one that it is a replica of."""
        world = self.world
        world.counters["losses"] += 1
        wounds = world.wounded.setdefault(broker, [])
        for index in range(world.plan.partitions):
            register = world.versions.register(index)
            if any(segment.member(broker) is not None for segment in register.chain):
                wounds.append((index, register.last.epoch))
                if world.is_traced and (of is None or world.partition_ids[index] in of):
                    world.note(events.Lost(world.disks[broker].member, index, what))

    def look(self) -> None:
        """Strikes off what has been copied again."""
        world = self.world
        for broker, wounds in list(world.wounded.items()):
            wounds[:] = [wound for wound in wounds if not self._is_healed(broker, *wound)]
            if not wounds:
                del world.wounded[broker]
                world.counters["losses_copied_again"] += 1

    def _is_healed(self, broker: str, index: int, epoch: int) -> bool:
        world = self.world
        disk, register = world.disks[broker], world.versions.register(index)
        if disk.lost or disk.damaged:
            return False
        partition = world.partition_ids[index]
        state: ReplicaState = disk.raw_states.get(replica_key(partition), ReplicaState(partition))
        if state.limbo_everywhere or state.limbo or not has_table(disk, partition, register.start_offset):
            return False
        last = register.last.member(broker)
        if last is not None and last != disk.member:
            return False  # the open epoch names what was lost, so the broker counts in none of its quorums
        for segment in register.chain:
            if segment.epoch > epoch or (segment.member(broker) is None and segment.epoch != epoch):
                continue
            if segment.end is None:
                return False
            run = disk.raw_runs.get(partition, {}).get(segment.epoch)
            tail = run[-1].end if run else segment.base
            if tail < segment.end and segment.end > register.start_offset:
                return False
        return True


def has_table(disk: "Disk", partition: PartitionId, start_offset: int) -> bool:
    """Whether the idempotence table on that disk goes on from what is kept."""
    table = disk.tables.get(partition)
    return start_offset == 0 or (table is not None and table.position >= start_offset)
