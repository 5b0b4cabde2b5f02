"""Groups on brokers, by the wire: where a coordinator is, who is heard, what is fenced, and what a coordinator's death costs."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.model.errors import GroupLostError, NotCoordinatorError, StreamqError
from streamq.model.groups import Entry
from streamq.model.messages import (
    AnyMessage,
    Attend,
    CommitPositions,
    Committed,
    CreateTopic,
    DeleteGroup,
    GroupPosition,
    GroupRead,
    Groups,
    GroupView,
    JoinGroup,
    LeaveGroup,
    ListGroups,
    Message,
    Ok,
    PlaceGroup,
    ReadGroup,
)
from streamq.testing.in_process import ClusterInProcess, cluster
from tests.broker.wire_client import wire_client

SESSION_MS = 1_000


@asynccontextmanager
async def with_topic(partitions: int = 4) -> AsyncIterator[ClusterInProcess]:
    async with cluster(3) as running:
        await ask(running, CreateTopic("t", partitions, 3, 2, 2, "fsync"))
        yield running


async def ask(running: ClusterInProcess, message: Message, broker: str = "") -> AnyMessage:
    """Of whichever broker it takes; raises what the broker refuses with."""
    names = [broker] if broker else [name for name, each in running.brokers.items() if each.is_running]
    with trio.fail_after(10):
        while True:
            for name in names:
                caught: StreamqError | None = None
                try:
                    async with wire_client(running.brokers[name].config.address) as client:
                        try:
                            return await client.ask(message)
                        except StreamqError as error:
                            caught = error
                except OSError:
                    continue
                assert caught is not None
                if isinstance(caught, NotCoordinatorError):
                    names = [caught.coordinator, *names]
                elif caught.code not in ("not_ready", "unavailable", "timed_out"):
                    raise caught
            await trio.sleep(0.02)


async def code_of(running: ClusterInProcess, message: Message) -> str:
    with pytest.raises(StreamqError) as refused:
        await ask(running, message)
    return refused.value.code


async def join(running: ClusterInProcess, token: bytes, member: str = "", session_ms: int = SESSION_MS) -> GroupView:
    view = await ask(running, JoinGroup("g", token, member, ("t",), session_ms))
    assert isinstance(view, GroupView)
    return view


async def coordinator(running: ClusterInProcess) -> str:
    register = await ask(running, ReadGroup("g"))
    assert isinstance(register, GroupRead)
    return register.register.coordinator


def indexes(view: GroupView, *, leaving: bool = False) -> set[int]:
    return {held.partition for topic in view.held for held in topic.partitions if held.is_leaving == leaving}


def since(view: GroupView, index: int) -> int:
    return next(held.since for topic in view.held for held in topic.partitions if held.partition == index)


async def test_a_partition_moves_when_it_is_let_go_of_and_its_position_goes_with_it() -> None:
    a, b = os.urandom(16), os.urandom(16)
    async with with_topic() as running:
        assert indexes(await join(running, a)) == {0, 1, 2, 3}
        assert indexes(await join(running, b)) == set()
        view = await ask(running, Attend("g", a, 0, 0))
        assert isinstance(view, GroupView)
        gone = indexes(view, leaving=True)
        assert len(gone) == 2
        done = await ask(running, CommitPositions("g", a, tuple(Entry("t", i, since(view, i), 7, True) for i in gone)))
        assert done == Committed(())
        got = await ask(running, Attend("g", b, 0, 0))
        assert isinstance(got, GroupView)
        assert indexes(got) == gone
        assert {held.position for topic in got.held for held in topic.partitions} == {7}


async def test_who_keeps_what_it_has_is_not_disturbed_by_who_comes_and_goes() -> None:
    """Or each of many members would ask anew at each of many joins."""
    a, b, idle = (os.urandom(16) for _ in range(3))
    async with with_topic(partitions=1) as running:
        await join(running, a, session_ms=30_000)
        view = await join(running, b, session_ms=30_000)
        answers: list[GroupView] = []

        async def attend() -> None:
            told = await ask(running, Attend("g", a, view.generation, 20_000))
            assert isinstance(told, GroupView)
            answers.append(told)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend)
            for _ in range(3):
                await join(running, idle, session_ms=30_000)
                await ask(running, LeaveGroup("g", idle, ()))
            assert answers == []
            held = await join(running, a, session_ms=30_000)
            done = await ask(running, CommitPositions("g", a, (Entry("t", 0, since(held, 0), 3, True),)))
            assert done == Committed(())
            with trio.fail_after(2):
                while not answers:
                    await trio.sleep(0.01)
        assert answers[0].generation > view.generation


async def test_news_come_at_once_to_who_waits_for_them() -> None:
    a, b = os.urandom(16), os.urandom(16)
    async with with_topic() as running:
        view = await join(running, a)
        took = 0.0

        async def wait() -> None:
            nonlocal took
            began = trio.current_time()
            await ask(running, Attend("g", a, view.generation, 5_000))
            took = trio.current_time() - began

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.1)
            await join(running, b)
        assert took < 3


async def test_who_is_not_heard_of_loses_all_and_is_told() -> None:
    a, b = os.urandom(16), os.urandom(16)
    async with with_topic() as running:
        view = await join(running, a)
        await join(running, b, session_ms=60_000)
        with trio.fail_after(5):
            while True:
                got = await ask(running, Attend("g", b, 0, 100))
                assert isinstance(got, GroupView)
                if len(indexes(got)) == 4:
                    break
        with pytest.raises(GroupLostError) as lost:
            await ask(running, CommitPositions("g", a, (Entry("t", 0, since(view, 0), 9),)))
        assert lost.value.hint


async def test_the_death_of_the_coordinator_costs_nobody_its_partitions() -> None:
    a = os.urandom(16)
    async with with_topic() as running:
        view = await join(running, a, session_ms=3_000)
        await ask(running, CommitPositions("g", a, (Entry("t", 1, since(view, 1), 41),)))
        dead = await coordinator(running)
        await running.kill(dead)
        with trio.fail_after(3):
            after = await ask(running, Attend("g", a, 0, 0))
        assert isinstance(after, GroupView)
        assert after == GroupView(view.generation, after.held), "nothing but the coordinator changed"
        assert indexes(after) == {0, 1, 2, 3}
        assert await coordinator(running) != dead
        assert await ask(running, CommitPositions("g", a, (Entry("t", 1, since(view, 1), 42),))) == Committed(())


async def test_a_restarted_static_member_has_what_it_had_and_its_former_self_is_out() -> None:
    a, b, again = os.urandom(16), os.urandom(16), os.urandom(16)
    async with with_topic() as running:
        await join(running, b, session_ms=60_000)
        await join(running, a, "static", session_ms=60_000)
        view = await ask(running, Attend("g", b, 0, 0))
        assert isinstance(view, GroupView)
        await ask(running, CommitPositions("g", b, tuple(Entry("t", i, since(view, i), None, True) for i in indexes(view, leaving=True))))
        had = await ask(running, Attend("g", a, 0, 0))
        assert isinstance(had, GroupView)
        assert indexes(await join(running, again, "static")) == indexes(had) != set()
        with pytest.raises(GroupLostError):
            await ask(running, Attend("g", a, 0, 0))


async def test_positions_outlive_the_members_and_are_set_only_without_any() -> None:
    a = os.urandom(16)
    async with with_topic() as running:
        view = await join(running, a)
        placing = PlaceGroup("g", (GroupPosition("t", 0, 3),))
        assert await code_of(running, placing) == "group_in_use"
        assert await ask(running, LeaveGroup("g", a, (Entry("t", 0, since(view, 0), 9),))) == Ok()
        read = await ask(running, ReadGroup("g"))
        assert isinstance(read, GroupRead)
        partition = read.register.partition("t", 0)
        assert partition is not None
        assert partition.position == 9
        assert not read.register.members
        placed = await ask(running, placing)
        assert isinstance(placed, GroupRead)
        partition = placed.register.partition("t", 0)
        assert partition is not None
        assert partition.position == 3
        assert await ask(running, ListGroups()) == Groups(("g",))
        assert await ask(running, DeleteGroup("g")) == Ok()
        assert await ask(running, ListGroups()) == Groups(())
        assert await code_of(running, ReadGroup("g")) == "unknown_group"
        assert indexes(await join(running, os.urandom(16))) == {0, 1, 2, 3}


async def test_bad_questions_are_refused_and_make_no_group() -> None:
    async with with_topic() as running:
        for message, code in [
            (JoinGroup("no/good", os.urandom(16), "", ("t",), SESSION_MS), "bad_name"),
            (JoinGroup("g", os.urandom(16), "", ("t", "t"), SESSION_MS), "bad_request"),
            (JoinGroup("h", os.urandom(16), "", ("nowhere",), SESSION_MS), "unknown_topic"),
            (Attend("k", os.urandom(16), 0, 0), "unknown_group"),
            (LeaveGroup("k", os.urandom(16), ()), "unknown_group"),
            (PlaceGroup("k", (GroupPosition("t", 9, 1),)), "unknown_partition"),
        ]:
            assert await code_of(running, message) == code, message
        assert await ask(running, ListGroups()) == Groups(())
