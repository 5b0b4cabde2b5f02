"""Consumer groups under faults: members that come, go, crash, hang and are cut off, while brokers do; the real code, as in `run`."""

import logging
import random
from itertools import pairwise
from typing import Final

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.errors import GroupLostError, StreamqError
from streamq.model.groups import GroupRegister, group_key
from streamq.model.ids import Ballot
from streamq.model.messages import CreateTopic, TopicCreated
from streamq.wire.codec import decode_value
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.sim.group_observer import GroupObserver
from tests.sim.private_trio import PROCESS, run_seeded
from tests.sim.report import Report
from tests.sim.tier2.brokers import EPOCH_MS
from tests.sim.tier2.cluster import SimulatedCluster, TimelineHandler
from tests.sim.tier2.network import ClientHost

__all__ = ["MUST_HAPPEN", "account", "run_seed"]

TOPIC: Final = "t"
GROUP: Final = "g"
PARTITIONS: Final = 5
MEMBERS: Final = 4
FAULTS_UNTIL_S: Final = 45.0
CONVERGES_WITHIN_S: Final = 60.0
SESSION_S: Final = 2.0
PROCESSING_S: Final = 4.0
MUST_HAPPEN: Final = ("handled", "left", "crashed", "hung", "cut off", "lost", "moved", "coordinators", "brokers away")


class _Run:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(f"grouped {seed}")
        self.is_over = False
        self.timeline: list[tuple[float, str, str]] = []
        self.cluster: SimulatedCluster
        self.observer: GroupObserver
        self.acked = [0] * PARTITIONS
        self.members = 0

    def run(self) -> Report:
        return run_seeded(self._main, seed=self.seed)

    async def _main(self) -> Report:
        PROCESS.set(None)
        async with trio.open_nursery() as nursery:
            self.cluster = cluster = SimulatedCluster(
                nursery, random.Random(self.random.random()), brokers=3, settings={"heartbeat_interval_s": 0.16}
            )
            self.observer = GroupObserver(cluster.fail)
            self._watch_votes()
            self.timeline = cluster.timeline
            handler = TimelineHandler(cluster)
            logger = logging.getLogger("streamq")
            level, logger.propagate = logger.level, False
            logger.setLevel(logging.WARNING)
            logger.addHandler(handler)
            consumers = logging.getLogger("streamq_consumer")
            consumers.propagate = False
            consumers.addHandler(handler)
            try:
                await cluster.start()
                await self._live()
            except Exception as error:
                cluster.fail(f"the run itself failed: {error!r}", error)
            finally:
                logger.removeHandler(handler)
                consumers.removeHandler(handler)
                logger.propagate = consumers.propagate = True
                logger.setLevel(level)
            nursery.cancel_scope.cancel()
        counters = cluster.counters
        violation = "\n".join(cluster.violations) or None
        return Report(self.seed, counters, trio.current_time(), cluster.network.pieces, counters["brokers away"], violation)

    def _watch_votes(self) -> None:
        plain = self.cluster.voted

        def voted(broker: str, key: str, ballot: Ballot, value: bytes) -> None:
            plain(broker, key, ballot, value)
            if key == group_key(GROUP):
                self.observer.on_voted(ballot, decode_value(GroupRegister, value))

        self.cluster.voted = voted  # type: ignore[method-assign]

    def _host(self, name: str) -> ClientHost:
        if name not in self.cluster.client_hosts:
            self.cluster.client_hosts.append(name)
        return ClientHost(self.cluster.network, name, random.Random(self.random.random()), epoch_ms=EPOCH_MS)

    async def _live(self) -> None:
        cluster = self.cluster
        with trio.fail_after(30.0):
            async with ClientCluster(cluster.bootstrap, host=self._host("admin")) as client:
                await client.request(CreateTopic(TOPIC, PARTITIONS, 3, 2, 2, "fsync"), TopicCreated)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            for number in range(MEMBERS):
                nursery.start_soon(self._member, number, name=f"member {number}")
            nursery.start_soon(self._trouble)
            with trio.move_on_after(FAULTS_UNTIL_S):
                await cluster.failed.wait()
            self.is_over = True
            with trio.move_on_after(CONVERGES_WITHIN_S) as scope:
                while not cluster.violations and (lack := self._lack()) is not None:
                    await trio.sleep(0.2)
            if scope.cancelled_caught:
                cluster.fail(f"liveness: {CONVERGES_WITHIN_S:g} s after all was healed: {lack}")
            nursery.cancel_scope.cancel()
        versions = self._versions()
        self.observer.judge(versions)
        cluster.counters["coordinators"] += len({register.coordinator for register in versions}) - 1
        owners = [{(t.name, i): p.holder for t in r.topics for i, p in enumerate(t.partitions)} for r in versions]
        pairs = list(pairwise(owners))
        cluster.counters["moved"] += sum(before.get(place) != owner for before, after in pairs for place, owner in after.items())

    def _versions(self) -> list[GroupRegister]:
        votes = self.cluster._votes.get(group_key(GROUP), {})
        chosen = sorted((ballot, value) for ballot, (value, by) in votes.items() if len(by) >= self.cluster.voters.majority)
        return [decode_value(GroupRegister, value) for _, value in chosen]

    def _lack(self) -> str | None:
        """Why the group has not come to rest: everything acked is handled and committed."""
        register = self._versions()[-1]
        for partition, end in enumerate(self.acked):
            if self.observer.handled_to.get(partition, 0) < end:
                return f"partition {partition} is handled to {self.observer.handled_to.get(partition, 0)} of {end}"
            known = register.partition(TOPIC, partition)
            if end and (known is None or known.position is None or known.position < end):
                return f"partition {partition} is committed as {known}, and ends at {end}"
        return None

    async def _send(self) -> None:
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        while not self.is_over:
            try:
                async with Producer(self.cluster.bootstrap, host=self._host("p"), delivery_timeout_s=60.0, close_timeout_s=1.0) as producer:
                    while not self.is_over:
                        partition = choose.randrange(PARTITIONS)
                        receipt = await producer.send(TOPIC, b"x", partition=partition)
                        self.acked[partition] = max(self.acked[partition], receipt.offset + 1)
                        await trio.sleep(choose.random() * 0.2)
            except StreamqError as error:
                self.cluster.note("p", f"{error.code}: {error}")
            await trio.sleep(0.5)

    # --- members

    async def _member(self, number: int) -> None:
        """One after the other at one place, each to its own end; the last ones stay until everything is handled."""
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        host = f"m{number}"
        is_static = number == 0
        while True:
            self.members += 1
            name = f"{host}.{self.members}"
            end = choose.choice(("leave", "leave", "crash", "hang", "cut off")) if not self.is_over else "stay"
            lives_s = choose.choice((1.0, 4.0, 10.0, 25.0))
            self.cluster.note(name, f"joins, to {end} in {lives_s:g} s")
            try:
                await self._be_member(name, host, "static" if is_static else "", end, lives_s, choose)
            except GroupLostError as error:
                self.cluster.counters["lost"] += 1
                self.cluster.note(name, f"lost: {error}")
            except StreamqError as error:
                self.cluster.note(name, f"ended: {error.code}: {error}")
                if error.code not in ("unavailable", "timed_out"):
                    self.cluster.fail(f"{name} was told {error.code}: {error}")
            await trio.sleep(choose.choice((0.0, 0.5, 3.0)))

    async def _be_member(self, name: str, host: str, static: str, end: str, lives_s: float, choose: random.Random) -> None:
        consumer = Consumer(
            self.cluster.bootstrap,
            topics=[TOPIC],
            group=GROUP,
            host=self._host(host),
            member_name=static,
            session_s=SESSION_S,
            processing_s=PROCESSING_S,
            commit_interval_s=choose.choice((0.1, 0.5)),
            leave_s=3.0,
        )
        until = trio.current_time() + lives_s
        async with consumer:
            while end == "stay" or trio.current_time() < until:
                if end != "stay" and self.is_over:
                    break
                await self._fetch(name, consumer, choose)
            if end == "crash":
                self.cluster.counters["crashed"] += 1
                assert consumer._group is not None
                consumer._group.leave = _nothing  # type: ignore[method-assign]
            elif end == "hang":
                self.cluster.counters["hung"] += 1
                await self._fetch(name, consumer, choose, takes_s=choose.choice((SESSION_S, 2 * PROCESSING_S)))
                await self._fetch(name, consumer, choose)
            elif end == "cut off":
                self.cluster.counters["cut off"] += 1
                await self._cut_off(name, host, consumer, choose)
            else:
                self.cluster.counters["left"] += 1

    async def _fetch(self, name: str, consumer: Consumer, choose: random.Random, *, takes_s: float = 0.0) -> None:
        assert consumer._group is not None
        records = await consumer.fetch(choose.choice((1, 3, 50)), timeout=0.5)
        token = consumer._group._token
        by_partition: dict[int, list[int]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record.offset)
        for partition, offsets in by_partition.items():
            since = consumer._group.membership.holds[TOPIC, partition].since
            self.observer.on_handed(name, token, partition, since, offsets)
        await trio.sleep(takes_s or choose.choice((0.0, 0.01, 0.1, 0.6)))
        for partition, offsets in by_partition.items():
            self.observer.on_handled(token, partition, offsets)
        self.cluster.counters["handled"] += len(records)

    async def _cut_off(self, name: str, host: str, consumer: Consumer, choose: random.Random) -> None:
        """From all brokers, or from some, while it goes on as if nothing was."""
        others = [broker for broker in self.cluster.brokers if choose.random() < 0.8]
        self.cluster.note(name, f"is cut off from {others}")
        for broker in others:
            self.cluster.network.block(host, broker)
            if choose.random() < 0.7:
                self.cluster.network.block(broker, host)
        try:
            until = trio.current_time() + choose.choice((1.0, 3.0, 8.0))
            while trio.current_time() < until:
                await self._fetch(name, consumer, choose)
        finally:
            for broker in others:
                self.cluster.network.unblock(host, broker)
                self.cluster.network.unblock(broker, host)
        for _ in range(3):
            await self._fetch(name, consumer, choose)

    # --- brokers

    async def _trouble(self) -> None:
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        names = list(self.cluster.brokers)
        while not self.is_over:
            await trio.sleep(choose.choice((0.5, 2.0, 8.0)))
            if self.is_over:
                return
            broker = choose.choice(names)
            register = self._versions()[-1:]
            if register and choose.random() < 0.6:
                broker = register[0].coordinator or broker
            lasts_s = choose.choice((0.1, 1.0, 3.0, 6.0))
            self.cluster.counters["brokers away"] += 1
            if choose.random() < 0.5:
                self.cluster.note("nemesis", f"{broker} is killed for {lasts_s:g} s")
                self.cluster.brokers[broker].kill()
                await trio.sleep(lasts_s)
                self.cluster.brokers[broker].start()
            else:
                hosts = [*names, *self.cluster.client_hosts] if choose.random() < 0.5 else names
                self.cluster.note("nemesis", f"{broker} is cut off from {len(hosts)} hosts for {lasts_s:g} s")
                others = [host for host in hosts if host != broker]
                for other in others:
                    self.cluster.network.block(broker, other)
                    self.cluster.network.block(other, broker)
                await trio.sleep(lasts_s)
                for other in others:
                    self.cluster.network.unblock(broker, other)
                    self.cluster.network.unblock(other, broker)


async def _nothing(why: object = None) -> None:
    pass


def run_seed(seed: int) -> Report:
    return _Run(seed).run()


def account(seed: int, *, is_shortened: bool = True) -> str:
    run = _Run(seed)
    report = run.run()
    lines = [f"    {at:9.4f}  {who:10} {what}" for at, who, what in run.timeline]
    again = f"again: python -m tests.sim replay groups {seed}"
    return "\n".join([f"seed {seed}", report.violation or "holds", "time line:", *lines, again])
