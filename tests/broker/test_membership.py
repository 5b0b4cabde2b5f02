"""Brokers that come later or move are found by those that need them; deleted partitions stay deleted."""

import logging

import msgspec
import pytest
import trio

from streamq.broker.config import BrokerConfig
from streamq.broker.node import SystemClock
from streamq.broker.topics import Topics
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.messages import BrokerState, BrokerStatus, CreateTopic, DeleteTopic, Metadata, MetadataView, Open, Store, StoreRun, Tip
from streamq.net.memory_network import MemoryNetwork
from streamq.net.network import TcpNetwork
from streamq.storage.interface import Identity
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.in_process import BrokerInProcess, ClusterInProcess, cluster, free_ports
from tests.broker.capture import capture_nodes, peer_client, sequencing_of, until
from tests.broker.test_cluster_in_process import Resender, create, find, to
from tests.broker.wire_client import make_batch, wire_client

logging.getLogger("streamq").setLevel(logging.ERROR)


def add_broker(running: ClusterInProcess, name: str) -> None:
    clock, [port] = SystemClock(), free_ports(1)
    first = running.brokers["b1"].storage.identity
    identity = Identity(first.cluster, name, clock.token(), first.first_voters, 1)
    config = BrokerConfig(broker=name, data_directory=f"/memory/{name}", host="127.0.0.1", port=port)
    running.brokers[name] = BrokerInProcess(config, MemoryStorage(identity, sync_s=0.0005), TcpNetwork(), clock)


async def test_a_broker_that_joins_later_is_fed_by_every_sequencer() -> None:
    async with cluster(3) as running:
        add_broker(running, "b4")
        await running.start("b4")
        partitions = await create(running, partitions=4, replicas=4)
        for view in partitions:
            if view.sequencer == "b4":
                continue
            async with to(running, view.sequencer) as client:
                await client.produce(make_batch(view.id, [view.sequencer.encode()]))
        for view in partitions:
            if view.sequencer != "b4":
                with trio.fail_after(8):
                    while running.brokers["b4"].storage.recent(view.id, view.epoch, 0, max_bytes=1) is None:
                        await trio.sleep(0.05)


async def test_a_broker_that_comes_back_at_another_port_is_fed_again() -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        await producer.send(b"one")
        moved = next(b for b in running.brokers if b != view.sequencer)
        await running.kill(moved)
        [port] = free_ports(1)
        running.brokers[moved].config = msgspec.structs.replace(running.brokers[moved].config, port=port)
        await running.start(moved)
        await producer.send(b"two")
        third = next(b for b in running.brokers if b not in (moved, view.sequencer))
        with trio.fail_after(8):
            while running.brokers[moved].storage.recent(view.id, view.epoch, 1, max_bytes=1) is None:
                await trio.sleep(0.05)
        await running.kill(third)
        await producer.send(b"three", timeout_s=5)


async def test_a_deleted_partition_is_not_brought_back_by_a_sequencer_that_missed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        await Resender(running, view).send(b"one")
        partition = sequencing_of(nodes, view.id)
        sequencer = partition.node.broker
        register = partition.sequencing.register if partition.sequencing else None
        assert register is not None
        other = next(b for b in running.brokers if b != sequencer)
        async with to(running, other) as client:
            await client.ask(DeleteTopic("orders"))
        await until(lambda: all(view.id not in node.partitions for node in nodes.values()))
        async with peer_client(running, other, sequencer, running.brokers[sequencer].storage.identity.incarnation) as peer:
            peer.channel.send(Open(register), request=77)
            peer.channel.send(Tip(view.id, view.epoch, 0), request=78)
            peer.channel.send(Store((StoreRun(view.id, view.epoch, 0, 0),)))
            await trio.sleep(0.2)
            assert view.id not in nodes[other].partitions
        async with to(running, other) as client:
            found = await client.ask(Metadata(("orders",)))
            assert isinstance(found, MetadataView)
            assert found.topics[0].error == "unknown_topic"


async def test_what_comes_late_for_a_dropped_partition_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        partition = sequencing_of(nodes, view.id)
        partition.drop()
        partition.carry_out(partition.replica.enter_limbo())
        await trio.sleep(0.05)
        assert not any(view.id.hex() in key for key in partition.node.storage.states())


async def test_tips_and_stores_of_unknown_partitions_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(1) as running:
        async with peer_client(running, "b1") as peer:
            for i in range(200):
                peer.channel.send(Store((StoreRun(i.to_bytes(16, "little"), 1, 0, 0),)))
            await peer.ask(Tip(b"t" * 16, 1, 0))
        assert nodes["b1"].partitions == {}


async def test_a_partition_that_nobody_could_open_when_it_was_made_opens_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(3) as running:

        async def cannot(self: Topics, broker: str, topic: str, index: int) -> None:
            raise UnavailableError("not now", code="unavailable")

        monkeypatch.setattr(Topics, "_have_opened", cannot)
        async with to(running, "b1") as client:
            with pytest.raises(StreamqError):
                await client.ask(CreateTopic("orders", 1, 3, 0, 0, "fsync"))
        monkeypatch.undo()
        async with to(running, "b2") as client:
            with trio.fail_after(5):
                while not (found := await find(client))[0].sequencer:
                    await trio.sleep(0.02)
        await Resender(running, found[0]).send(b"one")


async def test_an_answer_that_fits_in_no_frame_is_a_failure_and_the_connection_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1) as running:
        await create(running, replicas=1)
        metadata = Topics.metadata

        async def huge(self: Topics, names: tuple[str, ...]) -> MetadataView:
            view = await metadata(self, names)
            return msgspec.structs.replace(view, topics=view.topics * 200_000)

        monkeypatch.setattr(Topics, "metadata", huge)
        async with to(running, "b1") as client:
            with pytest.raises(StreamqError) as refused:
                await client.ask(Metadata(("orders",)))
            assert refused.value.code == "limit_reached"
            assert isinstance(await client.ask(BrokerStatus()), BrokerState)


async def test_brokers_find_each_other_soon_after_a_silent_partition_although_their_connections_never_broke() -> None:
    network = MemoryNetwork()
    async with cluster(3, networks=[network.of(name) for name in ("b1", "b2", "b3")]) as running:
        network.isolate("b1")
        await trio.sleep(2)
        network.heal("b1")
        with trio.fail_after(4):  # all three must be there for this
            async with wire_client(running.brokers["b2"].config.address, network.of("client")) as client:
                while True:
                    try:
                        await client.ask(CreateTopic(f"t{trio.current_time()}", 1, 3, 3, 1, "fsync"))
                        break
                    except StreamqError:
                        await trio.sleep(0.1)
