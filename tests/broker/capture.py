"""Lets a test look into the brokers of a `ClusterInProcess`, and speak to one as another broker would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from streamq.broker import app
from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.model.messages import Hello
from streamq.net.channel import Channel
from streamq.net.handshake import greet
from streamq.net.network import TcpNetwork
from streamq.testing.in_process import ClusterInProcess
from tests.broker.wire_client import WireClient

__all__ = ["capture_nodes", "peer_client", "sequencing_of", "until"]


def capture_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Node]:
    """The newest `Node` of each broker that starts from now on."""
    nodes: dict[str, Node] = {}

    class Captured(Node):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            nodes[self.broker] = self

    monkeypatch.setattr(app, "Node", Captured)
    return nodes


def sequencing_of(nodes: dict[str, Node], partition: bytes) -> Partition:
    """The partition at the broker that sequences it."""
    [found] = [
        n.partitions[partition] for n in nodes.values() if partition in n.partitions and n.partitions[partition].sequencing is not None
    ]
    return found


async def until(condition: object, timeout_s: float = 5) -> None:
    assert callable(condition)
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def peer_client(
    running: ClusterInProcess, broker: str, name: str = "stranger", incarnation: bytes = b"i" * 16
) -> AsyncIterator[WireClient]:
    """A connection that says it comes from a broker of the cluster."""
    target = running.brokers[broker]
    stream = await TcpNetwork().connect(*target.config.address)
    _, reader = await greet(stream, Hello((1, 1), (), "test", target.storage.identity.cluster, name, incarnation))
    client = WireClient(Channel(stream, name="test", reader=reader))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await client.channel.run(client.take, after_chunk=lambda: None, gate=lambda: None)

        nursery.start_soon(run)
        yield client
        client.channel.close("done")
