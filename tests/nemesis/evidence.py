"""What is there in the end: the log as consumers read it, by each broker too, and the batches on each broker's disk."""

import hashlib
from typing import Final

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.messages import ReadTip, TipRead
from streamq.storage.checkpoint import RunRow
from streamq.storage.interface import DamagedRangeError
from streamq.storage.log_file import LogFile
from streamq.storage.offline import Directory, batches_in, opened_offline
from streamq_consumer import Consumer
from tests.nemesis.cluster import Cluster
from tests.nemesis.workload import TOPIC, Workload
from tests.sim.history import StoredBatch

__all__ = ["LAST_READER", "UnreadableError", "read_disks", "read_logs"]

AT_ONCE: Final = 5000
READ_S: Final = 300.0
LAST_READER: Final = "last reader"
"""How the names of consumers begin that read when everything is over."""


class UnreadableError(Exception):
    """In the end something can't be read."""


async def read_logs(workload: Workload) -> None:
    """`history.log` by a fresh consumer, and a poll of all of it by each broker. Nothing may be written meanwhile."""
    history = workload.history
    async with ClientCluster(workload.cluster.bootstrap) as client:
        told = [await client.request(ReadTip(TOPIC, p), TipRead, timeout_s=30.0) for p in range(workload.partitions)]
    tips = [tip.high_watermark for tip in told]
    for partition, tip in enumerate(tips):
        before = len(history.polls)
        await _read(workload, partition, tip, LAST_READER, None)
        history.log[partition] = [row for poll in history.polls[before:] for row in poll.records]
        for name in workload.cluster.names:
            await _read(workload, partition, tip, f"{LAST_READER} of {name}", name)


async def _read(workload: Workload, partition: int, tip: int, reader: str, broker: str | None) -> None:
    workload.history.asked[reader, partition] = 0
    position = 0
    with trio.move_on_after(READ_S):
        async with Consumer(workload.cluster.bootstrap, topics=[TOPIC], partitions=[partition], broker=broker) as consumer:
            while (position := consumer.position(TOPIC, partition)) < tip:
                workload.saw(reader, await consumer.fetch(AT_ONCE, timeout=1.0))
    if position < tip:
        raise UnreadableError(f"{reader} got no further than {position} of {tip} in partition {partition} within {READ_S:g} s")


def read_disks(cluster: Cluster, workload: Workload) -> None:
    """`history.replicas`, of brokers that were stopped gracefully, as far as the log was read. Raises UnreadableError."""
    ids = {versions[-1].id: partition for partition, versions in workload.history.registers.items()}
    for broker in cluster.brokers.values():
        for partition in ids.values():  # one that holds nothing at all is looked at as well
            workload.history.replicas.setdefault(partition, {})[broker.name] = []
        with opened_offline(broker.data) as directory:
            if directory.replay is not None and directory.replay.entries:
                raise UnreadableError(f"{broker.name} stopped and left {directory.replay.entries} entries in its journal")
            for run in directory.runs:
                partition = ids.get(run.partition)
                if partition is not None:
                    stored = workload.history.replicas[partition][broker.name]
                    for file in run.files:
                        stored += _batches(directory, run, file)
    for partition, replicas in workload.history.replicas.items():
        end = len(workload.history.log[partition])
        for name, batches in replicas.items():
            replicas[name] = sorted((batch for batch in batches if batch.base < end), key=lambda batch: batch.base)


def _batches(directory: Directory, run: RunRow, file: LogFile) -> list[StoredBatch]:
    source = directory.source(run, file)
    fd = directory.ops.open_to_read(source.path)
    found = []
    try:
        for place in batches_in(source, fd):
            if isinstance(place, DamagedRangeError):
                raise UnreadableError(f"{directory.path}: {place.message}")
            content = directory.ops.pread(fd, place.end_position - place.position, place.position)
            found.append(StoredBatch(run.epoch, place.header.base, place.header.end, hashlib.blake2b(content, digest_size=16).digest()))
    finally:
        directory.ops.close(fd)
    return found
