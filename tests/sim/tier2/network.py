"""A network of hosts in memory, with what TCP shows of the trouble below it: delay, silence, connections that break, peers that refuse.

TCP neither loses, repeats nor reorders the bytes of a connection. What a bad network does to it is to be late, to be silent for as long
as a partition lasts (in one direction or in both), and to end connections; so that is what happens here. Bytes arrive in pieces.
"""

import random
from collections import deque
from typing import Final

import anyio
import anyio.abc
import trio

from streamq.client.settings import Address
from streamq.model.errors import AlreadyExistsError
from streamq.net.network import RefusedConnectionError

__all__ = ["ByteStreamOf", "HostNetwork", "SimulatedNetwork"]

WINDOW_BYTES: Final = 256 << 10
"""Sent and not yet read: then the sender waits."""
RETRANSMIT_S: Final = 0.25
"""At most so long after a partition has healed the bytes held up by it arrive."""
NEVER: Final = float("inf")


class _Direction:
    """One direction of one connection. Invariant: pieces arrive in the order sent, none before `now + latency` of its sending."""

    def __init__(self, network: "SimulatedNetwork", source: str, target: str) -> None:
        self.network = network
        self.link = (source, target)
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.unread = 0
        self.last_arrival = 0.0
        self.ends_at = NEVER
        """When the receiver learns that nothing more comes."""
        self.is_reset = False
        self.is_deaf = False
        """The receiver has closed: whoever sends is told."""
        self.moved = trio.Event()
        self.receiver: trio.CancelScope | None = None
        """Of whoever waits for a piece: its deadline is the first one's arrival."""

    def wake(self) -> None:
        self.moved.set()
        self.moved = trio.Event()

    def put(self, data: bytes) -> None:
        self.last_arrival = max(self.last_arrival, self.network.arrival(self.link))
        self.pieces.append((self.last_arrival, data))
        self.unread += len(data)
        if self.receiver is not None and len(self.pieces) == 1 and not self.network.is_blocked(self.link):
            self.receiver.deadline = self.last_arrival

    def end(self) -> None:
        if self.ends_at == NEVER:
            self.last_arrival = self.ends_at = max(self.last_arrival, self.network.arrival(self.link))
            self.wake()

    def reset(self) -> None:
        """Both the receiver and the sender are told at once; what was under way is gone."""
        self.is_reset = True
        self.pieces.clear()
        self.wake()

    def healed(self) -> None:
        again = trio.current_time() + self.network.random.random() * RETRANSMIT_S
        self.pieces = deque((max(at, again), data) for at, data in self.pieces)
        self.last_arrival = max(self.last_arrival, again)
        if self.ends_at != NEVER:
            self.ends_at = max(self.ends_at, again)
        self.wake()


class SimulatedStream(trio.abc.Stream):
    """One side of a connection."""

    def __init__(self, incoming: _Direction, outgoing: _Direction) -> None:
        self._in = incoming
        self._out = outgoing
        self._is_closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        out = self._out
        for piece in out.network.pieces_of(bytes(data)):
            while out.unread >= WINDOW_BYTES and not (out.is_reset or out.is_deaf or self._is_closed):
                await out.moved.wait()
            if self._is_closed:
                raise trio.ClosedResourceError("this side is closed")
            if out.is_reset or out.is_deaf:
                raise trio.BrokenResourceError("connection reset by peer")
            out.put(piece)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        incoming = self._in
        if incoming.pieces and incoming.pieces[0][0] <= trio.current_time():
            await trio.lowlevel.checkpoint()
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("this side is closed")
            if incoming.is_reset:
                raise trio.BrokenResourceError("connection reset by peer")
            now = trio.current_time()
            at = NEVER if incoming.network.is_blocked(incoming.link) else (incoming.pieces[0][0] if incoming.pieces else incoming.ends_at)
            if at <= now:
                return self._take(max_bytes) if incoming.pieces else b""
            try:
                with trio.CancelScope(deadline=at) as incoming.receiver:
                    await incoming.moved.wait()
            finally:
                incoming.receiver = None

    def _take(self, max_bytes: int | None) -> bytes:
        incoming = self._in
        at, piece = incoming.pieces.popleft()
        if max_bytes is not None and len(piece) > max_bytes:
            incoming.pieces.appendleft((at, piece[max_bytes:]))
            piece = piece[:max_bytes]
        incoming.unread -= len(piece)
        incoming.network.pieces += 1
        incoming.wake()
        return piece

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._in.is_deaf = True
            self._in.wake()
            self._out.end()
            self._out.network.forget(self)

    def reset(self) -> None:
        """The connection is gone for both sides."""
        self._in.reset()
        self._out.reset()
        self._out.network.forget(self)

    @property
    def ends(self) -> tuple[str, str]:
        return self._out.link

    def healed(self) -> None:
        self._in.healed()
        self._out.healed()


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, network: "SimulatedNetwork", address: tuple[str, int]) -> None:
        self._network = network
        self._address = address
        self.waiting: deque[SimulatedStream] = deque()
        self.came = trio.Event()
        self.is_closed = False

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        while not self.waiting:
            if self.is_closed:
                raise trio.ClosedResourceError("the listener is closed")
            self.came = trio.Event()
            await self.came.wait()
        return self.waiting.popleft()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.is_closed = True
        self.came.set()
        self._network.listeners.pop(self._address, None)
        for stream in self.waiting:
            stream.reset()


class SimulatedNetwork:
    """All hosts and what lies between them. `block` holds up one direction silently until `unblock`; `slow` adds latency to a link."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng
        self.listeners: dict[tuple[str, int], _Listener] = {}
        self.latency_s = 0.0004
        self._slow: dict[tuple[str, str], float] = {}
        self._blocked: dict[tuple[str, str], None] = {}
        self._silent: dict[str, None] = {}
        self._streams: dict[SimulatedStream, None] = {}
        self._changed = trio.Event()
        self.connections = 0
        self.pieces = 0
        """Handed to receivers."""

    def of(self, host: str) -> "HostNetwork":
        return HostNetwork(self, host)

    # --- what happens to it

    def block(self, source: str, target: str) -> None:
        self._blocked[source, target] = None

    def unblock(self, source: str, target: str) -> None:
        self._blocked.pop((source, target), None)
        self._heal(lambda ends: ends in ((source, target), (target, source)))

    def silence(self, host: str) -> None:
        """The host has no power: nobody is told anything."""
        self._silent[host] = None

    def restore(self, host: str) -> None:
        """The host is up again and knows nothing of its old connections."""
        if host in self._silent:
            del self._silent[host]
            self.reset(host)
        self._heal(lambda ends: host in ends)

    def slow(self, source: str, target: str, extra_s: float) -> None:
        self._slow[source, target] = extra_s

    def heal(self) -> None:
        self._blocked.clear()
        self._slow.clear()
        self._heal(lambda ends: True)

    def reset(self, host: str, other: str | None = None) -> int:
        """Breaks the host's connections (those with `other`), as a process that dies or a middlebox does. Returns how many."""
        broken = [s for s in self._streams if host in s.ends and (other is None or other in s.ends)]
        for stream in broken:
            stream.reset()
        return len(broken)

    def close_listeners(self, host: str) -> None:
        for address in [a for a in self.listeners if a[0] == host]:
            self.listeners[address].close()

    def _heal(self, concerns: "object") -> None:
        assert callable(concerns)
        for stream in list(self._streams):
            if concerns(stream.ends):
                stream.healed()
        self._changed.set()
        self._changed = trio.Event()

    # --- what streams ask

    def is_blocked(self, link: tuple[str, str]) -> bool:
        return link in self._blocked or link[0] in self._silent or link[1] in self._silent

    def arrival(self, link: tuple[str, str]) -> float:
        return trio.current_time() + self.latency_s * (0.5 + self.random.random()) + self._slow.get(link, 0.0) * self.random.random()

    def pieces_of(self, data: bytes) -> list[bytes]:
        if len(data) < 2 or self.random.random() > 0.05:
            return [data]
        at = self.random.randrange(1, len(data))
        return [data[:at], data[at:]]

    def forget(self, stream: SimulatedStream) -> None:
        self._streams.pop(stream, None)

    async def connect(self, source: str, host: str, port: int) -> SimulatedStream:
        await trio.lowlevel.checkpoint()
        while self.is_blocked((source, host)) or self.is_blocked((host, source)):
            await self._changed.wait()
        await trio.sleep_until(self.arrival((source, host)))
        listener = self.listeners.get((host, port))
        if listener is None:
            raise RefusedConnectionError(f"{host}:{port}")
        there, back = _Direction(self, source, host), _Direction(self, host, source)
        mine, theirs = SimulatedStream(back, there), SimulatedStream(there, back)
        self._streams[mine] = self._streams[theirs] = None
        self.connections += 1
        listener.waiting.append(theirs)
        listener.came.set()
        return mine

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        await trio.lowlevel.checkpoint()
        if (host, port) in self.listeners:
            raise AlreadyExistsError(f"port {port} on {host} is in use", code="precondition_failed")
        listener = self.listeners[host, port] = _Listener(self, (host, port))
        return listener


class HostNetwork:
    """The network as one process on one host sees it; dead processes neither connect nor listen any more."""

    def __init__(self, network: SimulatedNetwork, host: str) -> None:
        self._network = network
        self._host = host
        self.is_dead = False

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        stream = await self._network.connect(self._host, host, port)
        if self.is_dead:
            stream.reset()
        return stream

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        listener = await self._network.listen(host, port)
        if self.is_dead:
            await listener.aclose()
        return listener


class ByteStreamOf(anyio.abc.ByteStream):
    """A simulated stream as the client libraries want it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            raise anyio.BrokenResourceError from error
        except trio.ClosedResourceError as error:
            raise anyio.ClosedResourceError from error
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send_all(item)
        except trio.BrokenResourceError as error:
            raise anyio.BrokenResourceError from error
        except trio.ClosedResourceError as error:
            raise anyio.ClosedResourceError from error

    async def send_eof(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()


class ClientHost:
    """`streamq.client.host.Host` in the simulation."""

    def __init__(self, network: SimulatedNetwork, host: str, rng: random.Random, *, epoch_ms: int) -> None:
        self._network = network
        self._host = host
        self._random = rng
        self._epoch_ms = epoch_ms

    async def connect(self, address: Address) -> anyio.abc.ByteStream:
        try:
            return ByteStreamOf(await self._network.connect(self._host, address.host, address.port))
        except RefusedConnectionError as error:
            raise ConnectionRefusedError(str(error)) from None

    def now_ms(self) -> int:
        return self._epoch_ms + int(trio.current_time() * 1000)

    def token(self) -> bytes:
        return self._random.randbytes(16)

    def below(self, limit: int) -> int:
        return self._random.randrange(limit)
