"""The producer over real connections; test_producer_faults.py has what goes wrong."""

import itertools
import random

import anyio
import pytest

from streamq.client.settings import Timeouts
from streamq.model.errors import NotFoundError, RefusedError, UnavailableError
from streamq.model.limits import RECORD_BYTES_MAX
from streamq.wire.compression import decompress
from streamq.wire.records import UnpackedRow, unpack_rows
from streamq_producer import Producer, Receipt, partition_of
from streamq_producer import sync as blocking
from tests.support.backends import both, run
from tests.support.fake_cluster import LOST, FakePartition, fake_cluster

QUICK = Timeouts(silence_s=0.3)


def values(p: FakePartition) -> list[bytes | None]:
    stored: list[bytes | None] = []
    for batch in p.log:
        raw = decompress(batch.payload, compression=batch.header.compression, raw_bytes=batch.header.raw_bytes)
        stored += [row.value for row in unpack_rows(raw, records=batch.header.records)]
    return stored


@both
def test_send_returns_a_receipt_and_the_record_is_stored_as_given(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.brokers["b2"].address) as producer:
                receipt = await producer.send("t", b"v", key=b"k", headers={"h": b"x"}, timestamp=5)
                assert receipt == Receipt("t", 0, 0, 1_700_000_000_000, 2, 3, True)
                assert (await producer.send("t", None)).offset == 1
            header = p.log[0].header
            assert (header.first_timestamp, header.max_timestamp, header.records, header.sequence) == (5, 5, 1, 0)
            raw = decompress(p.log[0].payload, compression=header.compression, raw_bytes=header.raw_bytes)
            assert unpack_rows(raw, records=1) == [UnpackedRow(None, b"k", b"v", {"h": b"x"})]
            assert values(p) == [b"v", None]

    run(backend, body)


@both
def test_a_lone_send_does_not_linger_and_what_comes_meanwhile_is_batched(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, linger_s=5.0) as producer:
                started = anyio.current_time()
                await producer.send("t", b"first")
                assert anyio.current_time() - started < 1
                async with anyio.create_task_group() as tasks:
                    for i in range(50):
                        tasks.start_soon(producer.send, "t", b"%d" % i)
                assert anyio.current_time() - started < 2
            assert len(values(p)) == 51
            assert len(p.log) <= 4

    run(backend, body)


@both
def test_tasks_that_send_at_once_share_their_batches_and_a_lone_one_is_still_sent_at_once(backend: str) -> None:
    tasks_at_once, rounds = 32, 20

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, linger_s=5.0) as producer:

                async def send(count: int) -> None:
                    for _ in range(count):
                        await producer.send("t", b"x")

                async with anyio.create_task_group() as tasks:
                    for _ in range(tasks_at_once):
                        tasks.start_soon(send, rounds)
                # Those that are answered together go on together, and soon all of them: hardly more than a batch a round.
                assert len(values(p)) == tasks_at_once * rounds
                assert len(p.log) <= 1.4 * rounds + 2
                started = anyio.current_time()
                await send(3)
                assert anyio.current_time() - started < 1

    run(backend, body)


@both
def test_batches_are_closed_by_size_and_deliveries_know_their_offsets(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, batch_bytes=1_000) as producer:
                deliveries = [await producer.enqueue("t", b"%03d" % i + b"x" * 97) for i in range(100)]
                await producer.flush()
                receipts = [await delivery.receipt() for delivery in deliveries]
            assert [receipt.offset for receipt in receipts] == list(range(100))
            assert [value[:3] for value in values(p) if value] == [b"%03d" % i for i in range(100)]
            assert all(batch.header.raw_bytes < 1_200 for batch in p.log)
            assert [batch.header.sequence for batch in p.log] == list(range(len(p.log)))

    run(backend, body)


@both
def test_records_of_all_kinds_in_one_flood_keep_their_order_and_what_they_hold(backend: str) -> None:
    """A bare value that joins an open batch goes a shorter way than one with a key, headers or a time of its own."""

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            draw = random.Random(4)
            given: list[tuple[bytes | None, bytes | None, dict[str, bytes] | None]] = []
            deliveries = []
            async with Producer(cluster.bootstrap, batch_bytes=1_000) as producer:
                for i in range(600):
                    value = None if draw.random() < 0.05 else b"%d " % i + bytes(draw.randrange(120))
                    key = b"k" if draw.random() < 0.1 else None
                    headers = {"h": b"%d" % i} if draw.random() < 0.1 else None
                    time = 7 if draw.random() < 0.1 else None
                    taken = bytearray(value) if value is not None and draw.random() < 0.1 else value
                    deliveries.append(await producer.enqueue("t", taken, key=key, headers=headers, timestamp=time))
                    given.append((value, key, headers))
                await producer.flush()
                assert [(await delivery.receipt()).offset for delivery in deliveries] == list(range(600))
            stored: list[tuple[bytes | None, bytes | None, dict[str, bytes] | None]] = []
            for batch in p.log:
                raw = decompress(batch.payload, compression=batch.header.compression, raw_bytes=batch.header.raw_bytes)
                stored += [(row.value, row.key, row.headers) for row in unpack_rows(raw, records=batch.header.records)]
            assert stored == given
            assert all(batch.header.raw_bytes < 1_300 for batch in p.log)

    run(backend, body)


@both
@pytest.mark.parametrize("has_keys", [False, True])
def test_enqueue_many_gives_a_delivery_a_batch_that_says_which_values(backend: str, has_keys: bool) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.create("t", partitions=3)
            sent = [b"%04d" % i + b"x" * 40 for i in range(500)]
            keys = [b"%d" % (i % 7) for i in range(500)] if has_keys else None
            async with Producer(cluster.bootstrap, batch_bytes=2_000) as producer:
                deliveries = await producer.enqueue_many("t", sent, keys=keys)
                await producer.flush()
                receipts = [await delivery.receipt() for delivery in deliveries]
            assert sorted(itertools.chain.from_iterable(d.indexes for d in deliveries)) == list(range(500))
            for delivery, receipt in zip(deliveries, receipts, strict=True):
                stored = values(cluster.topics["t"][receipt.partition])
                assert stored[receipt.offset : receipt.offset + receipt.records] == [sent[i] for i in delivery.indexes]
                if keys:
                    assert {partition_of(keys[i], partitions=3) for i in delivery.indexes} == {receipt.partition}

    run(backend, body)


@both
def test_keys_choose_the_partition_and_without_keys_all_are_used(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            made = cluster.create("t", partitions=4)
            async with Producer(cluster.bootstrap) as producer:
                for i in range(20):
                    receipt = await producer.send("t", b"v", key=b"key %d" % i)
                    assert receipt.partition == partition_of(b"key %d" % i, partitions=4)
                assert (await producer.send("t", b"v", key=b"any", partition=2)).partition == 2
                used = {(await producer.send("t", b"v")).partition for _ in range(8)}
                assert used == {0, 1, 2, 3}
                with pytest.raises(NotFoundError):
                    await producer.send("t", b"v", partition=4)
            assert sum(len(values(p)) for p in made) == 29

    run(backend, body)


def test_the_partition_of_a_key_is_fixed_for_ever() -> None:
    """Other languages have to agree: CRC-32C modulo partitions."""
    assert partition_of(b"123456789", partitions=1 << 32) == 0xE3069283
    assert partition_of(b"123456789", partitions=6) == 0xE3069283 % 6
    assert partition_of(b"", partitions=6) == 0


@both
def test_what_is_wrong_as_it_is_is_refused_before_anything_is_taken(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap) as producer:
                with pytest.raises(NotFoundError, match="no topic 'nope'"):
                    await producer.send("nope", b"v")
                for many in ([], [b"x", b"y" * (RECORD_BYTES_MAX + 1)]):
                    with pytest.raises(RefusedError):
                        await producer.enqueue_many("t", many)
                with pytest.raises(RefusedError) as caught:
                    await producer.enqueue("t", b"x" * RECORD_BYTES_MAX, key=b"k")
                assert caught.value.code == "record_too_large"
                with pytest.raises(RefusedError):
                    await producer.enqueue("t", b"", headers={str(i): b"" for i in range(65)})
                with pytest.raises(RefusedError):
                    await producer.enqueue("t", b"", timestamp=-1)
                with pytest.raises(TypeError):
                    await producer.enqueue("t", "text")  # type: ignore[arg-type]
                assert producer.stats.waiting == 0
                assert (await producer.send("t", b"x" * RECORD_BYTES_MAX)).offset == 0
            assert len(p.log) == 1

    run(backend, body)


@pytest.mark.parametrize(
    "options",
    [
        {"linger_s": -1},
        {"batch_bytes": 0},
        {"batch_bytes": 1 << 30},
        {"buffer_bytes": 1},
        {"level": 20},
        {"in_flight": 33},
        {"compression": "gzip"},
        {"delivery_timeout_s": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(RefusedError) as caught:
        Producer("localhost:7700", **options)  # type: ignore[arg-type]
    assert caught.value.code == "bad_config"


@both
def test_a_failure_that_nobody_asked_for_is_raised_once_by_flush_or_at_the_end(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            p.fault = lambda broker, batch: "not_authorised"
            with pytest.raises(RefusedError):  # noqa: PT012
                async with Producer(cluster.bootstrap) as producer:
                    await producer.enqueue("t", b"1")
                    with pytest.raises(RefusedError):
                        await producer.flush()
                    await producer.flush()
                    asked = await producer.enqueue("t", b"2")
                    assert isinstance(await asked.outcome(), RefusedError)
                    await producer.flush()
                    await producer.enqueue("t", b"3")
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with Producer(cluster.bootstrap) as producer:
                    await producer.enqueue("t", b"4")
                    raise ZeroDivisionError
            assert p.log == []

    run(backend, body)


@both
def test_leaving_the_block_sends_what_is_buffered(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            cluster.ack_delay_s = 0.05
            async with Producer(cluster.bootstrap, linger_s=10) as producer:
                for i in range(10):
                    await producer.enqueue("t", b"%d" % i)
                    await anyio.lowlevel.checkpoint()
            assert len(values(p)) == 10
            with pytest.raises(RuntimeError):
                await producer.send("t", b"too late")

    run(backend, body)


@both
def test_cancellation_leaves_at_once_and_loses_nothing_that_was_taken_before(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap) as producer:
                await producer.send("t", b"1")
                cluster.ack_delay_s = 0.2
                with anyio.move_on_after(0.05) as scope:
                    await producer.send("t", b"2")
                assert scope.cancelled_caught
                assert (await producer.send("t", b"3")).offset == 2
            assert values(p) == [b"1", b"2", b"3"]
            started = anyio.current_time()
            with anyio.move_on_after(0.1) as scope:
                async with Producer(cluster.bootstrap) as producer:
                    p.fault = lambda broker, batch: LOST
                    await producer.send("t", b"4")
            assert scope.cancelled_caught
            assert anyio.current_time() - started < 1

    run(backend, body)


@both
def test_a_deleted_topic_is_not_found_and_a_new_one_of_its_name_is_used(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.create("t")
            async with Producer(cluster.bootstrap) as producer:
                await producer.send("t", b"old")
                cluster.delete("t")
                with pytest.raises(NotFoundError):
                    await producer.send("t", b"gone")
                (p,) = cluster.create("t")
                assert (await producer.send("t", b"new")).offset == 0
            assert values(p) == [b"new"]

    run(backend, body)


@both
def test_an_unreachable_cluster_is_one_clear_error(backend: str) -> None:
    async def body() -> None:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1: connection refused"):
            async with Producer("127.0.0.1:1"):
                pass

    run(backend, body)


@both
def test_the_blocking_twin_has_the_same_names(backend: str) -> None:
    """It runs its own event loop in a thread, whatever runs here."""

    def use(bootstrap: str) -> None:
        with blocking.Producer(bootstrap) as producer:
            assert producer.send("t", b"1", key=b"k").offset == 0
            delivery = producer.enqueue("t", b"2")
            many = producer.enqueue_many("t", [b"3", b"4"])
            producer.flush()
            assert delivery.receipt().offset == 1
            assert sum(d.records for d in many) == 2
            assert producer.stats.acked == 4
            with pytest.raises(NotFoundError):
                producer.send("nope", b"")
        with pytest.raises(RuntimeError):
            producer.send("t", b"too late")

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            await anyio.to_thread.run_sync(use, cluster.bootstrap)
            assert values(p) == [b"1", b"2", b"3", b"4"]

    run(backend, body)
