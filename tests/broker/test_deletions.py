"""Deleted topics are gone for good, wherever the deletion was interrupted and whatever was under way then (P-6, P-39)."""

import logging

import pytest
import trio
import trio.testing

from streamq.broker import takeovers
from streamq.broker.partition import Partition
from streamq.broker.topics import Topics
from streamq.model.batches import Batch
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError
from streamq.model.messages import DeleteTopic, Ok
from streamq.storage.interface import LostBatches
from tests.support.virtual_cluster import TOPIC, Producer, virtual_cluster

logging.getLogger("streamq").setLevel(logging.ERROR)
Clock = trio.testing.MockClock


async def test_a_deletion_that_was_interrupted_is_finished_when_it_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """The topic's tombstone comes first; without its partitions' the replicas would keep and serve the data for ever."""
    async with virtual_cluster(monkeypatch) as cluster:
        await cluster.create()
        await Producer(cluster).send()

        async def cannot(self: Topics, topic: object, index: int) -> None:
            raise UnavailableError("the voters are gone", code="timed_out")

        async with cluster.client("b1") as client:
            with monkeypatch.context() as broken:
                broken.setattr(Topics, "_delete_partition", cannot)
                with pytest.raises(StreamqError):
                    await client.ask(DeleteTopic(TOPIC))
            assert await client.ask(DeleteTopic(TOPIC)) == Ok()
            await cluster.until(lambda: not any(node.partitions for node in cluster.nodes.values()))
            with pytest.raises(NotFoundError):
                await client.ask(DeleteTopic(TOPIC))


async def test_a_partition_deleted_at_the_end_of_its_takeover_is_not_sequenced(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """A sequencer of it would send `Open` to brokers that have forgotten the deletion, and bring it back there."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        partition = cluster.partition(cluster.others(view.sequencer)[0])
        fold = Partition.fold

        async def fold_then_delete(self: Partition) -> None:
            await fold(self)
            if self is partition and self.replica.state.opened > view.epoch:
                self.drop()

        monkeypatch.setattr(Partition, "fold", fold_then_delete)
        await takeovers.take_over(partition, view.epoch, "test")
        assert partition.is_dropped
        assert partition.sequencing is None


async def test_copying_ends_with_the_partition(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Copies are throttled over all partitions: one that is gone must not hold its place until every piece has failed to become durable."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        for _ in range(10):
            await producer.send()
        victim = cluster.others(view.sequencer)[0]
        await cluster.until(lambda: cluster.partition(victim).replica.local_tail(view.epoch) == 10)
        broker = cluster.running.brokers[victim]
        await cluster.running.kill(victim)
        broker.storage = broker.storage.crash(lost=[LostBatches(view.id, view.epoch, 4, 10)])
        fetch = Partition.fetch
        dropped: list[Partition] = []

        async def fetch_and_drop(self: Partition, source: str, epoch: int, offset: int, end: int) -> list[Batch]:
            batches = await fetch(self, source, epoch, offset, end)
            self.drop()
            dropped.append(self)
            return batches[:1]

        monkeypatch.setattr(Partition, "fetch", fetch_and_drop)
        await cluster.running.start(victim)
        await cluster.until(lambda: dropped)
        await trio.sleep(1)
        assert "refill" not in dropped[0].busy
        assert len(dropped) == 1
