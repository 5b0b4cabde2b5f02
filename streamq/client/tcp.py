"""TCP as clients use it, straight on the socket, under trio and asyncio alike.

A stream of the event loop's own costs a task's turn for each small frame in each direction. Here what is to be sent leaves at once, as far
as the socket takes it (`send_now`), and a receive is one wait and one system call.
"""

import os
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from streamq.client.race import AllFailedError, race
from streamq.model.errors import UnavailableError

__all__ = ["Buffers", "TcpStream", "connect_tcp"]

ADDRESS_STAGGER_S: Final = 0.25
"""Head start of each address of a name before the next is tried beside it (RFC 8305)."""
BUFFERS_PER_SEND_MAX: Final = 512
"""Half of Linux's limit."""
Buffers = Sequence[bytes | memoryview]


class TcpStream(ByteStream):
    """Owns its socket, which is connected and does not block. One task receives and one sends; `send_now` may be called beside both."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_bytes = 0
        self.received_bytes = 0
        self._socket = sock
        self._may_have_more = False

    def send_now(self, buffers: Buffers) -> Buffers:
        """One system call; returns what is left. Raises BlockingIOError when the socket is full, OSError when the connection is lost."""
        sent = self._socket.sendmsg(buffers[:BUFFERS_PER_SEND_MAX])
        self.sent_bytes += sent
        for at, buffer in enumerate(buffers):
            sent -= len(buffer)
            if sent < 0:
                return [memoryview(buffer)[sent:], *buffers[at + 1 :]]
        return ()

    async def send_all(self, buffers: Buffers) -> None:
        """Cancelled, it has sent some of it: the connection is then of no more use. Raises OSError."""
        while buffers:
            try:
                buffers = self.send_now(buffers)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            else:
                await anyio.lowlevel.checkpoint()

    async def send(self, item: bytes) -> None:
        await self.send_all((item,))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """What is there, at least a byte. Raises EndOfStream, OSError. Cancelled, it has received nothing."""
        while True:
            if self._may_have_more:
                await anyio.lowlevel.checkpoint()
            else:
                await anyio.wait_readable(self._socket)
            self._may_have_more = False
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                continue
            self._may_have_more = len(data) == max_bytes
            self.received_bytes += len(data)
            if not data:
                raise anyio.EndOfStream
            return data

    async def send_eof(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()


async def connect_tcp(host: str, port: int) -> TcpStream:
    """To whichever address of the name answers first. Raises OSError, with the reasons of all addresses. The caller bounds the time."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sockets: list[socket.socket] = []
    connected: socket.socket | None = None
    try:
        attempts = [partial(_connect, family, address, sockets) for family, _, _, _, address in found]
        connected = await race(attempts, stagger_s=ADDRESS_STAGGER_S)
    except AllFailedError as error:
        raise OSError(error.message) from None
    finally:
        for sock in sockets:
            if sock is not connected:
                sock.close()
    return TcpStream(connected)


async def _connect(family: int, address: tuple[str, int], sockets: list[socket.socket]) -> socket.socket:
    """Adds its socket to those that have to be closed. Raises UnavailableError with the reason."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(sock)
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number)) from None
    except OSError as error:
        raise UnavailableError((error.strerror or str(error)).lower(), code="unavailable") from None
    return sock
