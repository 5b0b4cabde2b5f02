"""A minimal client for broker tests: frames over a connection, nothing clever."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import Ack, AnyMessage, Credit, Heartbeat, Hello, Message, Nack, Produce, Produced, Records, Subscribe
from streamq.net.channel import Channel
from streamq.net.handshake import greet
from streamq.net.network import Network, TcpNetwork
from streamq.wire.batch_format import encode_batch, split_batches
from streamq.wire.framing import Frame
from streamq.wire.records import pack_rows, unpack_rows


def make_batch(
    partition: bytes, values: list[bytes], *, producer: bytes = NO_PRODUCER, sequence: int = 0, epoch: int = 0, time: int = 1_000
) -> Batch:
    raw = pack_rows([(None, None, value, None) for value in values])
    header = BatchHeader(partition, len(values), 0, len(raw), 0, producer, epoch, sequence, time, time, 0, 0, 0, compression=0)
    return encode_batch(header, raw)


def values_of(batches: list[Batch]) -> list[bytes]:
    return [row.value for batch in batches for row in unpack_rows(batch.payload, records=batch.header.records)]  # type: ignore[misc]


class WireClient:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.outcomes: dict[int, Ack | Nack] = {}
        self.heartbeats: list[Heartbeat] = []
        self.changed = trio.Event()
        self.streams: dict[int, trio.MemorySendChannel[Frame]] = {}
        self._ticket = 0
        self._stream = 1 << 20

    def take(self, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, Produced):
            for outcome in (*message.acks, *message.nacks):
                self.outcomes[outcome.ticket] = outcome
            self.changed.set()
            self.changed = trio.Event()
        elif isinstance(message, Heartbeat):
            self.heartbeats.append(message)

    async def ask(self, message: Message, timeout_s: float = 5) -> AnyMessage:
        return (await self.channel.request(message, timeout_s=timeout_s)).message

    async def produce(self, *batches: Batch, timeout_s: float = 5) -> list[Ack | Nack]:
        tickets = tuple(range(self._ticket, self._ticket + len(batches)))
        self._ticket += len(batches)
        self.channel.send(Produce(tickets), payload=[part for b in batches for part in (b.head, b.payload)])
        with trio.fail_after(timeout_s):
            while not all(t in self.outcomes for t in tickets):
                await self.changed.wait()
        return [self.outcomes[t] for t in tickets]

    async def read(self, partition: bytes, offset: int, end: int, timeout_s: float = 5) -> list[Batch]:
        """Everything in `[offset, end)` by one subscription; raises what ends it."""
        batches: list[Batch] = []
        self._stream += 1
        request = self._stream
        send, receive = trio.open_memory_channel[Frame](10_000)
        self.channel._requests[request] = _Sink(send)  # type: ignore[assignment]
        self.channel.send(Subscribe(partition, offset, 1 << 20), request=request)
        with trio.fail_after(timeout_s):
            while not batches or batches[-1].end < end:
                frame = await receive.receive()
                assert isinstance(frame.message, Records), frame.message
                got = list(split_batches(frame.payload))
                batches += got
                if got:
                    self.channel.send(Credit(sum(b.size for b in got)), request=request)
        del self.channel._requests[request]
        return batches


class _Sink:
    """Stands in the channel's table of requests and passes every frame on."""

    def __init__(self, send: "trio.MemorySendChannel[Frame]") -> None:
        self._send = send
        self.event = trio.Event()

    @property
    def frame(self) -> Frame | None:
        return None

    @frame.setter
    def frame(self, frame: Frame) -> None:
        self._send.send_nowait(frame)


@asynccontextmanager
async def wire_client(address: tuple[str, int], network: Network | None = None, timeout_s: float = 3) -> AsyncIterator[WireClient]:
    with trio.fail_after(timeout_s):
        stream = await (network or TcpNetwork()).connect(*address)
        _, reader = await greet(stream, Hello((1, 1), (), "test"))
    client = WireClient(Channel(stream, name="test", reader=reader))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await client.channel.run(client.take, after_chunk=lambda: None, gate=lambda: None)

        nursery.start_soon(run)
        yield client
        client.channel.close("done")


def new_producer() -> bytes:
    return os.urandom(16)
