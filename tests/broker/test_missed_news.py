"""A broker that did not hear what became of a partition finds out by itself: nothing waits for ever for news that are not sent again."""

import logging

import pytest
import trio
import trio.testing

from streamq.broker import takeovers, topics
from streamq.broker.node import Node
from streamq.log.takeover import Phase
from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.model.messages import Ack, CreateTopic, DeleteTopic, PartitionView, ReadTip, TipRead
from streamq.model.registers import PartitionRegister
from streamq.net.memory_network import MemoryNetwork
from streamq.testing.in_process import ClusterInProcess, cluster
from tests.broker.capture import capture_nodes, sequencing_of, until
from tests.broker.test_cluster_in_process import Resender, create, find
from tests.broker.wire_client import make_batch, wire_client

logging.getLogger("streamq").setLevel(logging.ERROR)


async def create_on(running: ClusterInProcess, network: MemoryNetwork, broker: str, monkeypatch: pytest.MonkeyPatch) -> PartitionView:
    """A topic of one partition with one replica, on this broker."""
    monkeypatch.setattr(topics, "place", lambda sites, **_: [(broker,)])
    async with wire_client(("b1", 7700), network.of("client")) as client:
        await client.ask(CreateTopic("orders", 1, 1, 1, 1, "fsync"))
        [view] = await find(client)
    return view


def lose_outcomes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register changes of this broker come through, but it never hears of it, and cannot read the registers afterwards."""
    change, get = node.registers.change_as, node.registers.get_as
    happened = False

    async def change_as(kind: type, key: str, f: object, **more: float) -> object:
        nonlocal happened
        await change(kind, key, f, **more)  # type: ignore[arg-type]
        happened = True
        raise UnknownOutcomeError("the voters were cut off", code="unknown_outcome")

    async def get_as(kind: type, key: str, **more: float) -> object:
        if happened and kind is PartitionRegister:
            raise UnavailableError("the voters are cut off", code="timed_out")
        return await get(kind, key, **more)

    monkeypatch.setattr(node.registers, "change_as", change_as)
    monkeypatch.setattr(node.registers, "get_as", get_as)


async def test_an_epoch_that_its_sequencer_opened_without_hearing_of_it_is_served_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """P-5, P-14: the old sequencer reads who opened the next epoch and believes that it serves; that one does not know."""
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        await producer.send(b"one")
        old = sequencing_of(nodes, view.id)
        assert old.sequencing is not None
        successor = next(node for name, node in nodes.items() if name != view.sequencer)
        with monkeypatch.context() as cut_off:
            lose_outcomes(successor, cut_off)
            assert await takeovers.take_over(successor.partitions[view.id], view.epoch, "test") is Phase.STUCK
        await producer.send(b"two")


async def test_a_partition_whose_topic_was_deleted_behind_the_back_of_its_only_replica_ends_there_too(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """P-6, P-39: nobody sends the tombstone again to a broker that was cut off when it was written."""
    nodes = capture_nodes(monkeypatch)
    network = MemoryNetwork()
    async with cluster(3, networks=[network.of(name) for name in ("b1", "b2", "b3")]) as running:
        view = await create_on(running, network, "b3", monkeypatch)
        network.isolate("b3")
        await trio.sleep(1)
        async with wire_client(("b1", 7700), network.of("client")) as client:
            await client.ask(DeleteTopic("orders"))
        network.heal("b3")
        await until(lambda: view.id not in nodes["b3"].partitions, 10)


async def test_a_topic_made_again_opens_on_a_broker_that_missed_the_end_of_the_first(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """P-39: the topic's name only finds the partition, and what it finds may be the one that was deleted."""
    capture_nodes(monkeypatch)
    network = MemoryNetwork()
    async with cluster(3, networks=[network.of(name) for name in ("b1", "b2", "b3")]) as running:
        await create_on(running, network, "b3", monkeypatch)
        network.isolate("b3")
        await trio.sleep(1)
        async with wire_client(("b1", 7700), network.of("client")) as client:
            await client.ask(DeleteTopic("orders"))
        network.heal("b3")
        await trio.sleep(1)
        view = await create_on(running, network, "b3", monkeypatch)
        async with wire_client(("b3", 7700), network.of("client")) as client:
            [outcome] = await client.produce(make_batch(view.id, [b"one"]))
        assert isinstance(outcome, Ack)


async def test_the_tip_of_a_topic_made_again_is_read_where_the_first_one_is_still_remembered(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """P-39, P-24: what a broker remembers of a register is a hint, and may be of another partition with the same name."""
    monkeypatch.setattr(topics, "place", lambda sites, **_: [("b1",)])
    network = MemoryNetwork()
    async with cluster(3, networks=[network.of(name) for name in ("b1", "b2", "b3")]):
        async with wire_client(("b1", 7700), network.of("client")) as client, wire_client(("b2", 7700), network.of("client")) as other:
            await client.ask(CreateTopic("orders", 1, 1, 1, 1, "fsync"))
            await other.ask(ReadTip("orders", 0))
            await client.ask(DeleteTopic("orders"))
            await client.ask(CreateTopic("orders", 1, 1, 1, 1, "fsync"))
            tip = await other.ask(ReadTip("orders", 0), timeout_s=1)
        assert isinstance(tip, TipRead)
        assert tip.high_watermark == 0
