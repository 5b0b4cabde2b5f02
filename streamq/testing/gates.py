"""Faults for brokers that share a process: a gate that everything passes which a broker sends and receives, and that can be shut.

What waits at a shut gate goes on when it opens, as over TCP when a network is whole again: nothing is refused, reset or lost.
"""

from typing import Final

import trio

from streamq.net.network import Network

__all__ = ["Gate", "GatedNetwork"]


class Gate:
    """Open unless somebody has a reason to keep it shut."""

    def __init__(self) -> None:
        self.reasons: Final[set[str]] = set()
        self._news = trio.Event()

    def shut(self, reason: str) -> None:
        self.reasons.add(reason)

    def open(self, reason: str) -> None:
        """That reason is gone."""
        self.reasons.discard(reason)
        if not self.reasons:
            news, self._news = self._news, trio.Event()
            news.set()

    async def passed(self) -> None:
        while self.reasons:
            await self._news.wait()


class GatedNetwork:
    """A broker's own network: the other ends of its streams may be anybody's."""

    def __init__(self, network: Network, gate: Gate) -> None:
        self._network = network
        self._gate = gate

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        await self._gate.passed()
        return _GatedStream(await self._network.connect(host, port), self._gate)

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        return _GatedListener(await self._network.listen(host, port), self._gate)


class _GatedStream(trio.abc.Stream):
    def __init__(self, stream: trio.abc.Stream, gate: Gate) -> None:
        self._stream = stream
        self._gate = gate

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._gate.reasons:
            await self._gate.passed()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._gate.passed()
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if self._gate.reasons:
            await self._gate.passed()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class _GatedListener(trio.abc.Listener[trio.abc.Stream]):
    """A connection that is accepted while the gate is shut hears nothing, as one whose first packets get lost."""

    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream], gate: Gate) -> None:
        self._listener = listener
        self._gate = gate

    async def accept(self) -> trio.abc.Stream:
        return _GatedStream(await self._listener.accept(), self._gate)

    async def aclose(self) -> None:
        await self._listener.aclose()
