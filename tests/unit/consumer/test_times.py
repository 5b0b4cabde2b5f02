"""Offsets by time, lag, and the last records over partitions, over real connections to brokers that lag and fail."""

from datetime import UTC, datetime, timedelta

import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.client.times import to_ms
from streamq.model.errors import NotFoundError, RefusedError
from streamq.model.messages import ReadTimes
from streamq_consumer import Consumer, Lag
from streamq_consumer import sync as blocking
from tests.support.backends import both, run
from tests.support.fake_cluster import FakePartition, fake_cluster
from tests.unit.consumer.test_consumer import fill, make_batch, read


def fill_at(p: FakePartition, times: list[int]) -> None:
    """A batch a record."""
    for time in times:
        p.append(make_batch(p, [b"%d" % time], first=time))


@both
def test_offsets_for_times_are_those_of_records_not_of_their_batches(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            p, q = cluster.create("t", 2)
            fill(p, 100)  # 7 a batch, times 1000 + 10 * offset
            fill_at(q, [5_000, 1_000, 7_000])
            async with Consumer(cluster.bootstrap, topics=["t"], start=50, partitions=[0]) as consumer:
                at = await consumer.offsets_for_times({("t", 0): 1_185, ("t", 1): datetime.fromtimestamp(5.001, UTC)})
                assert at == {("t", 0): 19, ("t", 1): 2}
                assert await consumer.offsets_for_times(1_190) == {("t", 0): 19}
                assert await consumer.offsets_for_times(0) == {("t", 0): 0}
                assert await consumer.offsets_for_times({("t", 0): 9_999, ("t", 1): 9_999}) == {("t", 0): 100, ("t", 1): 3}
                assert await consumer.offsets_for_times({}) == {}
                assert consumer.positions() == {("t", 0): 50}
                for wrong, kind in (({("t", 2): 0}, NotFoundError), ({("u", 0): 0}, NotFoundError), (-1, RefusedError)):
                    with pytest.raises(kind):
                        await consumer.offsets_for_times(wrong)

    run(backend, body)


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_are_exact_to_the_microsecond(us: int) -> None:
    """As a float 1.001 s are 1000.99… ms: a record of the millisecond before would come with it."""
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    assert to_ms(when) == -(-us // 1000)
    assert to_ms(when.astimezone().replace(tzinfo=None)) in (to_ms(when), to_ms(when) - 3_600_000, to_ms(when) + 3_600_000)


@both
def test_a_replica_that_knows_less_than_the_quorum_does_not_say_where_a_time_begins(backend: str) -> None:
    """It would answer with its own end, and what it has not heard of would be skipped."""

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 70)
            p.readable = lambda broker: 70 if broker == "b2" else 35
            async with Consumer(cluster.bootstrap, topics=["t"], start="latest") as consumer:
                assert await consumer.offsets_for_times(1_000 + 10 * 50) == {("t", 0): 50}

    run(backend, body)


@both
def test_lag_counts_records_and_tells_the_age_of_the_next_one(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            p, q = cluster.create("t", 2)
            fill(p, 20, batch=10)
            p.append_time += 4_000
            fill(p, 10, batch=10)
            cluster.now_ms = p.append_time + 2_500
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                assert await consumer.lag() == {("t", 0): Lag(30, 6.5), ("t", 1): Lag(0, 0.0)}
                await read(consumer, 15)
                assert (await consumer.lag())["t", 0] == Lag(15, 6.5)
                await read(consumer, 5)
                assert (await consumer.lag())["t", 0] == Lag(10, 2.5)
                await read(consumer, 10)
                assert (await consumer.lag())["t", 0] == Lag(0, 0.0)
                assert await consumer.lag_from({("t", 0): 3}) == {("t", 0): Lag(27, 6.5)}
                asked = [message for broker in cluster.brokers.values() for message in broker.requests]
                assert sum(isinstance(message, ReadTimes) for message in asked) == 4  # none for the tip, and one for many partitions
                assert q.end == 0

    run(backend, body)


@both
def test_lag_asks_another_replica_when_one_is_down_or_behind(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 20, batch=10)
            p.readable = lambda broker: 20 if broker == "b3" else 0
            cluster.now_ms += 1_000
            cluster.brokers["b2"].kill()
            async with Consumer(cluster.brokers["b3"].address, topics=["t"], start="latest") as consumer:
                assert await consumer.lag_from({("t", 0): 15}) == {("t", 0): Lag(5, 1.0)}
                p.start_offset = 10
                assert await consumer.lag_from({("t", 0): 0}) == {("t", 0): Lag(10, 1.0)}

    run(backend, body)


@both
def test_the_last_records_come_in_time_order_and_reading_goes_on_behind_them(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            p, q, r = cluster.create("t", 3)
            fill_at(p, [1_000, 1_010, 1_020, 1_030])
            fill_at(q, [1_005, 1_015, 1_100])
            async with Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                assert [record.timestamp for record in await consumer.last(4)] == [1_015, 1_020, 1_030, 1_100]
                assert consumer.positions() == {("t", 0): 4, ("t", 1): 3, ("t", 2): 0}
                fill_at(r, [900])
                assert [record.timestamp for record in await read(consumer, 1)] == [900]
                assert [record.timestamp for record in await consumer.last(100)] == [900, 1_000, 1_005, 1_010, 1_015, 1_020, 1_030, 1_100]
                before = await consumer.offsets_for_times(1_015)
                assert [record.timestamp for record in await consumer.last(2, ends=before)] == [1_005, 1_010]
                assert consumer.positions() == before
                assert await consumer.last(0) == []
                for count in (-1, 400_000):
                    with pytest.raises(RefusedError):
                        await consumer.last(count)

    run(backend, body)


@both
def test_last_that_fails_leaves_the_positions_as_they_were(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 20)
            async with Consumer(cluster.bootstrap, topics=["t"], patience_s=0.2) as consumer:
                await read(consumer, 3)
                tips = await consumer.tips()

                async def tips_of_before() -> object:
                    return tips

                consumer.tips = tips_of_before  # type: ignore[method-assign, assignment]
                cluster.delete("t")
                with pytest.raises(NotFoundError):
                    await consumer.last(2)
                assert consumer.position("t", 0) == 3

    run(backend, body)


def test_the_blocking_twin_counts_what_it_holds_as_not_handed_out() -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 20)
            cluster.now_ms += 250

            def use() -> None:
                with blocking.Consumer(cluster.bootstrap, topics=["t"]) as consumer:
                    assert next(iter(consumer)).offset == 0
                    assert consumer.lag() == {("t", 0): Lag(19, 0.25)}
                    assert [record.offset for record in consumer.last(2)] == [18, 19]
                    assert consumer.position("t", 0) == 20
                    assert consumer.offsets_for_times(1_030) == {("t", 0): 3}
                    assert consumer.tips()["t", 0].high_watermark == 20

            await anyio.to_thread.run_sync(use)

    run("asyncio", body)
