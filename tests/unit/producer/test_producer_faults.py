"""The producer when brokers die, pause, refuse, or lose what they were sent."""

import itertools
import tracemalloc

import anyio
import pytest

from streamq.client.settings import Timeouts
from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.wire.compression import decompress
from streamq.wire.records import unpack_rows
from streamq_producer import Delivery, Producer
from tests.support.backends import both, run
from tests.support.fake_cluster import LOST, STORED_SILENTLY, FakePartition, fake_cluster

QUICK = Timeouts(silence_s=0.3)


def values(p: FakePartition) -> list[bytes | None]:
    stored: list[bytes | None] = []
    for batch in p.log:
        raw = decompress(batch.payload, compression=batch.header.compression, raw_bytes=batch.header.raw_bytes)
        stored += [row.value for row in unpack_rows(raw, records=batch.header.records)]
    return stored


@both
@pytest.mark.parametrize("fault", [LOST, STORED_SILENTLY, "unknown_outcome", "busy", "unavailable", "stopping"])
def test_an_idempotent_producer_resolves_every_doubt(backend: str, fault: str) -> None:
    """Each third try goes wrong, the sequencer moves and connections break; all is stored once, in order, and acked."""

    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            tries = itertools.count()
            p.fault = lambda broker, batch: fault if next(tries) % 3 == 1 else ""
            async with Producer(cluster.bootstrap, timeouts=QUICK, in_flight=4) as producer:
                deliveries: list[Delivery] = []
                for i in range(40):
                    deliveries.append(await producer.enqueue("t", b"%d" % i))
                    await anyio.sleep(0.005)
                    if i % 15 == 14:
                        broker = cluster.brokers[p.sequencer]
                        broker.kill()
                        p.sequencer = "b2" if p.sequencer == "b1" else "b1"
                        await anyio.sleep(0.05)
                        await broker.start()
                    elif fault in (LOST, STORED_SILENTLY) and i % 5 == 4:
                        cluster.brokers[p.sequencer].kill()
                        await cluster.brokers[p.sequencer].start()
                p.fault = lambda broker, batch: ""
                cluster.brokers[p.sequencer].kill()
                await cluster.brokers[p.sequencer].start()
                await producer.flush()
                assert producer.stats.acked == 40
                assert producer.stats.retries > 0
                assert [(await delivery.receipt()).offset for delivery in deliveries] == list(range(40))
            assert values(p) == [b"%d" % i for i in range(40)]

    run(backend, body)


@both
def test_without_idempotence_a_batch_in_doubt_is_unknown_and_not_sent_again(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, idempotent=False) as producer:
                await producer.send("t", b"fine")
                p.fault = lambda broker, batch: STORED_SILENTLY
                delivery = await producer.enqueue("t", b"doubtful")
                await anyio.sleep(0.05)
                p.fault = lambda broker, batch: ""
                cluster.brokers["b1"].kill()
                with pytest.raises(UnknownOutcomeError):
                    await delivery.receipt()
                p.sequencer = "b2"
                await producer.send("t", b"goes on")
            assert values(p) == [b"fine", b"doubtful", b"goes on"]

    run(backend, body)


@both
def test_a_paused_sequencer_is_left_after_the_silence_timeout(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, timeouts=QUICK) as producer:
                await producer.send("t", b"1")
                cluster.brokers["b1"].pause()
                p.sequencer = "b2"
                started = anyio.current_time()
                await producer.send("t", b"2")
                assert 0.25 < anyio.current_time() - started < 1.5
                cluster.brokers["b1"].resume()
                await anyio.sleep(0.1)
            assert values(p) == [b"1", b"2"]

    run(backend, body)


@both
def test_a_killed_sequencer_costs_little_even_without_hints(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.gives_hints = False
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap) as producer:
                await producer.send("t", b"1")
                cluster.brokers["b1"].kill()
                p.sequencer = "b3"
                started = anyio.current_time()
                await producer.send("t", b"2")
                assert anyio.current_time() - started < 0.5

    run(backend, body)


@both
def test_when_time_is_over_the_outcome_says_whether_it_was_sent(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            (p,) = cluster.create("t")
            async with Producer(cluster.bootstrap, delivery_timeout_s=0.4) as producer:
                p.fault = lambda broker, batch: LOST
                with pytest.raises(UnknownOutcomeError):
                    await producer.send("t", b"sent")
                p.fault = lambda broker, batch: "disk_full"
                with pytest.raises(UnavailableError, match="a fault: disk_full"):
                    await producer.send("t", b"refused")
                p.fault = lambda broker, batch: ""
                assert (await producer.send("t", b"goes on")).offset == 0
                cluster.brokers["b1"].kill()
                await anyio.sleep(0.1)
                with pytest.raises(UnavailableError):
                    await producer.send("t", b"not sent")
                stats = producer.stats
                assert (stats.acked, stats.refused, stats.unknown, stats.waiting) == (1, 2, 1, 0)

    run(backend, body)


@both
def test_memory_is_bounded_and_waiting_is_the_backpressure(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            (p,) = cluster.create("t")
            p.fault = lambda broker, batch: LOST
            options = {"batch_bytes": 10_000, "buffer_bytes": 100_000, "compression": "none", "delivery_timeout_s": 5.0}
            async with Producer(cluster.bootstrap, close_timeout_s=0, **options) as producer:  # type: ignore[arg-type]
                taken = 0
                tracemalloc.start()
                with anyio.move_on_after(0.5) as scope:
                    while True:
                        await producer.enqueue("t", b"x" * 1_000)
                        taken += 1
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert scope.cancelled_caught
                assert 90 <= taken <= 110
                assert peak < 2_000_000
                with pytest.raises(UnknownOutcomeError):
                    await producer.__aexit__(None, None, None)

    run(backend, body)
