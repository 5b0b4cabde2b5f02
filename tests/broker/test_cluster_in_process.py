"""The real broker code, three brokers in one process over storage in memory: what was acked stays, whatever is killed."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.messages import (
    Ack,
    BrokerState,
    BrokerStatus,
    CreateTopic,
    DeleteTopic,
    DescribePartition,
    ListTopics,
    Metadata,
    MetadataView,
    Metrics,
    Nack,
    PartitionDescription,
    PartitionView,
    ReadMetrics,
    ReadTip,
    TipRead,
    Topics,
)
from streamq.model.registers import TopicRegister, topic_key
from streamq.storage.interface import LostBatches
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.in_process import ClusterInProcess, cluster
from tests.broker.capture import capture_nodes
from tests.broker.wire_client import WireClient, make_batch, new_producer, values_of, wire_client

logging.getLogger("streamq").setLevel(logging.ERROR)


@asynccontextmanager
async def to(running: ClusterInProcess, broker: str) -> AsyncIterator[WireClient]:
    async with wire_client(running.brokers[broker].config.address) as client:
        yield client


async def create(
    running: ClusterInProcess, name: str = "orders", partitions: int = 1, broker: str = "b1", replicas: int = 3
) -> list[PartitionView]:
    async with to(running, broker) as client:
        await client.ask(CreateTopic(name, partitions, replicas, 0, 0, "fsync"))
        return await find(client, name)


async def find(client: WireClient, name: str = "orders") -> list[PartitionView]:
    view = await client.ask(Metadata((name,)))
    assert isinstance(view, MetadataView)
    return list(view.topics[0].partitions)


class Resender:
    """An idempotent producer of one partition, one batch at a time, that sends again until it is acked."""

    def __init__(self, running: ClusterInProcess, partition: PartitionView) -> None:
        self.running = running
        self.partition = partition
        self.producer = new_producer()
        self.sequence = 0
        self.acked: list[tuple[int, bytes]] = []

    async def send(self, value: bytes, timeout_s: float = 8) -> Ack:
        batch = make_batch(self.partition.id, [value], producer=self.producer, sequence=self.sequence)
        with trio.fail_after(timeout_s):
            while True:
                outcome = await self._try(batch)
                if isinstance(outcome, Ack):
                    self.sequence += 1
                    self.acked.append((outcome.base, value))
                    return outcome
                await trio.sleep(0.01)

    async def _try(self, batch: Batch) -> Ack | Nack | None:
        for broker in self.running.brokers.values():
            if broker.is_running and broker.serving.is_set():
                try:
                    with trio.move_on_after(1):
                        async with wire_client(broker.config.address) as client:
                            [outcome] = await client.produce(batch, timeout_s=0.8)
                            if isinstance(outcome, Ack):
                                return outcome
                except (StreamqError, trio.TooSlowError, trio.BrokenResourceError, ExceptionGroup):
                    continue
        return None

    async def check(self, broker: str) -> None:
        """Everything acked is read back at its offset, and nothing twice."""
        async with to(self.running, broker) as client:
            tip = await client.ask(ReadTip("orders", 0))
            assert isinstance(tip, TipRead)
            batches = await client.read(self.partition.id, 0, tip.high_watermark)
        values = values_of(batches)
        assert len(set(values)) == len(values)
        assert [(offset, values[offset]) for offset, _ in self.acked] == self.acked


async def test_records_come_back_in_order_and_a_repeat_is_recognised() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = new_producer()
        async with to(running, partition.sequencer) as client:
            batches = [make_batch(partition.id, [b"a%d" % i, b"b%d" % i], producer=producer, sequence=i) for i in range(20)]
            outcomes = await client.produce(*batches)
            assert [o.base for o in outcomes if isinstance(o, Ack)] == [2 * i for i in range(20)]
            [again] = await client.produce(batches[7])
            assert isinstance(again, Ack)
            assert again.base == 14
            [gap] = await client.produce(make_batch(partition.id, [b"x"], producer=producer, sequence=30))
            assert isinstance(gap, Nack)
            assert gap.code == "sequence_gap"
        for broker in running.brokers:
            async with to(running, broker) as client:
                got = await client.read(partition.id, 0, 40)
                assert values_of(got) == [v for i in range(20) for v in (b"a%d" % i, b"b%d" % i)]
                middle = await client.read(partition.id, 11, 40)
                assert middle[0].base == 10


async def test_each_broker_killed_in_turn_loses_and_repeats_nothing() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        for round_, victim in enumerate(("b1", "b2", "b3")):
            for i in range(5):
                await producer.send(b"%d-%d" % (round_, i))
            await running.kill(victim)
            for i in range(5):
                await producer.send(b"%d-%d-down" % (round_, i))
            await running.start(victim)
            await producer.send(b"%d-up" % round_)
            await trio.sleep(0.3)
        for broker in running.brokers:
            await producer.check(broker)


async def test_all_killed_at_once_and_restarted_have_everything_acked() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        for i in range(10):
            await producer.send(b"%d" % i)
        for victim in running.brokers:
            await running.kill(victim)
        await running.start()
        await producer.send(b"after")
        for broker in running.brokers:
            await producer.check(broker)


async def test_a_broker_that_lost_a_batch_is_in_limbo_until_it_is_copied_again() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        for i in range(10):
            await producer.send(b"%d" % i)
        epoch = partition.epoch
        victim = next(b for b in running.brokers if b != partition.sequencer)
        await trio.sleep(0.1)
        running.brokers[victim]._scope.cancel()
        await running.brokers[victim]._ended.wait()
        storage = running.brokers[victim].storage
        running.brokers[victim].storage = storage.crash(lost=[LostBatches(partition.id, epoch, 4, 7)])
        await running.start(victim)
        await producer.send(b"during")
        with trio.fail_after(8):
            while True:
                async with to(running, victim) as client:
                    state = await client.ask(BrokerStatus())
                assert isinstance(state, BrokerState)
                if state.limbo == 0 and state.counters["bytes_copied"] > 0:
                    break
                await trio.sleep(0.05)
        other = next(b for b in running.brokers if b not in (victim, partition.sequencer))
        await running.kill(other)
        await producer.send(b"with the healed one")
        await producer.check(victim)


async def test_a_damaged_range_is_mended_by_the_read_that_finds_it() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        for i in range(10):
            await producer.send(b"%d" % i)
        victim = "b3" if partition.sequencer != "b3" else "b2"
        await trio.sleep(0.1)
        await running.kill(victim)
        running.brokers[victim].storage.damage(partition.id, partition.epoch, 3, 5)
        await running.start(victim)
        await producer.send(b"more")
        await trio.sleep(0.5)
        await producer.check(victim)
        async with to(running, victim) as client:
            counted = await client.ask(ReadMetrics())
        assert isinstance(counted, Metrics)
        assert counted.counters["mended_ranges"] >= 1
        await producer.check(victim)


async def test_sequencers_are_spread_and_go_home_after_a_restart() -> None:
    async with cluster(3) as running:
        partitions = await create(running, partitions=6)
        assert sorted(p.sequencer for p in partitions) == ["b1", "b1", "b2", "b2", "b3", "b3"]
        await running.kill("b2")
        with trio.fail_after(5):
            async with to(running, "b1") as client:
                while any(p.sequencer == "b2" for p in await find(client)):
                    await trio.sleep(0.02)
        await running.start("b2")
        with trio.fail_after(15):
            async with to(running, "b1") as client:
                while [p.sequencer for p in await find(client)] != [p.sequencer for p in partitions]:
                    await trio.sleep(0.05)


async def test_a_graceful_stop_hands_over_and_no_batch_has_an_unknown_outcome() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        outcomes: list[Ack | Nack] = []
        async with to(running, partition.sequencer) as client, trio.open_nursery() as nursery:

            async def produce() -> None:
                producer = new_producer()
                for i in range(2_000):
                    [outcome] = await client.produce(make_batch(partition.id, [b"%d" % i], producer=producer, sequence=i))
                    outcomes.append(outcome)
                    if isinstance(outcome, Nack):
                        return

            nursery.start_soon(produce)
            await trio.sleep(0.1)
            await running.stop(partition.sequencer)
        refused = [o for o in outcomes if isinstance(o, Nack)]
        assert {o.code for o in refused} <= {"not_sequencer", "not_ready"}
        survivor = next(b for b in running.brokers.values() if b.is_running)
        async with to(running, survivor.name) as client:
            tip = await client.ask(ReadTip("orders", 0))
            assert isinstance(tip, TipRead)
            assert tip.high_watermark == sum(isinstance(o, Ack) for o in outcomes)


async def test_tip_reads_are_answered_by_every_broker_with_the_sequencer_dead() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        await producer.send(b"one")
        await running.kill(partition.sequencer)
        for broker in running.brokers.values():
            if broker.is_running:
                async with to(running, broker.name) as client:
                    tip = await client.ask(ReadTip("orders", 0))
                    assert isinstance(tip, TipRead)
                    assert tip.high_watermark == 1
                    assert len(tip.answered) >= 2


async def test_a_deleted_topic_is_gone_and_can_be_made_again_empty() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        await producer.send(b"old")
        async with to(running, "b2") as client:
            await client.ask(DeleteTopic("orders"))
            with pytest.raises(StreamqError) as gone:
                await client.ask(ReadTip("orders", 0))
            assert gone.value.code == "unknown_topic"
            listed = await client.ask(ListTopics())
            assert isinstance(listed, Topics)
            assert listed.topics == ()
        [again] = await create(running)
        assert again.id != partition.id
        async with to(running, "b3") as client:
            tip = await client.ask(ReadTip("orders", 0))
            assert isinstance(tip, TipRead)
            assert tip.high_watermark == 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (CreateTopic("bad name!", 1, 0, 0, 0, "fsync"), "bad_name"),
        (CreateTopic("t", 0, 0, 0, 0, "fsync"), "bad_request"),
        (CreateTopic("t", 1, 3, 1, 2, "fsync"), "bad_quorum"),
        (CreateTopic("t", 1, 3, 4, 2, "fsync"), "bad_quorum"),
        (CreateTopic("t", 1, 3, 2, 4, "fsync"), "bad_quorum"),
        (CreateTopic("t", 1, 5, 3, 3, "fsync"), "bad_quorum"),
        (DeleteTopic("nothing"), "unknown_topic"),
        (ReadTip("nothing", 0), "unknown_topic"),
        (ReadTip("orders", 9), "unknown_topic"),
        (DescribePartition("orders", 9), "unknown_partition"),
        (CreateTopic("orders", 1, 0, 0, 0, "fsync"), "topic_exists"),
    ],
)
async def test_bad_requests_get_a_clear_error_and_a_hint(request_: CreateTopic, code: str) -> None:
    async with cluster(3) as running:
        await create(running)
        async with to(running, "b2") as client:
            with pytest.raises(StreamqError) as refused:
                await client.ask(request_)
            assert refused.value.code == code
            if code == "bad_quorum":
                assert "--replicas" in refused.value.hint


async def test_describe_shows_every_replica_and_the_tip() -> None:
    async with cluster(3) as running:
        [partition] = await create(running)
        producer = Resender(running, partition)
        await producer.send(b"one")
        await trio.sleep(0.1)
        other = next(b for b in running.brokers if b != partition.sequencer)
        await running.kill(next(b for b in running.brokers if b not in (other, partition.sequencer)))
        async with to(running, other) as client:
            description = await client.ask(DescribePartition("orders", 0))
        assert isinstance(description, PartitionDescription)
        assert description.high_watermark == 1
        states = sorted(view.state for view in description.replicas)
        assert states == ["serving", "serving", "unreachable"]


async def test_a_request_for_many_partitions_that_fails_is_answered_and_ends_no_broker() -> None:
    """Errors of tasks that run together arrive as a group; the asker gets one plain error, the broker goes on."""
    async with cluster(3) as running:
        await create(running, partitions=3)
        await running.kill("b2")
        await running.kill("b3")
        async with to(running, "b1") as client:
            with pytest.raises(StreamqError) as failed:
                await client.ask(CreateTopic("more", 3, 0, 0, 0, "fsync"), timeout_s=12)
            assert failed.value.code in ("timed_out", "unavailable", "unknown_outcome")
            assert isinstance(await client.ask(BrokerStatus()), BrokerState)


async def test_new_partitions_are_placed_on_brokers_that_are_up_where_there_are_enough() -> None:
    async with cluster(4) as running:
        await running.kill("b2")
        await trio.sleep(0.2)
        partitions = await create(running, partitions=4)
        assert all("b2" not in p.replicas and len(p.replicas) == 3 for p in partitions)


async def test_a_topic_whose_creator_died_before_its_partitions_were_made_is_finished_by_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        await create(running, "whole")
        registers = nodes["b1"].registers
        topic = await registers.get_as(TopicRegister, topic_key("whole"))
        assert topic is not None
        half = msgspec.structs.replace(topic, name="half", id=b"h" * 16, partitions=(b"1" * 16, b"2" * 16))
        await registers.change_as(TopicRegister, topic_key("half"), lambda before: half)
        async with to(running, "b2") as client:
            partitions = await find(client, "half")
            assert [p.id for p in partitions] == [b"1" * 16, b"2" * 16]
        with trio.fail_after(5):
            while not all(p.sequencer for p in partitions):
                async with to(running, "b3") as client:
                    partitions = await find(client, "half")
        async with to(running, partitions[1].sequencer) as client:
            [outcome] = await client.produce(make_batch(partitions[1].id, [b"x"]))
            assert isinstance(outcome, Ack)


async def test_a_sequencer_that_is_back_without_its_disk_is_replaced_although_w_is_n() -> None:
    """With W = N nobody can take over while it is away; once it is back, in another incarnation, somebody must try again."""
    async with cluster(3) as running:
        async with to(running, "b1") as client:
            await client.ask(CreateTopic("orders", 1, 3, 3, 1, "fsync"))
            [partition] = await find(client)
        producer = Resender(running, partition)
        await producer.send(b"before")
        lost = running.brokers[partition.sequencer]
        await running.kill(lost.name)
        await trio.sleep(1)
        lost.storage = MemoryStorage(lost.storage.identity._replace(incarnation=b"new incarnation!", starts=1), sync_s=0.0005)
        await running.start(lost.name)
        await producer.send(b"after", timeout_s=5)
        await producer.check(lost.name)


async def test_memory_durability_is_told_and_an_unclean_stop_counts_as_a_loss() -> None:
    """P-37: a broker that crashed may have lost what it acked from memory; it is in limbo until a new epoch and a copy end that."""
    async with cluster(3) as running:
        async with to(running, "b1") as client:
            await client.ask(CreateTopic("orders", 1, 3, 2, 2, "memory"))
            [partition] = await find(client)
        producer = Resender(running, partition)
        assert not (await producer.send(b"one")).durable
        victim = next(b for b in running.brokers if b != partition.sequencer)
        await running.kill(victim)
        await running.start(victim)
        await producer.send(b"two")
        with trio.fail_after(8):
            while True:
                async with to(running, victim) as client:
                    [now] = await find(client)
                    state = await client.ask(BrokerStatus())
                assert isinstance(state, BrokerState)
                if now.epoch > partition.epoch and state.limbo == 0:
                    break
                await trio.sleep(0.05)
        await producer.send(b"three")
        await producer.check(victim)
