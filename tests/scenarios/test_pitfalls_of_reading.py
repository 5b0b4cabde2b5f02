"""Pitfalls of readers: what they see when, at the end of a log, across epochs, at replicas that lack or have damaged what they ask for."""

import pytest
import trio
import trio.testing

from streamq.broker.partition import Partition
from streamq.broker.refills import Refills
from streamq.model.batches import Batch
from streamq.model.errors import UnavailableError
from streamq.model.messages import Credit, Failure
from streamq.storage.interface import LostBatches
from streamq.storage.memory_storage import MemoryStorage
from tests.broker.wire_client import values_of
from tests.support.virtual_cluster import Producer, Stream, virtual_cluster

Clock = trio.testing.MockClock


async def test_the_last_record_is_seen_at_every_replica_within_milliseconds(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Pitfall 50, 4.5: no further append carries the watermark, so it travels on its own; streams that wait are woken by it."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        async with cluster.client("b1") as c1, cluster.client("b2") as c2, cluster.client("b3") as c3:
            await trio.sleep(0.5)
            streams = [Stream(client, view.id, 0) for client in (c1, c2, c3)]
            await trio.sleep(1)
            for count in (1, 2):
                await Producer(cluster).send(b"alone")
                acked_at = trio.current_time()
                for stream in streams:
                    await stream.until(count)
                    assert stream.moved_at - acked_at < 0.01
                await trio.sleep(0.2)


@pytest.mark.parametrize("waits_for", ["news", "credit", "the disk", "an old epoch"])
async def test_a_stream_goes_on_through_takeovers_whatever_it_waits_for(
    waits_for: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """Pitfall 53, P-26: at the boundary of an epoch it neither stops nor skips nor repeats."""
    in_memory = MemoryStorage.recent
    may_read = trio.Event()

    async def from_disk(self: MemoryStorage, partition: bytes, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        if self.identity.broker == reader:
            await may_read.wait()
        return in_memory(self, partition, epoch, offset, max_bytes=max_bytes) or []

    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        reader = cluster.others(view.sequencer)[0]
        producer = Producer(cluster)
        for _ in range(5):
            await producer.send()
        await trio.sleep(0.1)
        if waits_for == "the disk":
            monkeypatch.setattr(MemoryStorage, "recent", lambda *_, **__: None)
            monkeypatch.setattr(MemoryStorage, "read", from_disk)
        async with cluster.client(reader) as client:
            stream = Stream(client, view.id, 0, credit=1 if waits_for == "credit" else 1 << 20)
            if waits_for in ("news", "credit"):
                await stream.until(5 if waits_for == "news" else 1)
            await trio.sleep(0.5)
            for gone in (view.sequencer, "nobody"):
                if gone == "nobody":
                    partition = cluster.partition(cluster.sequencers[-1])
                    assert partition.sequencing is not None
                    partition.sequencing.wants_new_epoch = True
                    epoch = cluster.epoch
                    await cluster.until(lambda epoch=epoch: cluster.epoch > epoch)
                else:
                    await cluster.running.kill(gone)
                    await cluster.until_sequenced_by_another_than(gone)
                for _ in range(5):
                    await producer.send()
            may_read.set()
            client.channel.send(Credit(1 << 20), request=stream.request)
            batches = await stream.until(15)
        assert [batch.base for batch in batches] == list(range(15))
        assert values_of(batches) == [b"%d" % i for i in range(15)]
        assert len({batch.header.epoch for batch in batches}) >= 3
        assert stream.watermarks == sorted(stream.watermarks), "a watermark told went back (pitfall 51)"


async def test_what_a_replica_lacks_is_neither_the_end_nor_skipped(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Pitfall 52: a replica that lost the middle of the log and has what came later says that it lacks it, and serves what it has."""

    async def never(self: Refills, partition: Partition, wanted: object) -> None:
        raise UnavailableError("copying is slow", code="unavailable")

    monkeypatch.setattr(Refills, "_copy", never)
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        for _ in range(10):
            await producer.send()
        await trio.sleep(0.1)
        victim = cluster.others(view.sequencer)[0]
        broker = cluster.running.brokers[victim]
        broker._scope.cancel()
        await broker._ended.wait()
        broker.storage = broker.storage.crash(lost=[LostBatches(view.id, view.epoch, 4, 10)])
        await cluster.running.start(victim)
        await cluster.until(lambda: cluster.epoch > view.epoch)
        await producer.send()
        await cluster.until(lambda: cluster.partition(victim).replica.high_watermark[1] == 11)
        async with cluster.client(victim) as client:
            lacking = Stream(client, view.id, 6)
            failure = await lacking.until_it_ends()
            assert isinstance(failure, Failure)
            assert failure.code == "not_replica"
            assert lacking.batches == []
            from_start = Stream(client, view.id, 0)
            await from_start.until_it_ends()
            assert [batch.base for batch in from_start.batches] == [0, 1, 2, 3]
            assert [batch.base for batch in await Stream(client, view.id, 10).until(11)] == [10]


def read_from_disk(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is served from memory any more, where damage does not show."""
    held = storage.recent

    async def read(partition: bytes, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        await trio.lowlevel.checkpoint()
        batches = held(partition, epoch, offset, max_bytes=max_bytes) or []
        return batches[: storage._whole(partition, epoch, [batch.header for batch in batches])]

    monkeypatch.setattr(storage, "recent", lambda *_, **__: None)
    monkeypatch.setattr(storage, "read", read)


async def test_damage_at_every_replica_is_a_clear_error_and_never_the_end(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """P-30: what is before it is served, and what is behind it; nobody's tail falls, and nothing is cut."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        for _ in range(10):
            await producer.send()
        await trio.sleep(0.1)
        for broker in cluster.running.brokers.values():
            broker.storage.damage(view.id, view.epoch, 4, 6)
            read_from_disk(broker.storage, monkeypatch)
        for name, node in cluster.nodes.items():
            async with cluster.client(name) as client:
                stream = Stream(client, view.id, 0)
                failure = await stream.until_it_ends()
                assert isinstance(failure, Failure)
                assert failure.code == "data_damaged"
                assert [batch.base for batch in stream.batches] == [0, 1, 2, 3]
                assert [batch.base for batch in await Stream(client, view.id, 6).until(10)] == [6, 7, 8, 9]
            assert cluster.running.brokers[name].storage.runs(view.id)[view.epoch].tail == 10
            assert cluster.partition(name).replica.local_tail(view.epoch) == 10
            assert cluster.partition(name).replica.in_limbo(view.epoch)
            assert node.metrics.cuts == 0
