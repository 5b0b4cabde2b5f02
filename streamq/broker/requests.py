"""Requests that have to wait for something: each in a task of its own, with one answer, which may be the error that it ended with."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from streamq.broker.alterations import alter
from streamq.broker.append_times import append_times
from streamq.broker.each import plain_error
from streamq.broker.groups import Groups
from streamq.broker.metrics import Usage, read_metrics
from streamq.broker.node import Node
from streamq.broker.partition import unknown_partition
from streamq.broker.readmission import Readmissions
from streamq.broker.retention import Trims
from streamq.broker.session import Session, answer, failure_of, need_broker
from streamq.broker.successions import Successions
from streamq.broker.tips import read_tip
from streamq.broker.topics import Topics
from streamq.broker.transactions import WAIT_MS_MAX, Transactions
from streamq.model.batches import Batch
from streamq.model.errors import RefusedError, StreamqError, UnavailableError
from streamq.model.limits import REQUESTS_PER_CONNECTION_MAX
from streamq.model.messages import (
    AlterTopic,
    Attend,
    BrokerState,
    BrokerStatus,
    CommitPositions,
    Copy,
    CreateTopic,
    DeleteGroup,
    DeleteTopic,
    DescribePartition,
    EndTransaction,
    Failure,
    FindOffset,
    GroupRead,
    JoinGroup,
    LeaveGroup,
    ListGroups,
    ListTopics,
    Message,
    Metadata,
    OffsetFound,
    Ok,
    OpenProducer,
    OutcomesRead,
    PartitionTrimmed,
    PlaceGroup,
    ReadGroup,
    ReadMetrics,
    ReadOutcomes,
    ReadStable,
    ReadStableHere,
    ReadTable,
    ReadTimes,
    ReadTip,
    Rejoin,
    Stop,
    TakenOver,
    TakeOver,
    TimesRead,
    TipRead,
    TopicCreated,
    TransactionEnded,
    TrimPartition,
)
from streamq.model.messages import Groups as GroupList
from streamq.model.messages import Topics as TopicList
from streamq.model.registers import BrokerRegister
from streamq.wire.framing import Frame

__all__ = ["TIP_DEADLINE_S", "Requests"]

log = logging.getLogger(__name__)

TIP_DEADLINE_S: Final = 4.0
TOPICS_PER_REQUEST_MAX: Final = 1_000
QUESTIONS: Final = (
    Metadata, ListTopics, DescribePartition, ReadTip, FindOffset, ReadTimes, Copy, ReadTable, Attend, ListGroups, ReadGroup,
    ReadOutcomes, ReadStable, ReadStableHere,
)  # fmt: skip
"""Requests that change nothing: cancelled when their connection ends."""
IN_ANY_STATE: Final = (BrokerStatus, ReadMetrics, Rejoin, Stop)
"""Requests that are carried out by a broker that does not serve (yet, or any more), too."""

Task = Callable[[Session, Frame], Awaitable[Message | tuple[Message, Sequence[Batch]]]]


class Requests:
    def __init__(
        self,
        node: Node,
        readmissions: Readmissions,
        successions: Successions,
        transactions: Transactions,
        stop: Callable[[], None],
        usage: Usage | None,
    ) -> None:
        self.node = node
        self.readmissions = readmissions
        self.successions = successions
        self.topics = Topics(node)
        self.transactions = transactions
        self.groups = Groups(node, transactions)
        self.trims = Trims(node)
        self._stop = stop
        self._usage = usage
        self._tasks: dict[type[Message], Task] = {
            Metadata: self._metadata,
            CreateTopic: self._create_topic,
            DeleteTopic: self._delete_topic,
            AlterTopic: self._alter_topic,
            TrimPartition: self._trim,
            ListTopics: self._list_topics,
            DescribePartition: self._describe,
            BrokerStatus: self._status,
            ReadMetrics: self._read_metrics,
            Stop: self._stop_broker,
            ReadTip: self._read_tip,
            FindOffset: self._find_offset,
            ReadTimes: self._read_times,
            OpenProducer: self._open_producer,
            EndTransaction: self._end_transaction,
            ReadOutcomes: self._read_outcomes,
            ReadStable: self._read_stable,
            ReadStableHere: self._read_stable_here,
            Copy: self._copy,
            ReadTable: self._read_table,
            TakeOver: self._take_over,
            Rejoin: self._rejoin,
            JoinGroup: self._join_group,
            Attend: self._attend,
            CommitPositions: self._commit,
            LeaveGroup: self._leave_group,
            ListGroups: self._list_groups,
            ReadGroup: self._read_group,
            PlaceGroup: self._place_group,
            DeleteGroup: self._delete_group,
        }

    def start(self, session: Session, frame: Frame) -> bool:
        """Begins to carry the request out; False if there is no such request."""
        task = self._tasks.get(type(frame.message))
        if task is None:
            return False
        if session.channel.is_closed:
            return True
        if session.requests >= REQUESTS_PER_CONNECTION_MAX:
            answer(session, frame, Failure("busy", f"{session.requests} requests are under way on this connection", "wait for answers"))
            return True
        session.requests += 1
        self.node.metrics.requests += 1
        self.node.nursery.start_soon(self._run, task, session, frame, name=type(frame.message).__name__)
        return True

    async def _run(self, task: Task, session: Session, frame: Frame) -> None:
        try:
            # Who takes over from a broker that stops may have to copy from it first.
            is_leaving = self.node.state == "stopping" and isinstance(frame.message, Copy | ReadTable)
            if self.node.state != "serving" and not is_leaving and not isinstance(frame.message, IN_ANY_STATE):
                raise UnavailableError(
                    f"broker {self.node.broker} is {self.node.state}", code="not_ready", hint="try again, or ask another broker"
                )
            if isinstance(frame.message, QUESTIONS):
                with trio.CancelScope() as scope:
                    session.questions.add(scope)
                    if session.channel.is_closed:
                        scope.cancel()  # it ended before this began
                    try:
                        result = await task(session, frame)
                    finally:
                        session.questions.discard(scope)
                if scope.cancelled_caught or session.channel.is_closed:
                    return
            else:
                result = await task(session, frame)
        except StreamqError as error:
            answer(session, frame, failure_of(error))
        except BaseExceptionGroup as group:
            grouped = plain_error(group)
            if grouped is None:
                raise
            answer(session, frame, failure_of(grouped))
        else:
            message, batches = result if isinstance(result, tuple) else (result, ())
            answer(session, frame, message, batches)
        finally:
            session.requests -= 1

    # --- consuming

    async def _read_tip(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, ReadTip)
        result, _ = await read_tip(self.node, message.topic, message.index, deadline_s=TIP_DEADLINE_S)
        return TipRead(result.epoch, result.high_watermark, result.start_offset, result.answered)

    async def _find_offset(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, FindOffset)
        partition = self.node.partitions.get(message.partition)
        if partition is None:
            raise unknown_partition(message.partition)
        replica = partition.replica
        told, tip = replica.high_watermark
        for segment in replica.state.chain:
            found = await partition.find_time(segment.epoch, message.timestamp_ms)
            if found is not None:
                return OffsetFound(max(min(found, tip), replica.start_offset))
            # What this replica lacks may be what is asked for: never answer with what comes after it.
            tail = replica.local_tail(segment.epoch)
            is_behind = tail is not None and told == segment.epoch and tail < tip
            if is_behind or (segment.end is not None and (tail is None or tail < segment.end)):
                raise UnavailableError(f"broker {self.node.broker} does not hold all of {partition.name}", code="not_replica")
            tip = min(tip, tail) if segment.end is None and tail is not None else tip
        return OffsetFound(tip)

    # --- groups

    async def _join_group(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, JoinGroup)
        return await self.groups.join(frame.message)

    async def _attend(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, Attend)
        return await self.groups.attend(frame.message)

    async def _commit(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, CommitPositions)
        return await self.groups.commit(frame.message)

    async def _leave_group(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, LeaveGroup)
        await self.groups.leave(frame.message)
        return Ok()

    async def _list_groups(self, session: Session, frame: Frame) -> Message:
        return GroupList(await self.groups.names())

    async def _read_group(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, ReadGroup)
        return GroupRead(await self.groups.read(frame.message.group))

    async def _place_group(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, PlaceGroup)
        return GroupRead(await self.groups.place(frame.message.group, frame.message.positions))

    async def _delete_group(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, DeleteGroup)
        await self.groups.delete(frame.message.group)
        return Ok()

    async def _read_times(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, ReadTimes)
        return TimesRead(self.node.clock.now_ms(), await append_times(self.node, frame.message.places))

    # --- named producers

    async def _open_producer(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, OpenProducer)
        return await self.transactions.open_named(frame.message)

    # --- transactions

    async def _end_transaction(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, EndTransaction)
        return TransactionEnded(await self.transactions.end(frame.message))

    async def _read_outcomes(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, ReadOutcomes)
        wait_s = min(message.wait_ms, WAIT_MS_MAX) / 1000
        found = await self.transactions.outcomes(message.transaction, began_ms=message.began_ms, wait_s=wait_s)
        return OutcomesRead(found.first, found.decided, tuple(sorted(found.aborted)))

    async def _read_stable(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, ReadStable)
        return await self.transactions.stable(frame.message.topic, frame.message.index)

    async def _read_stable_here(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, ReadStableHere)
        need_broker(session)
        return await self.transactions.stable_here(frame.message.partition, frame.message.tip)

    # --- brokers

    async def _copy(self, session: Session, frame: Frame) -> tuple[Message, Sequence[Batch]]:
        message = frame.message
        assert isinstance(message, Copy)
        need_broker(session)  # what is not committed yet is no client's to see (P-23)
        partition = self.node.partitions.get(message.partition)
        if partition is None:
            raise unknown_partition(message.partition)
        return await partition.copy(message)

    async def _read_table(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, ReadTable)
        need_broker(session)
        partition = self.node.partitions.get(message.partition)
        if partition is None:
            raise unknown_partition(message.partition)
        await trio.lowlevel.checkpoint()
        return self.node.tables.page(message, partition.replica.table)

    async def _take_over(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, TakeOver)
        need_broker(session)
        why = f"broker {session.member.broker if session.member else ''} asked for it"
        return TakenOver(await self.successions.take_over_here(message.topic, message.index, message.epoch, why))

    async def _rejoin(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, Rejoin)
        need_broker(session)
        return await self.readmissions.on_rejoin(frame.message)

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

    async def _alter_topic(self, session: Session, frame: Frame) -> Message:
        assert isinstance(frame.message, AlterTopic)
        return await alter(self.topics, frame.message)

    async def _trim(self, session: Session, frame: Frame) -> Message:
        message = frame.message
        assert isinstance(message, TrimPartition)
        partition = self.node.partitions.get(message.partition)
        if partition is None:
            raise unknown_partition(message.partition)
        return PartitionTrimmed(await self.trims.trim_to(partition, message.before))

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
        return BrokerState(register, node.state, len(partitions), sequencing, limbo, node.metrics.counters())

    async def _read_metrics(self, session: Session, frame: Frame) -> Message:
        return read_metrics(self.node, self._usage)

    async def _stop_broker(self, session: Session, frame: Frame) -> Message:
        if not session.is_local:
            raise RefusedError("a broker is stopped from its own machine only", code="not_authorised", hint="send it SIGTERM there")
        self._stop()
        return Ok()
