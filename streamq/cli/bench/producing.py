"""Loads of the producer library: as much as goes in, one at a time, at a rate, from many tasks."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from streamq.cli.bench.counting import CountingHost
from streamq.cli.bench.meter import Meter, Ready
from streamq.cli.bench.pacing import SLICE_S, Schedule, Ticker
from streamq.cli.bench.payload import values_of
from streamq.cli.bench.plan import Plan
from streamq.model.errors import UnavailableError
from streamq_producer import Delivery, Producer, Receipt

__all__ = ["fan_in", "latency", "prime", "produce", "producer_of"]

CHUNK: Final = 5_000
"""Records between two looks at the clock."""
SAMPLE_S: Final = 0.005
"""Where throughput counts, the latency of one record is measured so often."""
PRIMERS_MAX: Final = 64
WATCHED_MAX: Final = 100_000
"""Records of an open loop without an answer; with more the cluster does not keep up, and the run ends with an error."""


def producer_of(plan: Plan, host: CountingHost) -> Producer:
    return Producer(plan.bootstrap, host=host, batch_bytes=plan.batch_bytes, compression=plan.compression, level=plan.level)


async def prime(bootstrap: str, topic: str, partitions: int) -> None:
    """One record to each partition, so that each has its sequencer before anything is measured."""
    limiter = trio.CapacityLimiter(PRIMERS_MAX)

    async def one(producer: Producer, partition: int) -> None:
        async with limiter:
            await producer.send(topic, b"", partition=partition)

    async with Producer(bootstrap) as producer, trio.open_nursery() as nursery:
        for partition in range(partitions):
            nursery.start_soon(one, producer, partition)


class _End:
    """When a phase of a load is over: after so many records, or so many seconds."""

    def __init__(self, *, records: int, seconds: float) -> None:
        self._records = records
        self._deadline = time.perf_counter() + seconds

    def left(self, sent: int) -> int:
        """How many records may be sent before the next look, 0 at the end."""
        if self._records:
            return min(CHUNK, self._records - sent)
        return CHUNK if time.perf_counter() < self._deadline else 0


@asynccontextmanager
async def _metered(plan: Plan, meter: Meter) -> AsyncIterator[Producer]:
    host = CountingHost()
    async with producer_of(plan, host) as producer:
        meter.records = lambda: producer.stats.acked
        meter.wire_bytes = lambda: host.sent_bytes
        yield producer


async def produce(plan: Plan, meter: Meter, ready: Ready) -> None:
    """As many records as go in, or `rate`, through one producer."""
    values = values_of(record_bytes=plan.record_bytes, payload=plan.payload, seed=plan.seed)
    async with _metered(plan, meter) as producer, trio.open_nursery() as nursery:
        feed = _Feed(plan, meter, producer, nursery, values)
        if plan.warm_up_s:
            await feed.run(_End(records=0, seconds=plan.warm_up_s))
            await producer.flush()
        await ready()
        await meter.begin()
        await feed.run(_End(records=plan.records, seconds=plan.seconds))
        await producer.flush()
        meter.more["retries"] = producer.stats.retries
        await meter.end(raw_bytes_per_record=sum(map(len, values)) / len(values))


class _Feed:
    def __init__(self, plan: Plan, meter: Meter, producer: Producer, nursery: trio.Nursery, values: list[bytes]) -> None:
        self._plan = plan
        self._meter = meter
        self._producer = producer
        self._nursery = nursery
        self._values = values * (CHUNK // len(values) + 1)
        self._sampled_at = 0.0

    async def run(self, end: _End) -> None:
        send = {"enqueue": self._one_by_one, "enqueue-many": self._at_once, "send": self._and_wait}[self._plan.api]
        begun, sent = time.perf_counter(), 0
        while left := end.left(sent):
            if self._plan.rate:
                left = min(left, max(1, int(self._plan.rate * SLICE_S * 10)))
                await trio.sleep(max(0.0, begun + sent / self._plan.rate - time.perf_counter()))
            start = sent % len(self._values) if left < CHUNK else 0
            await send((self._values[start : start + left] + self._values[:left])[:left] if start else self._values[:left])
            sent += left

    async def _one_by_one(self, values: list[bytes]) -> None:
        enqueue, topic = self._producer.enqueue, self._plan.topic
        delivery = None
        for value in values:
            delivery = await enqueue(topic, value)
        self._sample(delivery, time.perf_counter())

    async def _at_once(self, values: list[bytes]) -> None:
        called_at = time.perf_counter()
        deliveries = await self._producer.enqueue_many(self._plan.topic, values)
        self._sample(deliveries[-1], called_at)

    async def _and_wait(self, values: list[bytes]) -> None:
        deadline = time.perf_counter() + 10 * SLICE_S
        for value in values:
            called_at = time.perf_counter()
            await self._producer.send(self._plan.topic, value)
            self._meter.latency(time.perf_counter() - called_at)
            if called_at > deadline:
                return

    def _sample(self, delivery: Delivery | None, called_at: float) -> None:
        if delivery is not None and called_at - self._sampled_at >= SAMPLE_S:
            self._sampled_at = called_at
            self._nursery.start_soon(self._watch, delivery, called_at)

    async def _watch(self, delivery: Delivery, called_at: float) -> None:
        await delivery.receipt()
        self._meter.latency(time.perf_counter() - called_at)


async def latency(plan: Plan, meter: Meter, ready: Ready) -> None:
    """One record in flight; with a rate, as many as are due, whether or not earlier ones were answered."""
    values = values_of(record_bytes=plan.record_bytes, payload=plan.payload, seed=plan.seed)
    async with _metered(plan, meter) as producer:
        run = _open_loop if plan.rate else _one_in_flight
        warm_up = max(plan.warm_up_s, 0.05)
        await run(plan, meter, producer, values, records=0, seconds=warm_up)
        await ready()
        await meter.begin()
        await run(plan, meter, producer, values, records=plan.records, seconds=plan.seconds)
        await meter.end(raw_bytes_per_record=sum(map(len, values)) / len(values))


async def _one_in_flight(plan: Plan, meter: Meter, producer: Producer, values: list[bytes], *, records: int, seconds: float) -> None:
    deadline, sent = time.perf_counter() + seconds, 0
    while True:
        called_at = time.perf_counter()
        if sent >= records if records else called_at >= deadline:
            return
        await producer.send(plan.topic, values[sent % len(values)])
        meter.latency(time.perf_counter() - called_at)
        sent += 1


async def _open_loop(plan: Plan, meter: Meter, producer: Producer, values: list[bytes], *, records: int, seconds: float) -> None:
    """Below 1,000 records/s each is a `send` of its own; above, those that are due together go in with one call."""
    total = records or max(1, int(seconds * plan.rate))
    waiting = 0

    async def watch_one(number: int) -> None:
        nonlocal waiting
        await producer.send(plan.topic, values[number % len(values)])
        meter.latency(time.perf_counter() - schedule.due_at(number))
        waiting -= 1

    async def watch_many(delivery: Delivery, first: int) -> None:
        nonlocal waiting
        await delivery.receipt()
        meter.latency(time.perf_counter() - schedule.due_at(first + delivery.indexes[0]), delivery.records)
        waiting -= delivery.records

    with Ticker(max(1 / plan.rate, SLICE_S)) as ticker:
        schedule = Schedule(plan.rate, begun=time.perf_counter())
        async with trio.open_nursery() as nursery:
            sent = 0
            while sent < total:
                due = min(total, schedule.due_by(time.perf_counter()))
                waiting += due - sent
                if waiting > max(WATCHED_MAX, plan.rate):
                    raise UnavailableError(
                        f"{plan.rate:,.0f} records/s are more than this cluster takes: {waiting} wait for an answer",
                        code="busy",
                        hint="a lower --rate",
                    )
                if plan.rate * SLICE_S <= 1:
                    for number in range(sent, due):
                        nursery.start_soon(watch_one, number)
                elif due > sent:
                    slice_values = [values[number % len(values)] for number in range(sent, due)]
                    for delivery in await producer.enqueue_many(plan.topic, slice_values):
                        nursery.start_soon(watch_many, delivery, sent)
                sent = due
                await ticker.wait()


async def fan_in(plan: Plan, meter: Meter, ready: Ready) -> None:
    """Many tasks, each with one send in flight, sharing a producer, or each with one of its own."""
    values = values_of(record_bytes=plan.record_bytes, payload=plan.payload, seed=plan.seed)
    host, acked, deadline = CountingHost(), 0, 0.0

    async def one(producer: Producer, number: int) -> None:
        nonlocal acked
        while True:
            called_at = time.perf_counter()
            if called_at >= deadline:
                return
            receipt = await producer.send(plan.topic, values[(acked + number) % len(values)])
            assert isinstance(receipt, Receipt)
            acked += 1
            meter.latency(time.perf_counter() - called_at)

    async def all_for(seconds: float) -> None:
        nonlocal deadline
        deadline = time.perf_counter() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(plan.tasks):
                nursery.start_soon(one, producers[number % len(producers)], number)

    meter.records, meter.wire_bytes = (lambda: acked), (lambda: host.sent_bytes)
    async with AsyncExitStack() as stack:
        producers = [await stack.enter_async_context(producer_of(plan, host)) for _ in range(plan.producers)]
        await all_for(max(plan.warm_up_s, 0.05))
        await ready()
        await meter.begin()
        await all_for(plan.seconds)
        await meter.end(raw_bytes_per_record=sum(map(len, values)) / len(values))
