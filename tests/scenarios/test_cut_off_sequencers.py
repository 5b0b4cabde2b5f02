"""A sequencer that lost its quorum, and does not know that others went on, lets its producers go to where they are served (I-7, P-14)."""

import pytest
import trio.testing

from streamq.model.messages import Ack, Nack
from tests.support.virtual_cluster import Producer, virtual_cluster

Clock = trio.testing.MockClock


async def test_a_batch_at_a_sequencer_that_only_clients_can_reach_is_answered_while_others_go_on(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """Its producer hears heartbeats and would wait for ever; told that the outcome is unknown, it finds out at the new sequencer."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        await producer.send()
        old = view.sequencer
        for other in cluster.others(old):
            cluster.network.cut(old, other)
        batch = producer.batch()
        outcome = await producer.try_once(old, batch, timeout_s=4.0)
        assert isinstance(outcome, Nack)
        assert outcome.code in ("unknown_outcome", "not_sequencer")
        new = await cluster.until_sequenced_by_another_than(old)
        again = await producer.try_once(new, batch)
        assert isinstance(again, Ack)
        assert again.base == 1
