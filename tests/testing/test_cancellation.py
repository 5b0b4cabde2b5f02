"""What is cancelled loses and repeats no record, under trio and under plain asyncio with its own means: `task.cancel`, `asyncio.timeout`,
`asyncio.TaskGroup`. Real brokers, in another thread."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from streamq.testing import ClusterInThread
from streamq_consumer import Consumer, Record
from streamq_producer import Producer
from tests.support.backends import both, run

PARTITIONS = 3
RECORDS = 150
names = (f"t{number}" for number in itertools.count())

Values = list[bytes | None]
ALL = Counter(b"%d" % i for i in range(RECORDS))


@pytest.fixture
def topic(streamq_session_cluster: ClusterInThread) -> str:
    name = next(names)
    streamq_session_cluster.create_topic(name, partitions=PARTITIONS)
    return name


async def fill(bootstrap: str, topic: str, *, pause_s: float = 0.0) -> None:
    async with Producer(bootstrap) as producer:
        for i in range(RECORDS):
            await producer.send(topic, b"%d" % i, partition=i % PARTITIONS)
            await anyio.sleep(pause_s)


async def in_scope(work: Callable[[], Awaitable[object]], after_s: float) -> None:
    with anyio.move_on_after(after_s):
        await work()


async def in_timeout(work: Callable[[], Awaitable[object]], after_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(after_s):
            await work()


async def in_task(work: Callable[[], Awaitable[object]], after_s: float) -> None:
    async def wrapped() -> None:
        await work()

    task = asyncio.create_task(wrapped())
    await asyncio.sleep(after_s)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def in_group(work: Callable[[], Awaitable[object]], after_s: float) -> None:
    """Cancelled by a neighbour that fails."""

    async def fail() -> None:
        await asyncio.sleep(after_s)
        raise ZeroDivisionError

    async def wrapped() -> None:
        await work()

    async def both_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            tasks.create_task(wrapped())

    # In a task of its own: before Python 3.13 a task whose group has failed counts as being cancelled for ever (gh-116720), and every
    # timeout of anyio in it ends in CancelledError.
    with suppress(ExceptionGroup):
        await asyncio.create_task(both_of_them())


async def in_wait_for(work: Callable[[], Awaitable[object]], after_s: float) -> None:
    async def wrapped() -> None:
        await work()

    with suppress(TimeoutError):
        await asyncio.wait_for(wrapped(), after_s)


Cancelling = Callable[[Callable[[], Awaitable[object]], float], Awaitable[None]]
ways = pytest.mark.parametrize(
    ("backend", "cancelled"),
    [
        ("trio", in_scope),
        ("asyncio", in_scope),
        ("asyncio", in_timeout),
        ("asyncio", in_task),
        ("asyncio", in_group),
        ("asyncio", in_wait_for),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)


@ways
@pytest.mark.parametrize("group", [None, "g"])
def test_a_cancelled_call_loses_no_record_and_repeats_none(
    streamq_session_cluster: ClusterInThread, topic: str, backend: str, cancelled: Cancelling, group: str | None
) -> None:
    bootstrap = streamq_session_cluster.bootstrap
    choose = random.Random(7)

    async def body() -> None:
        got: list[Record] = []
        async with Consumer(bootstrap, topics=[topic], group=group) as consumer, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: fill(bootstrap, topic, pause_s=0.001))

            async def fetch() -> None:
                got.extend(await consumer.fetch(choose.randrange(1, 9), timeout=1.0))

            async def iterate() -> None:
                async for record in consumer:
                    got.append(record)  # noqa: PERF401 (a comprehension would keep what it has to itself)

            async def listed() -> None:
                async for records in consumer.batches(max_records=5, max_wait=0.01):
                    got.extend(records)

            while len(got) < RECORDS:
                await cancelled(choose.choice((fetch, iterate, listed)), choose.random() * 0.02)
        assert Counter(record.value for record in got) == ALL
        for partition in range(PARTITIONS):
            assert [r.offset for r in got if r.partition == partition] == list(range(RECORDS // PARTITIONS))

    run(backend, body)


@ways
def test_a_cancelled_member_repeats_what_it_had_in_hand_and_nothing_else(
    streamq_session_cluster: ClusterInThread, topic: str, backend: str, cancelled: Cancelling
) -> None:
    """Each life ends by a cancellation that goes through the consumer's block."""
    bootstrap = streamq_session_cluster.bootstrap
    choose = random.Random(3)
    handled: Values = []
    in_hand: Values = []

    async def live() -> None:
        in_hand.clear()
        async with Consumer(bootstrap, topics=[topic], group=topic, session_s=2.0, commit_interval_s=30.0) as consumer:
            async for record in consumer:
                in_hand[:] = [record.value]
                await anyio.sleep(0.001)
                handled.append(record.value)
                in_hand.clear()

    async def body() -> None:
        await fill(bootstrap, topic)
        again = 0
        while len(set(handled)) < RECORDS:
            before = len(handled)
            await cancelled(live, 0.05 + choose.random() * 0.1)
            # One that is cancelled between two records, or has just handled one, is asked for that one again.
            again += len(handled) > before
        repeated = Counter(handled) - ALL
        assert Counter(handled) & ALL == ALL
        assert sum(repeated.values()) <= again

    run(backend, body)


@ways
def test_handlers_that_run_are_finished_and_committed_however_run_is_cancelled(
    streamq_session_cluster: ClusterInThread, topic: str, backend: str, cancelled: Cancelling
) -> None:
    bootstrap = streamq_session_cluster.bootstrap
    choose = random.Random(5)
    handled: Values = []
    begun: Values = []

    async def live() -> None:
        async def handle(record: Record) -> None:
            begun.append(record.value)
            await anyio.sleep(0.002)
            handled.append(record.value)

        async with Consumer(bootstrap, topics=[topic], group=topic, session_s=2.0, commit_interval_s=30.0) as consumer:
            await consumer.run(handle, concurrency=4)

    async def body() -> None:
        await fill(bootstrap, topic)
        with anyio.fail_after(12):
            while len(handled) < RECORDS:
                await cancelled(live, 0.05 + choose.random() * 0.1)
        assert Counter(handled) == ALL, "none is left out, none comes again"
        assert begun == handled or Counter(begun) == ALL

    run(backend, body)


@ways
@pytest.mark.parametrize("seed", range(2))
def test_what_a_producer_has_taken_is_stored_once_whatever_is_cancelled(
    streamq_session_cluster: ClusterInThread, topic: str, backend: str, cancelled: Cancelling, seed: int
) -> None:
    bootstrap = streamq_session_cluster.bootstrap
    choose = random.Random(seed)
    acked: Values = []
    tried: Values = []

    async def body() -> None:
        async with Producer(bootstrap) as producer:

            async def send_some() -> None:
                while True:
                    value = b"%d" % len(tried)
                    tried.append(value)
                    if choose.random() < 0.5:
                        await producer.send(topic, value, partition=0)
                    else:
                        delivery = await producer.enqueue(topic, value, partition=0)
                        await anyio.lowlevel.checkpoint()
                        await delivery.receipt()
                    acked.append(value)

            for _ in range(25):
                await cancelled(send_some, choose.random() * 0.01)
            while len(acked) < 10:  # on a busy machine
                await cancelled(send_some, 0.05)
        async with Consumer(bootstrap, topics=[topic]) as consumer:
            tip = (await consumer.tip(topic, 0)).high_watermark
            stored = [record.value async for _, record in _first(consumer, tip)]
        assert stored == [value for value in tried if value in set(stored)], "in order, each once"
        assert set(acked) <= set(stored)

    run(backend, body)


async def _first(consumer: Consumer, count: int):  # type: ignore[no-untyped-def]
    """The first records, numbered."""
    if count:
        number = 0
        async for record in consumer:
            number += 1
            yield number, record
            if number == count:
                return


@both
def test_a_consumer_that_is_cancelled_while_it_joins_or_leaves_ends_at_once(
    streamq_session_cluster: ClusterInThread, topic: str, backend: str
) -> None:
    """And leaves nothing behind that the next one has to wait for longer than for a session."""
    bootstrap = streamq_session_cluster.bootstrap

    async def body() -> None:
        await fill(bootstrap, topic)
        for step in range(12):
            with anyio.move_on_after(0.002 * step):
                async with Consumer(bootstrap, topics=[topic], group=topic, session_s=1.0) as consumer:
                    await consumer.fetch(1, timeout=0.001)
                    if step % 2:
                        await anyio.sleep_forever()
        async with Consumer(bootstrap, topics=[topic], group=topic, session_s=1.0) as consumer:
            got: list[Record] = []
            with anyio.fail_after(8):
                while len({(r.partition, r.offset) for r in got}) < RECORDS - 12:
                    got += await consumer.fetch()

    run(backend, body)
