"""Named producers against real brokers: who was opened last is the only one, and knows how far the name came (P-33)."""

import logging

import pytest
import trio

from streamq.broker.registers import Registers
from streamq.model.errors import FencedError, RefusedError, StreamqError, UnknownOutcomeError
from streamq.model.messages import CreateTopic, OpenProducer, ProducerOpened
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.broker.wire_client import wire_client

logging.getLogger("streamq").setLevel(logging.ERROR)


async def create(running: ClusterInProcess, partitions: int = 1) -> None:
    async with wire_client(running.brokers["b1"].config.address) as client:
        await client.ask(CreateTopic("t", partitions, 3, 0, 0, "fsync"))


async def stored(running: ClusterInProcess, partition: int = 0) -> list[bytes | None]:
    values: list[bytes | None] = []
    async with Consumer(running.bootstrap, topics=["t"], partitions=[partition]) as consumer:
        end = (await consumer.tip("t", partition)).high_watermark
        while consumer.position("t", partition) < end:
            values += [record.value for record in await consumer.fetch(timeout=0.05)]
    return values


async def test_who_opens_the_name_again_goes_on_where_it_stood_and_the_one_before_is_fenced() -> None:
    async with cluster(3) as running:
        await create(running, 2)
        async with Producer(running.bootstrap, name="ingest") as first:
            assert await first.position("t", 0) == 0
            await first.send("t", b"a", partition=0, position=10)
            await first.enqueue_many("t", [b"b", b"c"], partition=0, positions=[20, 25])
            await first.flush()
            assert await first.position("t", 0) == 25
            with pytest.raises(RefusedError, match="25"):
                await first.enqueue("t", b"c", partition=0, position=25)
            with pytest.raises(RefusedError, match="key"):
                await first.enqueue("t", b"c")
            async with Producer(running.bootstrap, name="ingest") as second:
                assert await second.position("t", 0) == 25
                assert await second.position("t", 1) == 0
                with pytest.raises(FencedError, match="another producer named 'ingest' was opened"):
                    await first.send("t", b"late", partition=0, position=30)
                with pytest.raises(FencedError, match="another producer named 'ingest' was opened"):
                    await first.send("t", b"later", partition=1, position=1)
                await second.send("t", b"d", partition=0, position=30)
        assert await stored(running) == [b"a", b"b", b"c", b"d"]
        assert await stored(running, 1) == []


async def test_the_position_outlives_the_sequencer() -> None:
    """Also while records without positions, and those of others, lie on top."""
    async with cluster(3) as running:
        await create(running)
        for turn, broker in enumerate(("b1", "b2", "b3"), 1):
            async with Producer(running.bootstrap, name="ingest") as producer, Producer(running.bootstrap) as other:
                assert await producer.position("t", 0) == turn - 1
                await producer.send("t", b"%d" % turn, partition=0, position=turn)
                await producer.send("t", b"unplaced", partition=0)
                await other.send("t", b"other", partition=0)
                await running.kill(broker)
                async with Producer(running.bootstrap, name=f"look-{turn}") as stranger:
                    assert await stranger.position("t", 0) == 0
                await producer.send("t", b"after", partition=0)
                assert await producer.position("t", 0) == turn
            async with Producer(running.bootstrap, name="ingest") as producer:
                assert await producer.position("t", 0) == turn
            await running.start(broker)
        values = await stored(running)
        assert [value for value in values if value is not None and value.isdigit()] == [b"1", b"2", b"3"]


async def test_nothing_is_stored_behind_a_batch_that_failed() -> None:
    """Positions that are stored are a prefix: the gap would never be filled after the next start."""
    async with cluster(3) as running:
        await create(running)
        async with Producer(running.bootstrap, name="ingest", delivery_timeout_s=0.6) as producer:
            await producer.send("t", b"1", partition=0, position=1)
            await running.kill("b2")
            await running.kill("b3")
            with pytest.raises(StreamqError):
                await producer.send("t", b"2", partition=0, position=2)
            await running.start("b2", "b3")
            with pytest.raises(StreamqError, match="behind a batch that failed"):
                await producer.send("t", b"3", partition=0, position=3)
        async with Producer(running.bootstrap, name="ingest") as producer:
            position = await producer.position("t", 0)
        assert await stored(running) == [b"1", b"2"][:position]


async def test_an_opening_that_a_broker_could_not_tell_the_outcome_of_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Registers.change_as
    told: list[object] = []

    async def change(self: Registers, kind: type, key: str, f: object, **options: object) -> object:
        value = await real(self, kind, key, f, **options)  # type: ignore[arg-type]
        if key.startswith("producer/"):
            told.append(value)
            if len(told) == 1:
                raise UnknownOutcomeError("nobody knows", code="unknown_outcome")
        return value

    async with cluster(3) as running:
        await create(running)
        with monkeypatch.context() as patched:
            patched.setattr(Registers, "change_as", change)
            async with Producer(running.bootstrap, name="ingest") as producer:
                await producer.send("t", b"1", partition=0, position=1)
        assert len(told) == 2
        assert told[0] == told[1]
        async with wire_client(running.brokers["b2"].config.address) as client:
            opened = await client.ask(OpenProducer("ingest", b"a" * 16))
            assert isinstance(opened, ProducerOpened)
            assert opened.epoch == 2
            assert await client.ask(OpenProducer("ingest", b"a" * 16)) == opened
            for name, attempt in (("", b"a" * 16), ("..", b"a" * 16), ("x", b"short")):
                with pytest.raises(RefusedError):
                    await client.ask(OpenProducer(name, attempt))


async def test_instances_that_race_for_a_name_leave_each_position_once() -> None:
    """Each one opens, asks where to go on, and stores on until it is fenced; a sequencer dies in between."""
    last = 60

    async def instance(running: ClusterInProcess) -> None:
        try:
            async with Producer(running.bootstrap, name="ingest") as producer:
                for position in range(await producer.position("t", 0) + 1, last + 1):
                    await producer.send("t", b"%d" % position, partition=0, position=position)
        except (FencedError, UnknownOutcomeError):
            pass

    async with cluster(3) as running:
        await create(running)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(instance, running)
                await trio.sleep(0.05)
            await running.kill("b1")
        await running.start("b1")
        await instance(running)
        assert await stored(running) == [b"%d" % position for position in range(1, last + 1)]
