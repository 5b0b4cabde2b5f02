"""Every frame that arrives finds its place here: stores and batches at once, in order; what has to wait, in a task of its own."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from streamq.broker.each import plain_error
from streamq.broker.local_acceptor import LocalAcceptor
from streamq.broker.node import Node
from streamq.broker.partition import Partition, unknown_partition
from streamq.broker.peers import Peer
from streamq.broker.readmission import Readmissions
from streamq.broker.session import ReplyTo, Session, buffers, failure_of
from streamq.broker.subscription import Subscription, stream
from streamq.broker.successions import Successions
from streamq.broker.tips import read_tip
from streamq.broker.topics import Topics
from streamq.log.replica import Unreadable
from streamq.model.batches import BATCH_HEADER_BYTES, Batch
from streamq.model.errors import NotFoundError, OffsetError, ProtocolError, RefusedError, StreamqError, UnavailableError
from streamq.model.limits import CREDIT_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX, SUBSCRIPTIONS_PER_CONNECTION_MAX
from streamq.model.messages import (
    Accept,
    AdoptVoters,
    BrokerState,
    BrokerStatus,
    Copy,
    CreateTopic,
    Credit,
    DeleteTopic,
    DescribePartition,
    Failure,
    FindOffset,
    Heartbeat,
    ListKeys,
    ListTopics,
    Message,
    Metadata,
    Nack,
    OffsetFound,
    Ok,
    Open,
    Opened,
    Prepare,
    Produce,
    ReadAccepted,
    ReadTip,
    ReadVoters,
    Rejoin,
    Repair,
    Seal,
    Stop,
    Store,
    Stored,
    StoredRun,
    Subscribe,
    TakenOver,
    TakeOver,
    Tip,
    TipRead,
    TopicCreated,
    Unsubscribe,
    VotersReady,
)
from streamq.model.messages import Topics as TopicList
from streamq.model.registers import BrokerRegister
from streamq.wire.batch_format import BadBatchError, split_batches
from streamq.wire.framing import Frame

__all__ = ["BrokerRouter"]

log = logging.getLogger(__name__)

TIP_DEADLINE_S: Final = 4.0
TICKETS_PER_FRAME_MAX: Final = FRAME_PAYLOAD_BYTES_MAX // BATCH_HEADER_BYTES
TOPICS_PER_REQUEST_MAX: Final = 1_000
ACCEPTOR_MESSAGES: Final = (Prepare, Accept, ReadAccepted, ListKeys, ReadVoters, AdoptVoters, VotersReady)

QUESTIONS: Final = (Metadata, ListTopics, DescribePartition, ReadTip, FindOffset, Copy)

Task = Callable[[Session, Frame], Awaitable[Message | tuple[Message, Sequence[Batch]]]]


class BrokerRouter:
    def __init__(
        self, node: Node, acceptor: LocalAcceptor, readmissions: Readmissions, successions: Successions, stop: Callable[[], None]
    ) -> None:
        self.node = node
        self.acceptor = acceptor
        self.readmissions = readmissions
        self.successions = successions
        self.topics = Topics(node)
        self._stop = stop
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
            **dict.fromkeys(ACCEPTOR_MESSAGES, self._to_acceptor),
        }
        self._tasks: dict[type[Message], Task] = {
            Metadata: self._metadata,
            CreateTopic: self._create_topic,
            DeleteTopic: self._delete_topic,
            ListTopics: self._list_topics,
            DescribePartition: self._describe,
            BrokerStatus: self._status,
            Stop: self._stop_broker,
            ReadTip: self._read_tip,
            FindOffset: self._find_offset,
            Copy: self._copy,
            TakeOver: self._take_over,
            Rejoin: self._rejoin,
        }

    # --- the server's side

    def flush(self) -> None:
        self.node.flush()

    def gate(self) -> trio.Event | None:
        return self.node.gate()

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
        task = self._tasks.get(kind)
        if task is None:
            raise ProtocolError(f"a {kind.__name__} has no place here", code="protocol")
        if session.channel.is_closed:
            return
        if session.requests >= REQUESTS_PER_CONNECTION_MAX:
            self._answer(
                session, frame, Failure("busy", f"{session.requests} requests are under way on this connection", "wait for answers")
            )
            return
        session.requests += 1
        self.node.nursery.start_soon(self._run, task, session, frame, name=kind.__name__)

    def deliver_from_peer(self, peer: Peer, frame: Frame) -> None:
        """One-way frames on a connection that this broker dialled: reports of stored batches."""
        message = frame.message
        if isinstance(message, Stored) and peer.member is not None:
            for run in message.runs:
                partition = self.node.partitions.get(run.partition)
                if partition is not None and partition.sequencing is not None:
                    partition.sequencing.on_stored(peer.member, run)

    def peer_connected(self, peer: Peer) -> None:
        for partition in self.node.partitions.values():
            if partition.sequencing is not None:
                partition.sequencing.peer_connected(peer)

    async def _run(self, task: Task, session: Session, frame: Frame) -> None:
        try:
            # Who takes over from a broker that stops may have to copy from it first.
            is_leaving = self.node.state == "stopping" and isinstance(frame.message, Copy)
            if self.node.state != "serving" and not is_leaving and not isinstance(frame.message, (BrokerStatus, Rejoin, Stop)):
                raise UnavailableError(
                    f"broker {self.node.broker} is {self.node.state}", code="not_ready", hint="try again, or ask another broker"
                )
            if isinstance(frame.message, QUESTIONS):
                with trio.CancelScope() as scope:
                    session.questions.add(scope)
                    if session.channel.is_closed:
                        scope.cancel()  # it ended before this began
                    try:
                        answer = await task(session, frame)
                    finally:
                        session.questions.discard(scope)
                if scope.cancelled_caught or session.channel.is_closed:
                    return
            else:
                answer = await task(session, frame)
        except StreamqError as error:
            self._answer(session, frame, failure_of(error))
        except BaseExceptionGroup as group:
            grouped = plain_error(group)
            if grouped is None:
                raise
            self._answer(session, frame, failure_of(grouped))
        else:
            message, batches = answer if isinstance(answer, tuple) else (answer, ())
            self._answer(session, frame, message, batches)
        finally:
            session.requests -= 1

    def _answer(self, session: Session, frame: Frame, message: Message, batches: Sequence[Batch] = ()) -> None:
        if frame.request:
            session.channel.send(message, request=frame.request, is_answer=True, payload=buffers(batches))

    # --- producing

    def _produce(self, session: Session, frame: Frame) -> None:
        message = frame.message
        assert isinstance(message, Produce)
        if len(message.tickets) > TICKETS_PER_FRAME_MAX:
            raise ProtocolError(f"a produce frame has {len(message.tickets)} tickets, more than batches fit in it", code="protocol")
        tickets = iter(message.tickets)
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
        if header.epoch or header.base or header.append_time:
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
        if hint and hint != self.node.broker and self.node.peers.is_alive(hint):
            return Nack(ticket, "not_sequencer", f"the sequencer of {partition.name} is {hint}", hint)
        if opened is not None:
            self.successions.consider(partition, "a producer found no sequencer")
        return Nack(ticket, "not_sequencer", f"{partition.name} is being taken over", "")

    # --- replicas

    def _store(self, session: Session, frame: Frame) -> None:
        message = frame.message
        assert isinstance(message, Store)
        self._need_broker(session)
        if self.node.state == "starting" or (message.runs and frame.payload and self.node.storage.refusal() is not None):
            self.node.counters["stores_dropped"] += 1
            return  # unanswered: the sequencer finds that this replica lags, and feeds it when there is room
        stored = StoredTo(self.node, session)
        try:
            batches = list(split_batches(frame.payload))
        except BadBatchError as error:
            raise ProtocolError(f"a store carries a bad batch: {error}", code="protocol") from None
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
        self._need_broker(session)
        if self.node.state == "starting":
            self._answer(session, frame, Failure("not_ready", f"broker {self.node.broker} is starting"))
            return
        if isinstance(message, Open):
            self._open(session, frame, message)
            return
        assert isinstance(message, (Seal, Repair, Tip))
        if message.partition in self.node.dropped:
            self._answer(session, frame, failure_of(unknown_partition(message.partition)))
            return
        find = self.successions.stranger if isinstance(message, Tip) else self.successions.partition
        partition = find(message.partition)
        reply = ReplyTo(session, frame.request)
        if isinstance(message, Seal):
            partition.carry_out(partition.replica.on_seal(message, reply))
        elif isinstance(message, Tip):
            partition.carry_out(partition.replica.on_tip(message, reply))
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
            self._answer(session, frame, Opened(0))
            return
        if register.id in self.node.dropped:
            self._answer(session, frame, failure_of(unknown_partition(register.id)))
            return
        if register.fault() is not None or not register.chain:
            raise ProtocolError(f"an open carries a broken chain: {register.fault()}", code="protocol")
        partition = self.successions.partition(register.id)
        partition.carry_out(partition.replica.on_open(register, ReplyTo(session, frame.request)))

    def _need_broker(self, session: Session) -> None:
        if session.member is None:
            raise ProtocolError("only a broker of this cluster may send this", code="protocol")

    def _to_acceptor(self, session: Session, frame: Frame) -> None:
        if not isinstance(frame.message, ReadVoters):
            self._need_broker(session)
        reply = ReplyTo(session, frame.request)
        self.acceptor.submit(frame.message, reply)

    async def _copy(self, session: Session, frame: Frame) -> tuple[Message, Sequence[Batch]]:
        message = frame.message
        assert isinstance(message, Copy)
        self._need_broker(session)  # what is not committed yet is no client's to see (P-23)
        partition = self.node.partitions.get(message.partition)
        if partition is None:
            raise unknown_partition(message.partition)
        return await partition.copy(message)

    async def _take_over(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, TakeOver)
        self._need_broker(session)
        why = f"broker {session.member.broker if session.member else ''} asked for it"
        return TakenOver(await self.successions.take_over_here(message.topic, message.index, message.epoch, why))

    async def _rejoin(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, Rejoin)
        self._need_broker(session)
        return await self.readmissions.on_rejoin(frame.message)

    # --- consuming

    async def _read_tip(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, ReadTip)
        result, register = await read_tip(self.node, message.topic, message.index, deadline_s=TIP_DEADLINE_S)
        return TipRead(result.epoch, result.high_watermark, register.start_offset, result.answered)

    async def _find_offset(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, FindOffset)
        partition = self.node.partitions.get(message.partition)
        if partition is None:
            raise unknown_partition(message.partition)
        _, tip = partition.replica.high_watermark
        for segment in partition.replica.state.chain:
            found = await self.node.storage.find_time(partition.id, segment.epoch, message.timestamp_ms)
            if found is not None:
                return OffsetFound(min(found, tip))
        return OffsetFound(tip)

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
            self._answer(session, frame, failure_of(failure))
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
            self._answer(session, frame, failure_of(error))
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

    # --- administration

    async def _metadata(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, Metadata)
        names = tuple(dict.fromkeys(frame.message.topics))
        if len(names) > TOPICS_PER_REQUEST_MAX:
            raise RefusedError(f"{len(names)} topics were asked for at once; at most {TOPICS_PER_REQUEST_MAX}", code="bad_request")
        return await self.topics.metadata(names)

    async def _create_topic(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, CreateTopic)
        return TopicCreated(await self.topics.create(frame.message))

    async def _delete_topic(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, DeleteTopic)
        await self.topics.delete(frame.message.name)
        return Ok()

    async def _list_topics(self, session: Session, frame: Frame) -> Message:
        return TopicList(tuple(await self.topics.list()))

    async def _describe(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, DescribePartition)
        return await self.topics.describe(frame.message.topic, frame.message.index)

    async def _status(self, session: Session, frame: Frame) -> Message:
        node = self.node
        partitions = list(node.partitions.values())
        limbo = sum(bool(p.replica.state.limbo or p.replica.state.limbo_everywhere) for p in partitions)
        identity = node.identity
        register = BrokerRegister(node.broker, node.me.incarnation, *node.config.address, node.config.rack, identity.starts)
        sequencing = sum(p.sequencing is not None for p in partitions)
        return BrokerState(register, node.state, len(partitions), sequencing, limbo, dict(node.counters))

    async def _stop_broker(self, session: Session, frame: Frame) -> Message:
        if not session.is_local:
            raise RefusedError("a broker is stopped from its own machine only", code="not_authorised", hint="send it SIGTERM there")
        self._stop()
        return Ok()


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
