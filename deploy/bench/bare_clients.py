"""The barest producer and consumer that still handle records one by one, as a ceiling for the client libraries.

    python -m deploy.bench.bare_clients                                        # every row, a minute
    python -m deploy.bench.bare_clients --rows produce:100:262144 consume:100  # bytes of a record, bytes of a batch
    python -m deploy.bench.bare_clients --json                                 # an object a row

The producer awaits `enqueue` a record at a time, packs and compresses a batch at once (MessagePack, zstd level 1) and has eight of them in
flight into the pipeline of `bare.py`, two of whose three processes sync before the ack. The consumer decompresses and unpacks a batch from
memory, makes an object of each record, and hands it out by `async for`.
"""

import argparse
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import google_crc32c
import msgpack
import trio
import zstandard

from deploy.bench.bare import FRAME, SUBMIT, Link, pipeline

__all__ = ["lines"]

ROWS: Final = ("produce:100:65536", "produce:100:262144", "produce:1000:1048576", "consume:100", "consume:1000")
IN_FLIGHT: Final = 8
PRODUCED_RECORDS: Final = 2_000_000
PRODUCED_LARGE_RECORDS: Final = 500_000
LARGE_BYTES: Final = 500
ROW_BYTES: Final = 8
CONSUMED_BATCHES: Final = 400
RECORDS_PER_CONSUMED_BATCH: Final = 2_500


def lines(size: int, count: int = 5_000) -> list[bytes]:
    """Log-like lines of exactly so many bytes that zstd makes about four times smaller; always the same."""
    draw = random.Random(1)
    found = []
    for _ in range(count):
        row = {"ts": draw.random(), "level": draw.choice(["INFO", "WARN"]), "svc": draw.choice(["api", "auth"]), "ms": draw.random()}
        text = json.dumps(row)
        while len(text) < size:
            text += f" {draw.randrange(10**9):x}"
        found.append(text[:size].encode())
    return found


class Producer:
    def __init__(self, link: Link, batch_bytes: int) -> None:
        self.sent: dict[int, int] = {}
        """Records of each batch in flight, by its number."""
        self.slots = trio.Semaphore(IN_FLIGHT)
        self._link = link
        self._batch_bytes = batch_bytes
        self._rows: list[tuple[int | None, bytes | None, bytes, Mapping[str, bytes] | None]] = []
        self._size = 0
        self._next = 0
        self._compress = zstandard.ZstdCompressor(level=1).compress

    async def enqueue(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
    ) -> None:
        self._rows.append((timestamp, key, value, headers))
        self._size += len(value) + ROW_BYTES
        if self._size >= self._batch_bytes:
            await self.roll()

    async def roll(self) -> None:
        rows, self._rows, self._size = self._rows, [], 0
        await self.slots.acquire()
        payload = self._compress(msgpack.packb(rows))
        self.sent[self._next] = len(rows)
        self._link.send(FRAME.pack(len(payload), SUBMIT, self._next, google_crc32c.value(payload)), payload)
        self._next += 1
        await trio.lowlevel.checkpoint()


async def produce(port: int, size: int, batch_bytes: int, total: int) -> dict[str, Any]:
    values, link, acked = lines(size), await Link.open(port), 0
    producer, finished = Producer(link, batch_bytes), trio.Event()

    async def settle() -> None:
        nonlocal acked
        async for _, number, _, _ in link.frames():
            acked += producer.sent.pop(number)
            producer.slots.release()
            if acked == total:
                finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(settle)
        begun = time.perf_counter()
        for number in range(total):
            await producer.enqueue("t", values[number % len(values)])
        await producer.roll()
        await finished.wait()
        took = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    return {"load": "produce", "record_bytes": size, "batch_bytes": batch_bytes, "records_per_s": round(total / took)}


class Record:
    __slots__ = ("headers", "key", "offset", "partition", "timestamp", "topic", "value")

    def __init__(self, topic: str, partition: int, offset: int, timestamp: int, key: bytes | None, value: bytes, headers: Any) -> None:
        self.topic, self.partition, self.offset, self.timestamp = topic, partition, offset, timestamp
        self.key, self.value, self.headers = key, value, headers


class Consumer:
    """Hands out the records of one batch, so many times over."""

    def __init__(self, batch: bytes, batches: int) -> None:
        self._batch = batch
        self._left = batches
        self._offset = 0
        self._ready: Iterator[Record] = iter(())

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        for record in self._ready:
            return record
        await trio.lowlevel.checkpoint()
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        rows, base = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(self._batch)), self._offset
        self._offset += len(rows)
        self._ready = iter([Record("t", 0, base + i, at, key, value, headers) for i, (at, key, value, headers) in enumerate(rows)])
        return next(self._ready)


async def consume(size: int) -> dict[str, Any]:
    rows = [(0, None, value, None) for value in lines(size, RECORDS_PER_CONSUMED_BATCH)]
    batch = zstandard.ZstdCompressor(level=1).compress(msgpack.packb(rows))
    count, begun = 0, time.perf_counter()
    async for _ in Consumer(batch, CONSUMED_BATCHES):
        count += 1
    return {"load": "consume", "record_bytes": size, "records_per_s": round(count / (time.perf_counter() - begun))}


def _measure(row: str) -> dict[str, Any]:
    kind, size, *rest = row.split(":")
    if kind == "consume":
        return trio.run(consume, int(size))
    total = PRODUCED_LARGE_RECORDS if int(size) >= LARGE_BYTES else PRODUCED_RECORDS
    with pipeline() as port:
        return trio.run(produce, port, int(size), int(rest[0]), total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="produce:BYTES:BATCH|consume:BYTES")
    parser.add_argument("--json", action="store_true", help="one object a row")
    options = parser.parse_args()
    for text in options.rows:
        row = _measure(text)
        print(json.dumps(row) if options.json else "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
