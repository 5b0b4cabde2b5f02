"""The end of a run: only as many brokers as I-7 needs are healed, the rest stay dead, and within bounded virtual time everything converges.

Converged: each partition has a sequencer that acks a new append, every producer's batches are in, all living replicas hold the same and are
out of limbo, whoever had to be re-admitted is. Then what lies on the disks is judged as a whole.
"""

from typing import TYPE_CHECKING

from streamq.log.replica import Readable
from streamq.log.replica_state import ReplicaState
from streamq.metadata.acceptor import Standing
from streamq.model.batches import Batch
from streamq.model.quorum import reopen_quorum, seal_quorum
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1.acceptors import RECORD_KEY
from tests.sim.tier1.checks import Violation, batch_id, named
from tests.sim.tier1.clients import Producer
from tests.sim.tier1.nemesis import Nemesis
from tests.sim.tier1.partition import Partition, replica_key
from tests.sim.tier1.plan import ProducerPlan

if TYPE_CHECKING:
    from tests.sim.tier1.disk import Disk
    from tests.sim.tier1.world import World

__all__ = ["Healing"]

CONVERGENCE_S = 45.0
LOOK_S = 0.5
SUBSETS_TRIED = 8


class Healing:
    def __init__(self, world: "World", nemesis: Nemesis, producers: list[Producer]) -> None:
        self.world = world
        self.nemesis = nemesis
        self.producers = producers
        self.alive: tuple[str, ...] = ()

    def run(self) -> None:
        """Raises Violation."""
        world = self.world
        self.nemesis.is_over = True
        for source in [*world.brokers, *self.nemesis.links.clients]:
            for target in [*world.brokers, *self.nemesis.links.clients]:
                world.network.set_up(source, target, is_up=True)
                world.network.link(source, target).slowness = 1.0
        world.network.profile = world.network.profile._replace(loss=0.0, repeats=0.0)
        for disk in world.disks.values():
            disk.slowness, disk.is_full, disk.fails = 1.0, False, False
        self.alive = self._choose()
        self._bring_to_life()
        probes = [Producer(world, ProducerPlan(f"probe{index}", index, True, 2, 1, 0.2, 1, 0.5)) for index in range(world.plan.partitions)]
        self.producers.extend(probes)
        until = world.now + CONVERGENCE_S
        lack = "nothing was tried"
        while world.now < until:
            world.run_until(world.now + LOOK_S)
            lack = self._lack()
            if not lack:
                break
        if lack:
            raise Violation(f"liveness: {', '.join(self.alive)} are healed for {CONVERGENCE_S:g} s, and {lack}")
        for index in range(world.plan.partitions):
            self._judge(index)

    # --- who comes back

    def _choose(self) -> tuple[str, ...]:
        """A random set that is enough for I-7, as small as it comes; everybody if no smaller one is."""
        world = self.world
        living = [b for b in world.brokers if b not in self.nemesis.dead]
        for _ in range(SUBSETS_TRIED):
            size = world.random.randint(1, len(living))
            chosen = tuple(sorted(world.random.sample(living, size)))
            if self._is_enough(chosen):
                return chosen
        return tuple(living)

    def _is_enough(self, chosen: tuple[str, ...]) -> bool:
        world = self.world
        voters = [v.broker for v in world.first_voters.voters]
        ready = [b for b in chosen if b in voters and self._is_ready(world.disks[b])]
        unready = [b for b in voters if not self._is_ready(world.disks[b])]
        if len(ready) < world.first_voters.majority or (unready and not set(voters) <= set(chosen)):
            return False
        return all(self._serves(index, world.versions.register(index), chosen) for index in range(world.plan.partitions))

    def _is_ready(self, disk: "Disk") -> bool:
        record = disk.raw_states.get(RECORD_KEY)
        return not disk.lost and record is not None and record.standing is Standing.READY

    def _serves(self, index: int, register: PartitionRegister, chosen: tuple[str, ...]) -> bool:
        last = register.last
        named_ = [m for m in last.replicas if m.broker in chosen]
        good = [m for m in named_ if self.world.disks[m.broker].member == m and not self._is_wounded(index, m.broker, last)]
        n, w = len(last.replicas), last.write
        wanted = [b for b in register.replicas if b in chosen]
        if len(good) < seal_quorum(replicas=n, write=w) or len(named_) < w:
            return False
        if len(wanted) < reopen_quorum(replicas=len(register.replicas), write=register.write):
            return False
        return any(self.nemesis.losses.is_whole(index, m.broker) for m in good)

    def _is_wounded(self, index: int, broker: str, segment: Segment) -> bool:
        disk = self.world.disks[broker]
        partition = self.world.partition_ids[index]
        state: ReplicaState = disk.raw_states.get(replica_key(partition), ReplicaState(partition))
        return bool(disk.lost) or bool(disk.damaged) or state.in_limbo(segment.epoch) or broker in self.world.wounded

    def _bring_to_life(self) -> None:
        world = self.world
        for name in world.brokers:
            process = world.processes.get(name)
            if name not in self.alive:
                self.nemesis.dead.add(name)
                if process is not None:
                    world.set_refusing(name, world.random.random() < 0.5)
                    process.end(keep=world.random.random(), keeps_written=False)
            elif process is None:
                self.nemesis.restart(name)
            elif process.is_paused:
                world.resume(process)

    # --- what is still missing

    def _lack(self) -> str:
        world = self.world
        for name in self.alive:
            process = world.processes.get(name)
            if process is None or process.state != "serving":
                return f"{name} does not serve"
        for index in range(world.plan.partitions):
            if lack := self._lack_of(index):
                return f"partition {index}: {lack}"
        for producer in self.producers:
            if not producer.is_done:
                return f"producer {producer.name} has {len(producer.pending)} batches pending"
        return ""

    def _lack_of(self, index: int) -> str:
        world = self.world
        register = world.versions.register(index)
        identity = world.partition_ids[index]
        replicas = [world.processes[m.broker].partitions.get(identity) for m in register.last.replicas if m.broker in self.alive]
        sequencing = next((p.sequencing for p in replicas if p is not None and p.sequencing is not None), None)
        if sequencing is None or sequencing.epoch != register.last.epoch:
            return f"nobody sequences epoch {register.last.epoch}"
        if sequencing.core.in_flight:
            return f"{sequencing.core.in_flight} batches are in flight"
        for partition in replicas:
            if lack := self._lack_at(partition, sequencing.core.next_offset, register):
                return lack
        return ""

    def _lack_at(self, partition: Partition | None, end: int, register: PartitionRegister) -> str:
        if partition is None:
            return "a replica does not know of it"
        name, replica = partition.process.name, partition.replica
        epoch = register.last.epoch
        if register.last.member(name) != partition.me:
            return f"{name} is named in another incarnation"
        if replica.state.limbo_everywhere or replica.in_limbo(epoch):
            return f"{name} is in limbo for the open epoch"
        if replica.high_watermark != (epoch, end) or replica.local_tail(epoch) != end:
            return f"{name} shows {replica.high_watermark} with a tail of {replica.local_tail(epoch)}, not {(epoch, end)}"
        if replica.table.position < replica.start_offset:
            return f"{name} has a table at {replica.table.position}, and the log begins at {replica.start_offset}"
        wanted = replica.wanted()
        if wanted is not None and any(self._can_give(b, partition, wanted.epoch, wanted.offset) for b in wanted.holders):
            return f"{name} still copies epoch {wanted.epoch} from {wanted.offset} on"
        return ""

    def _can_give(self, broker: str, partition: Partition, epoch: int, offset: int) -> bool:
        run = self.world.disks[broker].runs.get(partition.id, {}).get(epoch)
        return broker in self.alive and bool(run) and run[-1].end > offset

    # --- what lies there in the end

    def _judge(self, index: int) -> None:
        """Byte-equal replicas up to the high watermark; the log that they make against everything that was ever concluded."""
        world = self.world
        register = world.versions.register(index)
        log: dict[int, Batch] = {}
        for name in self.alive:
            partition = world.processes[name].partitions.get(world.partition_ids[index])
            if partition is None:
                continue
            for batch in self._readable(partition, register.start_offset):
                known = log.setdefault(batch.base, batch)
                if known != batch:
                    raise Violation(f"I-2: {name} holds {batch.header} where another replica holds {known.header}")
        world.checks.judge_log(index, [log[base] for base in sorted(log)])
        names = {batch_id(batch.header) for batch in log.values()}
        for producer in self.producers:
            for batch in producer.refused & names if producer.plan.partition == index else ():
                raise Violation(f"aborted read: {named(batch)} was certainly not stored, and is in the log")

    def _readable(self, partition: Partition, start: int) -> list[Batch]:
        """Everything that this replica would serve, from every place on at which it can."""
        found: list[Batch] = []
        for segment in partition.replica.state.chain:
            offset = max(start, segment.base)
            while True:
                readable = partition.replica.readable(offset)
                if not isinstance(readable, Readable) or readable.epoch != segment.epoch:
                    break
                run = partition.disk.runs[partition.id][segment.epoch]
                found += [b for b in run if b.end > offset and b.end <= readable.limit]
                offset = readable.limit
        return found
