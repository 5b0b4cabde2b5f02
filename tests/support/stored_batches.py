"""Batches with predictable bytes, and storages to put them into."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from streamq.model.batches import COMPRESSION_NONE, Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER, PartitionId
from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskSettings
from streamq.storage.identity import create_identity
from streamq.storage.interface import Storage
from streamq.wire.batch_format import encode_batch

P1: PartitionId = b"partition-one..."
P2: PartitionId = b"partition-two..."
SMALL = DiskSettings(journal_file_bytes=1 << 20, log_file_bytes=64 << 10, cache_bytes=1 << 20, flush_bytes=1 << 19, reserve_bytes=0)


def batch(base: int, records: int = 2, *, partition: PartitionId = P1, epoch: int = 1, size: int = 60, time: int | None = None) -> Batch:
    """The same arguments give the same bytes. Its largest record time is `time`, by default 1000 + its end."""
    payload = random.Random(f"{partition.hex()} {epoch} {base}").randbytes(size)
    time = 1000 + base + records if time is None else time
    header = BatchHeader(
        partition=partition,
        records=records,
        payload_bytes=0,
        raw_bytes=size,
        payload_crc=0,
        producer=NO_PRODUCER,
        producer_epoch=0,
        sequence=0,
        first_timestamp=min(1000 + base, time),
        max_timestamp=time,
        epoch=epoch,
        base=base,
        append_time=time,
        compression=COMPRESSION_NONE,
    )
    return encode_batch(header, payload)


def batches(first: int, end: int, records: int = 2, *, partition: PartitionId = P1, epoch: int = 1, size: int = 60) -> list[Batch]:
    return [batch(base, records, partition=partition, epoch=epoch, size=size) for base in range(first, end, records)]


def make_directory(directory: Path) -> Path:
    create_identity(directory, cluster=b"cluster.........", broker="b1", first_voters=Voters(1, ()))
    return directory


class Tokens:
    """What a storage has given back."""

    def __init__(self) -> None:
        self.given: list[object] = []
        self._changed = trio.Event()

    def take(self, tokens: list[object]) -> None:
        self.given += tokens
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, token: object) -> None:
        with trio.fail_after(10):
            while token not in self.given:
                await self._changed.wait()


@asynccontextmanager
async def running(storage: Storage) -> AsyncIterator[Tokens]:
    """The storage's `run` beside the block."""
    tokens = Tokens()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.run, tokens.take)
        try:
            yield tokens
        finally:
            nursery.cancel_scope.cancel()


async def store(storage: Storage, *stored: Batch, states: dict[str, bytes | None] | None = None) -> None:
    """Appends, and runs the storage until that is durable."""
    async with running(storage) as tokens:
        storage.append(list(stored), list((states or {}).items()), "stored")
        await tokens.until("stored")


async def read_all(storage: Storage, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int = 1 << 20) -> list[Batch]:
    """The run from `offset` on, however many reads that takes."""
    found: list[Batch] = []
    while some := await storage.read(partition, epoch, found[-1].end if found else offset, max_bytes=max_bytes):
        found += some
    return found
