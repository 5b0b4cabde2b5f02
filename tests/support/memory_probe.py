"""A producer or a consumer in a process of its own, whose memory is measured.

    python -m tests.support.memory_probe produce|consume BOOTSTRAP TOPIC OPTIONS     options in JSON

It tells with a JSON line when it is connected and has seen one record through, waits for a line on its standard input, does its worst,
and tells again.
"""

import json
import os
import sys
from functools import partial
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync

from streamq.cli.bench.usage import read_process
from streamq_consumer import Consumer
from streamq_producer import Producer

STALLED_S: Final = 1.5
"""What takes longer than this waits for somebody else."""


def peak_bytes() -> int:
    reading = read_process(os.getpid())
    assert reading is not None
    assert reading.peak_bytes is not None
    return reading.peak_bytes


def tell(**figures: int) -> None:
    print(json.dumps({"peak_bytes": peak_bytes(), **figures}), flush=True)


async def produce(bootstrap: str, topic: str, record_bytes: int, records_max: int, **options: Any) -> None:
    """Enqueues records that do not compress until there has been no room for a while, and then once more; never more than `records_max`."""
    async with Producer(bootstrap, delivery_timeout_s=60, close_timeout_s=0, **options) as producer:
        await producer.send(topic, b"seen through")
        tell(waiting=0)
        await run_sync(sys.stdin.readline)
        for _ in range(2):
            is_stalled = False
            while not is_stalled and producer.stats.waiting < records_max:
                with anyio.move_on_after(STALLED_S) as scope:
                    for _ in range(1_000):
                        await producer.enqueue(topic, os.urandom(record_bytes))
                is_stalled = scope.cancelled_caught
            tell(waiting=producer.stats.waiting)
        os._exit(0)  # closing would wait for nothing and complain of what is lost


async def consume(bootstrap: str, topic: str, records: int, **options: Any) -> None:
    """Takes one record and then none for a while; then all."""
    async with Consumer(bootstrap, topics=[topic], **options) as consumer:
        [_] = await consumer.fetch(1)
        tell(taken=1, buffered=0)
        await run_sync(sys.stdin.readline)
        await anyio.sleep(STALLED_S)
        tell(taken=1, buffered=consumer.stats.buffered)
        taken = 1
        async for batch in consumer.batches(max_records=1_000):
            taken += len(batch)
            if taken == records:
                break
        tell(taken=taken, buffered=consumer.stats.buffered)


if __name__ == "__main__":
    _, name, bootstrap, topic, options = sys.argv
    load = produce if name == "produce" else consume
    anyio.run(partial(load, bootstrap, topic, **json.loads(options)))
