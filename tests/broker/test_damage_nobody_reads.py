"""Found by tier 2 (seed 392): a damaged range that could not be mended when it was met kept its replica in limbo until somebody read it."""

import logging

import msgspec
import pytest
import trio

from streamq.log.replica_state import DamagedRange, ReplicaState, learned
from streamq.model.registers import PartitionRegister, Segment
from streamq.testing.in_process import cluster
from tests.broker.capture import capture_nodes, until
from tests.broker.test_cluster_in_process import Resender, create
from tests.support.log_lab import members

logging.getLogger("streamq").setLevel(logging.ERROR)


async def test_damage_is_mended_though_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """P-30: a damaged replica counts in none of the epoch's quorums, so it must not wait for a reader to come by."""
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        for i in range(10):
            await producer.send(b"%d" % i)
        victim = "b3" if view.sequencer != "b3" else "b2"
        await trio.sleep(0.1)
        partition = nodes[victim].partitions[view.id]
        running.brokers[victim].storage.damage(view.id, view.epoch, 3, 5)
        partition.carry_out(partition.replica.on_damaged(view.epoch, 3, 5))
        assert partition.replica.in_limbo(view.epoch)
        await until(lambda: not partition.replica.in_limbo(view.epoch))
        assert len(await partition.read_epoch(view.epoch, 3, max_bytes=1 << 20)) > 0


def test_damage_that_is_void_is_no_damage() -> None:
    """P-9: what lies past the end of its epoch never happened; nobody holds it, so nobody could ever mend it."""
    first = Segment(1, 0, None, members(3), 2, 2, "fsync", "b1", b"a" * 16)
    state = ReplicaState(b"p" * 16, "t", chain=(first,), damaged=(DamagedRange(1, 3, 8), DamagedRange(1, 9, 12)))
    closed = msgspec.structs.replace(first, end=5)
    second = msgspec.structs.replace(first, epoch=2, base=5, attempt=b"b" * 16)
    register = PartitionRegister(b"p" * 16, "t", 0, ("b1", "b2", "b3"), 2, 2, "fsync", 0, (closed, second))
    assert learned(state, register).damaged == (DamagedRange(1, 3, 5),)
