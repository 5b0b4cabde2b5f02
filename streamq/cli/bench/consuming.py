"""Loads of the consumer library: everything from the start, record by record, and seeks."""

import random
import time
from datetime import UTC, datetime
from typing import Final

import trio

from streamq.cli.bench.counting import CountingHost
from streamq.cli.bench.meter import Meter, Ready
from streamq.cli.bench.plan import Plan
from streamq.model.errors import CorruptDataError
from streamq_consumer import Consumer, Record

__all__ = ["consume", "seek", "verify"]

LOOK: Final = 10_000
"""Records between two looks at the clock."""


async def consume(plan: Plan, meter: Meter, ready: Ready) -> None:
    """From the start, as the library hands records out; over after `records`, or after `seconds` when there are more."""
    if plan.warm_up_s:
        await _Reading(plan, CountingHost()).run(records=plan.records, seconds=plan.warm_up_s)
    host = CountingHost()
    reading = _Reading(plan, host)
    meter.records, meter.wire_bytes = (lambda: reading.records), (lambda: host.received_bytes)
    await ready()
    await meter.begin()
    await reading.run(records=plan.records, seconds=plan.seconds)
    await meter.end(raw_bytes_per_record=reading.bytes_per_record)


class _Reading:
    def __init__(self, plan: Plan, host: CountingHost) -> None:
        self.records = 0
        self.bytes_per_record = 0.0
        self._plan = plan
        self._host = host

    async def run(self, *, records: int, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        count, look_at, value_bytes = 0, min(LOOK, records or LOOK), 0
        async with Consumer(self._plan.bootstrap, topics=[self._plan.topic], host=self._host) as consumer:
            async for record in consumer:
                count += 1
                if count == look_at:
                    self.records = count
                    value_bytes += len(record.value or b"")
                    if count == records or time.perf_counter() >= deadline:
                        break
                    look_at = min(count + LOOK, records or count + LOOK)
        self.bytes_per_record = value_bytes / -(-count // LOOK)


async def seek(plan: Plan, meter: Meter, ready: Ready) -> None:
    """By offset: `seek` of an open consumer until its first record is there. By time: a new consumer that starts at that time, likewise."""
    draw, done = random.Random(plan.seed), 0
    host = CountingHost()
    meter.records, meter.wire_bytes = (lambda: done), (lambda: host.received_bytes)
    async with Consumer(plan.bootstrap, topics=[plan.topic], partitions=[0], host=host) as consumer:
        tip = await consumer.tip(plan.topic, 0)
        span = range(tip.start_offset, tip.high_watermark)
        first, last = await _record_at(consumer, plan.topic, span[0]), await _record_at(consumer, plan.topic, span[-1])
        await ready()
        await meter.begin()
        for _ in range(plan.seeks):
            if plan.by == "offset":
                wanted = draw.choice(span)
                called_at = time.perf_counter()
                record = await _record_at(consumer, plan.topic, wanted)
                meter.latency(time.perf_counter() - called_at)
                if record.offset != wanted:
                    raise CorruptDataError(f"asked for offset {wanted}, got {record.offset}", code="data_damaged")
            else:
                at_ms = draw.randint(first.timestamp, last.timestamp)
                called_at = time.perf_counter()
                record, came_at = await _record_from(plan, at_ms)
                meter.latency(came_at - called_at)
                if record.timestamp < at_ms:
                    raise CorruptDataError(f"asked for time {at_ms}, got a record of {record.timestamp}", code="data_damaged")
            done += 1
            await trio.lowlevel.checkpoint()
        await meter.end(raw_bytes_per_record=0)


async def _record_at(consumer: Consumer, topic: str, offset: int) -> Record:
    consumer.seek(topic, 0, offset)
    return await anext(aiter(consumer))


async def _record_from(plan: Plan, at_ms: int) -> tuple[Record, float]:
    """With when it was there: what the consumer does to end is not waited for by anybody."""
    start = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    async with Consumer(plan.bootstrap, topics=[plan.topic], partitions=[0], start=start) as consumer:
        return await anext(aiter(consumer)), time.perf_counter()


async def verify(plan: Plan, meter: Meter, ready: Ready) -> None:
    """Reads what a steady load wrote: in each partition every number from 0 on, once, in order, and no fewer than were acked."""
    next_numbers = [0] * plan.partitions
    meter.records = lambda: sum(next_numbers)
    await ready()
    await meter.begin()
    async with Consumer(plan.bootstrap, topics=[plan.topic]) as consumer:
        tips = [(await consumer.tip(plan.topic, partition)).high_watermark for partition in range(plan.partitions)]
        left = sum(tips)
        batches = consumer.batches(max_records=LOOK)
        while left:
            for record in await anext(batches):
                left -= 1
                value = record.value or b""
                if not value:  # of the record that opened the partition
                    continue
                number, wanted = int.from_bytes(value[:8], "big"), next_numbers[record.partition]
                if number != wanted:
                    what = "is there twice, or late" if number < wanted else "is missing"
                    place = f"{plan.topic}/{record.partition}@{record.offset}"
                    raise CorruptDataError(f"record {min(number, wanted)} of {place} {what}", code="data_damaged")
                next_numbers[record.partition] = number + 1
    for partition, (found, expected) in enumerate(zip(next_numbers, plan.expected, strict=True)):
        if found < expected:
            raise CorruptDataError(f"partition {partition}: {expected} records were acked, {found} are there", code="data_damaged")
    await meter.end(raw_bytes_per_record=0)
