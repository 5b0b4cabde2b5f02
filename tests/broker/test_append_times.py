"""When records were appended, from the headers that a replica holds: for the lag of consumers and groups."""

import logging
import time

import pytest

from streamq.broker.node import Node
from streamq.client.cluster import Cluster
from streamq.client.times import Lag, read_lags
from streamq.model.messages import PlaceAsked, ReadTimes, TimesRead
from streamq.testing.in_process import cluster
from tests.broker.capture import capture_nodes, until
from tests.broker.test_cluster_in_process import create, to
from tests.broker.test_trims import trim
from tests.broker.wire_client import make_batch

logging.getLogger("streamq").setLevel(logging.ERROR)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Node]:
    return capture_nodes(monkeypatch)


async def test_append_times_come_from_headers_and_what_is_not_there_is_not_told(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        acks = []
        async with to(running, view.sequencer) as client:
            for _ in range(3):
                acks += await client.produce(make_batch(view.id, [b"a", b"b"]))
        times = [ack.append_time for ack in acks]  # type: ignore[union-attr]
        replica = next(name for name in running.brokers if name != view.sequencer)
        await until(lambda: nodes[replica].partitions[view.id].replica.high_watermark[1] == 6)
        places = (*(PlaceAsked(view.id, offset) for offset in (0, 1, 4, 5, 6, 7)), PlaceAsked(b"x" * 16, 0))
        async with to(running, replica) as client:
            told = await client.ask(ReadTimes(places))
            assert isinstance(told, TimesRead)
            assert told.append_times == (times[0], times[0], times[2], times[2], None, None, None)
            assert abs(told.now_ms - time.time() * 1000) < 5_000
        await trim(nodes, view, 4)
        async with to(running, view.sequencer) as client:
            told = await client.ask(ReadTimes((PlaceAsked(view.id, 0),)))
            assert isinstance(told, TimesRead)
            assert told.append_times == (times[2],)


async def test_a_damaged_range_is_mended_for_it(nodes: dict[str, Node]) -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, view.sequencer) as client:
            [ack] = await client.produce(make_batch(view.id, [b"a"]))
            own = running.brokers[view.sequencer].storage
            own.damage(view.id, view.epoch, 0, 1)
            others = [node for name, node in nodes.items() if name != view.sequencer]
            await until(lambda: all(node.partitions[view.id].replica.local_tail(view.epoch) == 1 for node in others))
            told = await client.ask(ReadTimes((PlaceAsked(view.id, 0),)))
            assert isinstance(told, TimesRead)
            assert told.append_times == (ack.append_time,)  # type: ignore[union-attr]


async def test_lags_of_anybody_with_a_sequencer_that_died(nodes: dict[str, Node]) -> None:
    """A group's positions, asked without a consumer."""
    async with cluster(3) as running:
        views = await create(running, partitions=4)
        for view in views[:3]:
            async with to(running, view.sequencer) as client:
                await client.produce(*(make_batch(view.id, [b"%d" % i]) for i in range(5)))
        await running.kill(views[0].sequencer)
        async with Cluster(running.bootstrap) as asked:
            lags = await read_lags(asked, {("orders", index): 2 for index in range(3)} | {("orders", 3): 0})
        assert [lag.records for lag in lags.values()] == [3, 3, 3, 0]
        assert all(0 <= lag.seconds < 30 for lag in lags.values())
        assert lags["orders", 3] == Lag(0, 0.0)
