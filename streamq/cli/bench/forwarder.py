"""A network that can be cut: each broker is reached through a forwarder, which falls silent for one of them without closing anything.

The forwarder is a process of its own, `python -m streamq.cli.bench.forwarder`, told by JSON lines on stdin. It tells who connected from
the `Hello` that passes by, so that what a silent broker says to others is held back as well. It costs throughput: every byte is copied
twice more. What is held back is delivered when the silence ends, as after a cut that a network recovers from.
"""

import contextlib
import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Final, Self

import trio

from streamq.cli.local_cluster import HOST, LocalCluster, free_ports
from streamq.cli.processes import start_broker
from streamq.model.errors import StreamqError
from streamq.model.messages import Hello
from streamq.wire.framing import PREAMBLE, FrameReader

__all__ = ["Forwarder"]

READ_BYTES: Final = 1 << 18
STDIN: Final = 0
KILL_TIMEOUT_S: Final = 5.0


class Forwarder:
    """The side of the benchmark. Used with `with`, which ends the process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(KILL_TIMEOUT_S)
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def start_cluster(self, local: LocalCluster) -> None:
        """Starts the brokers of a new cluster on ports of their own, and the forwarder on those by which they are known."""
        first = free_ports(2 * len(local.brokers))  # some of them may be the cluster's own, which nobody listens on yet
        known = {broker.port for broker in local.brokers}
        hidden = iter([port for port in range(first, first + 2 * len(local.brokers)) if port not in known])
        routes = {}
        for broker in local.brokers:
            port = next(hidden)
            text = broker.config.read_text()
            broker.config.write_text(text.replace(f"port = {broker.port}\n", f"port = {port}\nadvertised_port = {broker.port}\n", 1))
            routes[broker.name] = [broker.port, port]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamq.cli.bench.forwarder"], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self._tell({"routes": routes})
        for broker in local.brokers:
            start_broker(broker.directory, broker.config)
        local.start()  # they run; this waits until they serve

    def silence(self, broker: str) -> None:
        """Nothing goes to or comes from this broker any more."""
        self._tell({"silent": broker})

    def heal(self) -> None:
        self._tell({"silent": ""})

    def _tell(self, order: dict[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()


class _Switch:
    """Who is silent now, and who waits for that to end."""

    def __init__(self) -> None:
        self._silent = ""
        self._changed = trio.Event()

    def set(self, broker: str) -> None:
        self._silent = broker
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_open(self, ends: "_Ends") -> None:
        while self._silent and self._silent in (ends.dialled, ends.dialler):
            await self._changed.wait()


class _Ends:
    """The two brokers of a connection; `dialler` is empty for clients, and until the Hello has been seen."""

    def __init__(self, dialled: str) -> None:
        self.dialled = dialled
        self.dialler = ""
        self._seen: bytes | None = b""

    def look(self, sent: bytes) -> None:
        """At what the dialler sends first."""
        if self._seen is None:
            return
        self._seen += sent
        try:
            first = next(FrameReader().feed(self._seen[len(PREAMBLE) :]), None)
        except StreamqError:
            self._seen = None  # whoever this is, the broker will end it
            return
        if first is not None:
            if isinstance(first.message, Hello):
                self.dialler = first.message.broker
            self._seen = None


async def _forward(switch: _Switch, routes: dict[str, list[int]]) -> None:
    async def pump(source: trio.SocketStream, target: trio.SocketStream, ends: _Ends, *, is_dialler: bool) -> None:
        try:
            while received := await source.receive_some(READ_BYTES):
                if is_dialler:
                    ends.look(bytes(received))
                await switch.wait_open(ends)
                await target.send_all(received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await switch.wait_open(ends)
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(target)

    async def listen(broker: str, port: int, target: int) -> None:
        async def on_connection(stream: trio.SocketStream) -> None:
            ends = _Ends(broker)
            await switch.wait_open(ends)
            try:
                onward = await trio.open_tcp_stream(HOST, target)
            except OSError:
                await trio.aclose_forcefully(stream)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: pump(stream, onward, ends, is_dialler=True))
                nursery.start_soon(lambda: pump(onward, stream, ends, is_dialler=False))

        await trio.serve_tcp(on_connection, port, host=HOST)

    async with trio.open_nursery() as nursery:
        for broker, (port, target) in routes.items():
            nursery.start_soon(listen, broker, port, target)


async def _main() -> None:
    switch, rest = _Switch(), b""
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(STDIN)
            received = os.read(STDIN, READ_BYTES)
            if not received:
                break
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "routes" in order:
                    nursery.start_soon(_forward, switch, order["routes"])
                else:
                    switch.set(order["silent"])
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)
