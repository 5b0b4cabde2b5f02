"""Real brokers in one trio run over real directories: what processes run, without them. In `streamq.testing` their storage is in memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from streamq.broker.app import Stopping, run_broker
from streamq.broker.config import BrokerConfig
from streamq.broker.metrics import Usage
from streamq.broker.node import SystemClock
from streamq.net.network import Network, TcpNetwork
from streamq.storage.disk_storage import DiskSettings, DiskStorage
from streamq.storage.file_ops import FileOps
from streamq.storage.identity import create_identity
from streamq.testing.in_process import START_TIMEOUT_S, first_voters, free_ports

__all__ = ["JOURNAL_FILE_BYTES", "BrokerOnDisk", "disk_cluster"]

JOURNAL_FILE_BYTES: Final = 4 << 20


class BrokerOnDisk:
    def __init__(self, config: BrokerConfig, storage: DiskStorage) -> None:
        self.config = config
        self.storage = storage

    @property
    def name(self) -> str:
        return self.config.broker


@asynccontextmanager
async def disk_cluster(
    directory: Path, disks: Sequence[FileOps], *, network: Network | None = None, usage: Usage | None = None
) -> AsyncIterator[dict[str, BrokerOnDisk]]:
    """A broker for each disk, b1, b2, …, that serve; their directories are made below `directory`. Everything ends with the block, and the
    storages are closed as at a clean stop."""
    clock = SystemClock()
    names = [f"b{i + 1}" for i in range(len(disks))]
    voters = first_voters(names, ["127.0.0.1"] * len(disks), free_ports(len(disks)), clock)
    cluster = clock.token()
    brokers: dict[str, BrokerOnDisk] = {}
    for voter, ops in zip(voters.voters, disks, strict=True):
        place = directory / voter.broker
        create_identity(place, cluster=cluster, broker=voter.broker, first_voters=voters, incarnation=voter.incarnation)
        storage = DiskStorage.open(place, settings=DiskSettings(journal_file_bytes=JOURNAL_FILE_BYTES), ops=ops)
        brokers[voter.broker] = BrokerOnDisk(BrokerConfig(broker=voter.broker, data_directory=str(place), port=voter.port), storage)
    try:
        async with trio.open_nursery() as nursery:
            serving = {name: trio.Event() for name in brokers}
            for name, broker in brokers.items():
                run = partial(run_broker, stop=Stopping(), on_serving=serving[name].set, usage=usage)
                nursery.start_soon(run, broker.config, broker.storage, network or TcpNetwork(), clock, name=name)
            with trio.fail_after(START_TIMEOUT_S):
                for each in serving.values():
                    await each.wait()
            yield brokers
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for broker in brokers.values():
                await broker.storage.close()
