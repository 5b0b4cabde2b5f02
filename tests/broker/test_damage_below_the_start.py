"""P-41, P-30 on the real brokers and disks: rot in what was trimmed keeps nobody from what was not, and what cannot be had without it is
fetched from those who still have it."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.model.messages import PartitionView
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.identity import create_identity
from streamq.storage.interface import Identity
from streamq.testing.in_process import ClusterInProcess, cluster
from tests.broker.capture import capture_nodes, until
from tests.broker.test_cluster_in_process import create, to
from tests.broker.test_trims import trim
from tests.broker.wire_client import make_batch
from tests.support.stored_batches import SMALL

logging.getLogger("streamq").setLevel(logging.CRITICAL)

BATCHES = 300
START = 200


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Node]:
    """Of brokers with a disk and next to no memory; b3's log files hold everything, those of the others little."""

    def opened(identity: Identity, *, sync_s: float) -> DiskStorage:
        directory = tmp_path / identity.broker
        create_identity(
            directory,
            cluster=identity.cluster,
            broker=identity.broker,
            first_voters=identity.first_voters,
            incarnation=identity.incarnation,
        )
        file_bytes = 8 << 20 if identity.broker == "b3" else 16 << 10
        return DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL, cache_bytes=1, flush_bytes=1, log_file_bytes=file_bytes))

    monkeypatch.setattr(sys.modules["streamq.testing.in_process"], "MemoryStorage", opened)
    return capture_nodes(monkeypatch)


async def trimmed(running: ClusterInProcess, nodes: dict[str, Node]) -> tuple[PartitionView, Partition]:
    """One record a batch; the others have none of the oldest any more, b3 has all of them in one file."""
    [view] = await create(running)
    async with to(running, view.sequencer) as client:
        for first in range(0, BATCHES, 10):
            await client.produce(*(make_batch(view.id, [os.urandom(1000)], time=offset) for offset in range(first, first + 10)))
    await until(lambda: all(node.partitions[view.id].replica.table.position == BATCHES for node in nodes.values()))
    await trim(nodes, view, START)
    for node in nodes.values():
        partition = node.partitions[view.id]
        await until(lambda partition=partition: partition.replica.start_offset == START)  # type: ignore[misc]
        for _ in range(2):
            node.storage.trim(b"nothing", 0)
            await node.storage.flush()  # type: ignore[attr-defined]
        oldest = min(run.base for run in node.storage.runs(view.id).values())
        assert oldest == 0 if node.broker == "b3" else START - 20 < oldest <= START
    return view, nodes["b3"].partitions[view.id]


def rot(directory: Path, position_of: Callable[[bytes], int]) -> None:
    (path,) = directory.glob("logs/*/*.log")
    content = bytearray(path.read_bytes())
    position = position_of(bytes(content))
    content[position : position + 8] = os.urandom(8)
    path.write_bytes(content)
    for sidecar in directory.glob("logs/*/*.index"):
        sidecar.unlink()


def header_of(offset: int) -> Callable[[bytes], int]:
    """Where it lies: all batches are of one size."""
    return lambda content: 128 + offset * ((len(content) - 128) // BATCHES) + 30


async def read(partition: Partition, view: PartitionView, offset: int) -> list[int]:
    found: list[int] = []
    while offset < BATCHES:
        batches = await partition.read_epoch(view.epoch, offset, max_bytes=30_000)
        found += [batch.base for batch in batches]
        offset = batches[-1].end
    return found


@pytest.mark.parametrize("bad", [(50,), (50, 51, 120), (199, 200), (199, 200, 250), (190, 299), (0, 199, 200, 201, 202)])
async def test_what_was_not_trimmed_is_read(nodes: dict[str, Node], tmp_path: Path, bad: tuple[int, ...]) -> None:
    async with cluster(3) as running:
        view, partition = await trimmed(running, nodes)
        nodes["b3"].storage._reader._indexes.forget(next((tmp_path / "b3").glob("logs/*/*.log")))  # type: ignore[attr-defined]
        for offset in bad:
            rot(tmp_path / "b3", header_of(offset))
        with trio.fail_after(5):
            assert [await partition.find_time(view.epoch, offset) for offset in (270, 250, 210)] == [270, 250, 210]
            assert await read(partition, view, START) == list(range(START, BATCHES))
        assert not partition.replica.in_limbo(view.epoch)
        assert partition.replica.state.damaged == ()


async def test_a_log_file_that_is_gone_is_restored_though_nobody_has_all_of_it(nodes: dict[str, Node], tmp_path: Path) -> None:
    async with cluster(3) as running:
        view, partition = await trimmed(running, nodes)
        next((tmp_path / "b3").glob("logs/*/*.log")).unlink()
        with trio.fail_after(5):
            assert await read(partition, view, START) == list(range(START, BATCHES))
        assert not partition.replica.in_limbo(view.epoch)


async def test_a_fold_that_would_need_it_takes_the_table_of_another(nodes: dict[str, Node], tmp_path: Path) -> None:
    async with cluster(3) as running:
        _, partition = await trimmed(running, nodes)
        rot(tmp_path / "b3", header_of(120))
        partition.replica.table.become(type(partition.replica.table)())
        with trio.fail_after(5):
            await partition.fold()
        assert partition.replica.table.position == BATCHES
        assert partition.node.metrics.tables_fetched == 1
