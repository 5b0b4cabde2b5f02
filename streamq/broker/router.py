"""Every frame that arrives finds its place here: stores and batches at once, in order; what has to wait goes to `requests`."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from streamq.broker.local_acceptor import LocalAcceptor
from streamq.broker.node import Node
from streamq.broker.partition import Partition, unknown_partition
from streamq.broker.peers import Peer
from streamq.broker.requests import TIP_DEADLINE_S, Requests
from streamq.broker.retention import keep_table
from streamq.broker.session import ReplyTo, Session, answer, failure_of, need_broker
from streamq.broker.subscription import Subscription, stream
from streamq.broker.successions import Successions
from streamq.broker.tips import read_tip
from streamq.log.replica import Unreadable
from streamq.model.batches import BATCH_HEADER_BYTES, Batch
from streamq.model.errors import NotFoundError, OffsetError, ProtocolError, StreamqError, UnavailableError
from streamq.model.limits import CREDIT_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, SUBSCRIPTIONS_PER_CONNECTION_MAX
from streamq.model.messages import (
    Accept,
    AdoptVoters,
    Credit,
    Failure,
    Heartbeat,
    KeepTable,
    ListKeys,
    Message,
    Nack,
    Open,
    Opened,
    Prepare,
    Produce,
    ReadAccepted,
    ReadVoters,
    Repair,
    Seal,
    Store,
    Stored,
    StoredRun,
    Subscribe,
    Tip,
    Unsubscribe,
    VotersReady,
)
from streamq.wire.batch_format import BadBatchError, split_batches
from streamq.wire.framing import Frame

__all__ = ["BrokerRouter"]

log = logging.getLogger(__name__)

TICKETS_PER_FRAME_MAX: Final = FRAME_PAYLOAD_BYTES_MAX // BATCH_HEADER_BYTES
ACCEPTOR_MESSAGES: Final = (Prepare, Accept, ReadAccepted, ListKeys, ReadVoters, AdoptVoters, VotersReady)


class BrokerRouter:
    def __init__(self, node: Node, acceptor: LocalAcceptor, successions: Successions, requests: Requests) -> None:
        self.node = node
        self.acceptor = acceptor
        self.successions = successions
        self.requests = requests
        self._at_once: dict[type[Message], Callable[[Session, Frame], None]] = {
            Heartbeat: lambda session, frame: None,
            Produce: self._produce,
            Store: self._store,
            Credit: self._credit,
            Unsubscribe: self._unsubscribe,
            Subscribe: self._subscribe,
            Seal: self._to_replica,
            Repair: self._to_replica,
            Open: self._to_replica,
            Tip: self._to_replica,
            KeepTable: self._keep_table,
            **dict.fromkeys(ACCEPTOR_MESSAGES, self._to_acceptor),
        }

    # --- the server's side

    def flush(self) -> None:
        self.node.flush()

    def gate(self) -> trio.Event | None:
        return self.node.gate()

    def peer_gate(self) -> trio.Event | None:
        return self.node.storage.backlog()

    def ended(self, session: Session) -> None:
        for subscription in session.subscriptions.values():
            subscription.scope.cancel()
        for question in session.questions:
            question.cancel()

    def deliver(self, session: Session, frame: Frame) -> None:
        kind = type(frame.message)
        at_once = self._at_once.get(kind)
        if at_once is not None:
            at_once(session, frame)
            return
        if not self.requests.start(session, frame):
            raise ProtocolError(f"a {kind.__name__} has no place here", code="protocol")

    def deliver_from_peer(self, peer: Peer, frame: Frame) -> None:
        """One-way frames on a connection that this broker dialled: reports of stored batches."""
        message = frame.message
        if isinstance(message, Stored) and peer.member is not None:
            self.node.tick()
            for run in message.runs:
                partition = self.node.partitions.get(run.partition)
                if partition is not None and partition.sequencing is not None:
                    partition.sequencing.on_stored(peer.member, run)

    def peer_connected(self, peer: Peer) -> None:
        for partition in self.node.partitions.values():
            if partition.sequencing is not None:
                partition.sequencing.peer_connected(peer)

    # --- producing

    def _produce(self, session: Session, frame: Frame) -> None:
        message = frame.message
        assert isinstance(message, Produce)
        if len(message.tickets) > TICKETS_PER_FRAME_MAX:
            raise ProtocolError(f"a produce frame has {len(message.tickets)} tickets, more than batches fit in it", code="protocol")
        tickets = iter(message.tickets)
        self.node.tick()
        self.node.touch(session)
        try:
            for batch in split_batches(frame.payload):
                ticket = next(tickets, None)
                if ticket is None:
                    raise ProtocolError("a produce frame has more batches than tickets", code="protocol")
                self._produce_one(session, ticket, batch)
        except BadBatchError as error:
            session.nacks += [Nack(ticket, error.code, error.message, "") for ticket in tickets]
        else:
            session.nacks += [Nack(ticket, "bad_batch", "there was no batch for this ticket", "") for ticket in tickets]

    def _produce_one(self, session: Session, ticket: int, batch: Batch) -> None:
        header = batch.header
        if header.epoch or (header.base and not header.is_conditional) or header.append_time:
            session.nacks.append(Nack(ticket, "bad_batch", "epoch, base and append time are the sequencer's to give", ""))
            return
        partition = self.node.partitions.get(header.partition)
        if partition is not None and partition.sequencing is not None and self.node.state == "serving":
            partition.sequencing.produce(session, ticket, batch)
        else:
            session.nacks.append(self._elsewhere(ticket, partition))

    def _elsewhere(self, ticket: int, partition: Partition | None) -> Nack:
        """Who is the sequencer, as far as known here; and a report that it could not be reached (P-20)."""
        if self.node.state != "serving":
            return Nack(ticket, "not_ready", f"broker {self.node.broker} is {self.node.state}", "")
        if partition is None:
            return Nack(ticket, "not_sequencer", f"broker {self.node.broker} holds no replica of this partition", "")
        opened = partition.open_segment
        hint = opened.sequencer if opened is not None else ""
        if opened is not None and self.successions.leads(opened):
            return Nack(ticket, "not_sequencer", f"the sequencer of {partition.name} is {hint}", hint)
        if opened is not None:
            self.successions.consider(partition, "a producer found no sequencer")
        return Nack(ticket, "not_sequencer", f"{partition.name} is being taken over", "")

    # --- replicas

    def _store(self, session: Session, frame: Frame) -> None:
        message = frame.message
        assert isinstance(message, Store)
        need_broker(session)
        if self.node.state == "starting" or (message.runs and frame.payload and self.node.storage.refusal() is not None):
            self.node.metrics.stores_dropped += 1
            return  # unanswered: the sequencer finds that this replica lags, and feeds it when there is room
        stored = StoredTo(self.node, session)
        try:
            batches = list(split_batches(frame.payload))
        except BadBatchError as error:
            raise ProtocolError(f"a store carries a bad batch: {error}", code="protocol") from None
        self.node.metrics.batches_followed += len(batches)
        self.node.metrics.bytes_followed += len(frame.payload)
        start = 0
        for run in message.runs:
            mine = batches[start : start + run.batches]
            start += run.batches
            if len(mine) != run.batches or any(b.header.partition != run.partition or b.header.epoch != run.epoch for b in mine):
                raise ProtocolError("a store's batches are not those that it announces", code="protocol")
            if run.partition in self.node.dropped:
                stored(Stored((StoredRun(run.partition, run.epoch, "sealed", 0),)))  # whoever sends this has not heard of its deletion
                continue
            partition = self.successions.stranger(run.partition)
            partition.carry_out(partition.replica.on_store(run, mine, stored))

    def _to_replica(self, session: Session, frame: Frame) -> None:
        """Sealing and storing pass through one queue: this one, in the order of arrival, then the journal's (4.4)."""
        message = frame.message
        need_broker(session)
        if self.node.state == "starting":
            answer(session, frame, Failure("not_ready", f"broker {self.node.broker} is starting"))
            return
        if isinstance(message, Open):
            self._open(session, frame, message)
            return
        assert isinstance(message, (Seal, Repair, Tip))
        if message.partition in self.node.dropped:
            answer(session, frame, failure_of(unknown_partition(message.partition)))
            return
        find = self.successions.stranger if isinstance(message, Tip) else self.successions.partition
        partition = find(message.partition)
        reply = ReplyTo(session, frame.request)
        if isinstance(message, Seal):
            self.node.metrics.seals += 1
            partition.carry_out(partition.replica.on_seal(message, reply))
        elif isinstance(message, Tip):
            partition.carry_out(partition.replica.on_tip(message, reply))
        elif frame.payload and (refusal := self.node.storage.refusal()) is not None:
            # A repaired tail is new data here: it may not eat what is kept for seals (P-15). The takeover does without, or tries again.
            answer(session, frame, Failure("disk_full", refusal))
        else:
            try:
                batches = list(split_batches(frame.payload))
            except BadBatchError as error:
                raise ProtocolError(f"a repair carries a bad batch: {error}", code="protocol") from None
            partition.carry_out(partition.replica.on_repair(message, batches, reply))

    def _open(self, session: Session, frame: Frame, message: Open) -> None:
        register = message.register
        if register.deleted:
            if register.id in self.node.partitions:
                self.node.nursery.start_soon(self.successions.confirm_deleted, register)
            answer(session, frame, Opened(0))
            return
        if register.id in self.node.dropped:
            answer(session, frame, failure_of(unknown_partition(register.id)))
            return
        if (fault := register.fault()) is not None:
            raise ProtocolError(f"an open carries a broken chain: {fault}", code="protocol")
        partition = self.successions.partition(register.id)
        partition.carry_out(partition.replica.on_open(register, ReplyTo(session, frame.request)))
        partition.heard(register)

    def _keep_table(self, session: Session, frame: Frame) -> None:
        assert isinstance(frame.message, KeepTable)
        need_broker(session)
        partition = self.node.partitions.get(frame.message.partition)
        if partition is not None:
            keep_table(partition)

    def _to_acceptor(self, session: Session, frame: Frame) -> None:
        if not isinstance(frame.message, ReadVoters):
            need_broker(session)
        reply = ReplyTo(session, frame.request)
        self.acceptor.submit(frame.message, reply)

    # --- consuming

    def _subscribe(self, session: Session, frame: Frame) -> None:
        message = frame.message
        assert isinstance(message, Subscribe)
        partition = self.node.partitions.get(message.partition)
        failure: StreamqError | None = None
        if not frame.request or frame.request in session.subscriptions:
            raise ProtocolError("a subscription needs a request id of its own", code="protocol")
        if self.node.state != "serving":
            failure = UnavailableError(f"broker {self.node.broker} is {self.node.state}", code="not_ready")
        elif partition is None:
            failure = unknown_partition(message.partition)
        elif len(session.subscriptions) >= SUBSCRIPTIONS_PER_CONNECTION_MAX:
            failure = UnavailableError("too many subscriptions on one connection", code="busy")
        if failure is not None or partition is None:
            assert failure is not None
            answer(session, frame, failure_of(failure))
            return
        subscription = Subscription(min(message.credit_bytes, CREDIT_BYTES_MAX))
        session.subscriptions[frame.request] = subscription
        self.node.nursery.start_soon(self._stream, partition, session, frame, subscription, message.offset, name="subscription")

    async def _stream(self, partition: Partition, session: Session, frame: Frame, subscription: Subscription, offset: int) -> None:
        try:
            with subscription.scope:
                if partition.replica.readable(offset) is Unreadable.AHEAD:
                    await self._check_not_ahead(partition, offset)
                await stream(partition, session.channel, frame.request, subscription, offset, session.reads)
            if partition.id not in self.node.partitions:
                raise NotFoundError(f"{partition.name} was deleted", code="unknown_partition")
        except StreamqError as error:
            answer(session, frame, failure_of(error))
        finally:
            session.subscriptions.pop(frame.request, None)

    async def _check_not_ahead(self, partition: Partition, offset: int) -> None:
        """An offset that this replica does not know of may be past every tip, which is an error, or only past what was told here."""
        state = partition.replica.state
        result, _ = await read_tip(self.node, state.topic, state.index, deadline_s=TIP_DEADLINE_S)
        if offset > result.high_watermark:
            raise OffsetError(
                f"offset {offset} of {partition.name} is past the tip, {result.high_watermark}",
                code="offset_ahead",
                hint=f"start at {result.high_watermark} or earlier, or at the end",
            )

    def _credit(self, session: Session, frame: Frame) -> None:
        subscription = session.subscriptions.get(frame.request)
        if subscription is not None and isinstance(frame.message, Credit):
            subscription.grant(frame.message.credit_bytes)

    def _unsubscribe(self, session: Session, frame: Frame) -> None:
        subscription = session.subscriptions.get(frame.request)
        if subscription is not None:
            subscription.scope.cancel()


class StoredTo:
    """Reports of one connection, merged into one frame at the next flush."""

    __slots__ = ("node", "session")

    def __init__(self, node: Node, session: Session) -> None:
        self.node = node
        self.session = session

    def __call__(self, message: Message, batches: Sequence[Batch] = ()) -> None:
        assert isinstance(message, Stored)
        self.session.stored += message.runs
        self.node.touch(self.session)
