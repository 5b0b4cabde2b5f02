"""P-31: a directory that is an older copy of itself does not serve, as long as anybody who knows better can be reached."""

import logging
from collections.abc import Iterable

import pytest
import trio
import trio.testing

from streamq.model.errors import AlreadyExistsError
from streamq.net.memory_network import HostNetwork, MemoryNetwork
from streamq.testing.in_process import BrokerInProcess, cluster

logging.getLogger("streamq").setLevel(logging.CRITICAL)


class Slow(HostNetwork):
    """Connections to one host take a while to be made."""

    def __init__(self, network: MemoryNetwork, host: str, *, slow: str) -> None:
        super().__init__(network, host)
        self.slow = slow

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        if host == self.slow:
            await trio.sleep(0.1)
        return await super().connect(host, port)


async def run_together(brokers: Iterable[BrokerInProcess]) -> None:
    async with trio.open_nursery() as nursery:
        for broker in brokers:
            nursery.start_soon(broker.run)


async def test_an_older_copy_is_found_out_by_the_only_broker_that_knows_although_another_answers_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The newest start was written with b1 itself and b3; what b1 knew of it is not in the copy, so b2's word alone says nothing.

    All of them start at once, as after a power cut, so nobody has yet passed on what b3 knows.
    """
    network = MemoryNetwork()
    async with cluster(3, networks=[Slow(network, "b1", slow="b3"), network.of("b2"), network.of("b3")]) as running:
        broker = running.brokers["b1"]
        await running.kill("b1")
        older, newer = broker.storage.crash(), broker.storage.crash()
        network.isolate("b2")
        broker.storage = newer
        await running.start("b1")
        for name in running.brokers:
            await running.kill(name)
        network.heal("b2")
        broker.storage = older
        with pytest.raises(ExceptionGroup) as refused, trio.fail_after(5):
            await run_together(running.brokers.values())
        assert refused.group_contains(AlreadyExistsError, match="older copy")
