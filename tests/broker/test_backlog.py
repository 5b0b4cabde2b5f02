"""A broker whose disk does not keep up takes less from others, and is neither refused nor taken for dead for it."""

import sys

import pytest
import trio

from streamq.model.messages import Ack, Nack, Seal
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.in_process import cluster
from tests.broker.capture import capture_nodes, until
from tests.broker.test_cluster_in_process import create, find, to
from tests.broker.wire_client import make_batch

SILENCES_S = 1.5
"""Three times what makes a broker suspect another."""


class Standstill(MemoryStorage):
    """`until` is waited for, if it is there."""

    until: trio.Event | None = None

    def backlog(self) -> trio.Event | None:
        return None if self.until is None or self.until.is_set() else self.until


@pytest.fixture
def _storage_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["streamq.testing.in_process"], "MemoryStorage", Standstill)


@pytest.mark.usefixtures("_storage_that_stands_still")
async def test_a_sequencer_reads_no_more_from_clients_while_its_disk_is_behind() -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        storage = running.brokers[view.sequencer].storage
        assert isinstance(storage, Standstill)
        async with to(running, view.sequencer) as client:
            await client.produce(make_batch(view.id, [b"before"]))
            storage.until = trio.Event()
            heard = len(client.heartbeats)
            with pytest.raises(trio.TooSlowError):
                await client.produce(make_batch(view.id, [b"meanwhile"]), timeout_s=1)
            assert len(client.heartbeats) > heard, "it would leave a broker that says nothing while it waits"
            storage.until.set()
            await until(lambda: 1 in client.outcomes)
            assert isinstance(client.outcomes[1], Ack)


@pytest.mark.usefixtures("_storage_that_stands_still")
async def test_a_follower_that_reads_no_more_holds_nobody_up_and_suspects_nobody() -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        follower = next(broker for name, broker in running.brokers.items() if name != view.sequencer)
        assert isinstance(follower.storage, Standstill)
        async with to(running, view.sequencer) as client:
            await client.produce(make_batch(view.id, [b"before"]))
            follower.storage.until = trio.Event()
            with trio.move_on_after(SILENCES_S):
                while True:
                    [outcome] = await client.produce(make_batch(view.id, [b"x" * 1000]))
                    assert isinstance(outcome, Ack)
            follower.storage.until.set()
            [after] = await find(client)
            assert (after.sequencer, after.epoch) == (view.sequencer, view.epoch)
            [outcome] = await client.produce(make_batch(view.id, [b"after"]))
            assert isinstance(outcome, Ack)
            with trio.fail_after(5):
                while follower.storage.runs(view.id)[view.epoch].tail <= outcome.base:
                    await trio.sleep(0.01)


@pytest.mark.usefixtures("_storage_that_stands_still")
async def test_a_broker_that_reads_no_more_takes_one_that_is_gone_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would say lies unread, and so does its end; that it cannot be dialled any more counts."""
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        name, other = (broker for broker in running.brokers if broker != view.sequencer)
        follower = running.brokers[name]
        assert isinstance(follower.storage, Standstill)
        async with to(running, view.sequencer) as client:
            follower.storage.until = trio.Event()
            await client.produce(*(make_batch(view.id, [b"x"]) for _ in range(5)))
            await until(lambda: sum(session.channel.is_paused for session in nodes[name].sessions) == 2)
        await running.kill(other)
        await until(lambda: not nodes[name].peers.is_alive(other))
        with trio.move_on_after(SILENCES_S):
            while not nodes[name].peers.is_alive(other):
                await trio.sleep(0.01)
            pytest.fail("it was heard again, though it is gone")
        follower.storage.until.set()


async def test_batches_that_a_seal_overtakes_within_a_step_are_sent_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """P-14: assigned, not stored yet, and the epoch is sealed: their outcome is unknown, and no other replica hears of them."""
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        node, partition = nodes[view.sequencer], nodes[view.sequencer].partitions[view.id]
        async with to(running, view.sequencer) as client:
            [before] = await client.produce(make_batch(view.id, [b"before"]))
            assert isinstance(before, Ack)
            [session] = [session for session in node.sessions if session.member is None]
            sequencing = partition.sequencing
            assert sequencing is not None
            sent: list[object] = []
            monkeypatch.setattr(sequencing, "_send", lambda follower, batches: sent.append(batches))
            # From here to the flush without an await, as in one pass of the poller.
            sequencing.produce(session, 99, make_batch(view.id, [b"overtaken"]))
            segment = partition.replica.state.chain[-1]
            partition.carry_out(partition.replica.on_seal(Seal(view.id, segment.epoch, segment.base), lambda message, batches=(): None))
            node.flush()
            assert sequencing.is_retired
            assert sent == []
            await until(lambda: 99 in client.outcomes)
            outcome = client.outcomes[99]
            assert isinstance(outcome, Nack)
            assert outcome.code == "unknown_outcome"
