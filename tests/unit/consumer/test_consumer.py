"""The consumer over real connections to brokers that die, lag, skip, and send bytes that are damaged."""

import os
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec
import pytest

from streamq.client.cluster import Cluster
from streamq.client.settings import Timeouts
from streamq.model.batches import COMPRESSION_ZSTD, FLAG_CONTROL, Batch, BatchHeader
from streamq.model.errors import CorruptDataError, NotFoundError, OffsetError, RefusedError, UnavailableError
from streamq.model.messages import FindOffset, Subscribe
from streamq.wire.batch_format import encode_batch, encode_header, stamp
from streamq.wire.compression import compress
from streamq.wire.records import pack_rows
from streamq_consumer import Consumer, Record, Tip, start
from streamq_consumer import sync as blocking
from tests.support.backends import both, run
from tests.support.fake_cluster import FakePartition, fake_cluster

QUICK: dict[str, Any] = {"stall_s": 0.2, "tip_check_s": 0.2, "timeouts": Timeouts(silence_s=0.3)}


def make_batch(p: FakePartition, values: list[bytes], *, first: int = 1_000) -> Batch:
    raw = pack_rows([(10 * i or None, None, value, None) for i, value in enumerate(values)])
    payload = compress(raw, level=1)
    header = BatchHeader(
        partition=p.id, records=len(values), payload_bytes=0, raw_bytes=len(raw), payload_crc=0, producer=bytes(16), producer_epoch=0,
        sequence=len(p.log), first_timestamp=first, max_timestamp=first + 10 * len(values) - 10, epoch=0, base=0, append_time=0,
        compression=COMPRESSION_ZSTD,
    )  # fmt: skip
    return encode_batch(header, payload)


def fill(p: FakePartition, records: int, *, batch: int = 7) -> None:
    """Values are their offsets, timestamps 10 ms apart."""
    end = p.end + records
    while p.end < end:
        values = [b"%d" % i for i in range(p.end, min(p.end + batch, end))]
        p.append(make_batch(p, values, first=1_000 + 10 * p.end))


async def read(consumer: Consumer, count: int) -> list[Record]:
    records: list[Record] = []
    async for record in consumer:
        records.append(record)
        if len(records) == count:
            return records
    raise AssertionError


def offsets(records: list[Record], partition: int = 0) -> list[int]:
    assert all(record.value == b"%d" % record.offset for record in records)
    return [record.offset for record in records if record.partition == partition]


@both
def test_records_come_whole_in_order_and_the_place_is_kept(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 100)
            async with Consumer(cluster.brokers["b3"].address, topics=["t"]) as consumer:
                assert consumer.partitions == (("t", 0),)
                first = await read(consumer, 10)
                assert first[3] == Record("t", 0, 3, 1_030, None, b"3")
                assert consumer.position("t", 0) == 10
                assert offsets(await read(consumer, 30)) == list(range(10, 40))
                batches = consumer.batches(max_records=25, max_wait=0.2)
                assert offsets(await anext(batches)) == list(range(40, 65))
                assert consumer.position("t", 0) == 65
                assert offsets(await read(consumer, 35)) == list(range(65, 100))
                assert await consumer.fetch(10, timeout=0.05) == []
                fill(p, 5)
                assert offsets(await consumer.fetch(10)) == list(range(100, 105))
                assert consumer.trouble is None

    run(backend, body)


@both
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", 0),
        ("latest", 50),
        (0, 0),
        (13, 13),
        (50, 50),
        (datetime.fromtimestamp(1.185, UTC), 19),
        (datetime.fromtimestamp(1.5, UTC), 50),
        ({("t", 0): 44}, 44),
    ],
)
def test_it_begins_where_it_is_told(backend: str, start: Any, expected: int) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 50)
            async with Consumer(cluster.bootstrap, topics=["t"], start=start) as consumer:
                fill(p, 3)
                assert offsets(await read(consumer, 53 - expected)) == list(range(expected, 53))

    run(backend, body)


@both
def test_an_offset_that_cannot_be_is_one_clear_error(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 50)
            p.start_offset = 10
            for start, code in ((5, "offset_trimmed"), (51, "offset_ahead")):
                with pytest.raises(OffsetError) as caught:
                    async with Consumer(cluster.bootstrap, topics=["t"], start=start):
                        pass
                assert caught.value.code == code
                assert "10 up to 50" in caught.value.message
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                assert (await consumer.fetch(1))[0].offset == 10
                for offset, code in ((5, "offset_trimmed"), (99, "offset_ahead")):
                    consumer.seek("t", 0, offset)
                    for _ in range(2):
                        with pytest.raises(OffsetError) as caught:
                            await consumer.fetch(1)
                        assert caught.value.code == code
                consumer.seek("t", 0, 20)
                assert (await consumer.fetch(1))[0].offset == 20
                consumer.seek("t", 0, "earliest")
                assert (await consumer.fetch(1))[0].offset == 10

    run(backend, body)


@pytest.mark.parametrize(
    "options", [{"start": -1}, {"start": "first"}, {"topics": []}, {"topics": "t"}, {"prefetch_bytes": 1}, {"partitions": []}]
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        Consumer("localhost:7700", **{"topics": ["t"], **options})


@both
def test_what_does_not_exist_is_not_found(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.create("t")
            for options in ({"topics": ["nope"]}, {"topics": ["t"], "partitions": [1]}, {"topics": ["t"], "broker": "b9"}):
                with pytest.raises(NotFoundError):
                    async with Consumer(cluster.bootstrap, **options):  # type: ignore[arg-type]
                        pass

    run(backend, body)


@both
def test_partitions_take_turns_and_each_keeps_its_order(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            for p in cluster.create("t", partitions=5):
                fill(p, 60)
            async with Consumer(cluster.bootstrap, topics=["t"], partitions=[0, 2, 4]) as consumer:
                await anyio.sleep(0.2)  # something is there of each
                records = await read(consumer, 180)
                assert {record.partition for record in records[:60]} == {0, 2, 4}
                for partition in (0, 2, 4):
                    assert offsets(records, partition) == list(range(60))

    run(backend, body)


@both
def test_nothing_is_lost_or_repeated_while_brokers_come_and_go(backend: str) -> None:
    """P-26: kills, pauses and restarts of every broker in turn, while records flow."""

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 50, batch=3)
            async with Consumer(cluster.bootstrap, topics=["t"], prefetch_bytes=1 << 16, **QUICK) as consumer:
                got = await read(consumer, 40)
                for turn in range(6):
                    broker = cluster.brokers[f"b{turn % 3 + 1}"]
                    if turn % 2:
                        broker.pause()
                    else:
                        broker.kill()
                    fill(p, 50, batch=3)
                    got += await read(consumer, 50)
                    if turn % 2:
                        broker.resume()
                    else:
                        await broker.start()
                got += await read(consumer, 10)
                for broker in cluster.brokers.values():
                    broker.kill()
                assert await consumer.fetch(100, timeout=0.5) == []
                assert isinstance(consumer.trouble, UnavailableError)
                for broker in cluster.brokers.values():
                    await broker.start()
                fill(p, 10)
                got += await read(consumer, 10)
            assert offsets(got) == list(range(360))

    run(backend, body)


@both
def test_a_replica_that_is_left_behind_is_replaced(backend: str) -> None:
    """The one that is read from first knows nothing of what is new; others do."""

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 20)
            stale: set[str] = set()
            p.readable = lambda broker: 20 if broker in stale else p.end
            async with Consumer(cluster.bootstrap, topics=["t"], **QUICK) as consumer:
                await read(consumer, 20)
                stale.add(next(b.name for b in cluster.brokers.values() if any(type(r).__name__ == "Subscribe" for r in b.requests)))
                fill(p, 20)
                started = anyio.current_time()
                assert offsets(await read(consumer, 20)) == list(range(20, 40))
                assert anyio.current_time() - started < 2

    run(backend, body)


@both
def test_a_tip_is_a_quorum_read_and_what_lies_below_it_is_read(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 20)
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                assert await consumer.tip("t", 0) == Tip("t", 0, 20, 1, 0, ("b1", "b2"))
                with pytest.raises(NotFoundError):
                    await consumer.tip("t", 1)

    run(backend, body)


def bomb(batch: Batch) -> Batch:
    """Announces little and holds much, with every checksum in order."""
    payload = compress(bytes(50_000_000), level=1)
    header = msgspec.structs.replace(batch.header, epoch=0, base=0, append_time=0)
    return stamp(encode_batch(header, payload), epoch=1, base=batch.base, append_time=0)


def flipped(batch: Batch) -> Batch:
    return Batch(batch.header, batch.head, batch.payload[:-1] + bytes([batch.payload[-1] ^ 1]))


def oversized(batch: Batch) -> Batch:
    header = msgspec.structs.replace(batch.header, raw_bytes=(1 << 32) - 1)
    return Batch(header, encode_header(header), batch.payload)


def nonsense(batch: Batch) -> Batch:
    header = msgspec.structs.replace(batch.header, epoch=0, base=0, append_time=0, raw_bytes=40, compression=0)
    return stamp(encode_batch(header, os.urandom(40)), epoch=1, base=batch.base, append_time=0)


@both
@pytest.mark.parametrize("damage", [bomb, flipped, oversized, nonsense])
def test_damaged_batches_come_from_another_replica_or_are_a_clear_error(backend: str, damage: Any) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 30, batch=10)
            asked: list[str] = []
            is_everywhere = False

            def doctored(broker: str, batches: list[Batch]) -> list[Batch]:
                asked.append(broker)
                is_bad = is_everywhere or broker == asked[0]
                return [damage(batch) if batch.base == 10 and is_bad else batch for batch in batches]

            p.doctored = doctored
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                assert offsets(await read(consumer, 30)) == list(range(30))
                assert len(set(asked)) == 2
                assert consumer.stats.damaged >= 1
            is_everywhere = True
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                assert offsets(await read(consumer, 10)) == list(range(10))
                with pytest.raises(CorruptDataError):
                    await consumer.fetch(1, timeout=5)
                consumer.seek("t", 0, 20)
                assert offsets(await read(consumer, 10)) == list(range(20, 30))

    run(backend, body)


@both
def test_a_named_broker_is_the_only_one_read_from(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 10)
            asked: set[str] = set()

            def noted(broker: str, batches: list[Batch]) -> list[Batch]:
                asked.add(broker)
                return batches

            p.doctored = noted
            async with Consumer(cluster.bootstrap, topics=["t"], broker="b2", patience_s=0.5) as consumer:
                await read(consumer, 10)
                assert asked == {"b2"}
                cluster.brokers["b2"].kill()
                fill(p, 1)
                with pytest.raises(UnavailableError, match="no broker has served this partition"):
                    await consumer.fetch(1, timeout=5)

    run(backend, body)


@both
def test_the_replica_that_looks_a_time_up_is_the_one_that_is_read_from(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            for p in cluster.create("t", partitions=8):
                fill(p, 10)
            async with Consumer(cluster.bootstrap, topics=["t"], start=datetime.fromtimestamp(1, tz=UTC)) as consumer:
                await read(consumer, 80)

            def asked(kind: type[FindOffset] | type[Subscribe]) -> set[tuple[str, bytes]]:
                return {(b.name, m.partition) for b in cluster.brokers.values() for m in b.requests if isinstance(m, kind)}

            assert len(asked(FindOffset)) == 8
            assert asked(FindOffset) == asked(Subscribe)

    run(backend, body)


@both
def test_a_replica_that_is_behind_is_not_waited_for_when_a_time_is_looked_up(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            for p in cluster.create("t", partitions=8):
                fill(p, 70)
                p.readable = lambda broker: 7 if broker == "b2" else 70
            began = anyio.current_time()
            async with Consumer(cluster.bootstrap, topics=["t"], start=datetime.fromtimestamp(1.5, tz=UTC)) as consumer:
                assert set(consumer.positions().values()) == {49}
                assert anyio.current_time() - began < 0.5
                await read(consumer, 8 * 20)

    run(backend, body)


def test_a_time_that_no_replica_looks_up_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FIND_S", 0.5)
    monkeypatch.setattr(start, "ASK_S", 0.1)

    async def never(*_: Any, **__: Any) -> None:
        await anyio.sleep_forever()

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 7)
            monkeypatch.setattr(Cluster, "connection", never)
            with pytest.raises(UnavailableError, match=r"b\d does not say where a time begins within 0.1 s"):
                await Consumer(cluster.bootstrap, topics=["t"], start=datetime.fromtimestamp(1, tz=UTC)).__aenter__()

    run("trio", body)


@both
def test_what_is_fetched_ahead_is_bounded(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            for _ in range(100):
                p.append(make_batch(p, [os.urandom(10_000)]))
            async with Consumer(cluster.bootstrap, topics=["t"], prefetch_bytes=100_000) as consumer:
                await anyio.sleep(0.3)
                assert 5 <= consumer._open.buffered_records <= 15
                total = 0
                async for batch in consumer.batches(max_records=1_000, max_wait=0.2):
                    total += len(batch)
                    if total == 100:
                        break

    run(backend, body)


@both
def test_a_place_where_one_record_is_read_costs_one_batch(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.batches_per_frame = 1
            (p,) = cluster.create("t")
            for _ in range(100):
                p.append(make_batch(p, [os.urandom(100_000), b""]))
            async with Consumer(cluster.bootstrap, topics=["t"], start=100) as consumer:
                await anext(aiter(consumer))
                await anyio.sleep(0.2)
                assert consumer._open.buffered_records == 0
                async for batch in consumer.batches(max_records=7):
                    await anyio.sleep(0.01)
                    if batch[-1].offset >= 180:
                        break
                assert consumer._open.buffered_records > 0, "a stream is read ahead of"

    run(backend, body)


@both
def test_a_deleted_topic_is_an_error_and_not_silence(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 10)
            async with Consumer(cluster.bootstrap, topics=["t"], **QUICK) as consumer:
                await read(consumer, 10)
                cluster.delete("t")
                for broker in cluster.brokers.values():
                    broker.kill()
                    await broker.start()
                with pytest.raises(NotFoundError):
                    await consumer.fetch(1, timeout=5)

    run(backend, body)


@both
def test_cancellation_loses_no_record(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            got: list[Record] = []
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                batches = consumer.batches(max_records=1_000, max_wait=0.5)
                for _ in range(10):
                    fill(p, 10)
                    with anyio.move_on_after(0.03):
                        got += await anext(batches)
                    batches = consumer.batches(max_records=1_000, max_wait=0.5)
                    with anyio.move_on_after(0.01):
                        got += await consumer.fetch(5)
                got += await consumer.fetch(1_000, timeout=0.2)
            assert offsets(got) == list(range(100))

    run(backend, body)


@both
def test_the_blocking_twin_has_the_same_names(backend: str) -> None:
    def use(bootstrap: str) -> None:
        with blocking.Consumer(bootstrap, topics=["t"]) as consumer:
            first = [record for record, _ in zip(consumer, range(10), strict=False)]
            assert offsets(first) == list(range(10))
            assert consumer.position("t", 0) in (10, 11)
            consumer.seek("t", 0, 30)
            assert offsets(consumer.fetch(5)) == list(range(30, 35))
            assert offsets(next(consumer.batches(max_records=5))) == list(range(35, 40))
            assert consumer.positions() == {("t", 0): 40}
            assert consumer.tip("t", 0).high_watermark == 50
            assert len(consumer.fetch(100)) == 10
            assert consumer.fetch(100, timeout=0.05) == []
            assert consumer.stats.records >= 30
        assert consumer.stats.buffered == 0

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 50)
            await anyio.to_thread.run_sync(use, cluster.bootstrap)

    run(backend, body)


@both
def test_control_batches_count_as_read_and_are_not_handed_out(backend: str) -> None:
    """More of them than the first credit pays for, and one at the very end."""

    def control(p: FakePartition) -> None:
        batch = make_batch(p, [os.urandom(20_000)])
        p.append(encode_batch(msgspec.structs.replace(batch.header, flags=FLAG_CONTROL), batch.payload))

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            for _ in range(10):
                fill(p, 5)
                control(p)
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                expected = [offset for offset in range(60) if offset % 6 != 5]
                assert offsets(await read(consumer, 50)) == expected
                assert consumer.position("t", 0) == 59
                assert await consumer.fetch(10, timeout=0.2) == []
                assert consumer.position("t", 0) == 60
                fill(p, 3)
                assert offsets(await consumer.fetch(10, timeout=5)) == [60, 61, 62]

    run(backend, body)
