"""Trims on the real brokers: who moves the start offset and how far, how everybody learns of it, and what consumers are told."""

import logging
import os
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import trio

from streamq.broker import retention, topics
from streamq.broker.node import Node
from streamq.broker.retention import Trims
from streamq.log.replica import Unreadable
from streamq.log.retention import Retention
from streamq.model.errors import FencedError, OffsetError
from streamq.model.files import StoredFile
from streamq.model.messages import (
    CreateTopic,
    Credit,
    Failure,
    FindOffset,
    OffsetFound,
    PartitionView,
    ReadTip,
    Records,
    Subscribe,
    TipRead,
)
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq.wire.framing import Frame
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.broker.capture import capture_nodes, sequencing_of, until
from tests.broker.test_cluster_in_process import Resender, create, find, to
from tests.broker.wire_client import _Sink, make_batch, values_of

logging.getLogger("streamq").setLevel(logging.ERROR)

KiB = 1 << 10


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Node]:
    """Of brokers that look at their files often."""
    monkeypatch.setattr(retention, "SWEEP_INTERVAL_S", 0.05)
    return capture_nodes(monkeypatch)


async def trim(nodes: dict[str, Node], view: PartitionView, start: int) -> None:
    """As an operator would, who does not ask whose tables are durable."""
    partition = sequencing_of(nodes, view.id)
    await Trims(partition.node).raise_start(partition, start)
    await until(lambda: partition.replica.readable(start - 1) is Unreadable.TRIMMED)


def starts(nodes: dict[str, Node], view: PartitionView) -> list[int]:
    return [node.partitions[view.id].replica.start_offset for node in nodes.values()]


async def filled(running: ClusterInProcess, batches: int, size: int = 10) -> PartitionView:
    """One record a batch."""
    [view] = await create(running)
    async with to(running, view.sequencer) as client:
        await client.produce(*(make_batch(view.id, [os.urandom(size)]) for _ in range(batches)))
    return view


async def test_retention_waits_until_w_replicas_hold_the_table_durably(nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """P-34: the headers that it was folded from are given up then. What remains is at least what was asked for."""
    monkeypatch.setattr(topics, "RETENTION_BYTES_MIN", 1)
    async with cluster(3) as running:
        async with to(running, "b1") as client:
            await client.ask(CreateTopic("orders", 1, 3, 2, 2, "fsync", 200 * KiB, None))
            [view] = await find(client)
        async with to(running, view.sequencer) as client:
            for _ in range(100):
                await client.produce(make_batch(view.id, [os.urandom(10 * KiB)]))
        await trio.sleep(0.5)
        assert starts(nodes, view) == [0, 0, 0]
        own = nodes[view.sequencer]
        own.storage.trim(b"nothing", 0)  # brings a checkpoint about
        await until(lambda: own.partitions[view.id].replica.table_kept == 100)
        await trio.sleep(0.5)
        assert starts(nodes, view) == [0, 0, 0]
        next(node for node in nodes.values() if node is not own).storage.trim(b"nothing", 0)
        await until(lambda: min(starts(nodes, view)) > 0)
        await until(lambda: all(min(run.base for run in node.storage.runs(view.id).values()) > 0 for node in nodes.values()))
        for node in nodes.values():
            assert 200 * KiB <= sum(file.size for file in node.storage.files(view.id)) < 400 * KiB


async def test_a_replica_that_was_away_learns_the_start_offset_by_itself(nodes: dict[str, Node]) -> None:
    """And tells it to who asks: nobody told it when it was moved."""
    async with cluster(3) as running:
        view = await filled(running, 50)
        away = next(name for name in running.brokers if name != view.sequencer)
        await running.kill(away)
        await trim(nodes, view, 30)
        await running.start(away)
        await until(lambda: nodes[away].partitions[view.id].replica.start_offset == 30)
        await until(lambda: nodes[away].partitions[view.id].replica.table.position == 50)


async def test_a_replica_that_was_away_while_all_that_it_lacks_first_was_trimmed_follows_again(nodes: dict[str, Node]) -> None:
    """It begins at the start offset; what lies one below, for which it was asked again, nobody has (found by tier 1)."""
    async with cluster(3) as running:
        view = await filled(running, 10)
        away = next(name for name in running.brokers if name != view.sequencer)
        await running.kill(away)
        own = nodes[view.sequencer]
        async with to(running, view.sequencer) as client:
            await client.produce(*(make_batch(view.id, [b"%d" % number]) for number in range(20)))
            own.storage.roll(view.id)
            await client.produce(*(make_batch(view.id, [b"%d" % number]) for number in range(20)))
        await trim(nodes, view, 30)
        await until(lambda: [run.base for run in own.storage.runs(view.id).values()] == [30])
        await running.start(away)
        epoch = own.partitions[view.id].replica.state.chain[-1].epoch
        await until(lambda: nodes[away].partitions[view.id].replica.high_watermark == (epoch, 50))
        assert nodes[away].partitions[view.id].replica.state.chain[-1].epoch == epoch, "without another epoch"


async def test_a_broker_made_anew_behind_the_start_offset_knows_a_producer_from_before_it(nodes: dict[str, Node]) -> None:
    """P-34, P-41: its table comes from another replica; the retry has the offsets that it had, at whatever broker."""
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        first = await producer.send(b"first")
        for number in range(20):
            await producer.send(b"%d" % number)
        await trim(nodes, view, 15)
        away = next(name for name in running.brokers if name != view.sequencer)
        partition = nodes[away].partitions[view.id]
        table = partition.replica.table.snapshot()
        partition.replica.table.become(type(partition.replica.table)())
        partition.node.storage.trim(view.id, 15)
        await partition.fold()
        assert partition.replica.table.snapshot() == table
        await nodes[away].take_over_here("orders", 0, view.epoch, "the test wants it")
        async with to(running, away) as client:
            [again] = await client.produce(make_batch(view.id, [b"first"], producer=producer.producer, sequence=0))
        assert (again.base, again.append_time) == (first.base, first.append_time)  # type: ignore[union-attr]


async def test_it_knows_the_ids_of_records_and_the_fencing_token_from_before_it_too(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running, Producer(running.bootstrap) as producer:
        [view] = await create(running)
        first = await producer.send("orders", b"first", id=b"1", partition=0)
        await producer.append("orders", 0, [b"second"], fencing_token=7)
        await producer.enqueue_many("orders", [b"%d" % number for number in range(20)], partition=0)
        await producer.flush()
        await trim(nodes, view, 15)
        away = next(name for name in running.brokers if name != view.sequencer)
        partition = nodes[away].partitions[view.id]
        table = partition.replica.table.snapshot()
        partition.replica.table.become(type(partition.replica.table)())
        partition.node.storage.trim(view.id, 15)
        await partition.fold()
        assert partition.replica.table.snapshot() == table
        assert (len(table.ids), table.fencing_token) == (1, 7)
        await nodes[away].take_over_here("orders", 0, view.epoch, "the test wants it")
        again = await producer.send("orders", b"first", id=b"1", partition=0)
        assert (again.offset, again.is_duplicate) == (first.offset, True)
        with pytest.raises(FencedError):
            await producer.append("orders", 0, [b"late"], fencing_token=6)


async def test_a_consumer_below_the_start_gets_one_clear_answer_and_from_earliest_begins_there(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        view = await filled(running, 40)
        await trim(nodes, view, 25)
        await until(lambda: min(starts(nodes, view)) == 25)
        with pytest.raises(OffsetError) as refused:
            async with Consumer(running.bootstrap, topics=["orders"], start=24) as consumer:
                await consumer.fetch(10)
        assert refused.value.code == "offset_trimmed"
        assert "25" in refused.value.message
        async with Consumer(running.bootstrap, topics=["orders"]) as consumer:
            assert [record.offset for record in await consumer.fetch(3)] == [25, 26, 27]
        async with Consumer(running.bootstrap, topics=["orders"], start=datetime.fromtimestamp(0, UTC)) as consumer:
            assert [record.offset for record in await consumer.fetch(1)] == [25]
        for broker in running.brokers:
            async with to(running, broker) as client:
                tip = await client.ask(ReadTip("orders", 0))
                assert isinstance(tip, TipRead)
                assert (tip.start_offset, tip.high_watermark) == (25, 40)
                found = await client.ask(FindOffset(view.id, 0))
                assert found == OffsetFound(25)


async def test_a_slow_consumer_that_is_trimmed_is_told_and_never_jumps(nodes: dict[str, Node]) -> None:
    """Pitfall 52: what it asked for is gone, and only it can say where to go on."""
    async with cluster(3) as running:
        view = await filled(running, 40, size=1_000)
        async with to(running, view.sequencer) as client:
            send, receive = trio.open_memory_channel[Frame](100)
            client.channel._requests[1 << 20] = _Sink(send)  # type: ignore[assignment]
            client.channel.send(Subscribe(view.id, 0, 1), request=1 << 20)
            while not (await receive.receive()).payload:
                pass  # only news yet
            await trim(nodes, view, 25)
            client.channel.send(Credit(1 << 20), request=1 << 20)
            with trio.fail_after(5):
                while isinstance((frame := await receive.receive()).message, Records):
                    assert frame.payload == b""
            assert isinstance(frame.message, Failure)
            assert (frame.message.code, "25" in frame.message.message) == ("offset_trimmed", True)


async def test_a_consumer_from_earliest_that_has_nothing_yet_goes_on_at_the_new_start(nodes: dict[str, Node]) -> None:
    """It asks with a start offset that has moved on since it was told."""
    async with cluster(3) as running:
        view = await filled(running, 40)
        async with Consumer(running.bootstrap, topics=["orders"]) as consumer:
            [record] = await consumer.fetch(1)
            await trim(nodes, view, 25)
            consumer.seek("orders", 0, "earliest")
            assert [record.offset for record in await consumer.fetch(1)] == [25]
        assert record.offset == 0


async def test_what_is_left_is_read_from_any_replica(nodes: dict[str, Node]) -> None:
    """Also where the start lies inside a batch."""
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, view.sequencer) as client:
            await client.produce(*(make_batch(view.id, [b"%d" % i, b"%d" % (i + 1)]) for i in range(0, 20, 2)))
        await trim(nodes, view, 11)
        await until(lambda: min(starts(nodes, view)) == 11)
        for broker in running.brokers:
            async with to(running, broker) as client:
                assert values_of(await client.read(view.id, 11, 20)) == [b"%d" % i for i in range(10, 20)]


@pytest.mark.parametrize(("mark", "kept", "expected"), [(30, 30, 20), (19, 30, 10), (30, 19, 10), (9, 9, 0)])
def test_no_more_is_asked_for_than_a_high_watermark_told_and_the_own_durable_table(mark: int, kept: int, expected: int) -> None:
    """P-41, P-34."""
    files = [StoredFile(1, base, base + 10, 1, 1, 1, base < 20) for base in (0, 10, 20)]
    node = SimpleNamespace(storage=SimpleNamespace(files=lambda partition: files, roll=lambda partition: None))
    partition = SimpleNamespace(id=b"p", replica=SimpleNamespace(high_watermark=(1, mark), table_kept=kept, start_offset=0))
    assert Trims(node)._wanted(partition, Retention(1), 1 << 40) == expected  # type: ignore[arg-type]
