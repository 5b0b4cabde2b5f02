"""One seed of tier 2: a cluster of real brokers, clients, a nemesis; then everything heals, and the history is judged."""

import hashlib
import logging
import random
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import trio

from streamq.broker import topics
from streamq.client.connection import connect
from streamq.client.settings import Address, Timeouts
from streamq.model.messages import CreateTopic, TopicCreated
from tests.sim.checkers import check, told
from tests.sim.history import History
from tests.sim.private_trio import PROCESS, run_seeded
from tests.sim.report import Report
from tests.sim.tier2.brokers import PORT
from tests.sim.tier2.cluster import SimulatedCluster, TimelineHandler
from tests.sim.tier2.nemesis import Nemesis
from tests.sim.tier2.schedule import Fault, draw_schedule
from tests.sim.tier2.workload import TOPIC, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MUST_HAPPEN", "Run", "run_seed"]

FAULTS_UNTIL_S: Final = 55.0
SENDS_UNTIL_S: Final = 60.0
CONVERGES_WITHIN_S: Final = 90.0
"""After everything but a dead minority is healed: takeovers, re-admissions, copies, and every partition takes and gives records."""
SETTINGS: Final[dict[str, Any]] = {
    "heartbeat_interval_s": 0.16,
    "preferred_return_after_s": 2.0,
}
MUST_HAPPEN: Final = (
    "acked",
    "read",
    "tips",
    "takeovers_won",
    "takeovers_lost",
    "restarts",
    "repairs",
    "register_conflicts",
    "duplicates",
    "unknown",
    "torn_writes",
    "catch_ups",
    "cuts",
    "losses",
    "limbo",
    "damaged_ranges",
    "mended_ranges",
    "failed_syncs",
    "trims",
    "tables_fetched",
)
"""Counters that have to be above zero over all seeds of a run, or it has proved nothing (pitfall 60)."""


class TraceHash(trio.abc.Instrument):
    """A hash over every step of every task, with its time: equal exactly if two runs were the same run."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._hash.update(f"{task.name}|{trio.current_time():.9f}\n".encode())

    def add(self, text: str) -> None:
        self._hash.update(text.encode())

    def digest(self) -> str:
        return self._hash.hexdigest()


class Run:
    """What one seed is made of; `schedule` may be given in place of the one that the seed draws, to make a failing run shorter."""

    def __init__(self, seed: int, *, schedule: Sequence[Fault] | None = None, is_verbose: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.brokers = self.random.choice((3, 3, 3, 5))
        self.partitions = self.random.choice((1, 1, 2))
        self.write = 2 if self.brokers == 3 else self.random.choice((2, 3))
        self.replicas = 3 if self.write == 2 else 5
        drawn = draw_schedule(random.Random(self.random.random()), brokers=self.brokers, until_s=FAULTS_UNTIL_S)
        self.schedule = list(drawn if schedule is None else schedule)
        self.retention_bytes = random.Random(f"retention {seed}").choice((None, 2_000, 4_000, 8_000, 16_000))
        self.is_verbose = is_verbose
        self.timeline: list[tuple[float, str, str]] = []
        self.violation: str | None = None
        self.report = Report(seed)
        self.history = History()

    def run(self) -> Report:
        return run_seeded(self._main, seed=self.seed)

    def trace(self) -> str:
        """Runs it and returns the hash of its trace: every step of every task, and everything that clients saw."""
        trace = TraceHash()
        self.report = run_seeded(self._main, seed=self.seed, instruments=[trace])
        trace.add(repr((self.report, self.history)))
        return trace.digest()

    async def _main(self) -> Report:
        PROCESS.set(None)
        async with trio.open_nursery() as nursery:
            cluster = SimulatedCluster(nursery, random.Random(self.random.random()), brokers=self.brokers, settings=SETTINGS)
            self.timeline = cluster.timeline
            with _logged(TimelineHandler(cluster), is_verbose=self.is_verbose):
                try:
                    await self._live(cluster)
                except Exception as error:
                    cluster.fail(f"the run itself failed: {error!r}", error)
            nursery.cancel_scope.cancel()
        counters = cluster.counters
        counters.update(cluster.metrics.counters())
        faults = sum(count for name, count in counters.items() if name.startswith("fault: "))
        violation = "\n".join(cluster.violations) or None
        return Report(
            self.seed, counters=counters, virtual_s=trio.current_time(), messages=cluster.network.pieces, faults=faults, violation=violation
        )

    async def _live(self, cluster: SimulatedCluster) -> None:
        with trio.fail_after(30.0):
            await cluster.start()
            await self._create_topic(cluster)
        workload = Workload(cluster, random.Random(self.random.random()), partitions=self.partitions)
        self.history = workload.history
        nemesis = Nemesis(cluster, workload, self.schedule, random.Random(self.random.random()))
        async with trio.open_nursery() as readers:
            for number in range(2):
                readers.start_soon(workload.follower, number, name=f"follower {number}")
            readers.start_soon(workload.tip_reader, 0, name="tip reader")
            async with trio.open_nursery() as senders:
                for number in range(4):
                    senders.start_soon(workload.sender, name=f"sender {number}")
                senders.start_soon(self._stop_on_failure, cluster, senders.cancel_scope)
                readers.start_soon(nemesis.run, name="nemesis")
                await trio.sleep_until(SENDS_UNTIL_S)
                dead = self._dead_for_good(cluster)
                await nemesis.heal(dead=dead)
                workload.is_over = True
                await self._converge(cluster, workload, dead)
                senders.cancel_scope.cancel()
            readers.cancel_scope.cancel()
        if not cluster.violations:
            await self._judge(cluster, workload, dead)

    async def _stop_on_failure(self, cluster: SimulatedCluster, scope: trio.CancelScope) -> None:
        await cluster.failed.wait()
        scope.cancel()

    async def _create_topic(self, cluster: SimulatedCluster) -> None:
        host = Workload(cluster, random.Random(1), partitions=1).host("admin")
        async with connect(Address("b1", PORT), timeouts=Timeouts(), host=host) as client:
            read = self.replicas - self.write + 1
            topic = CreateTopic(TOPIC, self.partitions, self.replicas, self.write, read, "fsync", self.retention_bytes)
            with mock.patch.object(topics, "RETENTION_BYTES_MIN", 1):  # there is little in a run, and files are small
                await client.request(topic, TopicCreated)

    def _dead_for_good(self, cluster: SimulatedCluster) -> list[str]:
        """A random minority never comes back, if the protocol can do without: nothing may lie on its disks alone."""
        bearable = min(self.replicas - self.write, self.write - 1, (self.brokers - 1) // 2)
        if cluster.damaged or not bearable or self.random.random() < 0.5:
            return []
        return self.random.sample(list(cluster.brokers), self.random.randint(1, bearable))

    async def _converge(self, cluster: SimulatedCluster, workload: Workload, dead: list[str]) -> None:
        up = [name for name in cluster.brokers if name not in dead]
        lack: str | None = None
        with trio.move_on_after(CONVERGES_WITHIN_S) as scope:
            async with trio.open_nursery() as nursery:
                for partition in range(self.partitions):
                    nursery.start_soon(workload.probe, partition)
            while workload.active or (lack := self._lack(cluster, up)) is not None:
                await trio.sleep(0.2)
            workload.history.log = await workload.read_all()
            while (lagging := workload.lagging()) is not None:
                lack = lagging
                await trio.sleep(0.2)
            lack = None
            for name in up:
                await workload.read_from(name)
        if scope.cancelled_caught and not cluster.violations:
            waiting = lack or self._lack(cluster, up) or "an append or a read did not come through"
            cluster.fail(f"liveness: {CONVERGES_WITHIN_S:g} s after all but {dead or 'nobody'} were healed: {waiting}")

    def _lack(self, cluster: SimulatedCluster, up: list[str]) -> str | None:
        for name in up:
            broker = cluster.brokers[name]
            if broker.refused:
                cluster.wipe(name)
                broker.start()
            if not cluster.is_ready_voter(broker):
                return f"{name} is no ready voter"
        return cluster.lack(TOPIC, self.partitions, up=up)

    async def _judge(self, cluster: SimulatedCluster, workload: Workload, dead: list[str]) -> None:
        history = workload.history
        for partition in range(self.partitions):
            register = cluster.registers(TOPIC, partition)[-1]
            log = history.log[partition]
            high_watermark = log[-1][0] + 1 if log else 0
            history.replicas[partition] = {
                name: await cluster.stored(broker, register, high_watermark) for name, broker in cluster.brokers.items() if name not in dead
            }
            history.registers[partition] = cluster.registers(TOPIC, partition)  # what was trimmed while all that was read is no loss
            start = history.registers[partition][-1].start_offset
            history.log[partition] = [record for record in log if record[0] >= start]
            cluster.counters["epochs"] += register.last.epoch
        cluster.counters["register_conflicts"] += cluster.conflicts()
        cluster.counters["torn_writes"] += sum(broker.disk.torn_writes for broker in cluster.brokers.values())
        cluster.counters["restarts"] += sum(broker.starts - 1 for broker in cluster.brokers.values())
        anomalies = check(history)
        if anomalies:
            cluster.fail(told(anomalies))


@contextmanager
def _logged(handler: logging.Handler, *, is_verbose: bool) -> "Iterator[None]":
    logger = logging.getLogger("streamq")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO if is_verbose else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def run_seed(seed: int) -> Report:
    """One seed, whole. `violation` is short: `failing.account` tells the rest."""
    return Run(seed).run()
