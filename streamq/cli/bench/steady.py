"""A load at a fixed rate that goes on through faults, watches each partition for gaps between acks, and can be verified afterwards.

Every few milliseconds each partition gets a batch of its own, so that a partition without an ack for longer has a gap. A record begins with
its number in its partition, which `consuming.verify` counts up when it reads everything back.
"""

import time
from collections import deque
from typing import Final

import trio

from streamq.cli.bench.counting import CountingHost
from streamq.cli.bench.meter import Meter, Ready
from streamq.cli.bench.payload import values_of
from streamq.cli.bench.plan import Plan
from streamq.cli.bench.producing import producer_of
from streamq_producer import Delivery, Producer

__all__ = ["GAP_MIN_S", "NUMBER_BYTES", "steady"]

NUMBER_BYTES: Final = 8
TICK_S: Final = 0.005
GAP_MIN_S: Final = 0.015
"""Shorter times between acks are not kept; reports tell this much where there was no longer one."""
GAPS_MAX: Final = 100_000
RECORDS_PER_CALL_MAX: Final = 20_000
"""Who is behind, because the machine stood still or takes less than was asked for, catches up in steps: acks are looked at between them."""


async def steady(plan: Plan, meter: Meter, ready: Ready) -> None:
    """`rate` records a second over all partitions, until told to stop or `seconds` are over. Fails if anything is refused or unknown."""
    host = CountingHost()
    values = [value[NUMBER_BYTES:] for value in values_of(record_bytes=plan.record_bytes, payload=plan.payload, seed=plan.seed)]
    async with producer_of(plan, host) as producer:
        lanes = [_PartitionLoad(plan, meter, producer, index, values) for index in range(plan.partitions)]
        meter.records, meter.wire_bytes = (lambda: sum(lane.acked for lane in lanes)), (lambda: host.sent_bytes)
        await ready()
        await meter.begin()
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for lane in lanes:
                nursery.start_soon(lane.watch)
            ticks, deadline = 0, begun + plan.seconds if plan.seconds else float("inf")
            while True:
                ticks += 1
                due = int((time.perf_counter() - begun) * plan.rate / plan.partitions)
                for lane in lanes:
                    await lane.send_until(due)
                if meter.stop.is_set() or time.perf_counter() > deadline:
                    break
                await trio.sleep(max(0.0, begun + ticks * TICK_S - time.perf_counter()))
            await producer.flush()
            for lane in lanes:
                lane.is_over = True
                lane.news.set()
        meter.acked = tuple(lane.acked for lane in lanes)
        meter.more["retries"] = producer.stats.retries
        await meter.end(raw_bytes_per_record=sum(map(len, values)) / len(values) + NUMBER_BYTES)


class _PartitionLoad:
    """Invariant: `waiting` are the deliveries without an outcome, in the order in which they get one."""

    def __init__(self, plan: Plan, meter: Meter, producer: Producer, index: int, values: list[bytes]) -> None:
        self.sent = 0
        self.acked = 0
        self.is_over = False
        self.news = trio.Event()
        self._topic = plan.topic
        self._meter = meter
        self._producer = producer
        self._index = index
        self._values = values
        self._waiting: deque[tuple[Delivery, float]] = deque()

    async def send_until(self, due: int) -> None:
        """Records below number `due`, no more than RECORDS_PER_CALL_MAX: the rest is due the next time."""
        due = min(due, self.sent + RECORDS_PER_CALL_MAX)
        if due <= self.sent:
            return
        values, count = self._values, len(self._values)
        numbered = [number.to_bytes(NUMBER_BYTES, "big") + values[number % count] for number in range(self.sent, due)]
        called_at = time.perf_counter()
        self.sent = due
        deliveries = await self._producer.enqueue_many(self._topic, numbered, partition=self._index)
        self._waiting += [(delivery, called_at) for delivery in deliveries]
        self.news.set()

    async def watch(self) -> None:
        acked_at = time.monotonic()
        while not (self.is_over and not self._waiting):
            if not self._waiting:
                self.news = trio.Event()
                await self.news.wait()
                continue
            delivery, called_at = self._waiting.popleft()
            await delivery.receipt()
            now = time.monotonic()
            self.acked += delivery.records
            self._meter.latency(time.perf_counter() - called_at, delivery.records)
            if now - acked_at > GAP_MIN_S and len(self._meter.gaps) < GAPS_MAX:
                self._meter.gaps.append((round(acked_at, 6), round(now, 6), self._index))
            acked_at = now
