"""The simulated world of tier 1: one heap of events, a virtual clock, brokers made of the real cores on simulated disks and links, clients.

Everything random is drawn from one generator seeded by the plan, and nothing depends on hashes or on the machine: a plan has one history.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from streamq.log.replica_state import ReplicaState, learned
from streamq.metadata.acceptor import AcceptorRecord, Cell, Standing
from streamq.model.ids import Ballot, Member, PartitionId
from streamq.model.registers import BrokerRegister, ClusterRegister, PartitionRegister, Segment, Voter, Voters, broker_key, partition_key
from streamq.wire.codec import decode_value, encode
from tests.sim.tier1.acceptors import RECORD_KEY, cell_key
from tests.sim.tier1.checks import Checks
from tests.sim.tier1.disk import Disk
from tests.sim.tier1.endpoint import Endpoint
from tests.sim.tier1.events import Event, Founded, Traced
from tests.sim.tier1.joining import CLUSTER
from tests.sim.tier1.network import Connection, Network
from tests.sim.tier1.partition import TOPIC, replica_key
from tests.sim.tier1.plan import Plan
from tests.sim.tier1.process import Process
from tests.sim.tier1.trace import Tracer
from tests.sim.tier1.versions import Versions

__all__ = ["World"]

T = TypeVar("T")
EPOCH_MS = 1_760_000_000_000
FOUNDING = Ballot(1, "founder", bytes(16))


class World:
    """Invariant: `processes` holds the living start of each broker; `disks` what each broker's next start finds."""

    def __init__(self, plan: Plan, *, is_traced: bool = False) -> None:
        self.plan = plan
        self.is_traced = is_traced
        self.trace: list[Traced] = []
        self.tracer = Tracer(self)
        self.now = 0.0
        self.messages = 0
        self.counters: Counter[str] = Counter()
        self.random = Random(plan.seed)
        self.brokers = tuple(f"b{i + 1}" for i in range(plan.brokers))
        self.partition_ids: list[PartitionId] = [bytes([plan.seed % 7 + i]) * 16 for i in range(plan.partitions)]
        self.wounded: dict[str, list[tuple[int, int]]] = {}
        """Brokers whose losses have not been copied again, with what must be closed and held for that: (partition, epoch)."""
        self.clock_offsets_ms = dict.fromkeys(self.brokers, 0)
        self._heap: list[tuple[float, int, Endpoint | None, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._fresh = 0
        self.marks = 0
        self._decoded: dict[bytes, Any] = {}
        self._refusing: dict[str, bool] = {}
        self._doomed: dict[str, list[Connection]] = {}
        self.network = Network(self, plan.network)
        self.checks = Checks(self, plan.partitions)
        self.processes: dict[str, Process] = {}
        self.disks: dict[str, Disk] = {}
        self._found()

    def _found(self) -> None:
        """A cluster that has been there for a while: voters ready, brokers registered, each partition with a first epoch."""
        plan = self.plan
        members = {name: Member(name, self.token()) for name in self.brokers}
        voters = Voters(1, tuple(Voter(name, members[name].incarnation, name, 1) for name in self.brokers[: plan.voters]))
        self.first_voters = voters
        self.versions = Versions(self, voters.majority)
        values: dict[str, Any] = {
            broker_key(name): BrokerRegister(name, members[name].incarnation, name, 1, "", 1) for name in self.brokers
        }
        values["cluster"] = ClusterRegister(CLUSTER, self.brokers)
        registers = [self._first_register(index, list(members.values())) for index in range(plan.partitions)]
        for index, register in enumerate(registers):
            key = partition_key(TOPIC, index)
            values[key] = register
            self.versions.partition_keys[key] = index
            if self.is_traced:
                self.note(Founded(index, register))
        for name in self.brokers:
            disk = self.disks[name] = Disk(self, name, members[name].incarnation, voters)
            disk.was_stopped_cleanly = True
            states = disk.raw_states
            is_voter = voters.voter(name) is not None
            states[RECORD_KEY] = AcceptorRecord(disk.incarnation, voters, Standing.READY if is_voter else Standing.OUTSIDE, b"")
            for key, value in values.items():
                encoded = encode(value)
                self.versions.found(key, FOUNDING, encoded)
                if is_voter:
                    states[cell_key(key)] = Cell(FOUNDING, FOUNDING, encoded)
            for register in registers:
                if register.last.member(name) is not None:
                    states[replica_key(register.id)] = learned(ReplicaState(register.id), register)
        for name in self.brokers:
            self.start(name, has_joined=True)

    def _first_register(self, index: int, members: Sequence[Member]) -> PartitionRegister:
        plan = self.plan
        chosen = [members[(index + i) % len(members)] for i in range(plan.replicas)]
        quorum = (plan.write, plan.read, plan.durability)
        first = Segment(1, 0, None, tuple(chosen), *quorum, "", self.token())
        return PartitionRegister(
            self.partition_ids[index], TOPIC, index, tuple(m.broker for m in chosen), *quorum, 0, (first,), dedup_ms=plan.dedup_ms
        )

    # --- time

    def at(self, time: float, owner: Endpoint | None, call: Callable[..., None], *args: Any) -> None:
        """`owner`: whose event it is; it waits while that is paused and is forgotten when that is dead."""
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, owner, call, args))

    def after(self, delay_s: float, owner: Endpoint | None, call: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, owner, call, args))

    def run_until(self, end: float) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, owner, call, args = pop(heap)
            if owner is None:
                call(*args)
            elif owner.is_alive:
                if owner.is_paused:
                    owner.backlog.append((call, args))
                else:
                    call(*args)
                    if owner.wants_flush and owner.is_alive:
                        owner.flush()
        self.now = end

    def wall_ms(self, broker: str) -> int:
        return EPOCH_MS + int(self.now * 1000) + self.clock_offsets_ms[broker]

    # --- what everything needs

    def token(self) -> bytes:
        self._fresh += 1
        return self._fresh.to_bytes(8, "big") * 2

    def decode(self, kind: type[T], value: bytes) -> T:
        decoded = self._decoded.get(value)
        if decoded is None:
            decoded = self._decoded[value] = decode_value(kind, value)
        return decoded  # type: ignore[no-any-return]

    def note(self, event: Event) -> None:
        self.trace.append(Traced(self.now, event))

    # --- brokers

    def start(self, name: str, *, has_joined: bool = False) -> Process:
        """A new start of the broker on its disk."""
        assert name not in self.processes
        for connection in self._doomed.pop(name, ()):
            connection.close()
        process = self.processes[name] = Process(self, self.disks[name])
        process.begin(has_joined=has_joined)
        return process

    def process_ended(self, process: Process) -> None:
        """Its connections break, sooner or later."""
        name = process.name
        if self.is_traced:
            self.tracer.on_crashed(process)
        del self.processes[name]
        connections = [peer.connection for peer in process.peers if peer.connection is not None] + list(process.sessions)
        self._doomed[name] = connections
        if self.refuses(name):
            for connection in connections:
                self.after(0.0005 + 0.002 * self.random.random(), None, self._reset_by, name, connection)
        for other in list(self.processes.values()):
            other.peers.hearing(name)

    def _reset_by(self, name: str, connection: Connection) -> None:
        other = connection.there if connection.here.name == name else connection.here
        if self.network.link(name, other.name).is_up:
            connection.close()

    def refuses(self, name: str) -> bool:
        """Whether the broker's host is up, and refuses connections while the broker is not."""
        return self._refusing.get(name, True)

    def set_refusing(self, name: str, refuses: bool) -> None:
        self._refusing[name] = refuses

    def hears(self, process: Process, broker: str) -> bool:
        """Whether frames of that broker come in: it runs, the link is up, and there is a connection to come on."""
        other = self.processes.get(broker)
        if other is None or other.is_paused or not self.network.link(broker, process.name).is_up:
            return False
        return self._is_connected(process, other) or self._is_connected(other, process)

    def _is_connected(self, here: Process, there: Process) -> bool:
        peer = here.peers.get(there.name)
        connection = peer.connection if peer is not None else None
        return connection is not None and connection.is_open and connection.there is there

    def hearing_changed(self, source: str, target: str) -> None:
        process = self.processes.get(target)
        if process is not None:
            process.peers.hearing(source)

    def pause(self, process: Process) -> None:
        process.is_paused = True
        for other in self.processes.values():
            if other is not process:
                other.peers.hearing(process.name)

    def resume(self, process: Process) -> None:
        """Everything that waited happens at once."""
        if not process.is_alive or not process.is_paused:
            return
        process.is_paused = False
        for other in list(self.processes.values()):
            if other is not process:
                other.peers.hearing(process.name)
        backlog, process.backlog = process.backlog, []
        for call, args in backlog:
            if process.is_alive:
                call(*args)
                if process.wants_flush and process.is_alive:
                    process.flush()
