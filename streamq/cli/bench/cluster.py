"""The cluster that is measured: one of the benchmark's own, which goes away with it, or one that runs."""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from streamq.cli.admin import Admin
from streamq.cli.bench.warden import CLUSTER, start_warden
from streamq.cli.cluster import settings_lines
from streamq.cli.local_cluster import LocalCluster, free_ports
from streamq.cli.output import note
from streamq.cli.processes import find_process
from streamq.cli.settings import bootstrap_of, find_bootstrap
from streamq.cli.topic import topic_request
from streamq.model.errors import RefusedError, StreamqError
from streamq.model.messages import DeleteTopic, DescribePartition, Ok, PartitionDescription, TopicCreated

__all__ = ["FLUSHED_AFTER_S", "BenchCluster", "bench_cluster", "drop_pages"]

BROKERS: Final = 3
ADMIN_TIMEOUT_S: Final = 60.0
"""A topic of 2,000 partitions takes a while."""
GONE_TIMEOUT_S: Final = 30.0
GONE_POLL_S: Final = 0.1
FLUSHED_AFTER_S: Final = 1.5
"""A broker that gets nothing has written what it has to its log files by then (`flush_interval_s`)."""


class BenchCluster:
    """`local` is None for a cluster that was running before: its brokers can be neither measured nor hurt."""

    def __init__(self, bootstrap: str, local: LocalCluster | None, topic_prefix: str) -> None:
        self.bootstrap: Final = bootstrap
        self.local: Final = local
        self._prefix = topic_prefix
        self._made = 0
        self._topics: list[str] = []
        self._kept: list[str] = []

    @property
    def own(self) -> LocalCluster:
        assert self.local is not None, "asked for before: `bench_cluster(needs_own=True)`"
        return self.local

    @property
    def pids(self) -> dict[str, int]:
        """The processes of its own brokers that run, by id."""
        if self.local is None:
            return {}
        return {broker.name: process.pid for broker in self.local.brokers if (process := find_process(broker.directory)) is not None}

    def create_topic(self, partitions: int = 1, *, retention_bytes: int | None = None) -> str:
        """`retention_bytes`: what each of its replicas keeps of a partition; None: everything, for what is read afterwards."""
        self._made += 1
        name = f"{self._prefix}-{self._made}"
        request = topic_request(name, partitions=partitions, replicas=None, write=None, read=None, retention_bytes=retention_bytes)
        with self._admin() as admin:
            admin.ask(request, TopicCreated, is_change=True)
        self._topics.append(name)
        return name

    def keep_topics(self) -> None:
        """Those that were made so far stay when `remove_topics` is called, as long as the cluster is measured."""
        self._kept += self._topics
        self._topics.clear()

    def remove_topics(self) -> None:
        """All topics that were made and are not kept; of its own cluster's, waits until their files are gone."""
        before = self.stored_bytes
        with self._admin() as admin:
            for name in self._topics:
                admin.ask(DeleteTopic(name), Ok, is_change=True)
        self._topics.clear()
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while before and not self._kept and self.stored_bytes and time.monotonic() < deadline:
            time.sleep(GONE_POLL_S)

    def forget_all(self) -> None:
        """Removes every topic that was made, as far as the cluster answers."""
        with contextlib.suppress(StreamqError):
            self._topics += self._kept
            self._kept.clear()
            self.remove_topics()

    def _admin(self) -> Admin:
        return Admin(bootstrap_of(self.bootstrap, origin="the cluster that is measured"), timeout_s=ADMIN_TIMEOUT_S)

    @property
    def stored_bytes(self) -> int:
        """What the log files of its own brokers hold, all directories together."""
        return 0 if self.local is None else sum(bytes_below(broker.data / "logs") for broker in self.local.brokers)

    @property
    def disk_bytes(self) -> int:
        """What its own brokers have on the disk, all in all."""
        return 0 if self.local is None else bytes_below(self.local.directory)

    def start_cold(self) -> None:
        """Starts the brokers anew, after the system was told to forget what it keeps in memory of their files."""
        time.sleep(FLUSHED_AFTER_S)
        self.own.stop()
        drop_pages(self.own.directory)
        self.own.start()

    def sequencer(self, topic: str, partition: int) -> str:
        """The broker that is it now, by a quorum read of the register."""
        return self.epoch(topic, partition)[1]

    def epoch(self, topic: str, partition: int) -> tuple[int, str]:
        """The open epoch and its sequencer."""
        with self._admin() as admin:
            segment = admin.ask(DescribePartition(topic, partition), PartitionDescription).register.last
        return segment.epoch, segment.sequencer


def drop_pages(directory: Path) -> None:
    """Has the system forget what it keeps in memory of the files below; what is not on the disk yet goes there first."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def bytes_below(directory: Path) -> int:
    """Blocks that files take; a file that goes away meanwhile counts for nothing."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


@contextlib.contextmanager
def bench_cluster(
    options: argparse.Namespace, *, needs_own: str = "", start: Callable[[LocalCluster], object] = LocalCluster.start
) -> Iterator[BenchCluster]:
    """The cluster that the options name, or one of its own: brokers and data are gone afterwards, however this ends.

    `needs_own` says why a running cluster will not do. Raises RefusedError then. `start` starts the brokers of its own.
    """
    prefix = f"bench-{os.getpid()}-{time.time_ns() // 1_000_000 % 10**9}"
    if options.bootstrap is None and options.profile is None:
        with _own_cluster(options, start) as local:
            yield BenchCluster(local.bootstrap, local, prefix)
        return
    if needs_own:
        raise RefusedError(f"this needs a cluster of its own: {needs_own}", code="usage", hint="leave --bootstrap and --profile out")
    if options.set or options.brokers or options.data:
        raise RefusedError(
            "--brokers, --set and --data are for a cluster of its own", code="usage", hint="leave them out, or --bootstrap and --profile"
        )
    cluster = BenchCluster(str(find_bootstrap(flag=options.bootstrap, profile=options.profile)), None, prefix)
    try:
        yield cluster
    finally:
        cluster.forget_all()


@contextlib.contextmanager
def _own_cluster(options: argparse.Namespace, start: Callable[[LocalCluster], object]) -> Iterator[LocalCluster]:
    brokers = options.brokers or BROKERS
    if options.data:
        Path(options.data).mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="streamq-bench-", dir=options.data)).absolute()
    warden = start_warden(directory)
    try:
        local = LocalCluster.open_or_found(
            directory / CLUSTER, brokers=brokers, port=free_ports(brokers), settings=settings_lines(options.set)
        )
        start(local)
        yield local
    finally:
        assert warden.stdin is not None
        warden.stdin.close()
        with contextlib.suppress(KeyboardInterrupt):  # one more Ctrl-C changes nothing: it is being removed
            warden.wait()
        if directory.exists():
            note(f"{directory} could not be removed")
