"""Many streams on one connection, and producers of a partition that cannot be acked: nobody else suffers."""

import logging
import os
from contextlib import suppress

import pytest
import trio

from streamq.broker import router
from streamq.model.batches import Batch
from streamq.model.limits import IN_FLIGHT_BYTES_MAX
from streamq.model.messages import Ack, BrokerState, BrokerStatus, CreateTopic, ReadTip, Records, Subscribe
from streamq.net.channel import CHANNEL_QUEUE_BYTES_MAX
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.in_process import cluster
from streamq.wire.batch_format import split_batches
from streamq.wire.framing import Frame
from tests.broker.capture import capture_nodes, until
from tests.broker.test_cluster_in_process import create, find, to
from tests.broker.wire_client import _Sink, make_batch

logging.getLogger("streamq").setLevel(logging.ERROR)

MiB = 1 << 20


async def test_a_hundred_streams_that_read_from_disk_at_once_do_not_overrun_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = MemoryStorage.recent

    async def from_disk(self: MemoryStorage, partition: bytes, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        await trio.sleep(0.05)
        return in_memory(self, partition, epoch, offset, max_bytes=max_bytes) or []

    async with cluster(1) as running:
        partitions = await create(running, partitions=100, replicas=1)
        async with to(running, "b1") as client:
            value = os.urandom(MiB - 200)
            for view in partitions:
                [outcome] = await client.produce(make_batch(view.id, [value]))
                assert isinstance(outcome, Ack)
        assert len(partitions) * MiB > CHANNEL_QUEUE_BYTES_MAX
        monkeypatch.setattr(MemoryStorage, "recent", lambda *_, **__: None)
        monkeypatch.setattr(MemoryStorage, "read", from_disk)
        async with to(running, "b1") as client:
            send, receive = trio.open_memory_channel[Frame](100_000)
            for request, view in enumerate(partitions, 1 << 20):
                client.channel._requests[request] = _Sink(send)  # type: ignore[assignment]
                client.channel.send(Subscribe(view.id, 0, 4 * MiB), request=request)
            seen = 0
            with trio.fail_after(15):
                while seen < len(partitions):
                    frame = await receive.receive()
                    assert isinstance(frame.message, Records)
                    seen += len(list(split_batches(frame.payload)))


async def test_a_partition_without_quorum_does_not_stall_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        async with to(running, "b1") as client:
            await client.ask(CreateTopic("strict", 3, 3, 3, 1, "fsync"))
            strict = next(p for p in await find(client, "strict") if p.sequencer == "b1")
        good = next(p for p in await create(running, partitions=3) if p.sequencer == "b1")
        await running.kill("b3")
        async with to(running, "b1") as client:
            value = os.urandom(MiB)
            for _ in range(8):
                with suppress(trio.TooSlowError):
                    await client.produce(*(make_batch(strict.id, [value]) for _ in range(7)), timeout_s=0.1)
            await trio.sleep(0.5)
            assert nodes["b1"].in_flight_bytes >= IN_FLIGHT_BYTES_MAX
        async with to(running, "b1") as client:
            for _ in range(3):
                [outcome] = await client.produce(make_batch(good.id, [b"x"]), timeout_s=8)
                assert isinstance(outcome, Ack)


async def test_requests_end_with_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(1) as running:
        await create(running, replicas=1)

        async def forever(*_: object, **__: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(router, "read_tip", forever)
        before = len(nodes["b1"].nursery.child_tasks)
        for _ in range(5):
            async with to(running, "b1") as client:
                for request in range(1, 200):
                    client.channel.send(ReadTip("orders", 0), request=request)
                await trio.sleep(0.05)
        await until(lambda: len(nodes["b1"].nursery.child_tasks) <= before + 5)
        async with to(running, "b1") as client:
            assert isinstance(await client.ask(BrokerStatus()), BrokerState)
