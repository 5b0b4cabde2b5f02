"""What a consumer says of itself is what it did."""

from streamq_consumer import Consumer
from tests.support.backends import both, run
from tests.support.fake_cluster import fake_cluster
from tests.unit.consumer.test_consumer import QUICK, fill, offsets, read


@both
def test_records_batches_and_bytes_are_those_that_were_handed_out(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 70, batch=7)
            async with Consumer(cluster.bootstrap, topics=["t"], start=10) as consumer:
                await read(consumer, 60)
                stats = consumer.stats
            served = p.log[1:]
            assert (stats.records, stats.batches, stats.buffered, stats.subscriptions, stats.damaged) == (60, len(served), 0, 1, 0)
            assert stats.payload_bytes == sum(batch.header.payload_bytes for batch in served)
            assert stats.raw_bytes == sum(batch.header.raw_bytes for batch in served)

    run(backend, body)


@both
def test_a_replica_that_is_lost_costs_another_subscription(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            fill(p, 21)
            async with Consumer(cluster.bootstrap, topics=["t"], **QUICK) as consumer:
                assert offsets(await read(consumer, 21)) == list(range(21))
                reader = next(iter(consumer._feeds.values())).session.source
                cluster.brokers[reader].kill()
                fill(p, 7)
                assert offsets(await read(consumer, 7)) == list(range(21, 28))
                assert consumer.stats.subscriptions >= 2
                assert consumer.stats.records == 28

    run(backend, body)
