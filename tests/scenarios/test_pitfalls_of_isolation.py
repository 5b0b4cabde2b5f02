"""Pitfalls of brokers that cannot reach each other: real brokers on a virtual clock, and ways between them taken away in silence."""

import pytest
import trio
import trio.testing

from streamq.broker.successions import Successions
from streamq.model.errors import StreamqError
from streamq.model.messages import Ack, ReadTip, TipRead
from tests.support.virtual_cluster import Producer, virtual_cluster

Clock = trio.testing.MockClock


@pytest.mark.parametrize("clients", ["at both", "of the newest sequencer", "none"])
async def test_two_brokers_that_suspect_each_other_do_not_take_over_for_ever(
    clients: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """Pitfall 26, P-19: both reach the third, so each can take over from the other at any time. Epochs stay few, and appends go on."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        await producer.send()
        other = cluster.others(view.sequencer)[0]
        cluster.network.cut(view.sequencer, other)
        before = cluster.epoch
        began = trio.current_time()
        while trio.current_time() < began + 60:
            if clients == "at both":
                for broker in (view.sequencer, other):
                    await Producer(cluster).ask(broker, timeout_s=0.2)
            if clients != "none":
                await producer.send()
            await trio.sleep(0.1)
        assert cluster.epoch - before <= 12, f"{cluster.epoch - before} epochs in a minute"
        await producer.send()


async def test_one_hung_replica_does_not_hold_up_a_takeover(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Pitfall 27: it takes what the failure detector takes, not what the silent replica's requests take to time out."""
    async with virtual_cluster(monkeypatch, 5) as cluster:
        view = await cluster.create(replicas=5, write=3, read=3)
        producer = Producer(cluster)
        await producer.send()
        hung = cluster.others(view.sequencer)[0]
        cluster.network.isolate(hung)
        began = trio.current_time()
        await cluster.running.kill(view.sequencer)
        await cluster.until_sequenced_by_another_than(view.sequencer, hung, timeout_s=2)
        await producer.send()
        assert trio.current_time() - began < 0.5


async def test_a_sequencer_that_was_cut_off_answers_no_tip(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Pitfall 25, P-24: it believes to be the sequencer, its own client reaches it, and the others have gone on."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        await producer.send()
        old = view.sequencer
        cluster.network.isolate(old)
        await cluster.until_sequenced_by_another_than(old)
        assert (await producer.send()).base == 1
        assert old in cluster.sequencers
        async with cluster.client(old, at=old) as client:
            with pytest.raises(StreamqError) as refused:
                await client.ask(ReadTip("orders", 0), timeout_s=30)
            assert refused.value.code == "timed_out"
            cluster.network.heal(old)
            tip = await client.ask(ReadTip("orders", 0), timeout_s=30)
        assert isinstance(tip, TipRead)
        assert tip.high_watermark == 2


async def test_an_idle_sequencer_that_was_passed_over_loses_no_append(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Pitfall 24: its epoch was empty and is closed. What it is sent first is answered truthfully: nothing is acked that is not there."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        old = view.sequencer
        cluster.network.isolate(old)
        await cluster.until_sequenced_by_another_than(old)
        producer = Producer(cluster)
        first = producer.batch(b"first")
        assert not isinstance(await producer.try_once(old, first, at=old), Ack)
        cluster.network.heal(old)
        await producer.try_once(old, first, at=old)
        ack = await producer.send(b"first")
        assert {a.base for a in producer.acks} == {ack.base} == {0}
        async with cluster.client(old) as client:
            with trio.fail_after(5):
                while cluster.partition(old).replica.high_watermark[1] < 1:
                    await trio.sleep(0.01)
            tip = await client.ask(ReadTip("orders", 0))
        assert isinstance(tip, TipRead)
        assert tip.high_watermark == 1


async def test_a_producer_that_finds_no_sequencer_has_it_taken_over(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """P-20: also where nobody looks around by himself; the broker that it asks cannot reach the sequencer either."""

    async def look_away(self: Successions) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Successions, "run", look_away)
    monkeypatch.setattr(Successions, "on_suspected", lambda self, broker: None)
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        await producer.send()
        await cluster.running.kill(view.sequencer)
        await trio.sleep(5)
        assert cluster.sequencers == []
        asked = cluster.others(view.sequencer)[0]
        await producer.try_once(asked, producer.batch())
        await cluster.until_sequenced_by_another_than(view.sequencer, timeout_s=2)
        assert (await producer.send()).base == 1


async def test_epochs_for_a_replica_that_stays_gone_keep_their_interval(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """P-22: at most one in two seconds, however often it is noticed that the replica is gone."""
    async with virtual_cluster(monkeypatch) as cluster:
        await cluster.create()
        producer = Producer(cluster)
        before, began = cluster.epoch, trio.current_time()
        while trio.current_time() < began + 20:
            for broker in cluster.sequencers:
                sequencing = cluster.partition(broker).sequencing
                if sequencing is not None:
                    sequencing.wants_new_epoch = True
            await producer.send()
            await trio.sleep(0.05)
        assert 5 <= cluster.epoch - before <= 11
