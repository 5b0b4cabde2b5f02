"""TCP on which acks are seen pass: each with its batch, before the bytes go on to whoever they are for."""

from collections.abc import Callable
from typing import Final

import trio

from streamq.model.batches import Batch
from streamq.model.messages import Ack, Produce, Produced
from streamq.net.network import Network, TcpNetwork
from streamq.wire.batch_format import split_batches
from streamq.wire.framing import PREAMBLE, Frame, FrameReader

__all__ = ["WatchedNetwork"]

OnAck = Callable[[Batch, Ack], None]


class WatchedNetwork:
    """At the side that listens an ack is seen before it is sent, at the side that connects when it has arrived."""

    def __init__(self, on_ack: OnAck, network: Network | None = None) -> None:
        self._on_ack = on_ack
        self._network: Final = network or TcpNetwork()

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        return _WatchedStream(await self._network.connect(host, port), self._on_ack)

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        return _WatchedListener(await self._network.listen(host, port), self._on_ack)


class _WatchedListener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream], on_ack: OnAck) -> None:
        self._listener = listener
        self._on_ack = on_ack

    async def accept(self) -> trio.abc.Stream:
        return _WatchedStream(await self._listener.accept(), self._on_ack)

    async def aclose(self) -> None:
        await self._listener.aclose()


class _WatchedStream(trio.abc.Stream):
    """One connection. It is no `trio.SocketStream`, so whatever a broker sends goes through `send_all`."""

    def __init__(self, stream: trio.abc.Stream, on_ack: OnAck) -> None:
        self._stream = stream
        self._on_ack = on_ack
        self._sent = _Direction(self._see)
        self._received = _Direction(self._see)
        self._batches: dict[int, Batch] = {}

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._sent.feed(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._received.feed(bytes(data))
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _see(self, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, Produce):
            self._batches |= zip(message.tickets, split_batches(frame.payload), strict=True)
        elif isinstance(message, Produced):
            for ack in message.acks:
                self._on_ack(self._batches[ack.ticket], ack)


class _Direction:
    """Frames of one direction; the one that begins with the preamble is that of who connected."""

    def __init__(self, see: Callable[[Frame], None]) -> None:
        self._see = see
        self._reader = FrameReader()
        self._begun: bytes | None = b""

    def feed(self, data: bytes) -> None:
        if self._begun is not None:
            self._begun += data
            if len(self._begun) < len(PREAMBLE):
                return
            data, self._begun = self._begun.removeprefix(PREAMBLE), None
        for frame in self._reader.feed(data):
            self._see(frame)
