"""The socket of a client: what leaves at once, what waits, and which address of a name answers."""

import socket
import time

import anyio
import pytest

from streamq.client.tcp import ADDRESS_STAGGER_S, TcpStream, connect_tcp
from tests.support.backends import both, run


def pair() -> tuple[TcpStream, TcpStream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return TcpStream(near), TcpStream(far)


async def read_all(stream: TcpStream) -> bytes:
    received = bytearray()
    try:
        while True:
            received += await stream.receive(100_000)
    except anyio.EndOfStream:
        return bytes(received)


@both
@pytest.mark.parametrize("sizes", [[3], [1, 0, 2], [1] * 2_000, [5_000_000, 0, 1, 3_000_000], [0]])
def test_all_buffers_arrive_in_order_whatever_the_socket_takes_at_once(backend: str, sizes: list[int]) -> None:
    buffers = [bytes([at % 251]) * size for at, size in enumerate(sizes)]

    async def body() -> None:
        near, far = pair()
        async with near, far:
            got: list[bytes] = []

            async def receive() -> None:
                got.append(await read_all(far))

            async with anyio.create_task_group() as tasks:
                rest = near.send_now(buffers)
                assert near.sent_bytes + sum(map(len, rest)) == sum(sizes)
                tasks.start_soon(receive)
                await near.send_all(rest)
                await near.send_eof()
            assert got == [b"".join(buffers)]
            assert near.sent_bytes == far.received_bytes == sum(sizes)

    run(backend, body)


@both
def test_a_full_socket_takes_nothing_and_says_so(backend: str) -> None:
    async def body() -> None:
        near, far = pair()
        async with near, far:
            with pytest.raises(BlockingIOError):  # noqa: PT012  the number of sends is the system's to choose
                while True:
                    near.send_now([bytes(1_000_000)])
            sent = near.sent_bytes
            await anyio.sleep(0.01)
            assert near.sent_bytes == sent
            await near.send_eof()
            assert len(await read_all(far)) == sent

    run(backend, body)


@both
def test_who_closes_a_stream_wakes_who_receives_from_it(backend: str) -> None:
    async def body() -> None:
        near, far = pair()
        async with far:
            ended: list[BaseException] = []

            async def receive() -> None:
                try:
                    await near.receive()
                except (anyio.ClosedResourceError, OSError) as error:
                    ended.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.sleep(0.01)
                await near.aclose()
                await near.aclose()
            assert len(ended) == 1
            with pytest.raises(OSError):
                near.send_now([b"late"])

    run(backend, body)


@both
def test_the_next_address_of_a_name_is_tried_when_one_refuses_or_says_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address refuses; to another nobody gets through, as to a host behind a firewall that drops everything."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as refusing, socket.socket() as full:
        refusing.bind(("127.0.0.1", 0))  # bound, and not listening
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        time.sleep(0.05)
        addresses = [refusing.getsockname(), full.getsockname(), listener.getsockname()]

        async def found(*args: object, **kwargs: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(anyio, "getaddrinfo", found)

        async def body() -> None:
            began = anyio.current_time()
            stream = await connect_tcp("some.name", 1)
            assert stream._socket.getpeername() == listener.getsockname()
            assert ADDRESS_STAGGER_S * 0.9 <= anyio.current_time() - began < 4 * ADDRESS_STAGGER_S
            await stream.aclose()

        try:
            run(backend, body)
        finally:
            for sock in waiting:
                sock.close()


@both
def test_when_no_address_answers_the_reasons_are_told(backend: str) -> None:
    async def body() -> None:
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match="connection refused"):
                await connect_tcp(*refusing.getsockname())

    run(backend, body)


@both
def test_a_connection_that_is_given_up_leaves_no_socket(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    make = socket.socket

    def counted(*args: int, **kwargs: object) -> socket.socket:
        sock = make(*args)
        made.append(sock)
        return sock

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())

        async def body() -> None:
            monkeypatch.setattr("streamq.client.tcp.socket.socket", counted)
            try:
                with anyio.move_on_after(0.1) as given_up:
                    await connect_tcp(*full.getsockname())
            finally:
                monkeypatch.undo()
            assert given_up.cancelled_caught

        try:
            run(backend, body)
        finally:
            for sock in waiting:
                sock.close()
        assert made
        assert all(sock.fileno() < 0 for sock in made)
