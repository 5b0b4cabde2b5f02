"""One start of a broker in the simulated world: its cores on its disk, put together and started as `broker.app` does it."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from streamq.log.idempotence import IdempotenceTable, TableSnapshot
from streamq.log.replica_state import ReplicaState
from streamq.log.table_copy import TablesGiven
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.ids import Member, PartitionId
from streamq.model.messages import Message, Stored
from streamq.model.registers import BrokerRegister, PartitionRegister
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown
from tests.sim.tier1.acceptors import NO_PARTITION, LocalAcceptor
from tests.sim.tier1.disk import Disk
from tests.sim.tier1.endpoint import Endpoint, Steps, Wait
from tests.sim.tier1.joining import Joining, Readmissions
from tests.sim.tier1.mail import Mail
from tests.sim.tier1.network import Connection
from tests.sim.tier1.partition import Partition
from tests.sim.tier1.peers import Peer, Peers
from tests.sim.tier1.refills import Refills
from tests.sim.tier1.registers import Registers
from tests.sim.tier1.session import Session
from tests.sim.tier1.successions import Successions

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["FORGOTTEN_KEY", "Process"]

FORGOTTEN_KEY = ("forgotten", "")


class Process(Endpoint):
    """Everything of one start; a restart is another `Process` on the same `Disk`, or on an empty one."""

    def __init__(self, world: "World", disk: Disk) -> None:
        super().__init__(world, disk.broker)
        self.disk = disk
        disk.process = self
        lost = disk.open()
        self.me = Member(disk.broker, disk.incarnation)
        self.state = "starting"
        self.touched: list[Session] = []
        self.stores_to: list[Peer] = []
        self.sessions: dict[Connection, Session] = {}
        self.partitions: dict[PartitionId, Partition] = {}
        self.has_forgotten = False
        # Limbo is written before anything else, so that it is durable before anything damaged is cut (P-29).
        self._load_partitions(lost)
        self.acceptor = LocalAcceptor(self, lost)
        disk.loaded()
        self.peers = Peers(self, world.brokers)
        self.registers = Registers(self)
        self.readmissions = Readmissions(self)
        self.successions = Successions(self)
        self.refills = Refills(self)
        self.tables = TablesGiven(page_producers=2, page_ids=2)
        self.mail = Mail(self)

    def begin(self, *, has_joined: bool = False) -> None:
        """Dials the others, comes into the cluster, serves."""
        self.peers.start()
        if has_joined:
            self.acceptor.core.on_proved()
            self._serve()
        else:
            self.spawn(self._join())

    def _join(self) -> Steps:
        register = BrokerRegister(self.name, self.disk.incarnation, self.name, 1, "", self.disk.starts)
        if (yield from Joining(self, register).run()):
            self._serve()

    def _serve(self) -> None:
        self.state = "serving"
        self.world.counters["served"] += 1
        self.successions.start()
        self.refills.start()
        for partition in list(self.partitions.values()):
            self.spawn(self._learn(partition))

    def _learn(self, partition: Partition) -> Steps:
        """After a start: what became of the partition meanwhile."""
        try:
            yield from self.learn(partition)
        except StreamqError:
            return

    def learn(self, partition: Partition) -> Generator[Wait, Any, None]:
        if partition.replica.state.topic:
            register = yield from self.registers.get_as(PartitionRegister, partition.key)
            if register is not None:
                partition.learn(register)

    # --- what lies here

    def _load_partitions(self, lost: Sequence[Lost]) -> None:
        """Makes a runner for each partition that lies here, in limbo where something was lost (P-29)."""
        disk, world = self.disk, self.world
        if any(isinstance(each, LostUnknown) for each in lost):
            disk.append(NO_PARTITION, 0, (), FORGOTTEN_KEY, b"1", None)
        self.has_forgotten = FORGOTTEN_KEY in disk.states
        for (kind, identity), state in list(disk.states.items()):
            if kind == "replica":
                self.partitions[identity] = Partition(self, state, self._table(identity))
        for identity in disk.runs:
            if identity not in self.partitions:
                self.partitions[identity] = Partition(self, ReplicaState(identity), self._table(identity))
        in_limbo = self._partitions_of(lost)
        for identity in in_limbo:
            if identity not in self.partitions:
                self.partitions[identity] = Partition(self, ReplicaState(identity))
        if world.is_traced:
            for partition in self.partitions.values():
                world.tracer.on_started(partition)
            for index, identity in enumerate(world.partition_ids):
                if identity not in self.partitions:
                    world.tracer.on_started_without(self, index)
        for identity in in_limbo:
            partition = self.partitions[identity]
            world.counters["limbo"] += 1
            partition.carry_out(partition.replica.enter_limbo())
        for partition in self.partitions.values():
            partition.carry_out(partition.replica.on_restart())
            if not disk.was_stopped_cleanly and (epochs := partition.replica.memory_epochs()):  # P-37
                world.counters["memory_limbo"] += 1
                partition.carry_out(partition.replica.enter_limbo_of(epochs))

    def _partitions_of(self, lost: Sequence[Lost]) -> list[PartitionId]:
        found: dict[PartitionId, None] = {}
        for each in lost:
            if isinstance(each, LostBatches):
                found[each.partition] = None
            elif isinstance(each, LostState) and each.key[0] == "replica":
                found[each.key[1]] = None  # type: ignore[index]
            elif isinstance(each, LostUnknown):
                return list(self.partitions)
        return list(found)

    def _table(self, partition: PartitionId) -> IdempotenceTable | None:
        snapshot = self.disk.tables.get(partition)
        return IdempotenceTable.restore(snapshot) if snapshot is not None else None

    def table_snapshots(self) -> dict[PartitionId, TableSnapshot]:
        return {p.id: p.replica.table.snapshot() for p in self.partitions.values() if p.replica.table.position}

    def on_checkpoint(self) -> None:
        """One is durable, with the tables as they are."""
        for partition in list(self.partitions.values()):
            partition.carry_out(partition.replica.on_table_kept(partition.replica.table.position))

    def partition(self, identity: PartitionId) -> Partition:
        """The runner of this partition, made if it is the first time that this broker hears of it."""
        partition = self.partitions.get(identity)
        if partition is None:
            partition = self.partitions[identity] = self.stranger(identity)
        return partition

    def stranger(self, identity: PartitionId) -> Partition:
        """The runner of this partition, or one to answer with and forget: messages that promise nothing leave nothing behind."""
        partition = self.partitions.get(identity)
        return partition or Partition(self, ReplicaState(identity, limbo_everywhere=self.has_forgotten))

    def forget_forgotten(self) -> None:
        """The registers were read: what they name is in limbo, and nothing else is (P-29)."""
        self.disk.append(NO_PARTITION, 0, (), FORGOTTEN_KEY, None, None)

    def now_ms(self) -> int:
        return self.world.wall_ms(self.name)

    # --- mail

    def accepted(self, connection: Connection) -> None:
        """Somebody has connected."""
        self.sessions[connection] = Session(self, connection)

    def receive(self, connection: Connection, message: Message, batches: Sequence[Batch], number: int) -> None:
        session = self.sessions.get(connection)
        if session is not None:
            self.mail.receive(session, message, batches, number)

    def told(self, connection: Connection, message: Message, batches: Sequence[Batch]) -> None:
        """Reports of stored batches, on a connection that this broker dialled."""
        assert isinstance(message, Stored)
        for run in message.runs:
            partition = self.partitions.get(run.partition)
            if partition is not None and partition.sequencing is not None:
                partition.sequencing.on_stored(connection.member, run)

    def lost(self, connection: Connection) -> None:
        if connection.here is self:
            self.after(0.0, self.peers.lost, connection)
        else:
            session = self.sessions.pop(connection, None)
            if session is not None:
                session.ended()
            self.after(0.0, self.peers.incoming_lost, connection.here.name)

    def peer_connected(self, peer: Peer) -> None:
        for partition in self.partitions.values():
            if partition.sequencing is not None:
                partition.sequencing.peer_connected(peer)

    def suspected(self, broker: str) -> None:
        self.successions.on_suspected(broker)

    def flush(self) -> None:
        self.wants_flush = False
        while self.stores_to:
            stores_to, self.stores_to = self.stores_to, []
            for peer in stores_to:
                peer.flush()
        while self.touched:
            self.touched.pop().flush()

    def after_group(self) -> None:
        """A group commit is done, and everything that it led to."""
        if self.wants_flush:
            self.flush()

    # --- the end

    def end(self, *, keep: float, keeps_written: bool) -> None:
        """Killed, at any moment."""
        self.is_alive = False
        self.is_paused = False
        self.disk.stop(keep=keep, keeps_written=keeps_written)
        self.world.process_ended(self)

    def stop_cleanly(self) -> None:
        """The last act of a graceful stop: everything is written, then the mark that says so."""
        self.is_alive = False
        self.disk.close()
        self.world.process_ended(self)

    def stop_on_failed_disk(self) -> None:
        """P-15: a sync failed. Nothing is answered any more."""
        self.world.counters["failed_syncs"] += 1
        self.end(keep=self.world.random.random(), keeps_written=False)
