"""Brokers in this process, under trio: real code, storage in memory, TCP on loopback (or an in-memory network for simulations).

`kill` loses what was not durable, like SIGKILL; `start` brings the broker back on what was. With `is_gated` brokers can be paused and
isolated, too (`gates`); their connections are read by a task each then, and not by one poller.
"""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio
import trio.lowlevel

from streamq.broker.app import Stopping, run_broker
from streamq.broker.config import BrokerConfig
from streamq.broker.node import Clock, SystemClock
from streamq.model.errors import RefusedError
from streamq.model.registers import Voter, Voters
from streamq.net.network import Network, TcpNetwork
from streamq.storage.interface import Identity
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.gates import Gate, GatedNetwork

__all__ = ["BrokerInProcess", "ClusterInProcess", "cluster"]

START_TIMEOUT_S: Final = 10.0
VOTERS_MAX: Final = 5
PAUSED: Final = "paused"
ISOLATED: Final = "isolated"


class BrokerInProcess:
    """One broker of a `ClusterInProcess`. `storage` is what lies on its disk."""

    def __init__(self, config: BrokerConfig, storage: MemoryStorage, network: Network, clock: Clock, *, gate: Gate | None = None) -> None:
        """Everything passes `gate`, if there is one."""
        self.config = config
        self.storage = storage
        self.is_running = False
        self.serving = trio.Event()
        self._network = network if gate is None else GatedNetwork(network, gate)
        self._gate = gate
        self._clock = clock
        self._stop = Stopping()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def name(self) -> str:
        return self.config.broker

    async def run(self) -> None:
        """Until it stops or is killed."""
        self.is_running = True
        self.serving, self._ended, self._stop, self._scope = trio.Event(), trio.Event(), Stopping(), trio.CancelScope()
        try:
            with self._scope:
                await run_broker(self.config, self.storage, self._network, self._clock, stop=self._stop, on_serving=self.serving.set)
        finally:
            self.is_running = False
            self._ended.set()

    async def kill(self) -> None:
        """As SIGKILL and a power cut at once: it ends where it is, and what was not durable is gone."""
        self._scope.cancel()
        await self._ended.wait()
        self.storage = self.storage.crash()
        if self._gate is not None:
            self._gate.open(PAUSED)

    async def stop(self) -> None:
        """Gracefully: it hands over what it sequences. Raises RefusedError for one that is paused."""
        if self._gate is not None and PAUSED in self._gate.reasons:
            raise RefusedError(
                f"{self.name} is paused: it does not hear that it is to stop", code="bad_request", hint="resume it, or kill it"
            )
        self._stop()
        await self._ended.wait()
        self.storage = self.storage.crash()

    def pause(self) -> None:
        """As SIGSTOP, for all that others see of it: it neither answers nor hears, and writes nothing. Its connections stay."""
        self._gated.shut(PAUSED)
        self.storage.hold()

    def resume(self) -> None:
        self._gated.open(PAUSED)
        self.storage.go_on()

    def isolate(self) -> None:
        """As a network that is down around it: nothing comes or goes, its disk works on."""
        self._gated.shut(ISOLATED)

    def heal(self) -> None:
        self._gated.open(ISOLATED)

    @property
    def _gated(self) -> Gate:
        if self._gate is None:
            raise RuntimeError("only in a cluster that is gated: cluster(..., is_gated=True)")
        return self._gate


class ClusterInProcess:
    def __init__(self, brokers: Sequence[BrokerInProcess], nursery: trio.Nursery) -> None:
        self.brokers = {broker.name: broker for broker in brokers}
        self._nursery = nursery

    @property
    def bootstrap(self) -> str:
        """Addresses for a client, all brokers."""
        return ",".join("{}:{}".format(*broker.config.address) for broker in self.brokers.values())

    async def start(self, *names: str) -> None:
        """Starts these brokers (none named: all) and waits until they serve."""
        chosen = [self.brokers[name] for name in names] if names else list(self.brokers.values())
        for broker in chosen:
            self._nursery.start_soon(broker.run, name=broker.name)
        with trio.fail_after(START_TIMEOUT_S):
            for broker in chosen:
                while not broker.is_running:
                    await trio.lowlevel.checkpoint()
                await broker.serving.wait()

    async def kill(self, name: str) -> None:
        await self.brokers[name].kill()

    async def stop(self, name: str) -> None:
        await self.brokers[name].stop()


@asynccontextmanager
async def cluster(
    brokers: int = 3,
    *,
    networks: Sequence[Network] | None = None,
    clock: Clock | None = None,
    sync_s: float = 0.0005,
    is_gated: bool = False,
) -> AsyncIterator[ClusterInProcess]:
    """A running cluster; under trio. With `networks` (one a broker) the hosts are b1, b2, …; else TCP on free loopback ports.

    `sync_s` is how long a group commit takes; brokers of a cluster that `is_gated` can be paused and isolated. Everything ends with the
    block.
    """
    clock = clock or SystemClock()
    names = [f"b{i + 1}" for i in range(brokers)]
    hosts = names if networks is not None else ["127.0.0.1"] * brokers
    ports = [7700] * brokers if networks is not None else free_ports(brokers)
    voters = first_voters(names, hosts, ports, clock)
    cluster_id = clock.token()
    made = []
    for i, name in enumerate(names):
        voter = voters.voter(name)
        identity = Identity(cluster_id, name, voter.incarnation if voter else clock.token(), voters, 1)
        config = BrokerConfig(broker=name, data_directory=f"/memory/{name}", host=hosts[i], port=ports[i], preferred_return_after_s=1.0)
        network = networks[i] if networks is not None else TcpNetwork()
        storage = MemoryStorage(identity, sync_s=sync_s)
        made.append(BrokerInProcess(config, storage, network, clock, gate=Gate() if is_gated else None))
    async with trio.open_nursery() as nursery:
        running = ClusterInProcess(made, nursery)
        await running.start()
        yield running
        nursery.cancel_scope.cancel()


def first_voters(names: Sequence[str], hosts: Sequence[str], ports: Sequence[int], clock: Clock) -> Voters:
    """The first of these brokers, in incarnations that are new."""
    return Voters(
        1, tuple(Voter(name, clock.token(), host, port) for name, host, port in zip(names, hosts, ports, strict=True))[:VOTERS_MAX]
    )


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
