"""Every message that reaches a simulated broker finds its place here, as in `broker.router` and `broker.requests`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.messages import (
    Accept,
    AdoptVoters,
    Copy,
    Failure,
    ListKeys,
    Message,
    Nack,
    Open,
    Prepare,
    Produce,
    ReadAccepted,
    ReadTable,
    ReadTip,
    ReadVoters,
    Rejoin,
    Repair,
    Seal,
    Store,
    Subscribe,
    TakenOver,
    TakeOver,
    Tip,
    TipRead,
    Unsubscribe,
    VotersReady,
)
from tests.sim.tier1.endpoint import Steps
from tests.sim.tier1.partition import Partition
from tests.sim.tier1.serving import Subscription
from tests.sim.tier1.session import ReplyTo, Session
from tests.sim.tier1.tips import TIP_DEADLINE_S, read_tip

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["Mail"]

ACCEPTOR_MESSAGES = (Prepare, Accept, ReadAccepted, ListKeys, ReadVoters, AdoptVoters, VotersReady)
Place = Callable[[Session, Message, Sequence[Batch], int], None]


class Mail:
    def __init__(self, process: "Process") -> None:
        self.process = process
        self.world = process.world
        self._places: dict[type[Message], Place] = {
            Produce: self._produce,
            Store: self._store,
            Seal: self._seal,
            Repair: self._repair,
            Open: self._open,
            Tip: self._tip,
            Copy: self._copy,
            ReadTable: self._read_table,
            TakeOver: self._take_over,
            Rejoin: self._rejoin,
            ReadTip: self._read_tip,
            Subscribe: self._subscribe,
            Unsubscribe: self._unsubscribe,
            **dict.fromkeys(ACCEPTOR_MESSAGES, self._to_acceptor),
        }

    def receive(self, session: Session, message: Message, batches: Sequence[Batch], number: int) -> None:
        self._places[type(message)](session, message, batches, number)

    def _is_refused(self, session: Session, number: int) -> bool:
        if self.process.state == "serving":
            return False
        session.connection.answer(number, Failure("not_ready", self.process.state))
        return True

    # --- producing

    def _produce(self, session: Session, message: Message, batches: Sequence[Batch], _number: int) -> None:
        assert isinstance(message, Produce)
        process = self.process
        for ticket, batch in zip(message.tickets, batches, strict=True):
            partition = process.partitions.get(batch.header.partition)
            if partition is not None and partition.sequencing is not None and process.state == "serving":
                partition.sequencing.produce(session, ticket, batch)
            else:
                session.nack(self._elsewhere(ticket, partition))

    def _elsewhere(self, ticket: int, partition: Partition | None) -> Nack:
        """Who is the sequencer, as far as known here; and a report that it could not be reached (P-20)."""
        process = self.process
        if process.state != "serving":
            return Nack(ticket, "not_ready", "", "")
        if partition is None:
            return Nack(ticket, "not_sequencer", "", "")
        opened = partition.open_segment
        if opened is not None and process.successions.leads(opened):
            return Nack(ticket, "not_sequencer", "", opened.sequencer)
        if opened is not None:
            process.successions.consider(partition)
        return Nack(ticket, "not_sequencer", "", "")

    # --- replicas

    def _store(self, session: Session, message: Message, batches: Sequence[Batch], _number: int) -> None:
        assert isinstance(message, Store)
        process = self.process
        if process.state == "starting" or (batches and process.disk.is_full):
            self.world.counters["stores_dropped"] += 1
            return
        start = 0
        for run in message.runs:
            mine = batches[start : start + run.batches]
            start += run.batches
            partition = process.stranger(run.partition)
            partition.carry_out(partition.replica.on_store(run, mine, session.stored))

    def _is_starting(self, session: Session, number: int) -> bool:
        if self.process.state != "starting":
            return False
        session.connection.answer(number, Failure("not_ready", "starting"))
        return True

    def _seal(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, Seal)
        if not self._is_starting(session, number):
            partition = self.process.partition(message.partition)
            partition.carry_out(partition.replica.on_seal(message, ReplyTo(session.connection, number)))

    def _repair(self, session: Session, message: Message, batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, Repair)
        if self._is_starting(session, number):
            return
        if batches and self.process.disk.is_full:
            session.connection.answer(number, Failure("disk_full", ""))
            return
        partition = self.process.partition(message.partition)
        partition.carry_out(partition.replica.on_repair(message, batches, ReplyTo(session.connection, number)))

    def _open(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, Open)
        if not self._is_starting(session, number):
            partition = self.process.partition(message.register.id)
            partition.carry_out(partition.replica.on_open(message.register, ReplyTo(session.connection, number)))
            partition.heard(message.register)

    def _tip(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, Tip)
        if not self._is_starting(session, number):
            partition = self.process.stranger(message.partition)
            partition.carry_out(partition.replica.on_tip(message, ReplyTo(session.connection, number)))

    def _copy(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, Copy)
        if self.process.state not in ("serving", "stopping"):
            session.connection.answer(number, Failure("not_ready", self.process.state))
            return
        partition = self.process.partitions.get(message.partition)
        if partition is None:
            session.connection.answer(number, Failure("unknown_partition", ""))
            return
        try:
            answer, batches = partition.copy(message)
        except StreamqError as error:
            session.connection.answer(number, Failure(error.code, error.message))
        else:
            session.connection.answer(number, answer, batches)

    def _read_table(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, ReadTable)
        partition = self.process.partitions.get(message.partition)
        if partition is None or self.process.state not in ("serving", "stopping"):
            session.connection.answer(number, Failure("not_ready", self.process.state))
            return
        try:
            answer = self.process.tables.page(message, partition.replica.table)
        except StreamqError as error:
            session.connection.answer(number, Failure(error.code, error.message))
        else:
            session.connection.answer(number, answer)

    def _to_acceptor(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        self.process.acceptor.submit(message, lambda answer: session.connection.answer(number, answer))

    # --- requests that wait

    def _take_over(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, TakeOver)
        if not self._is_refused(session, number):
            self.process.spawn(self._take_over_here(session, message, number))

    def _take_over_here(self, session: Session, message: TakeOver, number: int) -> Steps:
        try:
            register = yield from self.process.successions.take_over_here(message.index, message.epoch)
        except StreamqError as error:
            session.connection.answer(number, Failure(error.code, error.message))
        else:
            session.connection.answer(number, TakenOver(register))

    def _rejoin(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, Rejoin)
        self.process.spawn(self._rejoin_here(session, message, number))

    def _rejoin_here(self, session: Session, message: Rejoin, number: int) -> Steps:
        try:
            view = yield from self.process.readmissions.on_rejoin(message)
        except StreamqError as error:
            session.connection.answer(number, Failure(error.code, error.message))
        else:
            session.connection.answer(number, view)

    # --- clients

    def _read_tip(self, session: Session, message: Message, _batches: Sequence[Batch], number: int) -> None:
        assert isinstance(message, ReadTip)
        if not self._is_refused(session, number):
            self.process.spawn(self._read_tip_here(session, message, number))

    def _read_tip_here(self, session: Session, message: ReadTip, number: int) -> Steps:
        try:
            result, _ = yield from read_tip(self.process, message.index, TIP_DEADLINE_S)
        except StreamqError as error:
            session.connection.answer(number, Failure(error.code, error.message))
        else:
            session.connection.answer(number, TipRead(result.epoch, result.high_watermark, result.start_offset, result.answered))

    def _subscribe(self, session: Session, message: Message, _batches: Sequence[Batch], _number: int) -> None:
        assert isinstance(message, Subscribe)
        partition = self.process.partitions.get(message.partition)
        if self.process.state != "serving" or partition is None:
            session.connection.tell(Failure("not_replica", ""))
            return
        session.subscribe(Subscription(session.connection, partition, message.offset))

    def _unsubscribe(self, session: Session, _message: Message, _batches: Sequence[Batch], _number: int) -> None:
        session.ended()
