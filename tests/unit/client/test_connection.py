"""One connection against a broker that behaves, one that goes silent, one that breaks the protocol, and one that is none."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from streamq.client.connection import connect, dial
from streamq.client.host import THIS_MACHINE
from streamq.client.settings import Address, Timeouts
from streamq.model.errors import NotFoundError, ProtocolError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq.model.messages import (
    BrokerState,
    BrokerStatus,
    CreateTopic,
    Heartbeat,
    ListTopics,
    MetadataView,
    ReadTip,
    TipRead,
    TopicCreated,
    Topics,
    Welcome,
)
from streamq.wire.framing import PROTOCOL_VERSIONS, encode_frame
from tests.support.backends import both, run
from tests.support.fake_cluster import fake_cluster

QUICK = Timeouts(handshake_s=0.3, silence_s=0.2, request_s=1.0)


@asynccontextmanager
async def server(talk: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[Address]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, talk)
        yield Address("127.0.0.1", listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()


@both
def test_many_requests_are_in_flight_and_each_gets_its_own_answer(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            cluster.create("t", partitions=20)
            for index, p in enumerate(cluster.topics["t"]):
                p.start_offset = index
            async with connect(Address("127.0.0.1", cluster.brokers["b1"].port)) as connection:
                assert connection.broker == "b1"
                told: dict[int, int] = {}

                async def ask(index: int) -> None:
                    told[index] = (await connection.request(ReadTip("t", index), TipRead)).start_offset

                async with anyio.create_task_group() as tasks:
                    for index in range(20):
                        tasks.start_soon(ask, index)
                assert told == {index: index for index in range(20)}
                with pytest.raises(NotFoundError):
                    await connection.request(ReadTip("t", 20), TipRead)
                with pytest.raises(ProtocolError):
                    await connection.request(ReadTip("t", 1), MetadataView)

    run(backend, body)


@both
def test_a_silent_broker_is_left_only_while_something_is_outstanding(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            broker = cluster.brokers["b1"]
            cluster.create("t")
            async with connect(Address("127.0.0.1", broker.port), timeouts=QUICK) as connection:
                broker.pause()
                await anyio.sleep(0.5)
                assert connection.is_open
                started = anyio.current_time()
                with pytest.raises(UnavailableError, match="nothing heard"):
                    await connection.request(ReadTip("t", 0), TipRead, timeout_s=10)
                assert anyio.current_time() - started < 0.6
                assert not connection.is_open
                with pytest.raises(UnavailableError):
                    await connection.request(ReadTip("t", 0), TipRead)

    run(backend, body)


@both
def test_a_broken_connection_leaves_questions_unanswered_and_changes_unknown(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            broker = cluster.brokers["b1"]
            broker_address = Address("127.0.0.1", broker.port)
            caught: list[type[StreamqError]] = []
            async with connect(broker_address) as connection:
                broker.pause()

                async def ask(message: BrokerStatus | CreateTopic) -> None:
                    try:
                        await connection.request(message, BrokerState if isinstance(message, BrokerStatus) else TopicCreated)
                    except StreamqError as error:
                        caught.append(type(error))

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask, BrokerStatus())
                    tasks.start_soon(ask, CreateTopic("t", 1, 1, 1, 1, "fsync"))
                    await anyio.sleep(0.1)
                    broker.kill()
            assert sorted(kind.__name__ for kind in caught) == ["UnavailableError", "UnknownOutcomeError"]

    run(backend, body)


@both
def test_a_request_that_takes_too_long_times_out_and_its_late_answer_is_dropped(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            broker = cluster.brokers["b1"]
            cluster.create("t")
            async with connect(Address("127.0.0.1", broker.port), timeouts=Timeouts(silence_s=5)) as connection:
                broker.pause()
                with pytest.raises(UnavailableError, match=r"within 0\.1 s"):
                    await connection.request(ReadTip("t", 0), TipRead, timeout_s=0.1)
                with pytest.raises(UnknownOutcomeError):
                    await connection.request(CreateTopic("t", 1, 1, 1, 1, "fsync"), TopicCreated, timeout_s=0.1)
                broker.resume()
                assert (await connection.request(ReadTip("t", 0), TipRead)).epoch == 1

    run(backend, body)


@both
def test_what_is_no_broker_is_named_as_such(backend: str) -> None:
    async def garbage(stream: SocketStream) -> None:
        async with stream:
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
            await anyio.sleep(0.2)

    async def mute(stream: SocketStream) -> None:
        async with stream:
            await anyio.sleep(5)

    async def rude(stream: SocketStream) -> None:
        await stream.aclose()

    async def body() -> None:
        async with server(garbage) as address:
            with pytest.raises(ProtocolError, match="does not speak streamq"):
                await dial(address, timeouts=QUICK)
        async with server(mute) as address:
            with pytest.raises(UnavailableError, match=r"no answer within 0\.3 s"):
                await dial(address, timeouts=QUICK)
        async with server(rude) as address:
            with pytest.raises(UnavailableError):
                await dial(address, timeouts=QUICK)
        with pytest.raises(UnavailableError, match="refused"):
            await dial(address, timeouts=QUICK)

    run(backend, body)


@both
def test_garbage_in_the_middle_ends_the_connection_and_what_waits_on_it(backend: str) -> None:
    async def welcome_then_garbage(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            welcome = Welcome(1, (), "fake", bytes(16), "b1", bytes(16))
            await stream.send(b"".join(encode_frame(welcome, request=1, is_answer=True)))
            await stream.receive()
            await stream.send(b"\xff" * 100)
            await anyio.sleep(5)

    async def body() -> None:
        async with server(welcome_then_garbage) as address, connect(address) as connection:
            with pytest.raises(UnavailableError, match="a frame announces"):
                await connection.request(ListTopics(), Topics)
            assert isinstance(connection.failure, ProtocolError)

    run(backend, body)


@both
def test_the_blocks_own_exception_leaves_it_alone_and_unwrapped(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            with pytest.raises(ZeroDivisionError):
                async with connect(Address("127.0.0.1", cluster.brokers["b1"].port)):
                    raise ZeroDivisionError
            with anyio.move_on_after(0.1) as scope:
                async with connect(Address("127.0.0.1", cluster.brokers["b1"].port)):
                    await anyio.sleep(10)
            assert scope.cancelled_caught

    run(backend, body)


class LastWords(ByteStream):
    """A broker that welcomes, says something more at the given times after it was connected to, and then nothing for ever."""

    def __init__(self, at_s: list[float]) -> None:
        self._at_s = at_s
        self._begun = anyio.current_time()
        self._is_welcome_sent = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._is_welcome_sent:
            self._is_welcome_sent = True
            await anyio.lowlevel.checkpoint()
            return b"".join(encode_frame(Welcome(PROTOCOL_VERSIONS[1], (), "test", bytes(16), "b1", bytes(16)), request=1, is_answer=True))
        if not self._at_s:
            await anyio.sleep_forever()
        await anyio.sleep(self._begun + self._at_s.pop(0) - anyio.current_time())
        return b"".join(encode_frame(Heartbeat()))

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


class SilentHost:
    def __init__(self, at_s: list[float]) -> None:
        self._at_s = at_s

    async def connect(self, address: Address) -> ByteStream:
        return LastWords(self._at_s)

    now_ms, token, below = THIS_MACHINE.now_ms, THIS_MACHINE.token, THIS_MACHINE.below


@pytest.mark.parametrize("last_s", [0.3, 0.31, 0.35, 0.4, 0.43, 0.44])
async def test_silence_is_noticed_when_it_has_lasted_long_enough_and_not_at_the_next_look(
    last_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever part of the time between two looks the last word fell into: a producer's gap is as long as this."""
    begun = trio.current_time()
    timeouts = Timeouts(silence_s=0.7)
    connection = await dial(Address("b1", 1), timeouts=timeouts, host=SilentHost([0.2, last_s]))
    connection.tickets = 1
    await connection.run()
    assert connection.failure is not None
    assert "nothing heard" in connection.failure.message
    assert trio.current_time() - begun == pytest.approx(last_s + timeouts.silence_s, abs=0.01)
