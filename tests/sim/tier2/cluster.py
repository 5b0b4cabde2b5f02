"""A whole cluster in one trio run: brokers, the network between them and their clients, and what an observer who sees everything notes."""

import logging
import random
from collections import Counter
from typing import Any, Final

import trio

from streamq.broker.metrics import BrokerMetrics
from streamq.broker.partition import table_key
from streamq.log.replica_state import ReplicaState
from streamq.metadata.acceptor import AcceptorRecord, Standing
from streamq.model.ids import Ballot, PartitionId
from streamq.model.registers import PartitionRegister, Voter, Voters, partition_key
from streamq.model.tables import TableSnapshot
from streamq.wire.codec import decode_value
from tests.sim.disk import SimulatedDisk
from tests.sim.history import StoredBatch
from tests.sim.private_trio import PROCESS
from tests.sim.simulated_storage import format_directory, rejoin_directory
from tests.sim.tier2.brokers import PORT, Broker
from tests.sim.tier2.network import SimulatedNetwork

__all__ = ["SimulatedCluster", "Violation"]

READ_BYTES: Final = 1 << 20
TIMELINE_MAX: Final = 4_000


class Violation(AssertionError):
    """Something that must never happen has happened."""


class SimulatedCluster:
    """`timeline` is what happened, for people: (time, who, what)."""

    def __init__(self, nursery: trio.Nursery, rng: random.Random, *, brokers: int, settings: dict[str, Any]) -> None:
        self.nursery = nursery
        self.random = rng
        self.settings = settings
        self.network = SimulatedNetwork(random.Random(rng.random()))
        self.timeline: list[tuple[float, str, str]] = []
        self.counters: Counter[str] = Counter()
        self.metrics = BrokerMetrics()
        """Of all brokers in all their lives."""
        self.violations: list[str] = []
        self.failed = trio.Event()
        self._votes: dict[str, dict[Ballot, tuple[bytes, dict[str, None]]]] = {}
        self.cluster_id = rng.randbytes(16)
        self.client_hosts: list[str] = []
        self.damaged: dict[str, None] = {}
        """Brokers whose disk has lost something that is not on N replicas again yet."""
        names = [f"b{i + 1}" for i in range(brokers)]
        self.voters = Voters(1, tuple(Voter(name, rng.randbytes(16), name, PORT) for name in names))
        self.brokers: dict[str, Broker] = {}
        for voter in self.voters.voters:
            disk = SimulatedDisk(random.Random(rng.random()))
            format_directory(disk, cluster=self.cluster_id, broker=voter.broker, first_voters=self.voters, incarnation=voter.incarnation)
            self.brokers[voter.broker] = Broker(self, voter.broker, disk, random.Random(rng.random()))

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{name}:{PORT}" for name in self.brokers)

    def note(self, who: str, what: str) -> None:
        if len(self.timeline) < TIMELINE_MAX:
            self.timeline.append((trio.current_time(), who, what))

    def fail(self, why: str, error: BaseException | None = None) -> None:
        """A bug: the run ends as soon as it can, with this."""
        self.violations.append(why)
        self.note("VIOLATION", why)
        if error is not None:
            logging.getLogger(__name__).error("%s", why, exc_info=error)
        self.failed.set()

    async def start(self) -> None:
        for broker in self.brokers.values():
            broker.start()
        for broker in self.brokers.values():
            assert broker.process is not None
            await broker.process.serving.wait()

    def wipe(self, name: str) -> None:
        """The disk is replaced by an empty one, and the operator rejoins the broker (P-31)."""
        broker = self.brokers[name]
        assert broker.process is None
        broker.disk.replace()
        rejoin_directory(broker.disk, cluster=self.cluster_id, broker=name, first_voters=self.voters)

    # --- what an observer knows

    def voted(self, broker: str, key: str, ballot: Ballot, value: bytes) -> None:
        """An acceptance is durable."""
        votes = self._votes.setdefault(key, {}).setdefault(ballot, (value, {}))
        if votes[0] != value:
            self.fail(f"two values for {key} under ballot {ballot}")
        votes[1][broker] = None

    def conflicts(self) -> int:
        """Ballots at which somebody has accepted a partition's register, and which were overtaken before a majority had."""
        return sum(len(by) < self.voters.majority for votes in self._votes.values() for _, by in votes.values())

    def registers(self, topic: str, index: int) -> list[PartitionRegister]:
        """The versions of a partition's register that were chosen, oldest first."""
        votes = self._votes.get(partition_key(topic, index), {})
        chosen = sorted((b, value) for b, (value, by) in votes.items() if len(by) >= self.voters.majority)
        return [decode_value(PartitionRegister, value) for _, value in chosen]

    def register(self, topic: str, index: int) -> PartitionRegister | None:
        versions = self.registers(topic, index)
        return versions[-1] if versions else None

    def state(self, broker: Broker, partition: PartitionId) -> ReplicaState | None:
        value = broker.storage.states().get(f"replica/{partition.hex()}")
        return None if value is None else decode_value(ReplicaState, value)

    def lack(self, topic: str, partitions: int, *, up: list[str]) -> str | None:
        """Why the brokers that are up are not whole: each must hold all of what each segment names it for, in no limbo."""
        for index in range(partitions):
            register = self.register(topic, index)
            if register is None:
                return f"partition {index} has no register"
            for segment in register.chain:
                if segment.end is None and segment.sequencer not in up:
                    return f"partition {index}: epoch {segment.epoch} is {segment.sequencer}'s, which is not up"
                for member in segment.replicas:
                    if member.broker in up and (why := self._lack_of(self.brokers[member.broker], register, segment.epoch)):
                        return f"partition {index} at {member.broker}: {why}"
        return None

    def _lack_of(self, broker: Broker, register: PartitionRegister, epoch: int) -> str | None:
        if not broker.is_serving:
            return "it does not serve"
        segment = register.segment(epoch)
        assert segment is not None
        state = self.state(broker, register.id)
        named = segment.member(broker.name)
        if state is None or state.opened < register.last.epoch:
            return f"epoch {register.last.epoch} is not opened there"
        if named is None or named.incarnation != broker.storage.identity.incarnation:
            return f"epoch {epoch} names another incarnation of it"
        if state.in_limbo(epoch):
            return f"it is in limbo for epoch {epoch}"
        run = broker.storage.runs(register.id).get(epoch)
        tail = max(segment.base if run is None else run.tail, state.start_offset)
        if self._table_position(broker, register.id) < register.start_offset:
            return f"it has no durable idempotence table at the start offset, {register.start_offset}"
        return f"it holds epoch {epoch} up to {tail} of {segment.end}" if segment.end is not None and tail < segment.end else None

    def _table_position(self, broker: Broker, partition: PartitionId) -> int:
        value = broker.storage.states().get(table_key(partition))
        return 0 if value is None else decode_value(TableSnapshot, value).position

    def is_ready_voter(self, broker: Broker) -> bool:
        value = broker.storage.states().get("voters") if broker.is_serving else None
        return value is not None and decode_value(AcceptorRecord, value).standing is Standing.READY

    def why_not_whole(self, topic: str, partitions: int, *, but: str = "") -> str | None:
        """None if every broker serves, holds what it should, and is a voter: one disk may be lost. `but` may have lost its own already."""
        lossy = [name for name in self.damaged if name != but]
        if lossy:
            return f"the loss of {lossy[0]} is not made good yet"
        for broker in self.brokers.values():
            if not self.is_ready_voter(broker):
                return f"{broker.name} is no voter that serves"
        return self.lack(topic, partitions, up=list(self.brokers))

    async def stored(self, broker: Broker, register: PartitionRegister, high_watermark: int) -> list[StoredBatch]:
        """What lies there of each closed segment, and of the open one below the high watermark, from the start offset on, as its storage
        gives it: rot below is nobody's concern (P-41)."""
        found: list[StoredBatch] = []
        for segment in register.chain:
            if segment.member(broker.name) is None:
                continue
            end = high_watermark if segment.end is None else segment.end
            offset = max(segment.base, register.start_offset)
            while (run := broker.storage.runs(register.id).get(segment.epoch)) is not None and offset < min(end, run.tail):
                offset = max(offset, run.base)
                batches = await broker.storage.read(register.id, segment.epoch, offset, max_bytes=READ_BYTES)
                if not batches:
                    continue  # trimmed meanwhile
                found += [
                    StoredBatch(segment.epoch, b.base, b.end, b.head + b.payload) for b in batches if not segment.is_open or b.end <= end
                ]
                offset = batches[-1].end
        return found


class TimelineHandler(logging.Handler):
    """The brokers' own log in the timeline; an ALARM is a violation."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        super().__init__()
        self._cluster = cluster

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        process = PROCESS.get()
        who = next((b.name for b in self._cluster.brokers.values() if b.process is process and process is not None), "client")
        self._cluster.note(who, text)
        if "ALARM" in text:
            self._cluster.fail(f"{who}: {text}")
