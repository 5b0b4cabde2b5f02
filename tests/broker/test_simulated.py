"""The whole broker runs on a virtual clock, an in-memory network and a simulated disk: the seam that simulation stands on."""

import trio
import trio.testing

from streamq.model.messages import Ack, CreateTopic, Metadata, MetadataView, Nack, ReadTip, TipRead
from streamq.net.memory_network import MemoryNetwork
from streamq.testing.in_process import cluster
from tests.broker.wire_client import make_batch, new_producer, values_of, wire_client


async def test_a_cluster_ingests_and_takes_over_on_a_virtual_clock(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with cluster(3, networks=[network.of(f"b{i + 1}") for i in range(3)]) as running:
        async with wire_client(("b1", 7700), network.of("client")) as client:
            await client.ask(CreateTopic("orders", 1, 0, 0, 0, "fsync"))
            view = await client.ask(Metadata(("orders",)))
            assert isinstance(view, MetadataView)
            [partition] = view.topics[0].partitions
        producer = new_producer()
        async with wire_client((partition.sequencer, 7700), network.of("client")) as client:
            for i in range(50):
                [outcome] = await client.produce(make_batch(partition.id, [b"%d" % i], producer=producer, sequence=i))
                assert isinstance(outcome, Ack)
                assert outcome.base == i
        network.isolate(partition.sequencer)
        before = trio.current_time()
        other = next(name for name in running.brokers if name != partition.sequencer)
        async with wire_client((other, 7700), network.of("client")) as client:
            tip = await client.ask(ReadTip("orders", 0))
            assert isinstance(tip, TipRead)
            assert tip.high_watermark == 50
            while True:
                view = await client.ask(Metadata(("orders",)))
                assert isinstance(view, MetadataView)
                now = view.topics[0].partitions[0]
                if now.epoch > partition.epoch:
                    break
                await trio.sleep(0.01)
            took = trio.current_time() - before
            assert now.sequencer != partition.sequencer
            assert 0.3 < took < 2.0  # silence, not a refusal: the failure detector's time
        network.heal(partition.sequencer)
        async with wire_client((now.sequencer, 7700), network.of("client")) as client:
            again: Ack | Nack = Nack(0, "", "", "")
            with trio.fail_after(1):
                while not isinstance(again, Ack):  # it has opened the epoch, and is about to serve
                    await trio.sleep(0.001)  # refusals take no time at all here, and while somebody runs the clock stands still
                    [again] = await client.produce(make_batch(partition.id, [b"49"], producer=producer, sequence=49))
            assert again.base == 49
            [outcome] = await client.produce(make_batch(partition.id, [b"50"], producer=producer, sequence=50))
            assert isinstance(outcome, Ack)
            assert values_of(await client.read(partition.id, 0, 51)) == [b"%d" % i for i in range(51)]
