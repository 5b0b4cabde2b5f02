"""Brokers that speak the wire protocol and keep their logs in memory, for tests of the clients: nothing is replicated.

All brokers share one log per partition, so a takeover is a change of `sequencer`. Faults are plain attributes.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import (
    Ack,
    AnyMessage,
    BrokerAddress,
    Credit,
    Failure,
    FindOffset,
    Heartbeat,
    Hello,
    Message,
    Metadata,
    MetadataView,
    Nack,
    OffsetFound,
    PartitionView,
    PlaceAsked,
    Produce,
    Produced,
    ReadStable,
    ReadTimes,
    ReadTip,
    Records,
    StableRead,
    Subscribe,
    TimesRead,
    TipRead,
    TopicView,
    Unsubscribe,
    Welcome,
)
from streamq.wire.batch_format import split_batches, stamp
from streamq.wire.framing import PREAMBLE, Frame, FrameReader, encode_frame

LOST = "lost"
"""A fault: the batch is dropped, and nobody answers."""
STORED_SILENTLY = "stored_silently"
"""A fault: the batch is stored, and nobody answers."""


class FakePartition:
    def __init__(self, topic: str, index: int, replicas: tuple[str, ...]) -> None:
        self.topic = topic
        self.index = index
        self.id = os.urandom(16)
        self.replicas = replicas
        self.sequencer = replicas[index % len(replicas)]
        self.log: list[Batch] = []
        self.sequences: dict[bytes, dict[int, Ack]] = {}
        self.start_offset = 0
        self.append_time = 1_700_000_000_000
        self.grown = anyio.Event()
        self.fault: Callable[[str, Batch], str] = lambda broker, batch: ""
        self.readable: Callable[[str], int] = lambda broker: self.end
        """How far each broker knows the log."""
        self.doctored: Callable[[str, list[Batch]], list[Batch]] = lambda broker, batches: batches
        """What a broker sends instead of these batches."""

    @property
    def end(self) -> int:
        return self.log[-1].end if self.log else 0

    def append(self, batch: Batch) -> Ack:
        """Stores it, once if it is numbered; raises ValueError for a gap."""
        header = batch.header
        known = self.sequences.setdefault(header.producer, {})
        if header.producer != NO_PRODUCER:
            if header.sequence in known:
                return known[header.sequence]
            if header.sequence != len(known):
                raise ValueError("gap")
        stamped = stamp(batch, epoch=1, base=self.end, append_time=self.append_time)
        self.log.append(stamped)
        ack = Ack(0, stamped.base, stamped.header.append_time, 2, 3, True)
        known[header.sequence] = ack
        self.grew()
        return ack

    def grew(self) -> None:
        self.grown.set()
        self.grown = anyio.Event()


class FakeBroker:
    def __init__(self, cluster: "FakeCluster", name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.port = 0
        self.is_up = False
        self.resumed = anyio.Event()
        self.resumed.set()
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.ended.set()
        self.requests: list[AnyMessage] = []
        self.dials = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        await self.ended.wait()
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        self.port = listener.extra(SocketAttribute.local_port)
        scope = self.scope = anyio.CancelScope()
        ended = self.ended = anyio.Event()
        self.is_up = True

        async def serve() -> None:
            with scope:
                async with listener:
                    await listener.serve(self._serve)
            ended.set()

        self.cluster.tasks.start_soon(serve)

    def kill(self) -> None:
        """Refuses connections and breaks those that are there."""
        self.is_up = False
        self.scope.cancel()

    def pause(self) -> None:
        """Like SIGSTOP: the kernel goes on taking connections and bytes, and nobody answers."""
        self.resumed = anyio.Event()

    def resume(self) -> None:
        self.resumed.set()

    async def _serve(self, stream: SocketStream) -> None:
        self.dials += 1
        async with stream:
            try:
                await FakeSession(self, stream).run()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            except BaseExceptionGroup as group:
                _, rest = group.split((anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError))
                if rest is not None:
                    raise rest from None


class FakeSession:
    def __init__(self, broker: FakeBroker, stream: SocketStream) -> None:
        self.broker = broker
        self.cluster = broker.cluster
        self.stream = stream
        self.lock = anyio.Lock()
        self.credits: dict[int, int] = {}
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.granted = anyio.Event()

    async def run(self) -> None:
        reader = FrameReader()
        begun = b""
        while len(begun) < len(PREAMBLE):
            begun += await self.stream.receive()
        assert begun.startswith(PREAMBLE)
        received = begun[len(PREAMBLE) :]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat)
            while True:
                await self.broker.resumed.wait()
                for frame in reader.feed(received):
                    self.broker.requests.append(frame.message)
                    await self._on_frame(frame, tasks)
                received = await self.stream.receive()

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(0.05)
            await self._send(Heartbeat())

    async def _send(self, message: Message, *, request: int = 0, payload: list[bytes] | None = None) -> None:
        await self.broker.resumed.wait()
        async with self.lock:
            buffers = encode_frame(message, request=request, is_answer=request > 0, payload=payload or [])
            await self.stream.send(b"".join(buffers))

    async def _on_frame(self, frame: Frame, tasks: TaskGroup) -> None:
        message, request = frame.message, frame.request
        answer = partial(self._send, request=request)
        try:
            if isinstance(message, Hello):
                await answer(Welcome(1, (), "fake", self.cluster.id, self.broker.name, bytes(16)))
            elif isinstance(message, Metadata):
                await answer(self.cluster.view(message))
            elif isinstance(message, Produce):
                await self._produce(message, frame.payload)
            elif isinstance(message, ReadTip | ReadStable):
                found = self.cluster.topics.get(message.topic, [])
                if message.index >= len(found):
                    raise StreamqError("no such partition", code="unknown_partition")
                p = found[message.index]
                if isinstance(message, ReadTip):
                    await answer(TipRead(1, p.end, p.start_offset, ("b1", "b2")))
                else:
                    await answer(StableRead(p.end, p.end, p.start_offset))
            elif isinstance(message, FindOffset):
                p = self.cluster.partition(message.partition)
                at = next((b.base for b in p.log if b.header.max_timestamp >= message.timestamp_ms), p.end)
                if at >= p.readable(self.broker.name) < p.end:
                    raise StreamqError("not all of it is here", code="not_replica")
                await answer(OffsetFound(at))
            elif isinstance(message, ReadTimes):
                now, times = self.cluster.now_ms, [self.cluster.append_time(self.broker.name, asked) for asked in message.places]
                await answer(TimesRead(now, tuple(times)))
            elif isinstance(message, Subscribe):
                self.credits[request] = message.credit_bytes
                self.scopes[request] = anyio.CancelScope()
                tasks.start_soon(self._stream, message, request)
            elif isinstance(message, Credit):
                self.credits[request] = self.credits.get(request, 0) + message.credit_bytes
                self.granted.set()
                self.granted = anyio.Event()
            elif isinstance(message, Unsubscribe):
                if request in self.scopes:
                    self.scopes[request].cancel()
            else:
                raise StreamqError(f"{type(message).__name__} is not faked", code="bad_request")
        except StreamqError as error:
            await answer(Failure(error.code, error.message))

    async def _produce(self, message: Produce, payload: bytes) -> None:
        acks: list[Ack] = []
        nacks: list[Nack] = []
        for ticket, batch in zip(message.tickets, split_batches(payload), strict=True):
            p = self.cluster.partitions.get(batch.header.partition)
            if p is None:
                nacks.append(Nack(ticket, "unknown_partition", "there is no such partition", ""))
            elif p.sequencer != self.broker.name:
                hint = p.sequencer if self.cluster.gives_hints else ""
                nacks.append(Nack(ticket, "not_sequencer", f"the sequencer is {p.sequencer}", hint))
            else:
                fault = p.fault(self.broker.name, batch)
                try:
                    if fault in ("", STORED_SILENTLY):
                        ack = p.append(batch)
                    if not fault:
                        acks.append(ack._replace(ticket=ticket))
                    elif fault not in (LOST, STORED_SILENTLY):
                        nacks.append(Nack(ticket, fault, f"a fault: {fault}", ""))
                except ValueError:
                    nacks.append(Nack(ticket, "sequence_gap", "an earlier batch is missing", ""))
        if self.cluster.ack_delay_s:
            await anyio.sleep(self.cluster.ack_delay_s)
        if acks or nacks:
            await self._send(Produced(tuple(acks), tuple(nacks)))

    async def _stream(self, message: Subscribe, request: int) -> None:
        with self.scopes[request]:
            try:
                await self._stream_batches(message, request)
            except StreamqError as error:
                await self._send(Failure(error.code, error.message), request=request)

    async def _stream_batches(self, message: Subscribe, request: int) -> None:
        p = self.cluster.partitions.get(message.partition)
        if p is None:
            raise StreamqError("there is no such partition", code="unknown_partition")
        offset = message.offset
        while True:
            grown, granted = p.grown, self.granted
            if offset < p.start_offset:
                raise StreamqError(f"offset {offset} is trimmed", code="offset_trimmed")
            if offset > p.end:
                raise StreamqError(f"offset {offset} is past the tip", code="offset_ahead")
            known = min(p.end, p.readable(self.broker.name))
            batches = [b for b in p.log if b.end > offset and b.end <= known][: self.cluster.batches_per_frame]
            if batches and self.credits[request] > 0:
                offset = batches[-1].end
                sent = p.doctored(self.broker.name, batches)
                payload = [part for b in sent for part in (b.head, b.payload)]
                self.credits[request] -= sum(map(len, payload))
                await self._send(Records(1, known, p.start_offset), request=request, payload=payload)
                continue
            with anyio.move_on_after(0.1):
                await (granted if batches else grown).wait()
            await self._send(Records(1, known, p.start_offset), request=request)


class FakeCluster:
    def __init__(self, tasks: TaskGroup, brokers: int) -> None:
        self.tasks = tasks
        self.id = os.urandom(16)
        self.brokers = {f"b{i}": FakeBroker(self, f"b{i}") for i in range(1, brokers + 1)}
        self.topics: dict[str, list[FakePartition]] = {}
        self.partitions: dict[bytes, FakePartition] = {}
        self.ack_delay_s = 0.0
        self.batches_per_frame = 3
        self.gives_hints = True
        self.now_ms = 1_700_000_000_000
        """The clock of all brokers."""

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.address for broker in self.brokers.values())

    def create(self, topic: str, partitions: int = 1) -> list[FakePartition]:
        made = [FakePartition(topic, index, tuple(self.brokers)) for index in range(partitions)]
        self.topics[topic] = made
        self.partitions |= {p.id: p for p in made}
        return made

    def delete(self, topic: str) -> None:
        for p in self.topics.pop(topic):
            del self.partitions[p.id]
            p.grew()

    def partition(self, identity: bytes) -> FakePartition:
        if identity not in self.partitions:
            raise StreamqError("there is no such partition", code="unknown_partition")
        return self.partitions[identity]

    def append_time(self, broker: str, asked: PlaceAsked) -> int | None:
        p = self.partitions.get(asked.partition)
        known = 0 if p is None else min(p.end, p.readable(broker))
        return next((b.header.append_time for b in (p.log if p else ()) if b.end > asked.offset and b.end <= known), None)

    def view(self, message: Metadata) -> MetadataView:
        names = message.topics or tuple(self.topics)
        topics = []
        for name in names:
            found = self.topics.get(name)
            views = tuple(PartitionView(p.id, 1, p.sequencer, p.replicas, p.start_offset) for p in found or ())
            topics.append(TopicView(name, views, "" if found else "unknown_topic"))
        addresses = tuple(BrokerAddress(b.name, "127.0.0.1", b.port, "", b.is_up) for b in self.brokers.values())
        return MetadataView(self.id, addresses, tuple(topics))


@asynccontextmanager
async def fake_cluster(brokers: int = 3) -> AsyncIterator[FakeCluster]:
    async with anyio.create_task_group() as tasks:
        cluster = FakeCluster(tasks, brokers)
        for broker in cluster.brokers.values():
            await broker.start()
        yield cluster
        for broker in cluster.brokers.values():
            broker.kill()
        tasks.cancel_scope.cancel()
