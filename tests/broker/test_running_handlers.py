"""`Consumer.run` in a cluster in this process: what is handled, tried again, buried, drained, and never passed over."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.model.errors import HandlerError, NotFoundError
from streamq.model.messages import CreateTopic, TopicCreated
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq_consumer import Consumer, DeadLetter, Record, Reject, Retry
from streamq_producer import Producer

PARTITIONS = 3
RECORDS = 60
QUICK = Retry(attempts=3, first_s=0.001, max_s=0.01)


@asynccontextmanager
async def filled() -> AsyncIterator[tuple[ClusterInProcess, Producer]]:
    async with cluster(3) as running, Producer(running.bootstrap) as producer:
        for topic in ("t", "dead"):
            await producer._cluster.request(CreateTopic(topic, PARTITIONS, 3, 2, 2, "fsync"), TopicCreated)
        for i in range(RECORDS):
            await producer.send("t", b"%d" % i, key=b"k%d" % (i % 5), partition=i % PARTITIONS, headers={"n": b"%d" % i})
        yield running, producer


def member(running: ClusterInProcess, **options: object) -> Consumer:
    return Consumer(running.bootstrap, topics=["t"], group="g", session_s=3.0, commit_interval_s=0.05, **options)  # type: ignore[arg-type]


async def run_until(
    consumer: Consumer, enough: Callable[[], bool], handler: Callable[[Record], Awaitable[None]], **options: object
) -> None:
    """Runs the handler, and cancels it when there is enough."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                while not enough():
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            await consumer.run(handler, **options)  # type: ignore[arg-type]


async def rest_of(running: ClusterInProcess) -> list[bytes | None]:
    """What the group has left."""
    async with member(running) as consumer:
        found: list[bytes | None] = []
        while records := await consumer.fetch(1_000, timeout=0.3):
            found += [record.value for record in records]
        return found


@pytest.mark.parametrize("order", ["partition", "key", "none"])
async def test_every_record_is_handled_once_and_in_order_and_a_cancel_drains(order: str) -> None:
    done: list[Record] = []
    busy: Counter[object] = Counter()
    most = 0

    async def handle(record: Record) -> None:
        nonlocal most
        lanes = {"partition": record.partition, "key": (record.partition, record.key), "none": (record.partition, record.offset)}
        lane = lanes[order]
        busy[lane] += 1
        assert busy[lane] == 1
        most = max(most, sum(busy.values()))
        await trio.sleep(0.002)
        done.append(record)
        busy[lane] -= 1

    async with filled() as (running, _):
        async with member(running) as consumer:
            await run_until(consumer, lambda: len(done) >= RECORDS // 2, handle, concurrency=8, order=order)
        begun = len(done)
        rest = await rest_of(running)
    assert not +busy, "who was at work when it was cancelled has finished"
    assert Counter([record.value for record in done] + rest) == Counter(b"%d" % i for i in range(RECORDS)) or order != "partition"
    assert set([record.value for record in done] + rest) == {b"%d" % i for i in range(RECORDS)}, "nothing is passed over"
    assert begun >= RECORDS // 2
    assert most > 1
    if order != "none":
        for lane in {(r.partition, r.key if order == "key" else None) for r in done}:
            offsets = [r.offset for r in done if r.partition == lane[0] and (order == "partition" or r.key == lane[1])]
            assert offsets == sorted(offsets)


async def test_what_fails_is_tried_again_and_what_is_behind_it_waits_while_others_go_on() -> None:
    attempts: Counter[bytes | None] = Counter()
    done: list[Record] = []

    async def handle(record: Record) -> None:
        attempts[record.value] += 1
        if record.value == b"3" and attempts[record.value] < 3:
            raise ValueError("not yet")
        done.append(record)

    async with filled() as (running, _), member(running) as consumer:
        retry = Retry(attempts=5, first_s=0.1, max_s=0.2)
        await run_until(consumer, lambda: len(done) == RECORDS, handle, concurrency=2, retry=retry)
    assert attempts[b"3"] == 3
    assert Counter(attempts.values()) == {1: RECORDS - 1, 3: 1}
    for partition in range(PARTITIONS):
        assert [r.offset for r in done if r.partition == partition] == list(range(RECORDS // PARTITIONS))


async def test_a_poisoned_record_becomes_a_dead_letter_and_the_group_goes_on() -> None:
    done: list[Record] = []

    async def handle(record: Record) -> None:
        if record.value == b"7":
            raise KeyError("poison")
        done.append(record)

    async with filled() as (running, producer):
        async with member(running) as consumer:
            dead = DeadLetter(producer, "dead")
            await run_until(consumer, lambda: len(done) == RECORDS - 1, handle, concurrency=4, retry=QUICK, dead_letter=dead)
        assert await rest_of(running) == []
        async with Consumer(running.bootstrap, topics=["dead"]) as graves:
            [letter] = await graves.fetch(10, timeout=2)
    assert (letter.key, letter.value) == (b"k2", b"7")
    assert letter.headers["n"] == b"7"
    where = {name: bytes(letter.headers[f"dlq-{name}"]) for name in ("topic", "partition", "offset", "attempts", "error")}
    assert where == {"topic": b"t", "partition": b"1", "offset": b"2", "attempts": b"3", "error": b"KeyError: 'poison'"}


async def test_what_a_handler_rejects_is_not_tried_again() -> None:
    attempts: Counter[bytes | None] = Counter()

    async def handle(record: Record) -> None:
        attempts[record.value] += 1
        if record.value == b"7":
            raise Reject("no such customer")

    async with filled() as (running, producer):
        async with member(running) as consumer:
            never = Retry(attempts=5, first_s=60.0, max_s=60.0)
            await run_until(consumer, lambda: len(attempts) == RECORDS, handle, retry=never, dead_letter=DeadLetter(producer, "dead"))
        assert await rest_of(running) == []
        async with Consumer(running.bootstrap, topics=["dead"]) as graves:
            [letter] = await graves.fetch(10, timeout=2)
    assert attempts[b"7"] == 1
    assert letter.value == b"7"
    assert letter.headers["dlq-error"] == b"Reject: no such customer"
    assert letter.headers["dlq-attempts"] == b"1"


async def test_what_is_rejected_without_a_place_for_it_ends_the_run_and_comes_again() -> None:
    async def handle(record: Record) -> None:
        raise Reject("no such customer")

    async with filled() as (running, _), member(running) as consumer:
        with pytest.raises(HandlerError, match="was rejected: no such customer") as failed:
            await consumer.run(handle, retry=Retry(attempts=5, first_s=60.0, max_s=60.0))
        assert isinstance(failed.value.__cause__, Reject)
        assert failed.value.__cause__.reason == "no such customer"
        with trio.fail_after(5):
            while failed.value.record not in await consumer.fetch(RECORDS, timeout=1):
                pass


async def test_dead_letters_fit_however_large_the_record_is() -> None:
    async with filled() as (running, producer):
        many = {f"h{i}": b"x" for i in range(64)}
        letter = DeadLetter(producer, "dead")
        for value, headers in ((b"small", many), (b"v" * (1 << 20), {}), (b"v" * ((1 << 20) - 300), {"h": b"x" * 100})):
            await letter.send(Record("t", 0, 5, 0, None, value, headers), ValueError("e" * 5_000), 5)
        async with Consumer(running.bootstrap, topics=["dead"]) as graves:
            found: list[Record] = []
            while len(found) < 3:
                found += await graves.fetch(10, timeout=5)
    by_size = sorted(found, key=lambda record: len(record.value or b""))
    assert by_size[0].headers["dlq-headers-dropped"] == b"64"
    assert len(by_size[0].headers["dlq-error"]) <= 1_000
    assert by_size[1].headers["dlq-offset"] == b"5"
    assert len(by_size[2].value or b"") == 1 << 20


async def test_without_a_place_for_it_the_run_ends_with_one_error_and_the_record_comes_again() -> None:
    async def handle(record: Record) -> None:
        if record.value == b"7":
            raise KeyError("poison")

    async with filled() as (running, _):
        async with member(running) as consumer:
            with pytest.raises(HandlerError, match="t/1@2") as failed:
                await consumer.run(handle, concurrency=4, retry=QUICK)
        assert isinstance(failed.value.__cause__, KeyError)
        assert b"7" in await rest_of(running)


async def test_a_topic_for_dead_letters_that_is_not_there_is_told_before_anything_is_handled() -> None:
    async def handle(record: Record) -> None:
        raise AssertionError("it was handled")

    async with filled() as (running, producer), member(running) as consumer:
        with pytest.raises(NotFoundError):
            await consumer.run(handle, dead_letter=DeadLetter(producer, "nowhere"))


async def test_a_stuck_handler_is_named_with_where_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    async def handle_for_ever(record: Record) -> None:
        await trio.sleep_forever()

    async with filled() as (running, _), member(running) as consumer:
        with caplog.at_level(logging.WARNING, logger="streamq_consumer"), trio.move_on_after(0.5):
            await consumer.run(handle_for_ever, stuck_after_s=0.05, drain_s=0.05)
        assert 1 <= consumer.stats.stuck <= 5, "again only after twice as long"
    told = [record.getMessage() for record in caplog.records if "has not ended in" in record.getMessage()]
    assert "handle_for_ever of t/" in told[0]
    assert "_timeouts.py" in told[0] or "test_running_handlers.py" in told[0] or "trio" in told[0]
    assert any("is cancelled" in text for text in told)


async def test_two_runners_share_without_repeating_and_the_loss_of_a_broker_stops_nobody() -> None:
    done: Counter[bytes | None] = Counter()

    async def handle(record: Record) -> None:
        await trio.sleep(0.002)
        done[record.value] += 1

    async with filled() as (running, producer), member(running) as first, member(running) as second, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_until(first, lambda: len(done) == RECORDS + 30, handle, concurrency=2))
        nursery.start_soon(lambda: run_until(second, lambda: len(done) == RECORDS + 30, handle, concurrency=2))
        await running.kill("b2")
        for i in range(30):
            await producer.send("t", b"later %d" % i, partition=i % PARTITIONS)
    assert set(done.values()) == {1}


async def test_nothing_of_a_paused_partition_is_handed_out_and_nothing_is_lost_by_it() -> None:
    async with filled() as (running, _), Consumer(running.bootstrap, topics=["t"]) as consumer:
        seen: list[Record] = []
        async for record in consumer:
            seen.append(record)
            if len(seen) == 5:
                break
        paused = seen[-1].partition
        consumer.pause("t", paused)
        assert consumer.paused == (("t", paused),)
        while records := await consumer.fetch(1_000, timeout=0.2):
            assert paused not in {record.partition for record in records}
            seen += records
        consumer.resume()
        while records := await consumer.fetch(1_000, timeout=0.2):
            seen += records
    assert Counter(record.value for record in seen) == Counter(b"%d" % i for i in range(RECORDS))
    for partition in range(PARTITIONS):
        assert [r.offset for r in seen if r.partition == partition] == list(range(RECORDS // PARTITIONS))
