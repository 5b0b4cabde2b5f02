"""Pitfalls of one broker among others: disks that fail or fill, clients that go away, planned moves, replicas that lag. Virtual clock."""

from importlib import import_module
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from streamq.broker.peers import Peer
from streamq.broker.sequencing import FEED_BYTES
from streamq.broker.successions import Successions
from streamq.model.messages import Ack, Nack, Open, Produce, ReadTip, Seal, Sealed, TipRead
from streamq.storage.interface import StorageFailedError
from streamq.testing.in_process import BrokerInProcess
from tests.support.virtual_cluster import Producer, VirtualCluster, virtual_cluster

Clock = trio.testing.MockClock
CERTAINLY_NOT_STORED = {"not_sequencer", "not_ready"}


async def tip_by(cluster: VirtualCluster, broker: str) -> int:
    async with cluster.client(broker) as client:
        tip = await client.ask(ReadTip("orders", 0))
    assert isinstance(tip, TipRead)
    return tip.high_watermark


# --- disks -----------------------------------------------------------------------------------------------------------------------


class FailStop(BrokerInProcess):
    """The process around the broker, which ends when the storage fails."""

    has_failed = False

    async def run(self) -> None:
        try:
            await super().run()
        except* StorageFailedError:
            self.has_failed = True


@pytest.mark.parametrize("victim", ["sequencer", "follower"])
async def test_a_broker_whose_sync_fails_stops_and_says_nothing_of_that_batch(
    victim: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """P-15: with W = N each copy is needed, so an ack would be one for the copy whose sync failed. None comes, then or later."""
    monkeypatch.setattr(import_module("streamq.testing.in_process"), "BrokerInProcess", FailStop)
    async with virtual_cluster(monkeypatch, sync_s=0.02) as cluster:
        view = await cluster.create(write=3, read=1)
        producer = Producer(cluster)
        await producer.send(b"before")
        broker = cluster.running.brokers[view.sequencer if victim == "sequencer" else cluster.others(view.sequencer)[0]]
        assert isinstance(broker, FailStop)
        async with cluster.client(view.sequencer) as client:
            batch = producer.batch(b"in doubt")
            client.channel.send(Produce((7,)), payload=[batch.head, batch.payload])
            await cluster.until(lambda: broker.storage.unsynced > 0 and broker.storage.runs(view.id)[view.epoch].tail == 2)
            broker.storage.fail("input/output error")
            await trio.sleep(3)
            assert not isinstance(client.outcomes.get(7), Ack)
        assert broker.has_failed
        assert not broker.is_running
        assert broker.storage.crash().runs(view.id)[view.epoch].tail == 1


async def test_a_takeover_succeeds_while_every_disk_is_full(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Pitfall 5: seals, chains and promises have room kept for them; what was acked is read, and new batches are refused by name."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        for _ in range(3):
            await producer.send()
        for broker in cluster.running.brokers.values():
            broker.storage.refuse("the disk is full")
        await cluster.running.kill(view.sequencer)
        successor = await cluster.until_sequenced_by_another_than(view.sequencer)
        assert await tip_by(cluster, successor) == 3
        refused = await producer.ask(successor)
        assert isinstance(refused, Nack)
        assert refused.code == "disk_full"
        for broker in cluster.running.brokers.values():
            broker.storage.refuse(None)
        assert (await producer.send()).base == 3


# --- producers -------------------------------------------------------------------------------------------------------------------


def hold_followers(cluster: VirtualCluster, sequencer: str) -> None:
    """Nothing reaches the other replicas from now on."""
    sequencing = cluster.partition(sequencer).sequencing
    assert sequencing is not None
    for follower in sequencing.followers.values():
        follower.is_live, follower.is_feeding = False, True


@pytest.mark.parametrize("sealed", ["own replica", "all the others"])
async def test_what_was_assigned_when_the_epoch_was_sealed_is_unknown_and_never_refused_or_acked(
    sealed: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """P-14, pitfall 54: the batch lies at the sequencer alone. It may be kept or not; the producer is told so, and its retry finds out."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        await producer.send()
        hold_followers(cluster, view.sequencer)
        sequencing = cluster.partition(view.sequencer).sequencing
        assert sequencing is not None
        batch = producer.batch()
        async with cluster.client(view.sequencer) as client:
            client.channel.send(Produce((7,)), payload=[batch.head, batch.payload])
            await cluster.until(lambda: sequencing.core.in_flight == 1)
            for target in [view.sequencer] if sealed == "own replica" else cluster.others(view.sequencer):
                async with cluster.peer(target, of=cluster.others(target)[0]) as peer:
                    assert isinstance(await peer.ask(Seal(view.id, view.epoch, 0)), Sealed)
            if sealed != "own replica":
                for follower in sequencing.followers.values():
                    follower.is_feeding = False
                    sequencing.feed(follower)
            await cluster.until(lambda: 7 in client.outcomes, 8)
            outcome = client.outcomes[7]
        assert isinstance(outcome, Nack)
        assert outcome.code == "unknown_outcome"
        ack = await producer.send()
        assert ack.base == 1
        assert await tip_by(cluster, view.sequencer) == 2


async def test_a_producer_that_goes_away_after_its_batch_was_assigned_leaves_no_gap(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """Pitfall 20: the offset was given away, so the batch is stored and what follows it is acked, though nobody waits for it any more."""
    async with virtual_cluster(monkeypatch, sync_s=0.05) as cluster:
        view = await cluster.create()
        gone, other = Producer(cluster), Producer(cluster)
        sequencing = cluster.partition(view.sequencer).sequencing
        assert sequencing is not None
        async with cluster.client(view.sequencer) as client:
            batch = gone.batch(b"of one who left")
            client.channel.send(Produce((1,)), payload=[batch.head, batch.payload])
            await cluster.until(lambda: sequencing.core.in_flight == 1)
            client.channel.close("gone")
        assert sequencing.core.high_watermark == 0
        assert (await other.send(b"of another")).base == 1
        assert cluster.epoch == view.epoch
        assert (await gone.send(b"of one who left")).base == 0
        assert cluster.nodes[view.sequencer].in_flight_bytes == 0


async def test_each_batch_sees_at_most_one_retriable_answer_in_a_planned_move(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """P-21: nothing assigned is left in doubt, what comes while it moves is refused once and taken by the successor, and nobody is slow."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        producer = Producer(cluster)
        refused: list[list[str]] = []
        looker = Successions(cluster.nodes[view.sequencer])

        async def produce() -> None:
            while len(refused) < 300:
                codes: list[str] = []
                while not isinstance(outcome := await producer.ask(cluster.sequencers[-1]), Ack):
                    assert outcome is not None
                    codes.append(outcome.code)
                    with trio.move_on_after(1):  # until somebody can take it
                        await cluster.until(lambda: cluster.sequencers[-1:] not in ([], [view.sequencer]))
                producer.sequence += 1
                refused.append(codes)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            await cluster.until(lambda: len(refused) > 100)
            began = trio.current_time()
            await looker.hand_over(cluster.partition(view.sequencer), cluster.others(view.sequencer)[0])
            took = trio.current_time() - began
        assert took < 0.2
        assert cluster.epoch == view.epoch + 1
        assert max(map(len, refused)) <= 1
        assert {code for codes in refused for code in codes} <= CERTAINLY_NOT_STORED
        assert [ack.base for ack in producer.acks] == list(range(300))


# --- replicas --------------------------------------------------------------------------------------------------------------------


async def test_a_deletion_that_somebody_tells_of_is_not_believed(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """P-1, pitfall 48: data is dropped when a quorum read shows the tombstone, whatever a broker with an old or a wrong view says."""
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        await Producer(cluster).send()
        target, other = cluster.others(view.sequencer)
        sequencing = cluster.partition(view.sequencer).sequencing
        assert sequencing is not None
        tombstone = msgspec.structs.replace(sequencing.register, deleted=True, chain=())
        async with cluster.peer(target, of=other) as peer:
            await peer.ask(Open(tombstone))
            await trio.sleep(1)
        assert view.id in cluster.nodes[target].partitions
        assert cluster.running.brokers[target].storage.runs(view.id)[view.epoch].tail == 1
        async with cluster.client(target) as client:
            assert len(await client.read(view.id, 0, 1)) == 1


async def test_a_replica_that_was_away_is_fed_at_its_own_pace_and_producers_do_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """Pitfall 58: what is sent and not yet reported stays within a piece and a batch; appends are acked as quickly as ever meanwhile."""
    store = Peer.store
    unreported: list[int] = []
    sent: dict[int, int] = {}

    def watched(self: Peer, partition: bytes, epoch: int, high_watermark: int, batches: Any) -> None:
        sequencing = cluster.partition(view.sequencer).sequencing
        if self.broker == away and batches and sequencing is not None and sequencing.followers[away].is_feeding:
            sent.update({batch.base: batch.size for batch in batches})
            unreported.append(sum(size for base, size in sent.items() if base >= sequencing.followers[away].tail))
        store(self, partition, epoch, high_watermark, batches)

    monkeypatch.setattr(Peer, "store", watched)
    async with virtual_cluster(monkeypatch) as cluster:
        view = await cluster.create()
        away = cluster.others(view.sequencer)[0]
        await cluster.running.kill(away)
        producer = Producer(cluster)
        value = b"x" * 100_000
        for _ in range(60):
            await producer.send(value)
        await cluster.running.start(away)
        slowest = 0.0
        sequencing = cluster.partition(view.sequencer).sequencing
        assert sequencing is not None
        while not sequencing.followers[away].is_live:
            began = trio.current_time()
            await producer.send()
            slowest = max(slowest, trio.current_time() - began)
        largest = len(value) + 500
        assert FEED_BYTES // 2 < max(unreported) <= FEED_BYTES + largest
        assert len(unreported) > 8
        assert slowest < 0.02
        assert cluster.epoch == view.epoch
