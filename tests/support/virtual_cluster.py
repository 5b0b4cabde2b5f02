"""Real brokers on trio's virtual clock and a network in memory, for scenarios that need more than the cores. Use with `autojump_clock`."""

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.messages import (
    Ack,
    AnyMessage,
    CreateTopic,
    Hello,
    Message,
    Metadata,
    MetadataView,
    Nack,
    PartitionView,
    Records,
    Subscribe,
)
from streamq.net.channel import Channel
from streamq.net.handshake import greet
from streamq.net.memory_network import MemoryNetwork
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq.wire.batch_format import split_batches
from streamq.wire.framing import Frame
from tests.broker.capture import capture_nodes
from tests.broker.wire_client import WireClient, _Sink, make_batch, new_producer, wire_client

__all__ = ["Producer", "Stream", "VirtualCluster", "virtual_cluster"]

logging.getLogger("streamq").setLevel(logging.ERROR)

TOPIC = "orders"


class SeededClock:
    """The virtual clock as wall time, and randomness of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def now_ms(self) -> int:
        return round(trio.current_time() * 1000) + 1_000_000

    def random(self) -> float:
        return self._random.random()

    def token(self) -> bytes:
        return self._random.randbytes(16)


class CutNetwork(MemoryNetwork):
    """`cut` takes away the way between two hosts, silently; every other way stays."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: set[frozenset[str]] = set()

    def cut(self, one: str, other: str) -> None:
        self.ways.add(frozenset((one, other)))

    def is_cut(self, one: str, other: str) -> bool:
        return super().is_cut(one, other) or frozenset((one, other)) in self.ways


class VirtualCluster:
    """Brokers b1, b2, … on hosts of the same names, and `nodes`, the newest `Node` of each. The topic's only partition is `view`."""

    def __init__(self, network: CutNetwork, running: ClusterInProcess, nodes: dict[str, Node]) -> None:
        self.network = network
        self.running = running
        self.nodes = nodes
        self.view: PartitionView

    async def create(self, *, replicas: int = 3, write: int = 0, read: int = 0) -> PartitionView:
        async with self.client("b1") as client:
            await client.ask(CreateTopic(TOPIC, 1, replicas, write, read, "fsync"))
            self.view = await self.find(client)
        return self.view

    async def find(self, client: WireClient) -> PartitionView:
        view = await client.ask(Metadata((TOPIC,)))
        assert isinstance(view, MetadataView)
        return view.topics[0].partitions[0]

    def client(self, broker: str, *, at: str = "client") -> AbstractAsyncContextManager[WireClient]:
        """A connection to that broker from that host; the broker's own host is never cut off from it."""
        return wire_client((broker, 7700), self.network.of(at))

    @asynccontextmanager
    async def peer(self, broker: str, *, of: str) -> AsyncIterator[WireClient]:
        """A connection that says it comes from the broker `of`, in its incarnation."""
        identity = self.running.brokers[of].storage.identity
        stream = await self.network.of(of).connect(broker, 7700)
        _, reader = await greet(stream, Hello((1, 1), (), "test", identity.cluster, of, identity.incarnation))
        client = WireClient(Channel(stream, name="test", reader=reader))
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await client.channel.run(client.take, after_chunk=lambda: None, gate=lambda: None)

            nursery.start_soon(run)
            yield client
            client.channel.close("done")

    def partition(self, broker: str) -> Partition:
        return self.nodes[broker].partitions[self.view.id]

    @property
    def epoch(self) -> int:
        """The newest epoch that a broker has opened."""
        return max(node.partitions[self.view.id].replica.state.opened for node in self.nodes.values() if self.view.id in node.partitions)

    @property
    def sequencers(self) -> list[str]:
        """Running brokers that believe to sequence the partition, that of the newest epoch last."""
        up = [b for b in self.nodes if self.running.brokers[b].is_running and self.view.id in self.nodes[b].partitions]
        found = [(s.epoch, b) for b in up if (s := self.partition(b).sequencing) is not None]
        return [broker for _, broker in sorted(found)]

    def others(self, *named: str) -> list[str]:
        return [broker for broker in self.running.brokers if broker not in named]

    async def until(self, condition: Callable[[], object], timeout_s: float = 5.0) -> None:
        with trio.fail_after(timeout_s):
            while not condition():
                await trio.sleep(0.001)

    async def until_sequenced_by_another_than(self, *gone: str, timeout_s: float = 5.0) -> str:
        await self.until(lambda: self.sequencers and self.sequencers[-1] not in gone, timeout_s)
        return self.sequencers[-1]


class Producer:
    """An idempotent producer, one batch at a time; it sends to whom it is told to, and keeps every outcome."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self.cluster = cluster
        self.id = new_producer()
        self.sequence = 0
        self.acks: list[Ack] = []
        self.nacks: list[Nack] = []

    def batch(self, *values: bytes) -> Batch:
        return make_batch(self.cluster.view.id, list(values) or [b"%d" % self.sequence], producer=self.id, sequence=self.sequence)

    async def send(self, *values: bytes, at: str = "client", timeout_s: float = 5.0) -> Ack:
        """Again and again, to the newest sequencer there is, until it is acked."""
        batch = self.batch(*values)
        with trio.fail_after(timeout_s):
            while True:
                for broker in self.cluster.sequencers[-1:]:
                    outcome = await self.try_once(broker, batch, at=at)
                    if isinstance(outcome, Ack):
                        self.sequence += 1
                        return outcome
                await trio.sleep(0.01)

    async def ask(self, broker: str, *, at: str = "client", timeout_s: float = 1.0) -> Ack | Nack | None:
        """The next batch, once, to this broker."""
        return await self.try_once(broker, self.batch(), at=at, timeout_s=timeout_s)

    async def try_once(self, broker: str, batch: Batch, *, at: str = "client", timeout_s: float = 1.0) -> Ack | Nack | None:
        """None: nothing came back."""
        try:
            async with self.cluster.client(broker, at=at) as client:
                [outcome] = await client.produce(batch, timeout_s=timeout_s)
        except (StreamqError, trio.TooSlowError, trio.BrokenResourceError, BaseExceptionGroup):
            return None
        self.note(outcome)
        return outcome

    def note(self, outcome: Ack | Nack) -> None:
        if isinstance(outcome, Ack):
            self.acks.append(outcome)
        else:
            self.nacks.append(outcome)


class Stream:
    """One subscription, from `offset` on, with so much credit; what came is in `batches`, its end (a `Failure`) in `ended`."""

    def __init__(self, client: WireClient, partition: bytes, offset: int, *, credit: int = 1 << 20) -> None:
        self.client = client
        self.batches: list[Batch] = []
        self.watermarks: list[tuple[int, int]] = []
        self.ended: AnyMessage | None = None
        self.moved_at = 0.0
        self.request = (1 << 20) + id(self) % 1_000_000
        self._send, self._receive = trio.open_memory_channel[Frame](10_000)
        client.channel._requests[self.request] = _Sink(self._send)  # type: ignore[assignment]
        client.channel.send(Subscribe(partition, offset, credit), request=self.request)

    async def until(self, end: int, timeout_s: float = 5.0) -> list[Batch]:
        """Everything that comes until `end` was reached."""
        with trio.fail_after(timeout_s):
            while not self.batches or self.batches[-1].end < end:
                self._take(await self._receive.receive())
                assert self.ended is None, self.ended
        return self.batches

    async def until_it_ends(self, timeout_s: float = 5.0) -> Message:
        with trio.fail_after(timeout_s):
            while self.ended is None:
                self._take(await self._receive.receive())
        return self.ended  # type: ignore[return-value]

    def _take(self, frame: Frame) -> None:
        if not isinstance(frame.message, Records):
            self.ended = frame.message
            return
        self.watermarks.append((frame.message.epoch, frame.message.high_watermark))
        got = list(split_batches(frame.payload))
        if got:
            self.moved_at = trio.current_time()
        self.batches += got


@asynccontextmanager
async def virtual_cluster(
    monkeypatch: pytest.MonkeyPatch, count: int = 3, *, seed: int = 1, sync_s: float = 0.0005
) -> AsyncIterator[VirtualCluster]:
    network = CutNetwork()
    nodes = capture_nodes(monkeypatch)
    hosts = [network.of(f"b{i + 1}") for i in range(count)]
    async with cluster(count, networks=hosts, clock=SeededClock(seed), sync_s=sync_s) as running:
        yield VirtualCluster(network, running, nodes)
