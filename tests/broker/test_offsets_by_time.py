"""A time is looked up by replicas that hold what was written then; one that lacks it says so, and never the next best offset."""

import logging

import msgspec
import pytest

from streamq.broker.refills import Refills
from streamq.model.batches import Batch
from streamq.model.errors import UnavailableError
from streamq.model.messages import Ack, FindOffset, OffsetFound
from streamq.storage.interface import LostBatches
from streamq.testing.in_process import cluster
from streamq.wire.batch_format import encode_batch
from tests.broker.capture import capture_nodes, until
from tests.broker.test_cluster_in_process import create, to
from tests.broker.wire_client import make_batch

logging.getLogger("streamq").setLevel(logging.ERROR)


def batch_at(partition: bytes, timestamp: int) -> Batch:
    made = make_batch(partition, [b"%d" % timestamp])
    return encode_batch(msgspec.structs.replace(made.header, first_timestamp=timestamp, max_timestamp=timestamp), made.payload)


async def test_a_replica_that_lost_the_time_asked_for_does_not_answer_with_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 52: a consumer that begins at a time would silently skip what this replica has yet to copy."""
    nodes = capture_nodes(monkeypatch)

    async def nothing_yet(self: Refills, partition: object, wanted: object) -> None:
        raise UnavailableError("copying is slow", code="unavailable")

    monkeypatch.setattr(Refills, "_copy", nothing_yet)
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, view.sequencer) as client:
            for i in range(10):
                [outcome] = await client.produce(batch_at(view.id, 1_000 + i))
                assert isinstance(outcome, Ack)
        victim = next(name for name in running.brokers if name != view.sequencer)
        broker = running.brokers[victim]
        await until(lambda: nodes[victim].partitions[view.id].replica.local_tail(view.epoch) == 10)
        await running.kill(victim)
        broker.storage = broker.storage.crash(lost=[LostBatches(view.id, view.epoch, 4, 10)])
        await running.start(victim)
        await until(lambda: nodes[victim].partitions[view.id].replica.accepts_epoch is not None, 8)
        sequencer = next(n for n in nodes.values() if n.partitions[view.id].sequencing is not None).broker
        async with to(running, sequencer) as client:
            await client.produce(batch_at(view.id, 2_000))
        await until(lambda: nodes[victim].partitions[view.id].replica.high_watermark[1] == 11)
        async with to(running, victim) as client:
            assert await client.ask(FindOffset(view.id, 1_002)) == OffsetFound(2)
            with pytest.raises(UnavailableError) as refused:
                await client.ask(FindOffset(view.id, 1_005))
        assert refused.value.code == "not_replica"
        async with to(running, sequencer) as client:
            assert await client.ask(FindOffset(view.id, 1_005)) == OffsetFound(5)
            assert await client.ask(FindOffset(view.id, 3_000)) == OffsetFound(11)


async def test_a_replica_that_is_behind_in_the_open_epoch_does_not_answer_with_its_own_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever began there would read, and throw away, all that it lacks."""
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, view.sequencer) as client:
            for timestamp in range(1_000, 1_010):
                await client.produce(batch_at(view.id, timestamp))
        behind = next(name for name in running.brokers if name != view.sequencer)
        replica = nodes[behind].partitions[view.id].replica
        await until(lambda: replica.high_watermark[1] == 10)
        monkeypatch.setattr(replica, "local_tail", lambda epoch: 7)
        async with to(running, behind) as client:
            assert await client.ask(FindOffset(view.id, 1_005)) == OffsetFound(5)
            with pytest.raises(UnavailableError) as refused:
                await client.ask(FindOffset(view.id, 2_000))
        assert refused.value.code == "not_replica"
        async with to(running, view.sequencer) as client:
            assert await client.ask(FindOffset(view.id, 2_000)) == OffsetFound(10)
