"""A broker whose disk does not keep up takes less from others, and is neither refused nor taken for dead for it."""

import sys

import pytest
import trio

from streamq.model.messages import Ack
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing import cluster
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
    monkeypatch.setattr(sys.modules["streamq.testing.cluster"], "MemoryStorage", Standstill)


@pytest.mark.usefixtures("_storage_that_stands_still")
async def test_a_sequencer_reads_no_more_from_clients_while_its_disk_is_behind() -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        storage = running.brokers[view.sequencer].storage
        assert isinstance(storage, Standstill)
        async with to(running, view.sequencer) as client:
            await client.produce(make_batch(view.id, [b"before"]))
            storage.until = trio.Event()
            # What was under way when the gate closed is taken; from then on nothing is.
            taken = await client.produce(make_batch(view.id, [b"first"]))
            assert isinstance(taken[0], Ack)
            with pytest.raises(trio.TooSlowError):
                await client.produce(make_batch(view.id, [b"second"]), timeout_s=0.3)
            storage.until.set()
            with trio.fail_after(5):
                while 2 not in client.outcomes:
                    await client.changed.wait()
            assert isinstance(client.outcomes[2], Ack)


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
