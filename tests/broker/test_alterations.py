"""Altering and trimming topics on the real brokers."""

import logging

import msgspec
import pytest
import trio

from streamq.broker import retention, router, topics
from streamq.broker.node import Node
from streamq.cli.trim import trim_partition
from streamq.client.cluster import Cluster
from streamq.metadata.changes import alter_topic
from streamq.model.errors import NotFoundError, OffsetError, RefusedError, UnavailableError
from streamq.model.messages import (
    Ack,
    AlterTopic,
    DescribePartition,
    ListTopics,
    PartitionDescription,
    TopicAltered,
    Topics,
    TrimPartition,
)
from streamq.model.registers import TopicRegister, topic_key
from streamq.testing.in_process import ClusterInProcess, cluster
from tests.broker.capture import capture_nodes, sequencing_of, until
from tests.broker.test_cluster_in_process import create, find, to
from tests.broker.test_trims import filled
from tests.broker.wire_client import make_batch

logging.getLogger("streamq").setLevel(logging.ERROR)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Node]:
    monkeypatch.setattr(retention, "SWEEP_INTERVAL_S", 0.05)
    monkeypatch.setattr(topics, "RETENTION_BYTES_MIN", 1)
    return capture_nodes(monkeypatch)


async def alter(running: ClusterInProcess, message: AlterTopic, broker: str = "b1") -> TopicAltered:
    async with to(running, broker) as client:
        answer = await client.ask(message)
    assert isinstance(answer, TopicAltered)
    return answer


async def described(running: ClusterInProcess, index: int) -> PartitionDescription:
    async with to(running, "b1") as client:
        answer = await client.ask(DescribePartition("orders", index))
    assert isinstance(answer, PartitionDescription)
    return answer


async def test_retention_holds_at_once_for_a_sequencer_that_is_not_asked(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        asked = next(name for name in running.brokers if name != view.sequencer)
        altered = await alter(running, AlterTopic("orders", retention_bytes=2_000), asked)
        assert (altered.before.retention_bytes, altered.after.retention_bytes, altered.pending) == (None, 2_000, ())
        async with to(running, view.sequencer) as client:
            for _ in range(100):
                await client.produce(make_batch(view.id, [b"x" * 300]))
                await trio.sleep(0.01)  # while it is looked whether a file should be closed
                if sequencing_of(nodes, view.id).replica.start_offset > 0:
                    break
                for node in nodes.values():
                    node.storage.trim(b"nothing", 0)  # brings a checkpoint about
            else:
                raise AssertionError
        altered = await alter(running, AlterTopic("orders", retention_bytes=0), asked)
        assert altered.after.retention_bytes is None
        partition = sequencing_of(nodes, view.id)
        assert partition.sequencing is not None
        await until(lambda: partition.sequencing is not None and partition.sequencing.retention.is_for_ever)


async def test_quorums_hold_from_the_next_epoch_on_and_now_begins_one(nodes: dict[str, Node]) -> None:
    """P-36: the open segment keeps its own; what was acked before and after is all there."""
    async with cluster(3) as running:
        views = await create(running, partitions=2)
        altered = await alter(running, AlterTopic("orders", write=3, read=2))
        assert altered.pending == (0, 1)
        for index in (0, 1):
            register = (await described(running, index)).register
            assert (register.write, register.read, register.last.write, register.last.read) == (3, 2, 2, 2)
        async with to(running, views[0].sequencer) as client:
            assert isinstance((await client.produce(make_batch(views[0].id, [b"a"])))[0], Ack)
        again = await alter(running, AlterTopic("orders", now=True))
        assert (again.before, again.pending) == (again.after, ())
        description = await described(running, 0)
        last = description.register.last
        assert (last.write, last.read, last.base) == (3, 2, 1)
        async with to(running, last.sequencer) as client:
            [ack] = await client.produce(make_batch(views[0].id, [b"b"]))
        assert isinstance(ack, Ack)
        assert (ack.base, ack.copies) == (1, 3)


async def test_now_leaves_a_partition_alone_while_a_replica_is_down(nodes: dict[str, Node]) -> None:
    """With W = N nobody could take over without it, and the present epoch would be sealed already."""
    async with cluster(3) as running:
        [view] = await create(running)
        down = next(name for name in running.brokers if name != view.sequencer)
        await running.kill(down)
        await until(lambda: not nodes[view.sequencer].peers.is_alive(down))
        altered = await alter(running, AlterTopic("orders", write=3, read=1, now=True), view.sequencer)
        assert altered.pending == (0,)
        async with to(running, view.sequencer) as client:
            assert isinstance((await client.produce(make_batch(view.id, [b"a"])))[0], Ack)


async def test_a_dry_run_changes_nothing_and_what_cannot_be_is_refused(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        await create(running)
        told = await alter(running, AlterTopic("orders", write=3, read=1, retention_ms=60_000, dry_run=True))
        assert (told.after.write, told.after.read, told.after.retention_ms, told.pending) == (3, 1, 60_000, (0,))
        assert (await alter(running, AlterTopic("orders", dry_run=True))).after == told.before
        async with to(running, "b2") as client:
            for message, error in (
                (AlterTopic("orders", write=1), RefusedError),
                (AlterTopic("orders", write=4), RefusedError),
                (AlterTopic("orders", retention_ms=1), RefusedError),
                (AlterTopic("nothing", write=3), NotFoundError),
            ):
                with pytest.raises(error):
                    await client.ask(message)


async def test_a_trim_moves_the_start_exactly_and_gives_back_what_lies_below(nodes: dict[str, Node]) -> None:
    """P-41, P-34: not before the tables of W replicas are durable there, which is asked for: nothing else writes here."""
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, view.sequencer) as client:
            for _ in range(4):
                await client.produce(make_batch(view.id, [b"a", b"b", b"c"]))
        async with Cluster(running.bootstrap) as asked:
            assert await trim_partition(asked, "orders", 0, 5) == 5
            assert (await asked.topic("orders")).partitions[0].start_offset == 5
            assert await trim_partition(asked, "orders", 0, 2) == 5
            with pytest.raises(OffsetError):
                await trim_partition(asked, "orders", 0, 13)
            assert await trim_partition(asked, "orders", 0, 12) == 12
        await until(lambda: all(node.partitions[view.id].replica.start_offset == 12 for node in nodes.values()))
        await until(lambda: all(not any(r.base < r.tail for r in n.storage.runs(view.id).values()) for n in nodes.values()))
        async with to(running, view.sequencer) as client:
            [ack] = await client.produce(make_batch(view.id, [b"d"]))
        assert isinstance(ack, Ack)
        assert ack.base == 12


async def test_a_trim_goes_on_after_the_sequencer_has_changed(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, view.sequencer) as client:
            await client.produce(*(make_batch(view.id, [b"%d" % i]) for i in range(6)))
        other = next(name for name in running.brokers if name != view.sequencer)
        async with to(running, other) as client:
            with pytest.raises(Exception, match="not the sequencer"):
                await client.ask(TrimPartition(view.id, 3))
        await running.kill(view.sequencer)
        async with Cluster(running.brokers[other].config.address[0] + f":{running.brokers[other].config.address[1]}") as asked:
            assert await trim_partition(asked, "orders", 0, 4) == 4
        async with to(running, other) as client:
            [fresh] = await find(client)
        assert fresh.sequencer != view.sequencer


async def test_an_alteration_that_was_left_half_done_is_finished_by_whoever_alters_nothing(nodes: dict[str, Node]) -> None:
    """The topic's register decides: partitions are brought to it, also one that its creator never came to."""
    async with cluster(3) as running:
        await create(running, partitions=2)
        registers = nodes["b1"].registers
        topic = await registers.get_as(TopicRegister, topic_key("orders"))
        assert topic is not None
        half = msgspec.structs.replace(topic, retention_ms=90_000, settings=topic.settings + 1)
        await registers.change_as(TopicRegister, topic_key("orders"), alter_topic(half))
        assert (await described(running, 1)).register.retention_ms is None
        await alter(running, AlterTopic("orders", retention_ms=90_000), "b3")
        for index in (0, 1):
            assert (await described(running, index)).register.retention_ms == 90_000


async def test_alterations_that_meet_leave_all_partitions_with_the_same_settings(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        await create(running, partitions=3)
        outcomes: list[object] = []

        async def one(broker: str, ms: int) -> None:
            async with to(running, broker) as client:
                try:
                    outcomes.append(await client.ask(AlterTopic("orders", retention_ms=ms)))
                except UnavailableError as error:
                    outcomes.append(error.code)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, f"b{number % 3 + 1}", 10_000 + number)
        assert set(outcomes) - {"conflict"}  # somebody was first
        await alter(running, AlterTopic("orders", now=True))
        registers = [(await described(running, index)).register for index in range(3)]
        assert len({(register.retention_ms, register.settings) for register in registers}) == 1
        async with to(running, "b2") as client:
            listed = await client.ask(ListTopics())
        assert isinstance(listed, Topics)
        [topic] = listed.topics
        assert (topic.retention_ms, topic.settings) == (registers[0].retention_ms, registers[0].settings)


async def test_a_sequencer_does_not_go_back_to_settings_of_before(nodes: dict[str, Node]) -> None:
    """An `Open` that was sent before the alteration and comes after it."""
    async with cluster(3) as running:
        [view] = await create(running)
        old = (await described(running, 0)).register
        await alter(running, AlterTopic("orders", retention_ms=90_000))
        partition = sequencing_of(nodes, view.id)
        assert partition.sequencing is not None
        await until(lambda: partition.sequencing is not None and partition.sequencing.retention.max_ms == 90_000)
        partition.learn(old)
        assert partition.sequencing.retention.max_ms == 90_000


async def test_a_trim_that_too_few_tables_follow_moves_nothing(nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """P-34: a loss that the protocol bears could take the last table at the start offset."""
    monkeypatch.setattr(retention, "BY_HAND_S", 0.5)
    monkeypatch.setattr(router, "keep_table", lambda partition: None)  # the followers make no checkpoint
    async with cluster(3) as running:
        view = await filled(running, 5)
        async with to(running, view.sequencer) as client:
            with pytest.raises(UnavailableError) as refused:
                await client.ask(TrimPartition(view.id, 3))
        assert refused.value.code == "timed_out"
        own = sequencing_of(nodes, view.id).replica
        assert (own.start_offset, own.table_kept) == (0, 5)
