"""An in-memory network with the interface of TCP, for simulation and tests: brokers of one process, no sockets, no threads."""

from collections.abc import Callable
from typing import Final

import trio

from streamq.model.errors import AlreadyExistsError
from streamq.net.network import RefusedConnectionError

__all__ = ["MemoryNetwork"]

BUFFERED_CHUNKS: Final = 16
Address = tuple[str, int]


class _Pipe:
    """One direction. Bounded: a sender waits while BUFFERED_CHUNKS are unread."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[bytes](BUFFERED_CHUNKS)


class MemoryStream(trio.abc.Stream):
    def __init__(self, incoming: _Pipe, outgoing: _Pipe, is_cut: Callable[[], bool]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._is_cut = is_cut
        self._rest = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_cut():
            await trio.sleep_forever()  # a partition: nothing is lost audibly
        try:
            await self._outgoing.send.send(bytes(data))
        except trio.BrokenResourceError:
            raise trio.BrokenResourceError("the other side closed") from None

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._rest:
            try:
                self._rest = await self._incoming.receive.receive()
            except trio.EndOfChannel:
                return b""
        limit = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    async def aclose(self) -> None:
        await self._outgoing.send.aclose()
        await self._incoming.receive.aclose()


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, network: "MemoryNetwork", address: Address) -> None:
        self._network = network
        self._address = address
        self.send, self._receive = trio.open_memory_channel[trio.abc.Stream](BUFFERED_CHUNKS)

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._network.forget(self._address)
        await self._receive.aclose()


class MemoryNetwork:
    """Addresses are (host, port) as with TCP. `isolate` cuts a host off in both directions, silently; `heal` ends it.

    A host's own `Network` is `network.of(host)`, so that partitions know both ends.
    """

    def __init__(self) -> None:
        self._listeners: dict[Address, _Listener] = {}
        self._cut: set[str] = set()

    def of(self, host: str) -> "HostNetwork":
        return HostNetwork(self, host)

    def isolate(self, host: str) -> None:
        self._cut.add(host)

    def heal(self, host: str) -> None:
        self._cut.discard(host)

    def is_cut(self, one: str, other: str) -> bool:
        return one != other and (one in self._cut or other in self._cut)

    def forget(self, address: Address) -> None:
        self._listeners.pop(address, None)

    async def connect(self, source: str, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.is_cut(source, host):
            await trio.sleep_forever()
        listener = self._listeners.get((host, port))
        if listener is None:
            raise RefusedConnectionError(f"{host}:{port}")
        there, back = _Pipe(), _Pipe()

        def is_cut() -> bool:
            return self.is_cut(source, host)

        try:
            await listener.send.send(MemoryStream(there, back, is_cut))
        except trio.BrokenResourceError:
            raise RefusedConnectionError(f"{host}:{port}") from None
        return MemoryStream(back, there, is_cut)

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        await trio.lowlevel.checkpoint()
        if (host, port) in self._listeners:
            raise AlreadyExistsError(f"port {port} on {host} is in use", code="precondition_failed")
        listener = self._listeners[(host, port)] = _Listener(self, (host, port))
        return listener


class HostNetwork:
    """The network as one host sees it."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        return await self._network.connect(self._host, host, port)

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        return await self._network.listen(host, port)
