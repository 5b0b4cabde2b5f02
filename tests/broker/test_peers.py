"""Connections between brokers that a cut left behind: silent, and to the system not broken."""

import pytest
import trio
import trio.testing

from streamq.model.messages import ReadVoters, VotersView
from tests.support.virtual_cluster import virtual_cluster

HEALED_IN_S = 0.1


async def test_a_connection_that_a_cut_left_stuck_is_replaced_as_soon_as_the_other_side_is_heard(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """P-20: b1 has noticed that its connection is stuck and dialled anew; b2 hears it there, and must not take its own for good."""
    async with virtual_cluster(monkeypatch) as cluster:
        b1, b2 = cluster.nodes["b1"].peers, cluster.nodes["b2"].peers
        cluster.network.cut("b1", "b2")
        await cluster.until(lambda: b1.dead_since("b2") is not None and b2.dead_since("b1") is not None)
        cluster.network.ways.clear()
        mine = b1.get("b2")
        assert mine is not None
        assert mine.channel is not None
        mine.channel.close("found stuck")
        await trio.sleep(HEALED_IN_S)
        answer = await b2.request("b1", ReadVoters(), timeout_s=0.1)
        assert isinstance(answer, VotersView)
        with trio.move_on_after(10):
            await cluster.until(lambda: not (b1.is_alive("b2") and b2.is_alive("b1")), timeout_s=20)
            raise AssertionError("suspected again, though every way is open")
