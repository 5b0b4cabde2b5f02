"""Appends on a condition, an offset or a fencing token: stored so or nowhere, whoever sequences, and however often they are sent."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.model.errors import AlreadyExistsError, FencedError, RefusedError
from streamq.model.messages import CreateTopic, TopicCreated
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq_consumer import Consumer
from streamq_producer import Producer


@asynccontextmanager
async def with_topic() -> AsyncIterator[tuple[ClusterInProcess, Producer]]:
    async with cluster(3) as running, Producer(running.bootstrap) as producer:
        await producer._cluster.request(CreateTopic("t", 1, 3, 2, 2, "fsync"), TopicCreated)
        yield running, producer


async def values(running: ClusterInProcess) -> list[bytes | None]:
    async with Consumer(running.bootstrap, topics=["t"]) as consumer:
        tip = await consumer.tip("t", 0)
        found: list[bytes | None] = []
        while consumer.position("t", 0) < tip.high_watermark:
            found += [record.value for record in await consumer.fetch(1_000, timeout=0.2)]
        return found


async def test_what_is_at_its_offset_is_stored_whole_and_what_is_not_is_refused_for_certain() -> None:
    async with with_topic() as (running, producer):
        receipt = await producer.append("t", 0, [b"a", b"b"], expected_offset=0)
        assert (receipt.offset, receipt.records) == (0, 2)
        for wrong in (0, 1, 3, 99):
            with pytest.raises(AlreadyExistsError, match="2 is") as refused:
                await producer.append("t", 0, [b"no"], expected_offset=wrong)
            assert refused.value.code == "precondition_failed"
            assert refused.value.exit_code == 7
        assert (await producer.append("t", 0, [b"c"], expected_offset=2)).offset == 2
        assert (await producer.send("t", b"d")).offset == 3
        assert await values(running) == [b"a", b"b", b"c", b"d"]


async def test_two_writers_never_both_get_an_offset_and_nothing_is_lost_while_brokers_die() -> None:
    """Each reads on until it is at the end, and appends there: a log of both, every one of whose records was made with all before known."""
    async with with_topic() as (running, _):
        written: dict[int, bytes] = {}
        rng = random.Random(3)

        async def write(name: str) -> None:
            async with Producer(running.bootstrap) as producer, Consumer(running.bootstrap, topics=["t"]) as consumer:
                count, at = 0, 0
                while count < 12:
                    value = f"{name}{count} after {at}".encode()
                    try:
                        receipt = await producer.append("t", 0, [value], expected_offset=at)
                    except AlreadyExistsError:
                        while not await consumer.fetch(100, timeout=0.05) and consumer.position("t", 0) <= at:
                            pass
                        at = consumer.position("t", 0)
                    else:
                        assert receipt.offset == at
                        assert at not in written
                        written[at] = value
                        count, at = count + 1, at + 1

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, "x")
                nursery.start_soon(write, "y")
                for _ in range(3):
                    await trio.sleep(0.05)
                    broker = rng.choice(list(running.brokers))
                    await running.kill(broker)
                    await trio.sleep(0.05)
                    await running.start(broker)
        assert await values(running) == [written[at] for at in range(24)]
        assert all(value.endswith(f"after {at}".encode()) for at, value in written.items())


async def test_a_lower_fencing_token_is_refused_from_the_first_append_of_a_higher_one_on() -> None:
    """Whoever sequences; also together with an offset. What comes without a token is not looked at."""
    async with with_topic() as (running, producer):
        assert (await producer.append("t", 0, [b"a"], fencing_token=0)).offset == 0
        assert (await producer.append("t", 0, [b"b"], fencing_token=5)).offset == 1
        assert (await producer.append("t", 0, [b"c", b"d"], fencing_token=5, expected_offset=2)).offset == 2
        for broker in ("b1", "b2", "b3"):
            await running.kill(broker)
            for arguments in ({}, {"expected_offset": 4}, {"expected_offset": 99}):
                with pytest.raises(FencedError, match="4 was followed by 5"):
                    await producer.append("t", 0, [b"no"], fencing_token=4, **arguments)
            await running.start(broker)
        with pytest.raises(AlreadyExistsError):
            await producer.append("t", 0, [b"no"], fencing_token=6, expected_offset=3)
        assert (await producer.append("t", 0, [b"e"], fencing_token=5)).offset == 4, "an append that is refused raises nothing"
        assert (await producer.send("t", b"f")).offset == 5
        assert await values(running) == [b"a", b"b", b"c", b"d", b"e", b"f"]


async def test_of_writers_that_follow_each_other_none_stores_anything_behind_a_later_one() -> None:
    """Each gets a higher token than the one before, which does not know; brokers die meanwhile. Refused is certainly not stored."""
    async with with_topic() as (running, _):
        rng, acked, refused = random.Random(5), set[bytes](), set[bytes]()

        async def write(token: int) -> None:
            async with Producer(running.bootstrap) as producer:
                for count in range(1_000):
                    value = b"%d %d" % (token, count)
                    try:
                        await producer.append("t", 0, [value], fencing_token=token)
                    except FencedError:
                        refused.add(value)
                        return
                    acked.add(value)
                    if token == 4 and count == 20:
                        return

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for token in range(1, 5):
                    nursery.start_soon(write, token)
                    await trio.sleep(0.05)
                    broker = rng.choice(list(running.brokers))
                    await running.kill(broker)
                    await trio.sleep(0.05)
                    await running.start(broker)
        stored = await values(running)
        assert set(stored) == acked
        assert len(stored) == len(acked)
        assert len(refused) == 3
        tokens = [int(value.split()[0]) for value in stored if value is not None]
        assert tokens == sorted(tokens)


async def test_a_retry_finds_its_own_batch() -> None:
    """The ack is lost with the broker; what was stored is not taken for somebody else's."""
    for _ in range(3):
        async with with_topic() as (running, producer):
            async with trio.open_nursery() as nursery:
                for number, broker in enumerate(("b1", "b2")):
                    nursery.start_soon(running.kill, broker)
                    receipt = await producer.append("t", 0, [b"%d" % number], expected_offset=number)
                    assert receipt.offset == number
                    await running.start(broker)
            assert await values(running) == [b"0", b"1"]


async def test_what_makes_no_sense_is_refused() -> None:
    bad: list[dict[str, object]] = [
        {"values": []},
        {"values": [b"x"], "expected_offset": -1},
        {"values": [b"x"], "fencing_token": -1},
        {"values": [b"x"], "fencing_token": 1 << 63},
        {"values": [b"x"], "expected_offset": None},
        {"values": [b"x" * (1 << 20)] * 2},
    ]
    async with cluster(1) as running:
        async with Producer(running.bootstrap) as producer:
            for arguments in bad:
                with pytest.raises(RefusedError):
                    await producer.append("t", 0, **{"expected_offset": 0, **arguments})  # type: ignore[arg-type]
        async with Producer(running.bootstrap, name="n") as named:
            with pytest.raises(RefusedError, match="named"):
                await named.append("t", 0, [b"x"], expected_offset=0)
        async with Producer(running.bootstrap, idempotent=False) as plain:
            with pytest.raises(RefusedError, match="idempotent"):
                await plain.append("t", 0, [b"x"], expected_offset=0)
