"""Consumers in groups, in a cluster in this process: who reads what, what comes again, and what never does."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.model.errors import GroupLostError, RefusedError, StreamqError
from streamq.model.messages import CreateTopic, GroupRead, ReadGroup, TopicCreated
from streamq.testing.in_process import ClusterInProcess, cluster
from streamq_consumer import Consumer, Record
from streamq_producer import Producer

PARTITIONS = 4
RECORDS = 40


@asynccontextmanager
async def filled(records: int = RECORDS) -> AsyncIterator[ClusterInProcess]:
    async with cluster(3) as running:
        async with Producer(running.bootstrap) as producer:
            await producer._cluster.request(CreateTopic("t", PARTITIONS, 3, 2, 2, "fsync"), TopicCreated)
            for i in range(records):
                await producer.send("t", str(i).encode(), partition=i % PARTITIONS)
        yield running


def member(running: ClusterInProcess, **options: object) -> Consumer:
    options = {"session_s": 2.0, "commit_interval_s": 0.05, **options}
    return Consumer(running.bootstrap, topics=["t"], group="g", **options)  # type: ignore[arg-type]


async def read(consumer: Consumer, count: int, timeout_s: float = 5) -> list[Record]:
    records: list[Record] = []
    with trio.fail_after(timeout_s):
        async for record in consumer:
            records.append(record)
            if len(records) == count:
                break
    return records


async def positions(running: ClusterInProcess) -> dict[int, int | None]:
    async with Producer(running.bootstrap) as anybody:
        told = await anybody._cluster.request(ReadGroup("g"), GroupRead)
    topic = told.register.topic("t")
    assert topic is not None
    return {index: partition.position for index, partition in enumerate(topic.partitions)}


async def until(condition: object, timeout_s: float = 5) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.01)


async def test_one_after_the_other_goes_on_where_the_last_one_stopped() -> None:
    async with filled() as running:
        async with member(running) as first:
            begun = await read(first, 15)
        async with member(running) as second:
            rest = await read(second, RECORDS - 15)
        assert Counter(r.value for r in begun + rest) == Counter(str(i).encode() for i in range(RECORDS))
        assert sum(p or 0 for p in (await positions(running)).values()) == RECORDS


async def test_one_address_of_any_broker_is_enough() -> None:
    async with filled() as running:
        for name, broker in running.brokers.items():
            async with Consumer("{}:{}".format(*broker.config.address), topics=["t"], group=f"by-{name}") as consumer:
                assert len(await read(consumer, RECORDS)) == RECORDS


async def test_what_was_in_hand_when_the_block_failed_comes_again_and_only_that() -> None:
    async with filled() as running:
        handled: list[Record] = []

        async def fail_at_the_eighth() -> None:
            async with member(running) as first:
                async for record in first:
                    if len(handled) == 7:
                        raise ZeroDivisionError
                    handled.append(record)

        with pytest.raises(ZeroDivisionError):
            await fail_at_the_eighth()
        async with member(running) as second:
            rest = await read(second, RECORDS - 7)
        assert Counter(r.value for r in handled + rest) == Counter(str(i).encode() for i in range(RECORDS))


async def test_two_share_and_one_takes_all_when_the_other_leaves() -> None:
    async with filled(0) as running, Producer(running.bootstrap) as producer, member(running) as first:
        async with member(running) as second:

            async def drive(consumer: Consumer) -> None:
                while len(consumer.partitions) != PARTITIONS // 2:
                    assert await consumer.fetch(timeout=0.02) == []

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(drive, first)
                    nursery.start_soon(drive, second)
            assert not set(first.partitions) & set(second.partitions)
            for i in range(PARTITIONS):
                await producer.send("t", b"x", partition=i)
            got = await read(first, 2) + await read(second, 2)
            assert {r.partition for r in got} == set(range(PARTITIONS))
        began = trio.current_time()
        await until(lambda: len(first.partitions) == PARTITIONS)
        assert trio.current_time() - began < 1
        for i in range(PARTITIONS):
            await producer.send("t", b"y", partition=i)
        assert {(r.partition, r.value) for r in await read(first, 4)} == {(i, b"y") for i in range(PARTITIONS)}


async def test_a_partition_is_let_go_of_only_when_what_is_in_hand_is_handled() -> None:
    async with filled() as running, member(running) as first:
        records = await first.fetch(RECORDS)
        while len(records) < RECORDS:
            records += await first.fetch(RECORDS)
        # All of the last fetch is in hand, and everything before is handled.
        async with member(running) as second:
            with trio.move_on_after(0.3):
                await second.fetch(timeout=10)
            in_hand = {r.partition for r in records[-5:]}
            assert not {place[1] for place in second.partitions} & in_hand
            assert await first.fetch(timeout=0.01) == []
            await until(lambda: len(second.partitions) == PARTITIONS // 2)
            assert await second.fetch(timeout=0.1) == [], "what was handled is not handed out again"


async def test_the_death_of_any_broker_loses_no_member_and_no_position() -> None:
    for index in range(3):
        async with filled() as running, member(running) as consumer:
            begun = await read(consumer, 10)
            await running.kill(f"b{index + 1}")
            rest = await read(consumer, RECORDS - 10)
            assert Counter(r.value for r in begun + rest) == Counter(str(i).encode() for i in range(RECORDS))
            assert await consumer.fetch(timeout=0.01) == []
            await consumer.commit()
            assert sum(p or 0 for p in (await positions(running)).values()) == RECORDS


async def test_without_automatic_commits_only_what_was_committed_is_not_repeated() -> None:
    async with filled() as running:
        async with member(running, auto_commit=False) as first:
            begun = await read(first, 8)
            await first.commit()
            await read(first, 8)
        async with member(running) as second:
            rest = await read(second, RECORDS - 8)
            assert await second.fetch(timeout=0.05) == []
        assert Counter(r.value for r in begun + rest) == Counter(str(i).encode() for i in range(RECORDS))


@pytest.mark.parametrize("position", [-1, 1 << 63])
async def test_a_position_that_is_none_is_refused_and_the_member_goes_on(position: int) -> None:
    async with filled() as running, member(running) as consumer:
        await read(consumer, 1)
        with trio.fail_after(5), pytest.raises(StreamqError) as refused:
            await consumer.commit({consumer.partitions[0]: position})
        assert refused.value.code == "bad_request"
        assert len(await read(consumer, RECORDS - 1)) == RECORDS - 1


async def test_a_member_that_was_given_up_says_so_and_commits_nothing() -> None:
    async with filled() as running, member(running, session_s=1.0) as first:
        await read(first, 8)
        assert first._group is not None
        ask, is_back = first._group._ask, trio.Event()

        async def held_up(*args: object, **named: object) -> object:
            await is_back.wait()
            return await ask(*args, **named)  # type: ignore[arg-type]

        first._group._ask = held_up  # type: ignore[method-assign, assignment]
        async with member(running) as second:
            assert len(await read(second, RECORDS, timeout_s=8)) == RECORDS
        assert not first._group.may_hand_out(), "it is silent before the others take over"
        is_back.set()
        with pytest.raises(GroupLostError) as lost:
            await first.commit()
        assert lost.value.hint
        with pytest.raises(GroupLostError):
            await read(first, 1)


async def test_who_hangs_gives_its_partitions_up() -> None:
    async with filled() as running, member(running, session_s=1.0, processing_s=0.3) as hung:
        await read(hung, 1)
        async with member(running) as second:
            assert len(await read(second, RECORDS)) == RECORDS
        with pytest.raises(GroupLostError, match="not handled"):
            await hung.fetch()


async def test_the_newest_of_the_same_name_counts() -> None:
    async with filled() as running, member(running, member_name="one") as first, member(running, member_name="one") as second:
        assert len(await read(second, RECORDS)) == RECORDS
        with pytest.raises(GroupLostError):
            await read(first, 1)


async def test_groups_know_nothing_of_each_other() -> None:
    async with filled() as running:
        async with member(running) as mine:
            await read(mine, RECORDS)
        async with Consumer(running.bootstrap, topics=["t"], group="other") as others:
            await read(others, RECORDS)
        async with Consumer(running.bootstrap, topics=["t"], group="new", start="latest") as late:
            assert await late.fetch(timeout=0.1) == []


@pytest.mark.parametrize(
    "options",
    [
        {"group": ""},
        {"group": "g" * 300},
        {"group": "g", "member_name": "m" * 300},
        {"group": "g", "partitions": [0]},
        {"group": "g", "broker": "b1"},
        {"group": "g", "start": 5},
        {"group": "g", "session_s": 0.1},
        {"session_s": 5.0},
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(StreamqError) as refused:
        Consumer("127.0.0.1:1", topics=["t"], **options)  # type: ignore[arg-type]
    assert refused.value.exit_code == 2


class Told:
    """Notes what is assigned and revoked, and that they take turns."""

    def __init__(self) -> None:
        self.has: set[tuple[str, int]] = set()
        self.assigned: list[list[tuple[str, int]]] = []
        self.revoked: list[list[tuple[str, int]]] = []

    def on_assigned(self, places: list[tuple[str, int]]) -> None:
        assert places
        assert not self.has & set(places)
        self.has |= set(places)
        self.assigned.append(places)

    def on_revoked(self, places: list[tuple[str, int]]) -> None:
        assert places
        assert self.has >= set(places)
        self.has -= set(places)
        self.revoked.append(places)


async def test_what_comes_and_goes_is_told() -> None:
    everything = {("t", index) for index in range(PARTITIONS)}
    one, other = Told(), Told()
    async with filled() as running:
        async with member(running, on_assigned=one.on_assigned, on_revoked=one.on_revoked) as first:
            await read(first, RECORDS)
            assert one.has == everything == set(first.partitions)
            assert one.revoked == []
            async with member(running, on_assigned=other.on_assigned, on_revoked=other.on_revoked):
                with trio.fail_after(5):
                    while len(other.has) < PARTITIONS // 2:
                        await first.fetch(timeout=0.01)
                assert one.has | other.has == everything
                assert not one.has & other.has
            assert other.has == set()
            await until(lambda: one.has == everything)
        assert one.has == set()
        assert sum(map(len, one.assigned)) == sum(map(len, one.revoked)) == PARTITIONS + PARTITIONS // 2


async def test_a_partition_is_assigned_before_anything_of_it_is_handed_out_and_may_be_sought_in() -> None:
    told = Told()
    async with filled() as running:

        def on_assigned(places: list[tuple[str, int]]) -> None:
            told.on_assigned(places)
            for place in places:
                assert consumer.position(*place) == 0
                consumer.seek(*place, 7)

        consumer = member(running, on_assigned=on_assigned)
        async with consumer:
            records = await read(consumer, 3 * PARTITIONS)
        assert {(r.partition, r.offset) for r in records} == {(index, offset) for index in range(PARTITIONS) for offset in (7, 8, 9)}


async def test_what_is_lost_with_the_membership_is_told() -> None:
    told = Told()
    async with filled() as running, member(running, on_revoked=told.on_revoked, on_assigned=told.on_assigned, member_name="m") as first:
        await until(lambda: len(told.has) == PARTITIONS)
        async with member(running, member_name="m"):
            await until(lambda: not told.has)
            with pytest.raises(GroupLostError):
                await first.fetch()
    assert [len(places) for places in told.revoked] == [PARTITIONS]


async def test_what_a_listener_raises_ends_the_block() -> None:
    def fail(places: list[tuple[str, int]]) -> None:
        raise ZeroDivisionError

    async with filled() as running:
        with pytest.raises(ZeroDivisionError):
            async with member(running, on_assigned=fail) as consumer:
                await read(consumer, RECORDS)
        with pytest.raises(ZeroDivisionError):
            async with member(running, on_revoked=fail) as consumer:
                await read(consumer, RECORDS)


@pytest.mark.parametrize("name", ["on_assigned", "on_revoked"])
def test_only_members_of_a_group_are_told(name: str) -> None:
    with pytest.raises(RefusedError):
        Consumer("nowhere:1", topics=["t"], **{name: print})  # type: ignore[arg-type]
