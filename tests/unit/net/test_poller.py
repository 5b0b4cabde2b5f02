"""What is readable when a pass begins is read in it, and what it leads to ends with the pass; a socket that fails harms no other."""

import pytest
import trio
import trio.testing

from streamq.model.errors import ProtocolError
from streamq.model.messages import Produce
from streamq.net.channel import Channel
from streamq.net.poller import Poller
from streamq.wire.framing import Frame, encode_frame
from tests.unit.net.test_channel import socket_pair


async def test_sockets_that_are_readable_at_once_are_read_in_one_pass_and_a_broken_one_ends_alone() -> None:
    read: list[str] = []
    passes: list[list[str]] = []

    def after_pass() -> None:
        passes.append(read.copy())
        read.clear()

    poller = Poller(after_pass)
    broken: list[str] = []
    async with trio.open_nursery() as nursery:

        async def run(name: str, channel: Channel) -> None:
            def take(frame: Frame) -> None:
                read.append(name)

            try:
                await channel.run(take, after_chunk=lambda: pytest.fail("the pass has a step of its own"), gate=lambda: None, poller=poller)
            except ProtocolError:
                broken.append(name)

        pairs = [await socket_pair() for _ in range(3)]
        for number, (_, far) in enumerate(pairs):
            nursery.start_soon(run, str(number), Channel(far, name=str(number)))
        await trio.testing.wait_all_tasks_blocked()
        frame = b"".join(encode_frame(Produce((1,)), payload=[b"x" * 300_000]))
        small = b"".join(encode_frame(Produce((1,))))
        for near, _ in pairs:
            await near.send_all(small)
        nursery.start_soon(poller.run)
        with trio.fail_after(5):
            while not passes:
                await trio.sleep(0.001)
            assert sorted(passes[0]) == ["0", "1", "2"]
            await pairs[0][0].send_all(b"\xff" * 100)
            while broken != ["0"]:
                await trio.sleep(0.001)
            await pairs[1][0].send_all(frame)
            while ["1"] not in passes:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
