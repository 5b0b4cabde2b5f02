"""P-11 on real disks: no ack leaves a sequencer before W brokers have synced the batch, whatever the syncs take.

Told from what went to the disks and over the sockets, not from what brokers say (`support/synced_acks.py`). The last tests break the
promise in the ways in which it could be traded for speed, and see the same verdict fail.
"""

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio

from streamq.broker.node import Node
from streamq.model.batches import Batch
from streamq.model.messages import Ack, BrokerStatus, CreateTopic, Nack, PartitionView
from streamq.model.registers import Durability
from streamq.net.network import TcpNetwork
from streamq.storage.disk_storage import DiskStorage
from tests.broker.capture import capture_nodes, sequencing_of, until
from tests.broker.test_cluster_in_process import find
from tests.broker.wire_client import WireClient, make_batch, new_producer, wire_client
from tests.sim.mutants import MUTANTS
from tests.support.disk_cluster import BrokerOnDisk, disk_cluster
from tests.support.recorded_disks import AckLeft, Event, RecordedDisk, Synced
from tests.support.synced_acks import Disks, key_of, verdict
from tests.support.watched_network import WatchedNetwork

BROKERS = ("b1", "b2", "b3")
WRITE_QUORUM = 2
PARTITIONS = 3
PRODUCERS = 4
FRAMES = 10
BATCHES_PER_FRAME = 3
QUICK_S = (0.0, 0.0, 0.001, 0.003, 0.02)
SLOW_S = (0.02, 0.06)

Brokers = dict[str, BrokerOnDisk]


def with_acks(record: list[Event]) -> WatchedNetwork:
    return WatchedNetwork(lambda batch, ack: record.append(AckLeft(batch, ack)))


def acks_in(record: list[Event]) -> dict[bytes, Ack]:
    """By the payloads of the batches."""
    return {event.batch.payload: event.ack for event in record if isinstance(event, AckLeft)}


async def create(brokers: Brokers, partitions: int = 1, durability: Durability = "fsync") -> list[PartitionView]:
    """A topic whose partitions have taken a record each, at offset 0, and so have sequencers that serve."""
    async with wire_client(brokers["b1"].config.address) as client:
        await client.ask(CreateTopic("t", partitions, 3, 0, 0, durability))
        views = await find(client, "t")
    for view in views:
        batch = make_batch(view.id, [b"the first"], producer=new_producer())
        async with wire_client(brokers[view.sequencer].config.address) as client:
            with trio.fail_after(10):
                while not isinstance((await client.produce(batch))[0], Ack):
                    await trio.sleep(0.01)
    return views


@contextmanager
def holding(disks: Iterable[RecordedDisk], batch: Batch) -> Iterator[None]:
    """Syncs that would put this batch on these disks are held back; none is when the block ends."""
    for disk in disks:
        disk.hold(batch.payload)
    try:
        yield
    finally:
        for disk in disks:
            disk.let_go()


@asynccontextmanager
async def producing(brokers: Brokers, view: PartitionView, batch: Batch) -> AsyncIterator[tuple[WireClient, list[Ack | Nack]]]:
    """The batch is on its way; its outcome goes into the list. With the client that sent it."""
    outcomes: list[Ack | Nack] = []
    async with wire_client(brokers[view.sequencer].config.address) as client, trio.open_nursery() as nursery:

        async def produce() -> None:
            outcomes.extend(await client.produce(batch, timeout_s=10))

        nursery.start_soon(produce)
        yield client, outcomes
        nursery.cancel_scope.cancel()


def reported(nodes: dict[str, Node], view: PartitionView) -> dict[str, int]:
    """The local tails that the partition's sequencer has heard of."""
    sequencing = sequencing_of(nodes, view.id).sequencing
    assert sequencing is not None
    return {member.broker: sequencing.core.tail_of(member) for member in sequencing.segment.replicas}


@pytest.mark.parametrize("held", list(combinations(BROKERS, 2)), ids=" and ".join)
async def test_no_ack_leaves_while_only_one_disk_has_synced_and_it_leaves_when_the_second_has(
    held: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = capture_nodes(monkeypatch)
    record: list[Event] = []
    disks = {name: RecordedDisk(name, record) for name in BROKERS}
    [third] = set(BROKERS) - set(held)
    async with disk_cluster(tmp_path, list(disks.values()), network=with_acks(record)) as brokers:
        [view] = await create(brokers)
        batch = make_batch(view.id, [b"acked when two disks have it"], producer=new_producer())
        with holding([disks[name] for name in held], batch):
            async with producing(brokers, view, batch) as (client, outcomes):
                await until(lambda: Disks.after(record).written_to(batch, 1) == set(BROKERS))
                await until(lambda: Disks.after(record).holders(batch, 1) == {third})
                await until(lambda: reported(nodes, view) == {third: 2, held[0]: 1, held[1]: 1})
                await client.ask(BrokerStatus())  # what was sent on this connection before the answer has come
                assert outcomes == []
                assert batch.payload not in acks_in(record)
                disks[held[0]].let_go()
                await until(lambda: outcomes != [])
                assert Disks.after(record).holders(batch, 1) == {third, held[0]}
        [outcome] = outcomes
        assert isinstance(outcome, Ack)
        assert (outcome.base, outcome.copies, outcome.of, outcome.durable) == (1, 2, 3, True)
    assert verdict(record, write_quorum=WRITE_QUORUM).too_early == ()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("seen", ["leaving the sequencer", "arriving over plain TCP"])
async def test_each_ack_of_many_producers_is_on_w_synced_disks_before_it_leaves(seen: str, seed: int, tmp_path: Path) -> None:
    """One disk is slow: acks come while it has not synced yet, so that an ack for less than W would show."""
    record: list[Event] = []
    draw = random.Random(seed)
    slow = draw.choice(BROKERS)
    disks = [
        RecordedDisk(name, record, delays_s=SLOW_S if name == slow else QUICK_S, delays=random.Random(draw.random())) for name in BROKERS
    ]
    inside, outside = (with_acks(record), TcpNetwork()) if seen == "leaving the sequencer" else (TcpNetwork(), with_acks(record))
    sent: set[bytes] = set()

    async def produce(view: PartitionView, number: int) -> None:
        producer, sizes = new_producer(), random.Random(f"{seed} {view.id.hex()} {number}")
        async with wire_client(brokers[view.sequencer].config.address, network=outside) as client:
            for first in range(0, FRAMES * BATCHES_PER_FRAME, BATCHES_PER_FRAME):
                values = [b"%d of producer %d" % (sequence, number) for sequence in range(first, first + BATCHES_PER_FRAME)]
                batches = [
                    make_batch(view.id, [view.id, value * sizes.choice((1, 10, 1_000))], producer=producer, sequence=first + i)
                    for i, value in enumerate(values)
                ]
                sent.update(batch.payload for batch in batches)
                assert all(isinstance(outcome, Ack) for outcome in await client.produce(*batches, timeout_s=20))

    async with disk_cluster(tmp_path, disks, network=inside) as brokers:
        views = await create(brokers, PARTITIONS)
        async with trio.open_nursery() as nursery:
            for view in views:
                for number in range(PRODUCERS):
                    nursery.start_soon(produce, view, number)
    assert len(sent) == PARTITIONS * PRODUCERS * FRAMES * BATCHES_PER_FRAME
    assert sent <= acks_in(record).keys()
    told = verdict(record, write_quorum=WRITE_QUORUM)
    assert told.too_early == ()
    assert WRITE_QUORUM in told.synced, "some acks left before the slow disk had the batch"


# --- the verdict can fail ---------------------------------------------------------------------------------------------------


def reports_before_the_sync() -> AbstractContextManager[object]:
    plain = DiskStorage.append

    def append(self: DiskStorage, *given: Any, sync: bool = True) -> None:
        plain(self, *given, sync=False)

    return mock.patch.object(DiskStorage, "append", append)


def acks_below_w() -> AbstractContextManager[object]:
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == "acks below W"]
    return mutant.applied()


@pytest.mark.parametrize(
    ("trade", "durability", "held"),
    [
        pytest.param(nullcontext, "memory", BROKERS, id="a copy in memory is one"),
        pytest.param(reports_before_the_sync, "fsync", BROKERS, id="stored is reported when it is written"),
        pytest.param(acks_below_w, "fsync", BROKERS[1:], id="W - 1 disks will do"),
    ],
)
async def test_an_ack_that_leaves_before_w_syncs_is_noticed(
    trade: Callable[[], AbstractContextManager[object]], durability: Durability, held: tuple[str, ...], tmp_path: Path
) -> None:
    record: list[Event] = []
    disks = {name: RecordedDisk(name, record) for name in BROKERS}
    with trade():
        async with disk_cluster(tmp_path, list(disks.values()), network=with_acks(record)) as brokers:
            [view] = await create(brokers, durability=durability)
            batch = make_batch(view.id, [b"acked too early"], producer=new_producer())
            with holding([disks[name] for name in held], batch):
                async with producing(brokers, view, batch) as (_, outcomes):
                    await until(lambda: outcomes != [])
                told = verdict(record, write_quorum=WRITE_QUORUM)
    assert {early.batch: early.holders for early in told.too_early}[key_of(batch)] == set(BROKERS) - set(held)


class LyingDisk(RecordedDisk):
    """Its syncs are done when the file is closed, and reported long before."""

    def __init__(self, name: str, record: list[Event]) -> None:
        super().__init__(name, record)
        self._put_off: list[tuple[int, Callable[[int], None], Synced]] = []

    def reach_disk(self, fd: int, sync: Callable[[int], None], done: Synced) -> None:
        self._put_off.append((fd, sync, done))

    def close(self, fd: int) -> None:
        for put_off in [each for each in self._put_off if each[0] == fd]:
            self._put_off.remove(put_off)
            super().reach_disk(*put_off)
        super().close(fd)


async def test_disks_that_report_syncs_before_they_are_done_are_noticed_at_every_ack(tmp_path: Path) -> None:
    record: list[Event] = []
    disks = [LyingDisk("b1", record), LyingDisk("b2", record), RecordedDisk("b3", record)]
    async with disk_cluster(tmp_path, disks, network=with_acks(record)) as brokers:
        [view] = await create(brokers)
        async with wire_client(brokers[view.sequencer].config.address) as client:
            for i in range(5):
                await client.produce(make_batch(view.id, [b"%d" % i], producer=new_producer()))
        before_the_end = list(record)
    told = verdict(before_the_end, write_quorum=WRITE_QUORUM)
    assert len(told.too_early) == len(told.synced) == 6
    assert max(told.synced) <= 1
    assert sum(isinstance(event, Synced) and event.disk != "b3" for event in record[len(before_the_end) :]) > 5
