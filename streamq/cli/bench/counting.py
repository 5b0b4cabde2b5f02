"""Counts what goes over a client's connections, without a task or a copy between."""

from typing import Final

from anyio.abc import ByteStream

from streamq.client.host import THIS_MACHINE, Host
from streamq.client.settings import Address

__all__ = ["CountingHost"]


class CountingHost:
    """This machine, and the bytes that clients made with it sent and received over all their connections."""

    def __init__(self, host: Host = THIS_MACHINE) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._host: Final = host

    async def connect(self, address: Address) -> ByteStream:
        return _CountedStream(await self._host.connect(address), self)

    def now_ms(self) -> int:
        return self._host.now_ms()

    def token(self) -> bytes:
        return self._host.token()

    def below(self, limit: int) -> int:
        return self._host.below(limit)


class _CountedStream(ByteStream):
    def __init__(self, stream: ByteStream, count: CountingHost) -> None:
        self._stream = stream
        self._count = count

    async def send(self, item: bytes) -> None:
        self._count.sent_bytes += len(item)
        await self._stream.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        received = await self._stream.receive(max_bytes)
        self._count.received_bytes += len(received)
        return received

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
