"""A storm of rebalances: members that come and go in every way there is, under load; every record is accounted for."""

import random
import time
from collections import Counter, defaultdict
from typing import Final

import trio

from streamq.model.errors import GroupLostError, StreamqError
from streamq.model.groups import GroupRegister
from streamq.model.ids import Ballot
from streamq.model.messages import GroupRead, ReadGroup
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.integration.local import LocalCluster, local_cluster
from tests.sim.group_observer import GroupObserver

__all__ = ["Storm"]

TOPIC: Final = "storm"
GROUP: Final = "storm"
SESSION_S: Final = 3.0
PROCESSING_S: Final = 4.0
CALM_S: Final = 30.0
"""Without a rebalance, to compare with."""
END_S: Final = 60.0
LEAVE_TO_HANDLED_S_MAX: Final = 0.5


class Storm:
    def __init__(self, *, members: int, partitions: int, rate: float, seed: int) -> None:
        self.members = members
        self.partitions = partitions
        self.rate = rate
        self.random = random.Random(seed)
        self.faults: list[str] = []
        self.observer = GroupObserver(self._fail, sees_all_votes=False)
        self.acked = [0] * partitions
        self.counts: Counter[str] = Counter()
        self.is_over = False
        self.is_calm = True
        self.gaps: dict[bool, list[float]] = {True: [], False: []}
        """Between two handouts of one partition to one member that keeps it, while calm or not."""
        self.moves: list[float] = []
        """From the beginning of a clean leave until another was handed records of the partition."""
        self._seen: dict[int, tuple[bytes, int, float]] = {}
        self._left: dict[int, float] = {}
        self._ill: set[bytes] = set()
        """Members that hang, are silent or gone: who takes a partition over from them has to wait for the end of their session."""
        self._polled = 0

    def run(self, *, minutes: float) -> int:
        with local_cluster(3) as cluster:
            cluster.run("topic", "create", TOPIC, "--partitions", str(self.partitions))
            trio.run(self._live, cluster, minutes)
        return self._verdict()

    def _fail(self, why: str) -> None:
        if len(self.faults) < 20:
            print(f"VIOLATION: {why}", flush=True)
        self.faults.append(why)

    async def _live(self, cluster: LocalCluster, minutes: float) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, cluster)
            nursery.start_soon(self._poll, cluster)
            for number in range(self.members):
                nursery.start_soon(self._member, cluster, number)
            await trio.sleep(15.0)  # everybody has joined
            self._seen.clear()
            for partition_gaps in self.gaps.values():
                partition_gaps.clear()
            await trio.sleep(CALM_S)
            self.is_calm = False
            began = time.monotonic()
            while time.monotonic() < began + 60 * minutes and not self.faults:
                await trio.sleep(min(30.0, 60 * minutes))
                print(f"{time.monotonic() - began:.0f} s: {dict(self.counts)}", flush=True)
            self.is_over = True
            with trio.move_on_after(END_S) as scope:
                while any(self.observer.handled_to.get(p, 0) < end for p, end in enumerate(self.acked)):
                    await trio.sleep(0.1)
            if scope.cancelled_caught:
                self._fail(f"records were not handled {END_S:g} s after the end")
            nursery.cancel_scope.cancel()

    def _verdict(self) -> int:
        calm, stormy = sorted(self.gaps[True]), sorted(self.gaps[False])
        print(f"members: {dict(self.counts)}; {sum(self.acked)} records acked")
        for name, gaps in (("calm", calm), ("in the storm", stormy)):
            print(f"gaps of a partition that does not move, {name}: {_percentiles(gaps)}")
        print(f"from a clean leave to the next handout: {_percentiles(sorted(self.moves))}")
        late = sum(move > LEAVE_TO_HANDLED_S_MAX for move in self.moves)
        print(f"{late} of {len(self.moves)} moves took longer than {LEAVE_TO_HANDLED_S_MAX:g} s; {len(self.faults)} violations")
        return 1 if self.faults else 0

    async def _send(self, cluster: LocalCluster) -> None:
        async with Producer(cluster.bootstrap) as producer:
            batch = max(1, int(self.rate / 50))
            partition = 0
            while not self.is_over:
                began = trio.current_time()
                deliveries = []
                for _ in range(batch):
                    partition = (partition + 1) % self.partitions
                    deliveries.append((partition, await producer.enqueue(TOPIC, b"x" * 100, partition=partition)))
                for place, delivery in deliveries:
                    receipt = await delivery.receipt()
                    self.acked[place] = max(self.acked[place], receipt.offset + 1)
                await trio.sleep(max(0.0, began + batch / self.rate - trio.current_time()))

    async def _poll(self, cluster: LocalCluster) -> None:
        """What the register says now and then: positions never pass what is handled, and never fall."""
        async with Producer(cluster.bootstrap) as anybody:
            versions = []
            while True:
                try:
                    told = await anybody._cluster.request(ReadGroup(GROUP), GroupRead)
                except StreamqError:
                    pass
                else:
                    self._polled += 1
                    self._leave_out_the_ill(told.register)
                    self.observer.on_voted(Ballot(self._polled, "", b""), told.register)
                    versions = [*versions[-1:], told.register]
                    self.observer.judge(versions)
                await trio.sleep(0.2)

    def _leave_out_the_ill(self, register: GroupRegister) -> None:
        """A partition that went from a clean leave to a member that is ill says nothing of clean leaves."""
        ill = {member.number for member in register.members if member.token in self._ill}
        for partition in list(self._left):
            known = register.partition(TOPIC, partition)
            if known is not None and known.holder in ill:
                del self._left[partition]
                self.counts["moved to the ill"] += 1

    # --- members

    async def _member(self, cluster: LocalCluster, number: int) -> None:
        choose = random.Random(self.random.random())
        await trio.sleep(choose.random() * 5)
        while True:
            end = choose.choice(("leave", "leave", "leave", "crash", "hang", "silent"))
            name = f"m{number}"
            try:
                await self._be_member(cluster, name, end, choose)
            except GroupLostError:
                self.counts["lost"] += 1
            except StreamqError as error:
                self._fail(f"{name} was told {error.code}: {error}")
            await trio.sleep(choose.random() * 3)

    async def _be_member(self, cluster: LocalCluster, name: str, end: str, choose: random.Random) -> None:
        consumer = Consumer(
            cluster.bootstrap, topics=[TOPIC], group=GROUP, session_s=SESSION_S, processing_s=PROCESSING_S, member_name="", leave_s=3.0
        )
        async with consumer:
            lives_s = choose.expovariate(1 / 30)
            until = trio.current_time() + lives_s
            while self.is_calm or self.is_over or trio.current_time() < until:
                until = trio.current_time() + lives_s if self.is_calm else until
                await self._fetch(name, consumer, choose)
            group = consumer._group
            assert group is not None
            self.counts[end] += 1
            if end != "leave":
                self._ill.add(group._token)
            if end == "crash":
                group.leave = _nothing  # type: ignore[method-assign]
            elif end == "hang":
                await self._fetch(name, consumer, choose, takes_s=2 * PROCESSING_S)
            elif end == "silent":
                # As a process that is stopped for a while, for all that the others see of it.
                ask, group._ask = group._ask, _never  # type: ignore[method-assign, assignment]
                until = trio.current_time() + 2 * SESSION_S
                while trio.current_time() < until:
                    await self._fetch(name, consumer, choose)
                group._ask = ask  # type: ignore[method-assign]
                group.leave = _nothing  # type: ignore[method-assign]
            else:
                began = trio.current_time()
                for topic_partition in consumer.partitions:
                    self._left[topic_partition[1]] = began

    async def _fetch(self, name: str, consumer: Consumer, choose: random.Random, *, takes_s: float = 0.0) -> None:
        group = consumer._group
        assert group is not None
        records = await consumer.fetch(100, timeout=0.5)
        by_partition: dict[int, list[int]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record.offset)
        now = trio.current_time()
        token = group._token
        for partition, offsets in by_partition.items():
            hold = group.membership.holds[TOPIC, partition]
            self.observer.on_handed(name, token, partition, hold.since, offsets)
            before = self._seen.get(partition)
            if before is not None and before[:2] == (token, hold.since):
                self.gaps[self.is_calm].append(now - before[2])
            self._seen[partition] = (token, hold.since, now)
            left = self._left.pop(partition, None)
            if left is not None:
                self.moves.append(now - left)
        if takes_s or records:
            await trio.sleep(takes_s or choose.random() * 0.01)
        for partition, offsets in by_partition.items():
            self.observer.on_handled(token, partition, offsets)


def _percentiles(values: list[float]) -> str:
    if not values:
        return "none"
    at = {name: values[min(len(values) - 1, int(len(values) * share))] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
    return ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in at.items()) + f" of {len(values)}"


async def _nothing(why: object = None) -> None:
    pass


async def _never(*args: object, **named: object) -> object:
    return await trio.sleep_forever()
