"""Records with ids: of those with the same id one is stored, whoever sequences, and however often and by whomever they are sent."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.model.errors import RefusedError
from streamq.model.limits import DEDUP_MS_DEFAULT, DEDUP_MS_MAX, DEDUP_MS_MIN, RECORD_ID_BYTES_MAX
from streamq.model.messages import AlterTopic, CreateTopic, TopicAltered, TopicCreated
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq_consumer import Consumer
from streamq_producer import Producer, Receipt, Text, partition_of


@asynccontextmanager
async def with_topic(*, partitions: int = 1) -> AsyncIterator[tuple[ClusterInProcess, Producer]]:
    async with cluster(3) as running, Producer(running.bootstrap) as producer:
        await producer._cluster.request(CreateTopic("t", partitions, 3, 2, 2, "fsync"), TopicCreated)
        yield running, producer


async def values(running: ClusterInProcess, partition: int = 0) -> list[bytes | None]:
    async with Consumer(running.bootstrap, topics=["t"]) as consumer:
        tip = await consumer.tip("t", partition)
        found: list[bytes | None] = []
        while consumer.position("t", partition) < tip.high_watermark:
            found += [record.value for record in await consumer.fetch(1_000, timeout=0.2) if record.partition == partition]
        return found


async def altered(producer: Producer, **settings: int) -> None:
    await producer._cluster.request(AlterTopic("t", **settings), TopicAltered)


def place(receipt: Receipt) -> tuple[int, bool]:
    return receipt.offset, receipt.is_duplicate


async def test_the_second_one_is_not_stored_and_is_told_where_the_first_is() -> None:
    async with with_topic() as (running, producer), Producer(running.bootstrap) as other:
        assert place(await producer.send("t", b"one", id=b"1")) == (0, False)
        assert place(await producer.send("t", b"two", id=b"2", key=b"k", headers={"h": b"v"}, timestamp=5)) == (1, False)
        assert place(await other.send("t", b"one, again", id=b"1")) == (0, True)
        assert place(await producer.send("t", b"plain")) == (2, False)
        assert place(await producer.topic("t", Text).send("text", id=b"2")) == (1, True)
        assert await values(running) == [b"one", b"two", b"plain"]


async def test_many_are_in_flight_at_once_beside_everything_else() -> None:
    async with with_topic() as (running, producer):
        deliveries = []
        for number in range(1_000):
            deliveries.append(await producer.enqueue("t", b"%d" % (number % 400), id=b"%d" % (number % 400)))
            if number % 10 == 0:
                await producer.enqueue("t", b"plain")
        receipts = [await delivery.receipt() for delivery in deliveries]
        await producer.flush()
        stored = await values(running)
        assert sorted(v for v in stored if v != b"plain") == sorted(b"%d" % number for number in range(400))
        assert stored.count(b"plain") == 100
        assert all(stored[receipt.offset] == b"%d" % (number % 400) for number, receipt in enumerate(receipts))
        assert sum(receipt.is_duplicate for receipt in receipts) == 600
        assert producer.stats.acked == 1_100


async def test_the_next_sequencer_knows_them() -> None:
    """The first is stored before a takeover and the second sent after it; both may be on their way through one, too."""
    async with with_topic() as (running, producer):
        for number in range(40):
            await producer.send("t", b"%d" % number, id=b"%d" % number)
        for broker in ("b1", "b2", "b3"):
            await running.kill(broker)
            async with trio.open_nursery() as nursery:
                for number in range(20, 60):
                    nursery.start_soon(lambda number=number: producer.send("t", b"%d" % number, id=b"%d" % number))  # type: ignore[misc]
            await running.start(broker)
            assert not (await producer.send("t", b"new", id=b"new at " + broker.encode())).is_duplicate
        for number in range(60):
            assert (await producer.send("t", b"no", id=b"%d" % number)).is_duplicate
        stored = await values(running)
        assert sorted(v for v in stored if v != b"new") == sorted(b"%d" % number for number in range(60))
        assert stored.count(b"new") == 3


async def test_without_a_key_the_id_says_where_a_record_goes() -> None:
    async with with_topic(partitions=3) as (_, producer):
        for id in (b"a", b"b", b"c", b"d", b"e"):
            receipt = await producer.send("t", b"x", id=id)
            assert receipt.partition == partition_of(id, partitions=3)
            assert (await producer.send("t", b"x", id=id)).is_duplicate
            elsewhere = (receipt.partition + 1) % 3
            assert not (await producer.send("t", b"x", id=id, partition=elsewhere)).is_duplicate
        key = next(b"%d" % i for i in range(99) if partition_of(b"%d" % i, partitions=3) != partition_of(b"a", partitions=3))
        assert (await producer.send("t", b"x", id=b"a", key=key)).partition == partition_of(key, partitions=3)


async def test_the_window_is_the_topics_and_each_record_keeps_its_own() -> None:
    async with with_topic() as (_, producer):
        await producer.send("t", b"a", id=b"a")
        for bad in (DEDUP_MS_MIN - 1, DEDUP_MS_MAX + 1):
            with pytest.raises(RefusedError, match="dedup_ms"):
                await altered(producer, dedup_ms=bad)
        await altered(producer, dedup_ms=0)
        assert (await producer.send("t", b"a", id=b"a")).is_duplicate
        with pytest.raises(RefusedError, match="dedup-window"):
            await producer.send("t", b"b", id=b"b")
        await altered(producer, dedup_ms=DEDUP_MS_MIN)
        assert not (await producer.send("t", b"b", id=b"b")).is_duplicate
        assert (await producer.send("t", b"c")).offset == 2


async def test_what_makes_no_sense_is_refused() -> None:
    async with cluster(1) as running, Producer(running.bootstrap) as producer:
        created = await producer._cluster.request(CreateTopic("t", 1, 1, 1, 1, "fsync"), TopicCreated)
        assert created.topic.dedup_ms == DEDUP_MS_DEFAULT
        for bad in (b"", b"x" * (RECORD_ID_BYTES_MAX + 1)):
            with pytest.raises(RefusedError, match="id"):
                await producer.send("t", b"x", id=bad)
        with pytest.raises(TypeError, match="id"):
            await producer.enqueue("t", b"x", id="text")  # type: ignore[arg-type]
        with pytest.raises(RefusedError, match="position"):
            await producer.send("t", b"x", id=b"1", position=1)
        async with Producer(running.bootstrap, name="n") as named:
            with pytest.raises(RefusedError, match="position"):
                await named.enqueue("t", b"x", id=b"1", partition=0)
        async with Producer(running.bootstrap, idempotent=False) as plain:
            assert not (await plain.send("t", b"x", id=b"x" * RECORD_ID_BYTES_MAX)).is_duplicate


async def test_what_lies_in_the_log_is_the_ids_hash_and_the_window() -> None:
    async with cluster(1) as running, Producer(running.bootstrap) as producer:
        await producer._cluster.request(CreateTopic("t", 1, 1, 1, 1, "fsync"), TopicCreated)
        await producer.send("t", b"x", id=b"an id")
        storage = running.brokers["b1"].storage
        (partition,) = storage.partitions()
        (epoch,) = storage.runs(partition)
        (batch,) = storage.recent(partition, epoch, 0, max_bytes=1_000) or ()
        assert batch.header.is_identified
        assert (batch.header.producer, batch.header.mark) == (hashlib.blake2b(b"an id", digest_size=16).digest(), DEDUP_MS_DEFAULT)
