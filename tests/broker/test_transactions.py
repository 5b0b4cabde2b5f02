"""Transactions in a cluster in this process: what is read, when, and what never; positions that hang on them."""

# ruff: noqa: PT012 - it is the leaving of a whole block that raises

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio

from streamq.metadata.transactions import ABORTED_KEPT_MAX
from streamq.model.errors import FencedError, GroupLostError, RefusedError, TransactionAbortedError, UnavailableError, UnknownOutcomeError
from streamq.model.messages import (
    CreateTopic,
    EndTransaction,
    GroupRead,
    Message,
    PartitionView,
    ReadGroup,
    ReadStable,
    StableRead,
    TopicCreated,
)
from streamq.testing import cluster as thread_cluster
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq_consumer import Consumer, Record, group
from streamq_consumer import sync as sync_consumer
from streamq_producer import Producer, sync

PARTITIONS = 2


@asynccontextmanager
async def running() -> AsyncIterator[ClusterInProcess]:
    async with cluster(3) as made:
        async with Producer(made.bootstrap) as producer:
            for topic in ("in", "out"):
                await producer._cluster.request(CreateTopic(topic, PARTITIONS, 3, 2, 2, "fsync"), TopicCreated)
        yield made


def transactional(made: ClusterInProcess, name: str = "p", **options: object) -> Producer:
    return Producer(made.bootstrap, name=name, transactional=True, **options)  # type: ignore[arg-type]


def member(made: ClusterInProcess, **options: object) -> Consumer:
    return Consumer(made.bootstrap, topics=["in"], group="g", auto_commit=False, **{"session_s": 1.0, **options})  # type: ignore[arg-type]


async def values(consumer: Consumer, count: int, timeout_s: float = 5.0) -> list[bytes]:
    """So many, and then no more for a while."""
    found: list[Record] = []
    with trio.fail_after(timeout_s):
        while len(found) < count:
            found += await consumer.fetch(timeout=timeout_s)
    assert not await consumer.fetch(timeout=0.15)
    return [record.value or b"" for record in found]


async def fill(made: ClusterInProcess, count: int) -> None:
    """So many records into partition 0 of "in"."""
    async with Producer(made.bootstrap) as source:
        for i in range(count):
            await source.send("in", str(i).encode(), partition=0)


async def committed(made: ClusterInProcess) -> dict[int, int | None]:
    async with Producer(made.bootstrap) as anybody:
        told = await anybody._cluster.request(ReadGroup("g"), GroupRead)
    topic = told.register.topic("in")
    assert topic is not None
    return {index: partition.position for index, partition in enumerate(topic.partitions)}


async def stable(producer: Producer, partition: int) -> StableRead:
    return await producer._cluster.request(ReadStable("out", partition), StableRead)


async def test_all_of_it_is_read_when_it_is_committed_and_nothing_before() -> None:
    async with running() as made, transactional(made) as producer, Consumer(made.bootstrap, topics=["out"]) as consumer:
        async with producer.transaction():
            for i in range(4):
                await producer.send("out", str(i).encode(), partition=i % PARTITIONS)
            assert not await consumer.fetch(timeout=0.3)
        assert sorted(await values(consumer, 4)) == [b"0", b"1", b"2", b"3"]


async def test_what_is_aborted_is_read_by_nobody_but_who_asks_for_it() -> None:
    async with running() as made, transactional(made) as producer:
        with pytest.raises(ZeroDivisionError):
            async with producer.transaction():
                await producer.send("out", b"never", partition=0)
                raise ZeroDivisionError
        async with producer.transaction() as given_up:
            await producer.enqueue("out", b"neither", partition=0)
            given_up.abort()
        async with producer.transaction():
            await producer.send("out", b"read", partition=0)
        await producer.send("out", b"on its own", partition=0)
        async with Consumer(made.bootstrap, topics=["out"]) as consumer:
            assert await values(consumer, 2) == [b"read", b"on its own"]
            assert [record.value for record in await consumer.last(2)] == [b"read", b"on its own"]
        async with Consumer(made.bootstrap, topics=["out"], isolation="read_uncommitted") as consumer:
            assert await values(consumer, 4) == [b"never", b"neither", b"read", b"on its own"]


async def test_what_lies_behind_an_open_one_waits_in_its_partition_and_nowhere_else() -> None:
    async with running() as made, transactional(made) as producer, Producer(made.bootstrap) as other:
        await other.send("out", b"before", partition=0)
        async with Consumer(made.bootstrap, topics=["out"]) as consumer:
            async with producer.transaction():
                first = await producer.send("out", b"open", partition=0)
                last = await other.send("out", b"behind", partition=0)
                await other.send("out", b"elsewhere", partition=1)
                assert sorted(await values(consumer, 2)) == [b"before", b"elsewhere"]
                told = await stable(producer, 0)
                assert (told.offset, told.name, told.transaction is not None) == (first.offset, "p", True)
                assert (await stable(producer, 1)).transaction is None
            assert await values(consumer, 2) == [b"open", b"behind"]
            told = await stable(producer, 0)
            assert (told.offset, told.transaction) == (last.offset + 1, None)


async def test_one_that_is_too_old_is_aborted_and_cannot_be_committed() -> None:
    async with (
        running() as made,
        transactional(made, transaction_timeout_s=0.3) as producer,
        Producer(made.bootstrap) as other,
        Consumer(made.bootstrap, topics=["out"]) as consumer,
    ):
        with pytest.raises(TransactionAbortedError):
            async with producer.transaction():
                await producer.send("out", b"slow", partition=0)
                await other.send("out", b"behind", partition=0)
                assert await values(consumer, 1) == [b"behind"]
        async with producer.transaction():
            await producer.send("out", b"again", partition=0)
        assert await values(consumer, 1) == [b"again"]


async def test_the_next_of_the_name_aborts_the_open_one_and_fences_its_producer() -> None:
    async with running() as made, transactional(made) as zombie, Consumer(made.bootstrap, topics=["out"]) as consumer:
        with pytest.raises(FencedError):
            async with zombie.transaction():
                await zombie.send("out", b"zombie", partition=0)
                async with transactional(made) as next_one:
                    async with next_one.transaction():
                        await next_one.send("out", b"next", partition=1)
                    assert await values(consumer, 1) == [b"next"]
        with pytest.raises(FencedError):
            async with zombie.transaction():
                pass
        assert not await consumer.fetch(timeout=0.2)


async def test_an_end_is_the_same_however_often_it_is_asked_for() -> None:
    async with running() as made, transactional(made) as producer:
        async with producer.transaction():
            await producer.send("out", b"x", partition=0)
        assert producer._transactions is not None
        producer._transactions._number = 1
        assert await producer._transactions.end(commits=False)
        producer._transactions._number = 1
        assert await producer._transactions.end(commits=True)


async def test_a_record_that_is_not_stored_aborts_it() -> None:
    async with running() as made, transactional(made, delivery_timeout_s=0.5) as producer:
        await producer.partitions("out")
        async with producer.transaction():
            await producer.send("out", b"opens the partition", partition=0)
        with pytest.raises(Exception, match="stored"):
            async with producer.transaction():
                await made.kill("b1")
                await made.kill("b2")
                await producer.enqueue("out", b"lost", partition=0)
        await made.start("b1", "b2")
        async with transactional(made) as again, Consumer(made.bootstrap, topics=["out"]) as consumer:
            async with again.transaction():
                await again.send("out", b"and on", partition=0)
            assert await values(consumer, 2) == [b"opens the partition", b"and on"]


async def test_outcomes_of_very_many_aborted_ones_are_found_in_their_blocks() -> None:
    count = 2 * ABORTED_KEPT_MAX + 3
    async with running() as made, transactional(made) as producer:
        for i in range(count):
            async with producer.transaction() as transaction:
                await producer.enqueue("out", str(i).encode(), partition=0)
                if i % 10 != 5:
                    transaction.abort()
        async with Consumer(made.bootstrap, topics=["out"]) as consumer:
            expected = [str(i).encode() for i in range(5, count, 10)]
            assert await values(consumer, len(expected)) == expected
        async with Producer(made.bootstrap, name="p") as reopened:
            del reopened
        async with Consumer(made.bootstrap, topics=["out"]) as consumer:
            assert await values(consumer, len(expected)) == expected


async def test_positions_and_records_are_committed_together_or_not_at_all() -> None:
    async with running() as made, transactional(made) as producer:
        async with Producer(made.bootstrap) as source:
            for i in range(6):
                await source.send("in", str(i).encode(), partition=0)
        async with member(made) as consumer, Consumer(made.bootstrap, topics=["out"]) as reader:
            with pytest.raises(ZeroDivisionError):
                async with producer.transaction(consumer):
                    for record in await consumer.fetch(4, timeout=5):
                        await producer.send("out", b"wrong " + (record.value or b""), partition=0)
                    raise ZeroDivisionError
            assert (await committed(made))[0] is None
            async with producer.transaction(consumer):
                records = await consumer.fetch(4, timeout=5)
                assert [record.offset for record in records] == [0, 1, 2, 3], "handed out again"
                for record in records:
                    await producer.send("out", b"right " + (record.value or b""), partition=0)
            assert (await committed(made))[0] == 4
            assert await values(reader, 4) == [b"right 0", b"right 1", b"right 2", b"right 3"]
        async with member(made) as consumer:
            assert [record.offset for record in await consumer.fetch(timeout=5)] == [4, 5]


async def test_a_transaction_of_a_member_that_was_given_up_is_aborted_before_its_partitions_go_on() -> None:
    async with running() as made, transactional(made) as producer:
        async with Producer(made.bootstrap) as source:
            await source.send("in", b"x", partition=0)
        async with member(made) as stalled:
            transaction = producer.transaction(stalled)
            await transaction.__aenter__()
            assert await stalled.fetch(timeout=5)
            await producer.send("out", b"from the stalled one", partition=0)
            assert transaction.name is not None
            assert stalled._group is not None
            await stalled.commit_in(transaction.name)
            stalled._group._end(GroupLostError("this process hangs"))  # it is heard of no more
            async with member(made) as second:
                records = await second.fetch(timeout=5)
                assert [record.offset for record in records] == [0], "begins before what was not committed"
                assert producer._transactions is not None
                assert not await producer._transactions.end(commits=True), "too late"
                async with transactional(made, "q") as other, other.transaction(second):
                    await other.send("out", b"from the second", partition=0)
        async with Consumer(made.bootstrap, topics=["out"]) as reader:
            assert await values(reader, 1) == [b"from the second"]
        assert (await committed(made))[0] == 1


async def test_a_committed_transaction_counts_though_its_member_is_gone_before_anybody_looked() -> None:
    async with running() as made, transactional(made) as producer:
        async with Producer(made.bootstrap) as source:
            await source.send("in", b"x", partition=0)
        consumer = member(made)
        async with consumer, producer.transaction(consumer):
            await consumer.fetch(timeout=5)
            await producer.send("out", b"y", partition=0)
        async with member(made) as second:
            assert not await second.fetch(timeout=0.5)
        assert (await committed(made))[0] == 1


async def test_who_lost_a_partition_in_the_transaction_cannot_commit_it() -> None:
    async with running() as made, transactional(made) as producer:
        async with Producer(made.bootstrap) as source:
            await source.send("in", b"x", partition=0)
        async with member(made) as consumer:
            with pytest.raises(GroupLostError):
                async with producer.transaction(consumer):
                    await consumer.fetch(timeout=5)
                    assert consumer._group is not None
                    place = ("in", 0)
                    consumer._group.membership.holds[place].since += 1  # lost, and got again meanwhile
            assert (await committed(made))[0] is None


@pytest.mark.parametrize("victim", ["b1", "b2", "b3"])
async def test_a_broker_that_is_killed_in_it_costs_nothing(victim: str) -> None:
    async with running() as made, transactional(made) as producer:
        async with producer.transaction():
            for i in range(3):
                await producer.send("out", str(i).encode(), partition=0)
            await made.kill(victim)
            for i in range(3, 6):
                await producer.send("out", str(i).encode(), partition=0)
        async with Consumer(made.bootstrap, topics=["out"]) as consumer:
            assert await values(consumer, 6) == [str(i).encode() for i in range(6)]


async def test_what_makes_no_sense_is_refused() -> None:
    async with running() as made:
        with pytest.raises(RefusedError):
            Producer(made.bootstrap, transactional=True)
        async with Producer(made.bootstrap, name="plain") as plain:
            with pytest.raises(RefusedError):
                plain.transaction()
        async with transactional(made) as producer, Consumer(made.bootstrap, topics=["in"]) as alone:
            with pytest.raises(RefusedError):
                async with producer.transaction(alone):
                    pass
            async with producer.transaction():
                with pytest.raises(RefusedError):
                    async with producer.transaction():
                        pass
                with pytest.raises(RefusedError):
                    await producer.send("out", b"x", partition=0, position=3)


def test_the_blocking_twins_have_transactions_with_positions() -> None:
    with thread_cluster(brokers=3) as made:
        for topic in ("in", "out"):
            made.create_topic(topic)
        with sync.Producer(made.bootstrap) as source:
            for i in range(6):
                source.send("in", str(i).encode())
        with (
            sync.Producer(made.bootstrap, name="p", transactional=True) as producer,
            sync_consumer.Consumer(made.bootstrap, topics=["in"], group="g", auto_commit=False) as consumer,
        ):
            with pytest.raises(ZeroDivisionError), producer.transaction(consumer):
                producer.send("out", next(iter(consumer)).value, partition=0)
                raise ZeroDivisionError
            with producer.transaction(consumer) as first:
                for record in consumer:  # iteration takes over more than it hands out
                    producer.enqueue("out", record.value, partition=0)
                    if record.offset == 2:
                        break
            assert first.name is not None
            with producer.transaction(consumer):
                for record in consumer.fetch(2, timeout=5):
                    producer.enqueue("out", record.value, partition=0)
            with producer.transaction(consumer) as given_up:
                for record in consumer.fetch(2, timeout=5):
                    producer.enqueue("out", record.value, partition=0)
                given_up.abort()
        with sync_consumer.Consumer(made.bootstrap, topics=["out"]) as reader:
            assert [record.value for record in reader.last(100)] == [b"0", b"1", b"2", b"3", b"4"]
            assert reader.stable("out", 0).offset == reader.tip("out", 0).high_watermark
            assert set(reader.stables()) == set(reader.ranges()) == {("out", 0)}
        with sync_consumer.Consumer(made.bootstrap, topics=["in"], group="g", auto_commit=False) as again:
            assert [record.value for record in again.fetch(timeout=5)] == [b"5"]


async def test_an_abort_while_a_partition_is_being_opened_again_leaves_nothing_out() -> None:
    """The session lapses in the transaction and is resumed; where to go on was settled before the abort said to begin again."""
    async with running() as made, transactional(made) as producer:
        await fill(made, 6)
        async with member(made) as consumer:
            assert consumer._group is not None
            with pytest.raises(ZeroDivisionError):
                async with producer.transaction(consumer):
                    assert [record.offset for record in await consumer.fetch(4, timeout=5)] == [0, 1, 2, 3]
                    view, is_opening, may_open = consumer._reading._view, trio.Event(), trio.Event()

                    async def slow_view(topic: str, index: int) -> PartitionView:
                        is_opening.set()
                        await may_open.wait()
                        return await view(topic, index)

                    consumer._reading._view = slow_view  # type: ignore[method-assign]
                    consumer._group._suspend()
                    await is_opening.wait()
                    raise ZeroDivisionError
            may_open.set()
            assert [record.offset for record in await consumer.fetch(timeout=5)] == [0, 1, 2, 3, 4, 5]


async def test_what_is_read_before_the_outcome_of_a_commit_is_known_belongs_to_the_next() -> None:
    """The answer to a commit is lost; the application reads on, as a loop does that reads first and then begins."""
    async with running() as made, transactional(made, delivery_timeout_s=0.5) as producer:
        await fill(made, 6)
        async with member(made) as consumer:
            request, is_lost = producer._cluster.request, True

            async def lossy(message: Message, kind: type[Message], **options: object) -> Message:
                answer = await request(message, kind, **options)  # type: ignore[arg-type]
                if isinstance(message, EndTransaction) and is_lost:
                    raise UnavailableError("the answer is lost", code="unavailable")
                return answer

            producer._cluster.request = lossy  # type: ignore[method-assign, assignment]
            with pytest.raises(UnknownOutcomeError):
                async with producer.transaction(consumer):
                    assert [record.offset for record in await consumer.fetch(2, timeout=5)] == [0, 1]
            is_lost = False
            assert [record.offset for record in await consumer.fetch(2, timeout=5)] == [2, 3]
            with pytest.raises(ZeroDivisionError):
                async with producer.transaction(consumer):
                    raise ZeroDivisionError
            assert (await committed(made))[0] == 2
            assert [record.offset for record in await consumer.fetch(2, timeout=5)] == [2, 3], "handed out again"
            async with producer.transaction(consumer):
                pass
            assert (await committed(made))[0] == 4


async def test_a_partition_that_was_lost_and_got_again_in_it_is_begun_again_after_the_abort() -> None:
    async with running() as made, transactional(made) as producer:
        await fill(made, 6)
        async with member(made) as consumer:
            with pytest.raises(GroupLostError):
                async with producer.transaction(consumer):
                    assert [record.offset for record in await consumer.fetch(4, timeout=5)] == [0, 1, 2, 3]
                    await let_go(consumer, "in", 0)
                    assert [record.offset for record in await consumer.fetch(4, timeout=5)] == [0, 1, 2, 3]
            async with producer.transaction(consumer):
                assert [record.offset for record in await consumer.fetch(timeout=5)] == [0, 1, 2, 3, 4, 5]
            assert (await committed(made))[0] == 6


async def test_a_partition_of_which_nothing_was_handed_out_may_be_lost_in_it() -> None:
    """Of the batch that iteration is in the middle of, the rest is the next transaction's only if anything of it is handed out."""
    async with running() as made, transactional(made) as producer:
        async with Producer(made.bootstrap) as source:
            await source.enqueue_many("in", [b"0", b"1"], partition=0)
            await source.flush()
        async with member(made) as consumer:
            records = aiter(consumer)
            async with producer.transaction(consumer):
                assert (await anext(records)).offset == 0
            async with producer.transaction(consumer):
                await let_go(consumer, "in", 0)
            async with producer.transaction(consumer):
                assert (await anext(records)).offset == 1
            assert (await committed(made))[0] == 2


async def let_go(consumer: Consumer, topic: str, partition: int) -> None:
    """As a member does that has a partition wanted back for too long; here it gets it again."""
    assert consumer._group is not None
    hold = consumer._group.membership.holds[topic, partition]
    consumer._group._close([((topic, partition), hold)])
    hold.is_open, hold.is_released = False, True
    await consumer._group._commit({})
    while (topic, partition) not in consumer.partitions:
        await anyio.sleep(0.01)


async def test_a_consumer_that_was_not_told_the_outcome_goes_on_with_no_other_producer() -> None:
    """Its next place depends on the outcome: behind what it was handed, or before it."""
    async with running() as made, transactional(made, delivery_timeout_s=0.3) as producer:
        await fill(made, 4)
        async with member(made) as consumer:

            async def cut_off(*_: object) -> Message:
                raise UnavailableError("no broker can be reached", code="unavailable")

            with pytest.raises(UnknownOutcomeError):
                async with producer.transaction(consumer):
                    assert [record.offset for record in await consumer.fetch(2, timeout=5)] == [0, 1]
                    await producer.flush()
                    producer._cluster.request = cut_off  # type: ignore[method-assign, assignment]
            async with transactional(made) as reopened:
                with pytest.raises(GroupLostError):
                    async with reopened.transaction(consumer):
                        assert [record.offset for record in await consumer.fetch(2, timeout=5)] == [2, 3]
            with pytest.raises(GroupLostError):
                await consumer.fetch(timeout=0.1)
        assert (await committed(made))[0] is None
        async with member(made) as again:
            assert [record.offset for record in await again.fetch(timeout=5)] == [0, 1, 2, 3]


async def test_a_partition_that_is_wanted_back_is_not_kept_for_a_transaction_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "PARTING_S_MAX", 0.6)
    async with running() as made, transactional(made) as producer:
        async with Producer(made.bootstrap) as source:
            for partition in range(PARTITIONS):
                await source.send("in", b"x", partition=partition)
        async with member(made) as consumer:
            with pytest.raises(GroupLostError):
                async with producer.transaction(consumer):
                    handed_out = 0
                    while handed_out < PARTITIONS:
                        handed_out += len(await consumer.fetch(timeout=1))
                    async with member(made) as second:
                        with trio.fail_after(5):
                            while not await second.fetch(timeout=0.1):
                                await consumer.fetch(timeout=0.1)


def test_the_blocking_twin_gives_nothing_back_to_a_partition_that_was_lost_and_got_again() -> None:
    with thread_cluster(brokers=3) as made:
        for topic in ("in", "out"):
            made.create_topic(topic)
        with sync.Producer(made.bootstrap) as source:
            source.enqueue_many("in", [b"%d" % i for i in range(6)])
        with (
            sync.Producer(made.bootstrap, name="p", transactional=True) as producer,
            sync_consumer.Consumer(made.bootstrap, topics=["in"], group="g", auto_commit=False, session_s=1.0) as consumer,
        ):
            assert next(iter(consumer)).offset == 0
            consumer._open.call(let_go, consumer._consumer, "in", 0)
            with pytest.raises(GroupLostError), producer.transaction(consumer):
                pass  # offset 0 may be another's
            with producer.transaction(consumer):
                assert [record.offset for record in consumer.fetch(timeout=5)] == [0, 1, 2, 3, 4, 5]


async def test_who_turns_out_to_be_fenced_reads_again_what_may_have_been_committed() -> None:
    """The commit never arrived, another of the name was opened: the same consumer goes on with another producer."""
    async with running() as made, transactional(made, delivery_timeout_s=0.3) as producer:
        async with Producer(made.bootstrap) as source:
            for i in range(3):
                await source.send("in", str(i).encode(), partition=0)
        async with member(made) as consumer:
            plain = producer._cluster.request

            async def unheard(*given: object, **more: object) -> object:
                raise UnknownOutcomeError("it may have arrived", code="unknown_outcome")

            with pytest.raises(UnknownOutcomeError):
                async with producer.transaction(consumer):
                    assert len(await consumer.fetch(timeout=5)) == 3
                    producer._cluster.request = unheard  # type: ignore[method-assign, assignment]
            producer._cluster.request = plain  # type: ignore[method-assign]
            async with transactional(made) as successor:
                with pytest.raises(FencedError):
                    async with producer.transaction(consumer):
                        pass
                async with successor.transaction(consumer):
                    assert [record.offset for record in await consumer.fetch(timeout=5)] == [0, 1, 2], "handed out again"
