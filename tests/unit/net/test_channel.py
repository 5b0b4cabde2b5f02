"""Frames arrive whole and in order however they are written; answers find their requests; what is not read is bounded."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.lowlevel
import trio.testing

from streamq.model.errors import ProtocolError, StreamqError
from streamq.model.messages import Credit, Failure, Metadata, OffsetFound, Ok, Produce
from streamq.net.budget import ByteBudget
from streamq.net.channel import CHANNEL_QUEUE_BYTES_MAX, Channel, ChannelClosedError
from streamq.wire.framing import Frame, encode_frame


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    accepted: list[trio.SocketStream] = []

    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            accepted.append(await listeners[0].accept())

        nursery.start_soon(accept)
        near = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
    await listeners[0].aclose()
    return near, accepted[0]


@asynccontextmanager
async def channels(
    deliver: Callable[[Channel, Frame], None], *, budget: ByteBudget | None = None
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two ends; `deliver` takes what arrives at the second."""
    near_stream, far_stream = await socket_pair()
    near, far = Channel(near_stream, name="near"), Channel(far_stream, name="far")
    async with trio.open_nursery() as nursery:

        async def run(channel: Channel, take: Callable[[Frame], None]) -> None:
            with suppress(ProtocolError):
                await channel.run(take, after_chunk=lambda: None, gate=lambda: None, budget=budget)

        nursery.start_soon(run, near, lambda frame: None)
        nursery.start_soon(run, far, lambda frame: deliver(far, frame))
        yield near, far
        nursery.cancel_scope.cancel()


async def test_frames_arrive_in_order_whether_sent_gathered_or_pushed() -> None:
    received: list[Frame] = []
    async with channels(lambda channel, frame: received.append(frame)) as (near, _):
        for i in range(300):
            payload = bytes([i % 256]) * (i * 37 % 5_000)
            if i % 3:
                near.gather(Produce((i,)), payload=[payload])
                if i % 3 == 2:
                    near.push()
            else:
                near.send(Produce((i,)), payload=[payload])
            if i % 50 == 0:
                await trio.lowlevel.checkpoint()
        near.push()
        with trio.fail_after(5):
            while len(received) < 300:
                await trio.sleep(0.001)
    assert [frame.message for frame in received] == [Produce((i,)) for i in range(300)]
    assert all(frame.payload == bytes([i % 256]) * (i * 37 % 5_000) for i, frame in enumerate(received))


async def test_a_push_into_a_full_socket_loses_and_reorders_nothing() -> None:
    received: list[Frame] = []
    async with channels(lambda channel, frame: received.append(frame)) as (near, _):
        for i in range(2_000):  # far more than the socket's buffers take, without giving the reader a turn
            near.gather(Produce((i,)), payload=[b"x" * 6_000])
            near.push()
        with trio.fail_after(10):
            await near.drain(1)
            while len(received) < 2_000:
                await trio.sleep(0.001)
    assert [frame.message for frame in received] == [Produce((i,)) for i in range(2_000)]
    assert near.queued_bytes == 0


async def test_answers_find_their_requests_in_any_order() -> None:
    waiting: list[Frame] = []

    def deliver(channel: Channel, frame: Frame) -> None:
        waiting.append(frame)
        if len(waiting) == 10:
            for each in reversed(waiting):
                assert isinstance(each.message, Metadata)
                channel.send(OffsetFound(int(each.message.topics[0])), request=each.request, is_answer=True)

    answers: dict[int, int] = {}
    async with channels(deliver) as (near, _), trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            answer = (await near.request(Metadata((str(number),)), timeout_s=5)).message
            assert isinstance(answer, OffsetFound)
            answers[number] = answer.offset

        for i in range(10):
            nursery.start_soon(ask, i)
    assert answers == {i: i for i in range(10)}


async def test_a_failure_is_raised_a_timeout_says_who_and_a_late_answer_is_dropped() -> None:
    asked: list[Frame] = []

    def deliver(channel: Channel, frame: Frame) -> None:
        asked.append(frame)
        if isinstance(frame.message, Metadata):
            channel.send(Failure("busy", "later"), request=frame.request, is_answer=True)

    async with channels(deliver) as (near, far):
        with pytest.raises(StreamqError) as busy:
            await near.request(Metadata(()), timeout_s=5)
        assert busy.value.code == "busy"
        with pytest.raises(StreamqError) as late:
            await near.request(Credit(1), timeout_s=0.05)
        assert late.value.code == "timed_out"
        assert "near" in late.value.message
        far.send(Ok(), request=asked[-1].request, is_answer=True)
        await trio.sleep(0.02)
        assert not near.is_closed


async def test_a_closed_connection_wakes_everybody_who_waits_for_an_answer() -> None:
    async with channels(lambda channel, frame: channel.close("enough")) as (near, _):
        with pytest.raises(ChannelClosedError):
            await near.request(Metadata(()), timeout_s=5)
        with pytest.raises(ChannelClosedError):
            await near.request(Metadata(()), timeout_s=5)
        near.send(Ok())
        near.push()
        assert near.queued_bytes == 0


async def test_a_peer_that_does_not_read_is_cut_off_at_the_bound() -> None:
    near_stream, _far_stream = await socket_pair()
    near = Channel(near_stream, name="near")
    for _ in range(CHANNEL_QUEUE_BYTES_MAX // (4 << 20) + 1):
        near.send(Ok(), payload=[bytes(4 << 20)])
    assert near.is_closed
    assert "does not read" in near.reason
    assert near.queued_bytes == 0


async def test_garbage_ends_the_channel_with_a_protocol_error() -> None:
    near_stream, far_stream = await socket_pair()
    far = Channel(far_stream, name="far")
    await near_stream.send_all(b"\xff" * 100)
    with pytest.raises(ProtocolError):
        await far.run(lambda frame: None, after_chunk=lambda: None, gate=lambda: None)
    assert far.is_closed


async def test_a_large_frame_waits_for_its_share_of_the_budget() -> None:
    budget = ByteBudget(1 << 20)
    received: list[Frame] = []
    async with channels(lambda channel, frame: received.append(frame), budget=budget) as (near, _):
        held = await budget.acquire(1 << 20)
        near.send(Ok(), payload=[bytes(700_000)])
        await trio.sleep(0.1)
        assert received == []
        budget.release(held)
        with trio.fail_after(5):
            while not received:
                await trio.sleep(0.001)
    assert budget.free == budget.total


async def test_the_budget_gives_no_more_than_it_has_and_loses_nothing_to_cancellation() -> None:
    budget = ByteBudget(100)
    first = await budget.acquire(80)
    with trio.move_on_after(0.01):
        await budget.acquire(30)
    assert budget.free == 20
    budget.release(first)
    assert await budget.acquire(500) == 100
    assert budget.free == 0


async def test_frames_are_never_torn_by_a_reader_that_starts_in_the_middle() -> None:
    """What came with the handshake belongs to the channel too."""
    from streamq.wire.framing import FrameReader

    near_stream, far_stream = await socket_pair()
    frame = b"".join(encode_frame(Metadata(("whole",))))
    reader = FrameReader()
    assert list(reader.feed(frame[:13])) == []
    received: list[Frame] = []
    far = Channel(far_stream, name="far", reader=reader)
    await near_stream.send_all(frame[13:])
    await near_stream.aclose()
    await far.run(received.append, after_chunk=lambda: None, gate=lambda: None)
    assert [each.message for each in received] == [Metadata(("whole",))]


async def test_an_empty_part_of_a_payload_is_not_tried_to_be_sent_for_ever() -> None:
    """A client may store a batch whose payload is empty; nobody may be kept busy by it."""
    received: list[Frame] = []
    async with channels(lambda channel, frame: received.append(frame)) as (near, _):
        near.gather(Produce((1,)), payload=[b"head", b""])
        near.push()
        assert near.queued_bytes == 0
        near.send(Produce((2,)), payload=[b""])
        with trio.fail_after(5):
            while len(received) < 2:
                await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked()
    assert [frame.payload for frame in received] == [b"head", b""]
