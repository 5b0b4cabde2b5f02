"""A small synchronous world for the log cores: disks, brokers, one partition's register, and a network that delays, repeats and loses.

Everything that happens is an event chosen by whoever drives the world. What any observer concludes to be committed goes into `seen`;
`Violation` is raised as soon as something that protocol.md's section 9 excludes has happened.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial

from streamq.log.effects import Alarm, Cut, Effect, Persist, Reply
from streamq.log.idempotence import IdempotenceTable, TableSnapshot
from streamq.log.replica import Readable, Replica
from streamq.log.replica_state import ReplicaState
from streamq.log.sequencer import Assigned, Duplicate, Progress, Sequencer
from streamq.log.takeover import Phase, Takeover
from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER, Member
from streamq.model.messages import Copied, Message, Stored, StoreRun
from streamq.model.registers import PartitionRegister, Segment
from tests.support.log_takeovers import TakeoverRun

PARTITION = b"p" * 16
TOPIC = "t"


class Violation(AssertionError):
    """An invariant of the protocol does not hold."""


def uid(batch: Batch) -> tuple[bytes, int, int]:
    """What a batch is, wherever it lies: producer, sequence, and which of several attempts of a producer without idempotence."""
    return batch.header.producer, batch.header.sequence, batch.header.payload_crc


class Disk:
    """What a broker has stored. `raw` is what a crash leaves: cuts are not in the journal, so a replay brings cut batches back."""

    def __init__(self, incarnation: bytes) -> None:
        self.incarnation = incarnation
        self.raw: dict[int, list[Batch]] = {}
        self.state: ReplicaState | None = None
        self.pending: list[Persist] = []
        self.view: dict[int, list[Batch]] = {}
        self.table: TableSnapshot | None = None
        self.lost = False
        """The incarnation has lost what it held (limbo, P-29) and not yet recorded that it is in limbo."""

    def append(self, persist: Persist) -> None:
        run = self.view.setdefault(persist.epoch, []) if persist.batches else []
        for batch in persist.batches:
            if run and run[-1].end != batch.base:
                raise Violation(f"P-13: a batch at {batch.base} continues a run that ends at {run[-1].end}")
            run.append(batch)
        self.pending.append(persist)

    def settle(self, persist: Persist) -> None:
        if persist.state is not None:
            self.state = persist.state
        for batch in persist.batches:
            run = self.raw.setdefault(persist.epoch, [])
            while run and run[-1].base >= batch.base:
                run.pop()
            run.append(batch)

    def cut(self, epoch: int, end: int) -> None:
        run = [b for b in self.view.get(epoch, []) if b.end <= end]
        self.view[epoch] = run
        if not run:
            del self.view[epoch]

    def crash(self, keep: int) -> None:
        """The first `keep` of what was on its way reached the disk, and nobody was told."""
        for persist in self.pending[:keep]:
            self.settle(persist)
        self.pending.clear()
        self.view = {e: list(run) for e, run in self.raw.items() if run}

    def runs(self) -> dict[int, tuple[int, int]]:
        return {e: (run[0].base, run[-1].end) for e, run in self.view.items()}


class Broker:
    """One process: its replica, perhaps a sequencer and takeovers, all gone when it crashes."""

    def __init__(self, world: "World", name: str, disk: Disk) -> None:
        self.world = world
        self.name = name
        self.disk = disk
        self.is_up = False
        self.start_number = 0
        self.replica: Replica
        self.sequencer: Sequencer | None = None
        self.sent: list[Batch] = []
        self.takeovers: list[TakeoverRun] = []
        self.requests: dict[tuple[int, int], object] = {}

    @property
    def me(self) -> Member:
        return Member(self.name, self.disk.incarnation)

    def start(self) -> None:
        self.is_up = True
        self.start_number += 1
        table = IdempotenceTable.restore(self.disk.table) if self.disk.table is not None else None
        self.replica = Replica(self.me, self.disk.state or ReplicaState(PARTITION), self.disk.runs(), table)
        self.carry_out(self.replica.on_restart())
        if self.disk.lost:
            self.carry_out(self.replica.enter_limbo())
            self.settle(len(self.disk.pending))  # P-29: recorded before anything else is written
            self.disk.lost = False

    def crash(self, keep: int) -> None:
        self.is_up = False
        self.disk.crash(keep)
        self.sequencer = None
        self.takeovers.clear()

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                self.disk.append(effect)
            elif isinstance(effect, Reply):
                assert callable(effect.to)
                effect.to(effect.message, effect.batches)
            elif isinstance(effect, Cut):
                self.disk.cut(effect.epoch, effect.end)
            elif isinstance(effect, Alarm):
                raise Violation(effect.reason)

    def settle(self, count: int) -> None:
        """The first `count` writes become durable, as one group commit."""
        group, self.disk.pending = self.disk.pending[:count], self.disk.pending[count:]
        for persist in group:
            self.disk.settle(persist)
        limbo = len(self.replica.state.limbo)
        for persist in group:
            self.carry_out(self.replica.on_durable(persist))
        self.world.counts["limbo_ended"] += len(self.replica.state.limbo) < limbo
        try:
            self.replica.check()
        except AssertionError as broken:
            raise Violation(f"{self.name} broke an invariant of its own: {broken}") from None

    def batches(self, epoch: int, offset: int, end: int) -> list[Batch]:
        return [b for b in self.disk.view.get(epoch, []) if b.base >= offset and b.end <= end]

    def fold(self) -> None:
        while (needed := self.replica.fold_needed()) is not None:
            epoch, offset = needed
            self.replica.on_headers(epoch, [b.header for b in self.batches(epoch, offset, 1 << 62)][:2])

    # --- sequencing

    def become_sequencer(self, segment: Segment) -> None:
        self.fold()
        if self.replica.is_complete(segment.base) and self.replica.accepts_epoch == segment.epoch:
            self.sequencer = Sequencer(partition=PARTITION, segment=segment, table=self.replica.table)
            self.sent = []

    def produce(self, header: BatchHeader, ticket: object) -> None:
        if self.sequencer is None:
            return
        answer = self.sequencer.on_produce(header, ticket, self.world.now_ms)
        if isinstance(answer, Assigned):
            self.world.note_assigned(answer, header)
            batch = self.world.stamp(header, answer)
            self.sent.append(batch)
            for member in self.sequencer.segment.replicas:
                self.store(member, [batch])
        elif isinstance(answer, Duplicate):
            if answer.base is None:
                raise Violation("P-35: a repeat is older than all that is remembered, and nobody repeats so late")
            self.world.on_ack(ticket, answer.base)
        self.sequencer.check()

    def store(self, member: Member, batches: list[Batch]) -> None:
        assert self.sequencer is not None
        run = StoreRun(PARTITION, self.sequencer.epoch, self.sequencer.high_watermark, len(batches))
        self.world.note_told(run.epoch, run.high_watermark)

        def deliver(there: "Broker") -> None:
            there.carry_out(there.replica.on_store(run, batches, self.report_from(there)))

        self.world.post(member, f"store {run.epoch}", deliver)

    def report_from(self, there: "Broker") -> Callable[..., None]:
        """The handle with which `there` reports to the sequencer here, whoever that is by then."""
        speaker = there.me

        def report(message: Message, _batches: object = ()) -> None:
            assert isinstance(message, Stored)
            self.world.post(self.me, "stored", lambda here: here.stored(speaker, message))

        return report

    def stored(self, member: Member, message: Stored) -> None:
        for run in message.runs:
            if self.sequencer is None:
                return
            progress = self.sequencer.on_stored(member, run)
            self.sequencer.check()
            self.progressed(member, progress)

    def progressed(self, member: Member, progress: Progress) -> None:
        assert self.sequencer is not None
        for acked in progress.acks:
            self.world.on_ack(acked.ticket, acked.base)
        if progress.resend_from is not None:
            self.resend(member, progress.resend_from)
        if progress.open_again:
            self.world.tell_open(member)

    def resend(self, member: Member, offset: int) -> None:
        self.store(member, [b for b in self.sent if b.base >= offset][:3])

    # --- being copied from

    def copied(self, epoch: int, offset: int, end: int) -> tuple[Copied, list[Batch]]:
        tail = self.replica.local_tail(epoch)
        if tail is None:
            return Copied(epoch, offset), []
        return Copied(epoch, tail), self.batches(epoch, offset, min(tail, end))[:2]


class World:
    """The whole of it. Drive it with `step`, or call its parts in the order that a scenario needs."""

    def __init__(self, *, brokers: int = 3, write: int = 2, read: int | None = None, seed: int = 0, faults: float = 0.1) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now_ms = 1_000
        self.mail: list[tuple[Member, str, Callable[[Broker], None]]] = []
        self.seen: dict[int, tuple[bytes, int, int]] = {}
        self.acked: dict[tuple[bytes, int, int], int] = {}
        self.assigned: dict[tuple[int, int], tuple[bytes, int, int]] = {}
        self.told: dict[int, int] = {}
        self.counts = dict.fromkeys(("takeovers", "lost_races", "crashes", "losses", "acks", "repairs", "limbo_ended"), 0)
        self.late_changes: list[Callable[[], None]] = []
        self._fresh = 0
        self.members = {f"b{i}": Member(f"b{i}", self.token()) for i in range(1, brokers + 1)}
        replicas = tuple(self.members.values())
        read = brokers - write + 1 if read is None else read
        first = Segment(1, 0, None, replicas, write, read, "fsync", "b1", self.token())
        self.register = PartitionRegister(PARTITION, TOPIC, 0, tuple(self.members), write, read, "fsync", 0, (first,))
        self.brokers = {name: Broker(self, name, Disk(member.incarnation)) for name, member in self.members.items()}
        for broker in self.brokers.values():
            broker.start()
            broker.carry_out(broker.replica.on_learn(self.register))
            broker.settle(1)
        self.brokers["b1"].become_sequencer(first)

    def token(self) -> bytes:
        self._fresh += 1
        return self._fresh.to_bytes(16, "big")

    # --- the network

    def post(self, to: Member, what: str, deliver: Callable[[Broker], None]) -> None:
        """To one incarnation: connections name it (P-10)."""
        self.mail.append((to, what, deliver))

    def deliver(self, index: int, *, repeat: bool = False) -> None:
        to, _, deliver = self.mail[index] if repeat else self.mail.pop(index)
        broker = self.brokers[to.broker]
        if broker.is_up and broker.me == to:
            deliver(broker)

    def deliver_all(self, what: str = "", *, to: str = "", rounds: int = 1_000) -> None:
        """Delivers everything of that kind, in order, and makes what it leads to durable, until there is no more."""
        for _ in range(rounds):
            places = [i for i, (member, kind, _) in enumerate(self.mail) if kind.startswith(what) and member.broker.startswith(to)]
            if places:
                self.deliver(places[0])
            elif not self.settle_all(to):
                return

    def settle_all(self, name: str = "") -> bool:
        busy = [b for b in self.brokers.values() if b.is_up and b.disk.pending and b.name.startswith(name)]
        for broker in busy:
            broker.settle(len(broker.disk.pending))
        return bool(busy)

    def drop(self, what: str, *, to: str = "") -> None:
        self.mail = [m for m in self.mail if not (m[1].startswith(what) and m[0].broker.startswith(to))]

    def tell_open(self, member: Member) -> None:
        register = self.register
        self.post(member, "open", lambda there: there.carry_out(there.replica.on_open(register, partial(_ignore))))

    # --- what must hold

    def stamp(self, header: BatchHeader, place: Assigned) -> Batch:
        fields = {f: getattr(header, f) for f in header.__struct_fields__}
        return Batch(BatchHeader(**{**fields, "epoch": place.epoch, "base": place.base, "append_time": place.append_time}), b"", b"")

    def note_assigned(self, place: Assigned, header: BatchHeader) -> None:
        identity = (header.producer, header.sequence, header.payload_crc)
        if self.assigned.setdefault((place.epoch, place.base), identity) != identity:
            raise Violation(f"P-12: two batches at offset {place.base} of epoch {place.epoch}")

    def note_told(self, epoch: int, mark: int) -> None:
        self.told[epoch] = max(mark, self.told.get(epoch, 0))
        self.check_told(epoch)

    def check_told(self, epoch: int) -> None:
        segment = self.register.segment(epoch)
        if segment is not None and segment.end is not None and self.told.get(epoch, 0) > segment.end:
            raise Violation(f"I-6: a high watermark of {self.told[epoch]} was told for epoch {epoch}, which ends at {segment.end}")

    def on_ack(self, ticket: object, base: int) -> None:
        assert isinstance(ticket, tuple)
        self.counts["acks"] += 1
        if self.acked.setdefault(ticket, base) != base and ticket[0] != NO_PRODUCER:
            raise Violation(f"I-5: {ticket} was acked at {self.acked[ticket]} and at {base}")
        self.observe(base, ticket)

    def observe(self, offset: int, identity: tuple[bytes, int, int]) -> None:
        """Somebody concluded that this lies committed at that offset."""
        if self.seen.setdefault(offset, identity) != identity:
            raise Violation(f"I-2: {self.seen[offset]} and {identity} were both seen at offset {offset}")
        segment = next(s for s in reversed(self.register.chain) if s.base <= offset)
        holders = [b for b in self.brokers.values() for x in b.disk.view.get(segment.epoch, []) if x.base == offset and uid(x) == identity]
        if not holders or (segment.end is not None and offset >= segment.end):
            raise Violation(f"I-1: {identity}, seen at offset {offset}, is held by nobody in epoch {segment.epoch}")

    def read_all(self, name: str) -> int:
        """A consumer that reads from one replica only, from the start (P-23, P-26). Returns how far it came."""
        broker = self.brokers[name]
        offset = 0
        while isinstance(place := broker.replica.readable(offset), Readable):
            found = broker.batches(place.epoch, offset, place.limit)
            if not found or found[0].base != offset:
                raise Violation(f"I-4: {name} calls offset {offset} readable and does not hold it")
            for batch in found:
                self.observe(batch.base, uid(batch))
            offset = found[-1].end
        return offset

    def check_register(self, before: PartitionRegister) -> None:
        register = self.register
        if fault := register.fault():
            raise Violation(f"I-8: {fault}")
        for segment in before.chain:
            now = register.segment(segment.epoch)
            if now is None and register.chain[0].base <= register.start_offset:
                continue  # an empty segment left the chain
            if now is None or (segment.end is not None and now.end != segment.end):
                raise Violation(f"P-9: the end of epoch {segment.epoch} changed")
            self.check_told(segment.epoch)
        for offset, identity in self.seen.items():
            self.observe(offset, identity)

    def begin_takeover(self, name: str, epoch: int | None = None) -> TakeoverRun:
        broker = self.brokers[name]
        run = TakeoverRun(self, broker, self.register.last.epoch if epoch is None else epoch)
        broker.takeovers.append(run)
        run.start()
        return run

    def take_over(self, name: str) -> Takeover:
        """Runs one takeover by that broker to its end, with everything that is up answering in time."""
        run = self.begin_takeover(name)
        for _ in range(200):
            self.deliver_all("takeover")
            if run.core.is_over:
                break
            deadline = run.core.next_deadline
            assert deadline is not None
            run.carry_out(run.core.on_deadline(deadline))
        if run.core.phase is Phase.DONE:
            self.deliver_all("open")
        return run.core


def _ignore(_message: Message, _batches: object = ()) -> None:
    pass
