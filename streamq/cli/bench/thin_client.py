"""The least a client can do: ready-made batches over the wire protocol, so that what is measured are the brokers.

A connection belongs to one partition, whose sequencer it was told; it keeps a window of batches in flight and knows nothing of failures:
any nack ends the run. Batches are numbered as an idempotent producer's are, so that brokers do all of their work.
"""

import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice
from typing import Final

import msgspec
import trio

from streamq.cli.bench.meter import Meter, Ready
from streamq.cli.bench.payload import values_of
from streamq.cli.bench.plan import Plan
from streamq.client.cluster import Cluster
from streamq.client.settings import Address
from streamq.model.batches import BATCH_HEADER_BYTES, COMPRESSION_NONE, COMPRESSION_ZSTD, Batch, BatchHeader
from streamq.model.errors import ProtocolError, UnavailableError
from streamq.model.limits import BATCH_PAYLOAD_BYTES_MAX
from streamq.model.messages import Ack, AnyMessage, Heartbeat, Hello, PartitionView, Produce, Produced, Welcome
from streamq.wire.batch_format import encode_batch, encode_header
from streamq.wire.compression import compress
from streamq.wire.framing import PREAMBLE, PROTOCOL_VERSIONS, FrameReader, encode_frame
from streamq.wire.records import Row, pack_rows

__all__ = ["ThinLink", "connections", "fill", "raw", "ready_made_batches"]

RECEIVE_BYTES: Final = 1 << 16
JOIN_BYTES_MAX: Final = 1 << 18
"""Smaller frames are copied into one buffer, larger ones are sent piece by piece."""
ROW_BYTES: Final = 8
"""What MessagePack adds to a value of 100 bytes or so."""
VARIANTS: Final = 4
"""Different batches that are sent in turn."""


def batch_of(values: Sequence[bytes], *, is_compressed: bool, level: int = 1) -> Batch:
    """A batch with these records that belongs to no partition and no time yet."""
    rows: list[Row] = [(None, None, value, None) for value in values]
    raw = pack_rows(rows)
    payload = compress(raw, level=level) if is_compressed else raw
    header = BatchHeader(
        partition=bytes(16), records=len(rows), payload_bytes=0, raw_bytes=len(raw), payload_crc=0, producer=bytes(16), producer_epoch=0,
        sequence=0, first_timestamp=0, max_timestamp=0, epoch=0, base=0, append_time=0,
        compression=COMPRESSION_ZSTD if is_compressed else COMPRESSION_NONE,
    )  # fmt: skip
    return encode_batch(header, payload)


def ready_made_batches(payload_bytes: int, *, record_bytes: int) -> list[Batch]:
    """Batches whose payload has about so many bytes and would not become smaller, as if compressed before; what is in them is random."""
    assert BATCH_HEADER_BYTES < payload_bytes <= BATCH_PAYLOAD_BYTES_MAX
    count = max(1, payload_bytes // (record_bytes + ROW_BYTES))
    return [batch_of([os.urandom(record_bytes) for _ in range(count)], is_compressed=False) for _ in range(VARIANTS)]


class ThinLink:
    """One connection to one partition's sequencer, and the numbers of one idempotent producer."""

    def __init__(self, stream: trio.SocketStream, partition: PartitionView) -> None:
        self._stream = stream
        self._partition = partition
        self._reader = FrameReader()
        self._producer = secrets.token_bytes(16)
        self.sequence = 0

    @classmethod
    async def open(cls, address: Address, partition: PartitionView) -> "ThinLink":
        stream = await trio.open_tcp_stream(address.host, address.port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = cls(stream, partition)
        hello = Hello(PROTOCOL_VERSIONS, (), "streamq-bench")
        await stream.send_all(PREAMBLE + b"".join(encode_frame(hello, request=1)))
        answer = (await link._messages())[0]
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{address} answered with {type(answer).__name__}", code="protocol")
        return link

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def send(self, ready: Batch) -> int:
        """Sends a ready-made batch, of now, under the next sequence number, which is its ticket. Waits while the broker does not read."""
        ticket, self.sequence = self.sequence, self.sequence + 1
        now_ms = time.time_ns() // 1_000_000
        header = msgspec.structs.replace(
            ready.header,
            partition=self._partition.id,
            producer=self._producer,
            sequence=ticket,
            first_timestamp=now_ms,
            max_timestamp=now_ms,
        )
        parts = encode_frame(Produce((ticket,)), payload=(encode_header(header), ready.payload))
        if ready.size <= JOIN_BYTES_MAX:
            await self._stream.send_all(b"".join(parts))
        else:
            await self._stream.send_all(b"".join(parts[:-1]))
            await self._stream.send_all(parts[-1])
        return ticket

    async def acks(self) -> list[Ack]:
        """The next acks that come, one or more. Raises UnavailableError for a nack, or when the connection is lost."""
        acks: list[Ack] = []
        while not acks:
            for message in await self._messages():
                if isinstance(message, Produced):
                    if message.nacks:
                        nack = message.nacks[0]
                        raise UnavailableError(f"the brokers did not take a batch: {nack.code}: {nack.message}", code="unavailable")
                    acks += message.acks
                elif not isinstance(message, Heartbeat):
                    raise ProtocolError(f"a broker sent {type(message).__name__}", code="protocol")
        return acks

    async def _messages(self) -> list[AnyMessage]:
        messages: list[AnyMessage] = []
        while not messages:
            received = await self._stream.receive_some(RECEIVE_BYTES)
            if not received:
                raise UnavailableError("the broker closed the connection", code="unavailable")
            messages += [frame.message for frame in self._reader.feed(bytes(received))]
        return messages


async def sequencers_of(bootstrap: str, topic: str) -> list[tuple[Address, PartitionView]]:
    """Each partition with its sequencer's address; all of them were primed before."""
    async with Cluster(bootstrap) as cluster:
        view = await cluster.topic(topic)
        places = {broker: Address(known.host, known.port) for broker, known in cluster.brokers.items()}
        return [(places[partition.sequencer], partition) for partition in view.partitions]


class _Pump:
    """Batches through some links, a window each, until the time or the number is over; then until all are acked."""

    def __init__(self, links: Sequence[ThinLink], batches: Sequence[Batch], window: int, meter: Meter) -> None:
        self.records = 0
        self.bytes = 0
        self.batches = 0
        self._links = links
        self._ready = batches
        self._window = window
        self._meter = meter

    async def run(self, *, seconds: float, batches: int = 0) -> None:
        deadline, left = time.perf_counter() + seconds, Countdown(batches)
        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(self._run_one, link, deadline, left)

    async def _run_one(self, link: ThinLink, deadline: float, left: "Countdown") -> None:
        sent: dict[int, tuple[float, Batch]] = {}
        slots, is_over = trio.Semaphore(self._window), False

        async def settle() -> None:
            while sent or not is_over:
                acks = await link.acks()
                now = time.perf_counter()
                for ack in acks:
                    sent_at, batch = sent.pop(ack.ticket)
                    self._meter.latency(now - sent_at)
                    self.batches += 1
                    self.records += batch.header.records
                    self.bytes += batch.size
                    slots.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            while True:
                await slots.acquire()
                now = time.perf_counter()
                if not left.take() if left.is_counted else now >= deadline:
                    break
                batch = self._ready[link.sequence % len(self._ready)]
                sent[link.sequence] = (now, batch)
                await link.send(batch)
            is_over = True
            if not sent:
                nursery.cancel_scope.cancel()


class Countdown:
    """So many batches among all links; 0: no end."""

    def __init__(self, number: int) -> None:
        self.is_counted = number > 0
        self._left = number

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0


@asynccontextmanager
async def _links(plan: Plan, number: int) -> AsyncIterator[list[ThinLink]]:
    """So many connections, to the partitions in turn."""
    places = await sequencers_of(plan.bootstrap, plan.topic)
    async with AsyncExitStack() as stack:
        links = []
        for address, partition in islice(cycle(places), number):
            link = await ThinLink.open(address, partition)
            stack.push_async_callback(link.aclose)
            links.append(link)
        yield links


async def _pump(plan: Plan, meter: Meter, ready: Ready, links: list[ThinLink], batches: list[Batch], window: int) -> None:
    pump = _Pump(links, batches, window, meter)
    meter.records, meter.wire_bytes = (lambda: pump.records), (lambda: pump.bytes)
    await pump.run(seconds=max(plan.warm_up_s, 0.05))
    await ready()
    before = pump.batches
    await meter.begin()
    await pump.run(seconds=plan.seconds)
    await meter.end(raw_bytes_per_record=batches[0].header.raw_bytes / batches[0].header.records)
    meter.outcome.more["batches_per_s"] = round((pump.batches - before) / meter.outcome.seconds, 1)


async def raw(plan: Plan, meter: Meter, ready: Ready) -> None:
    """Brokers alone: ready-made batches, a window of them in flight to each partition."""
    async with _links(plan, plan.partitions) as links:
        await _pump(plan, meter, ready, links, ready_made_batches(plan.raw_bytes, record_bytes=plan.record_bytes), plan.window)


async def connections(plan: Plan, meter: Meter, ready: Ready) -> None:
    """Many connections, each with one batch of one record in flight."""
    values = values_of(record_bytes=plan.record_bytes, payload=plan.payload, seed=plan.seed)
    batches = [batch_of([value], is_compressed=False) for value in values[:VARIANTS]]
    async with _links(plan, plan.producers) as links:
        await _pump(plan, meter, ready, links, batches, 1)


async def fill(plan: Plan, meter: Meter, ready: Ready) -> None:
    """Stores `records`, in batches as the producer library would make them, so that there is something to consume."""
    values = values_of(record_bytes=plan.record_bytes, payload=plan.payload, seed=plan.seed)
    if plan.raw_bytes:
        batches = ready_made_batches(plan.raw_bytes, record_bytes=plan.record_bytes)
    else:
        per_batch = max(1, int(plan.batch_bytes / (sum(map(len, values)) / len(values) + ROW_BYTES)))
        repeated = values * (2 * per_batch // len(values) + 2)
        starts = [number * len(values) // VARIANTS for number in range(VARIANTS)]
        is_compressed = plan.compression == "zstd"
        batches = [batch_of(repeated[start : start + per_batch], is_compressed=is_compressed, level=plan.level) for start in starts]
    count = -(-plan.records // batches[0].header.records)
    async with _links(plan, plan.partitions) as links:
        pump = _Pump(links, batches, plan.window, meter)
        meter.records, meter.wire_bytes = (lambda: pump.records), (lambda: pump.bytes)
        await ready()
        await meter.begin()
        await pump.run(seconds=0.0, batches=count)
        await meter.end(raw_bytes_per_record=batches[0].header.raw_bytes / batches[0].header.records)
