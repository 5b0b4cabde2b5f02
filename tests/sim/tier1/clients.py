"""Clients of the simulated cluster: producers that retry, consumers of one replica, readers of the tip. Each judges what it hears."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from streamq.model.batches import FLAG_CONTROL, Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import Ack, Failure, Message, Produce, Produced, ReadTip, Records, Subscribe, TipRead
from tests.sim.tier1 import events
from tests.sim.tier1.checks import Violation, batch_id, mark_of, named
from tests.sim.tier1.endpoint import Endpoint, Steps
from tests.sim.tier1.events import BatchId
from tests.sim.tier1.network import Connection
from tests.sim.tier1.partition import TOPIC
from tests.sim.tier1.plan import ProducerPlan

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["Client", "Consumer", "Pending", "Producer", "TipReader"]

PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 0.6
PATIENCE_S = 1.5
"""A producer that hears nothing for so long goes elsewhere."""
CERTAINLY_NOT_STORED = frozenset(
    ("not_sequencer", "not_ready", "disk_full", "busy", "fenced", "sequence_gap", "limit_reached", "bad_request")
)


class Client(Endpoint):
    """Connects to brokers when it wants something of them."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.connections: dict[str, Connection] = {}

    def connected(self, broker: str) -> Connection | None:
        """The connection to it, made now if that can be."""
        connection = self.connections.get(broker)
        if connection is not None and connection.is_open:
            return connection
        world = self.world
        process = world.processes.get(broker)
        are_up = world.network.link(self.name, broker).is_up and world.network.link(broker, self.name).is_up
        if process is None or process.is_paused or not are_up:
            return None
        connection = self.connections[broker] = Connection(world, self, process, process.me)
        process.accepted(connection)
        return connection

    def is_heard(self, broker: str) -> bool:
        """Whether the broker answers on the present connection, so far as silence tells."""
        connection = self.connections.get(broker)
        process = self.world.processes.get(broker)
        is_there = connection is not None and connection.is_open and connection.there is process and not process.is_paused
        return is_there and self.world.network.link(broker, self.name).is_up

    def receive(self, connection: Connection, message: Message, batches: Sequence[Batch], number: int) -> None:
        raise AssertionError("nobody dials a client")


class Pending:
    __slots__ = ("floor", "header")

    def __init__(self, header: BatchHeader, floor: int) -> None:
        self.header = header
        self.floor = floor


class Producer(Client):
    """Sends its batches in order, several at a time. An idempotent one sends again what was not acked, in order, until it is; one without
    idempotence sends a batch again only when it was certainly not stored. One of a later epoch is a named producer that was opened
    again: it begins with an opening, and sends nothing behind it before it is acked.
    """

    def __init__(self, world: "World", plan: ProducerPlan) -> None:
        super().__init__(world, f"{plan.name}.{plan.epoch}" if plan.epoch else plan.name)
        self.plan = plan
        self.identity = plan.name.encode().ljust(16, b"\0") if plan.is_idempotent else NO_PRODUCER
        self.partition = world.partition_ids[plan.partition]
        self.ledger = world.checks.ledgers[plan.partition]
        self.broker = world.brokers[plan.partition % len(world.brokers)]
        self.pending: dict[int, Pending] = {}
        """By sequence: sent and not acked. Ordered."""
        self.is_fenced = False
        self.is_opened = not (plan.epoch and plan.is_idempotent)
        self.unknown = 0
        self.refused: set[BatchId] = set()
        """Without idempotence: told to be certainly not stored, by the only broker that ever got it."""
        self._queue: list[BatchHeader] = []
        self._nacked: dict[int, None] = {}
        """Without idempotence: what may be sent again."""
        self._made = 0
        self._tickets: dict[int, int] = {}
        self._ticket = 0
        self._pause = PAUSE_FIRST_S
        self._is_waiting = False
        self._heard_at = 0.0
        self.after(plan.begins, self._burst)
        self.after(plan.begins + PATIENCE_S, self._watch)

    @property
    def is_done(self) -> bool:
        return self.is_fenced or (self._made >= self.plan.batches and not self._queue and not self.pending)

    def flush(self) -> None:
        self.wants_flush = False

    # --- making batches

    def _burst(self) -> None:
        plan = self.plan
        for _ in range(min(plan.burst, plan.batches - self._made)):
            self.make()
        if self._made < plan.batches:
            self.after(plan.interval_s * (0.3 + 1.4 * self.world.random.random()), self._burst)
        self._send_more()

    def hurry(self, count: int) -> None:
        """So many batches at once, over what was planned."""
        if self._made < self.plan.batches:
            for _ in range(count):
                self.make()
            self._send_more()

    def make(self) -> None:
        plan, count = self.plan, self._made
        self._made += 1
        records = 1 + (count * 7 + plan.partition) % 3
        mark = 0
        if not plan.is_idempotent:
            self.world.marks += 1
            mark = self.world.marks
        header = BatchHeader(self.partition, records, 0, 0, mark, self.identity, plan.epoch, count, 0, 0, 0, 0, 0)
        if plan.is_idempotent and plan.epoch and not count:
            header = msgspec.structs.replace(header, records=1, flags=FLAG_CONTROL)
        elif plan.is_idempotent:
            header = msgspec.structs.replace(header, mark=mark_of(plan.epoch, count))
        self._queue.append(header)

    def _send_more(self) -> None:
        if self._is_waiting or self.is_fenced:
            return
        fresh: list[int] = []
        while self._queue and len(self.pending) < (self.plan.window if self.is_opened else 1):
            header = self._queue.pop(0)
            self.pending[header.sequence] = Pending(header, self.ledger.committed)
            fresh.append(header.sequence)
        if fresh and not self._send(fresh):
            self._try_again()

    def _send(self, sequences: Sequence[int]) -> bool:
        connection = self.connected(self.broker)
        if connection is None:
            self._go_elsewhere("")
            return False
        self._heard_at = max(self._heard_at, self.world.now - PATIENCE_S / 2)
        self._produce(connection, sequences)
        if self.plan.strays and self.plan.is_idempotent and self.world.random.random() < self.plan.strays:
            stray = self.connected(self.world.random.choice(self.world.brokers))
            if stray is not None:
                self._produce(stray, sequences)
        return True

    def _produce(self, connection: Connection, sequences: Sequence[int]) -> None:
        first = self._ticket
        sequences = [sequence for sequence in sequences if sequence in self.pending]  # a connection that breaks settles some
        batches = [Batch(self.pending[sequence].header, b"", b"") for sequence in sequences]
        for sequence in sequences:
            self._tickets[self._ticket] = sequence
            self._ticket += 1
        connection.send(Produce(tuple(range(first, self._ticket))), batches)

    # --- outcomes

    def told(self, connection: Connection, message: Message, batches: Sequence[Batch]) -> None:
        assert isinstance(message, Produced)
        self._heard_at = self.world.now
        for ack in message.acks:
            sequence = self._tickets.get(ack.ticket)
            pending = self.pending.pop(sequence, None) if sequence is not None else None
            if pending is not None:
                self._pause = PAUSE_FIRST_S
                self._on_ack(pending, ack)
        is_refused = False
        for nack in message.nacks:
            sequence = self._tickets.get(nack.ticket)
            if sequence is not None and sequence in self.pending and sequence not in self._nacked:
                is_refused |= self._on_nack(sequence, nack.code, nack.sequencer, connection.there.name)
        if is_refused:
            self._try_again()
        else:
            self._send_more()

    def _on_ack(self, pending: Pending, ack: Ack) -> None:
        """I-3: what was acked, or known to be committed, before the batch was sent for the first time lies below it."""
        base = ack.base
        if pending.header.is_control:
            self.is_opened = True
            self.world.checks.on_opened(self.plan.partition, batch_id(pending.header), base, ack.mark)
            self.world.counters["openings"] += 1
        if 0 <= base < pending.floor:
            raise Violation(
                f"I-3: {named(batch_id(pending.header))} was sent when all below {pending.floor} was committed; it is at {base}"
            )
        self.world.counters["acks_received"] += 1

    def _on_nack(self, sequence: int, code: str, sequencer: str, sender: str) -> bool:
        """Whether to send again."""
        if code == "fenced":
            self.world.counters["fenced"] += 1
            self.is_fenced = True
            return False
        if not self.plan.is_idempotent and code not in CERTAINLY_NOT_STORED:
            self.unknown += 1
            del self.pending[sequence]
            return False
        if code not in ("busy", "disk_full", "unknown_outcome") and sender == self.broker:
            self._go_elsewhere(sequencer)
        self.world.counters["retries"] += 1
        if not self.plan.is_idempotent:
            self._send_as_another(sequence)
        return True

    def _send_as_another(self, sequence: int) -> None:
        """It was certainly not stored: it must never turn up, so what is sent again has a mark of its own."""
        pending = self.pending[sequence]
        self._nacked[sequence] = None
        if self.world.plan.network.is_ordered:  # else the answer may be to one of two copies of what was sent
            self.refused.add(batch_id(pending.header))
        self.world.marks += 1
        pending.header = msgspec.structs.replace(pending.header, payload_crc=self.world.marks)

    def _go_elsewhere(self, hint: str) -> None:
        if hint in self.world.brokers:
            self.broker = hint
        else:
            self.broker = self.world.random.choice(self.world.brokers)

    def _try_again(self) -> None:
        """After a pause, everything that is not acked, in order."""
        if not self._is_waiting:
            self._is_waiting = True
            self.after(self._pause * (0.5 + self.world.random.random()), self._resend)
            self._pause = min(2 * self._pause, PAUSE_MAX_S)

    def _resend(self) -> None:
        self._is_waiting = False
        if self.is_fenced:
            return
        again = list(self.pending if self.plan.is_idempotent else self._nacked)
        if again:
            self.world.counters["resends"] += 1
            self._tickets = {} if self.plan.is_idempotent else {t: s for t, s in self._tickets.items() if s not in self._nacked}
            if not self._send(again):
                self._try_again()
                return
            self._nacked.clear()
        self._send_more()

    def _watch(self) -> None:
        if not self.is_done:
            self.after(PATIENCE_S, self._watch)
        if self.pending and not self._is_waiting and self.world.now - self._heard_at >= PATIENCE_S:
            self._leave()

    def _leave(self) -> None:
        """Nobody answers: what was sent may or may not be stored."""
        if not self.plan.is_idempotent:
            self.unknown += len(self.pending) - len(self._nacked)
            self.pending = {sequence: self.pending[sequence] for sequence in self._nacked}
        connection = self.connections.pop(self.broker, None)
        if connection is not None:
            connection.close()
        self._go_elsewhere("")
        self._try_again()

    def lost(self, connection: Connection) -> None:
        if connection.there.name == self.broker:
            self.after(0.0, self._connection_lost)

    def _connection_lost(self) -> None:
        if self.pending and not self._is_waiting:
            self._leave()


class Consumer(Client):
    """Follows one replica after another, from where it is (P-26)."""

    def __init__(self, world: "World", name: str, index: int) -> None:
        super().__init__(world, name)
        self.index = index
        self.offset = 0
        self.broker = ""
        self._told = (0, 0)
        self.after(1.0, self._look)

    def _look(self) -> None:
        self.after(1.0, self._look)
        if not self.is_heard(self.broker) or self.world.random.random() < 0.15:
            self._follow_another()

    def _follow_another(self) -> None:
        old = self.connections.pop(self.broker, None)
        if old is not None:
            old.close()
        self.broker = self.world.random.choice(self.world.brokers)
        connection = self.connected(self.broker)
        if connection is not None:
            self._told = (0, 0)
            connection.send(Subscribe(self.world.partition_ids[self.index], self.offset, 1))

    def told(self, connection: Connection, message: Message, batches: Sequence[Batch]) -> None:
        if connection is not self.connections.get(self.broker):
            return
        if isinstance(message, Failure):
            if message.code == "offset_trimmed":
                self.offset = max(self.offset, self.world.checks.ledgers[self.index].start_offset)
            self.after(0.2, self._follow_another)
            return
        assert isinstance(message, Records)
        mark = (message.epoch, message.high_watermark)
        if mark < self._told and self.world.plan.network.is_ordered:
            raise Violation(f"I-6: {connection.there.name} told {self.name} a watermark of {mark} after {self._told}")
        self._told = mark
        for batch in batches:
            self._take(batch)
        if batches:
            self.world.counters["consumed"] += len(batches)
            if self.world.is_traced:
                ids = tuple(batch_id(batch.header) for batch in batches)
                place = (batches[0].header.epoch, batches[0].base, batches[-1].end)
                self.world.note(events.Consumed(self.name, connection.member, self.index, *place, ids))

    def _take(self, batch: Batch) -> None:
        """I-4: consecutive from the place asked for; I-2."""
        if batch.end <= self.offset and not self.world.plan.network.is_ordered:
            return
        if not batch.base <= self.offset < batch.end:
            if self.world.plan.network.is_ordered:
                raise Violation(f"I-4: {self.name} was handed offset {batch.base} when it was at {self.offset}")
            return
        self.world.checks.observe(self.index, batch.base, batch.end, batch_id(batch.header))
        self.offset = batch.end


class TipReader(Client):
    def __init__(self, world: "World", name: str, index: int, interval_s: float) -> None:
        super().__init__(world, name)
        self.index = index
        self.interval_s = interval_s
        self.spawn(self._read())

    def told(self, connection: Connection, message: Message, batches: Sequence[Batch]) -> None:
        raise AssertionError("nothing is told to who only asks")

    def hurry(self, count: int) -> None:
        for _ in range(count):
            self.spawn(self._read(is_once=True))

    def _read(self, *, is_once: bool = False) -> Steps:
        world = self.world
        is_over = False
        while not is_over:
            is_over = is_once
            yield self.sleep(0.01 if is_once else self.interval_s * (0.5 + world.random.random()))
            connection = self.connected(world.random.choice(world.brokers))
            if connection is None:
                continue
            floor = world.checks.ledgers[self.index].committed
            if world.is_traced:
                world.note(events.TipBegan(self.name, self.index))
            answer = yield lambda resume, to=connection: to.request(ReadTip(TOPIC, self.index), (), 6.0, lambda m, _: resume(m))
            if isinstance(answer, TipRead):
                world.counters["tips"] += 1
                if world.is_traced:
                    world.note(events.TipConcluded(self.name, self.index, answer.epoch, answer.high_watermark))
                world.checks.on_tip(self.index, floor=floor, epoch=answer.epoch, mark=answer.high_watermark)
