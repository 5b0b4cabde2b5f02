"""What a producer says of itself is what it did."""

import anyio

from streamq_producer import Producer
from tests.support.backends import both, run
from tests.support.fake_cluster import fake_cluster


@both
def test_batches_bytes_and_latencies_are_those_of_what_was_sent(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap) as producer:
                for _ in range(5):
                    await producer.send("t", b"x" * 1_000)
                stats = producer.stats
            assert (stats.acked, stats.waiting, stats.in_flight, stats.retries) == (5, 0, 0, 0)
            assert (stats.batches, stats.frames, len(p.log)) == (5, 5, 5)
            assert stats.payload_bytes == sum(batch.header.payload_bytes for batch in p.log)
            assert stats.raw_bytes == sum(batch.header.raw_bytes for batch in p.log) > stats.payload_bytes
            assert stats.ack_seconds.count == 5
            assert 0 < stats.ack_seconds.percentile(0.5) <= stats.ack_seconds.largest < 5
            assert "p99=" in repr(stats)

    run(backend, body)


@both
def test_what_is_sent_and_not_answered_is_in_flight_and_has_no_latency(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, close_timeout_s=0.1) as producer:
                await producer.send("t", b"first")
                p.fault = lambda broker, batch: "lost"
                delivery = await producer.enqueue("t", b"second")
                with anyio.fail_after(5):
                    while producer.stats.frames < 2:
                        await anyio.sleep(0.01)
                stats = producer.stats
                p.fault = lambda broker, batch: ""
                cluster.brokers[p.sequencer].kill()
                await cluster.brokers[p.sequencer].start()
                await delivery.receipt()
                after = producer.stats
            assert (stats.in_flight, stats.waiting, stats.ack_seconds.count) == (1, 1, 1)
            assert (after.in_flight, after.batches, after.ack_seconds.count) == (0, 2, 2)
            assert after.retries >= 1
            assert after.frames == 2 + after.retries

    run(backend, body)
