"""Partitions that nobody uses cost next to nothing, and one in trouble among many idle ones is found as quickly as if it were alone."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio.testing

from streamq.broker.lookout import ROUND_S, Lookout
from streamq.broker.partition import Partition
from streamq.broker.sequencing import Sequencing
from streamq.broker.stalls import STALL_CHECK_S
from streamq.broker.successions import Successions
from streamq.model.messages import Ack, CreateTopic, Nack, Seal, Sealed
from tests.support.virtual_cluster import Producer, VirtualCluster, virtual_cluster

Clock = trio.testing.MockClock

IDLE = 300
QUIET_S = 12.0
"""Partitions have been sent home, and nothing of their making is under way any more."""


@asynccontextmanager
async def idle_cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VirtualCluster]:
    """Three brokers with IDLE partitions and `view`, all quiet."""
    async with virtual_cluster(monkeypatch) as cluster:
        async with cluster.client("b1") as client:
            await client.ask(CreateTopic("idle", IDLE, 3, 2, 2, "fsync"), timeout_s=60)
        await cluster.create()
        await Producer(cluster).send()
        await cluster.until(lambda: len(sequencings(cluster)) == IDLE + 1, 60)
        await trio.sleep(QUIET_S)
        yield cluster


def sequencings(cluster: VirtualCluster) -> list[Sequencing]:
    return [p.sequencing for node in cluster.nodes.values() for p in node.partitions.values() if p.sequencing is not None]


def without_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not found because something changed is not found."""
    monkeypatch.setattr(Lookout, "_take_turns", lambda self: None)


async def test_idle_partitions_are_looked_at_in_their_turn_only(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    async with idle_cluster(monkeypatch) as cluster:
        looked: Counter[int] = Counter()
        due = Lookout.due

        def counted(self: Lookout) -> object:
            found = due(self)
            looked[id(self)] += len(found)
            return found

        monkeypatch.setattr(Lookout, "due", counted)
        tasks = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(ROUND_S)
        assert tasks < IDLE, "an idle partition has no task of its own"
        assert len(looked) >= 4 * len(cluster.nodes)
        # One is used now and then, as all of them have one register looked up in turn each second; nothing else is due.
        assert max(looked.values()) <= 1.6 * (IDLE + 1) + ROUND_S


@pytest.mark.parametrize("trouble", ["a lost store", "a sealed replica", "an unknown loss"])
async def test_a_sequencer_in_trouble_among_idle_ones_is_found(
    trouble: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """P-14, and 4.2: found by what changed, without the turn that each partition has."""
    without_turns(monkeypatch)
    async with idle_cluster(monkeypatch) as cluster:
        [broker] = cluster.sequencers
        sequencing = cluster.partition(broker).sequencing
        assert sequencing is not None
        follower = next(iter(sequencing.followers.values()))
        assert follower.is_live
        if trouble == "a lost store":
            carry_out, lost = Partition.carry_out, cluster.partition(follower.member.broker)
            with monkeypatch.context() as losing:
                losing.setattr(Partition, "carry_out", lambda self, effects: None if self is lost else carry_out(self, effects))
                losing.setattr(lost.replica, "on_store", lambda *_: [])
                assert (await send(cluster)).base == 1
                await trio.sleep(0.1)
            assert follower.tail == 1
            await cluster.until(lambda: follower.tail == 2 and follower.is_live, 3 * STALL_CHECK_S)
        elif trouble == "a sealed replica":
            async with cluster.peer(broker, of=follower.member.broker) as peer:
                assert isinstance(await peer.ask(Seal(cluster.view.id, sequencing.epoch, sequencing.segment.base)), Sealed)
            await cluster.until(lambda: sequencing.is_retired, 2 * STALL_CHECK_S)
            assert (await send(cluster)).base == 1
        else:
            follower.is_live = False
            await cluster.until(lambda: follower.is_live, 2 * STALL_CHECK_S)


async def send(cluster: VirtualCluster) -> Ack:
    return await Producer(cluster).send()


async def test_a_sequencer_among_idle_ones_that_is_cut_off_answers_its_producer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """I-7: that it waits in vain is found out two checks after the batch, as if it were alone."""
    without_turns(monkeypatch)
    async with idle_cluster(monkeypatch) as cluster:
        [broker] = cluster.sequencers
        for other in cluster.others(broker):
            cluster.network.cut(broker, other)
        outcome = await Producer(cluster).ask(broker, timeout_s=5 * STALL_CHECK_S)
        assert isinstance(outcome, Nack)
        assert outcome.code in ("unknown_outcome", "not_sequencer")
        assert (await send(cluster)).base == 1


async def test_all_of_a_dead_brokers_partitions_are_taken_over_and_sent_home_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """P-19 to P-21: what depends on peers is looked at for every partition when a peer has changed, not only at the moment of suspicion."""
    without_turns(monkeypatch)
    monkeypatch.setattr(Successions, "on_suspected", lambda self, broker: None)
    async with idle_cluster(monkeypatch) as cluster:
        gone = cluster.sequencers[-1]
        at_home = {p.id for p in cluster.nodes[gone].partitions.values() if p.sequencing is not None}
        await cluster.running.kill(gone)
        await cluster.until(lambda: at_home <= {s.partition.id for s in sequencings(cluster) if s.node.broker != gone}, 30)
        await cluster.running.start(gone)
        await cluster.until(lambda: at_home <= {s.partition.id for s in sequencings(cluster) if s.node is cluster.nodes[gone]}, 60)
