"""Topics that are deleted and made again under the same name, while brokers are away that remember the one before (P-6, P-39).

Real brokers and clients, as in `run`. After each deletion the name is free, and what was in the topic is never seen again by anybody.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.errors import AlreadyExistsError, NotFoundError, StreamqError, UnknownOutcomeError
from streamq.model.messages import CreateTopic, DeleteTopic, Ok, TopicCreated
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.sim.private_trio import PROCESS, run_seeded
from tests.sim.report import Report
from tests.sim.tier2.brokers import EPOCH_MS
from tests.sim.tier2.cluster import SimulatedCluster, TimelineHandler, Violation
from tests.sim.tier2.network import ClientHost

__all__ = ["MUST_HAPPEN", "account", "run_seed"]

TOPIC: Final = "again"
CLIENTS: Final = ("admin", "p", "c")
ROUNDS: Final = 4
PATIENCE_S: Final = 90.0
MUST_HAPPEN: Final = ("acked", "read", "made", "removed", "away when it was removed", "away when it was made again")
T = TypeVar("T")


class _Run:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(f"remade {seed}")
        self.away: str | None = None
        self.acked: list[bytes] = []
        self.sent: set[bytes] = set()
        self.refused: set[bytes] = set()
        """Of these the producer said that they were not stored."""
        self.timeline: list[tuple[float, str, str]] = []
        self.cluster: SimulatedCluster

    def run(self) -> Report:
        return run_seeded(self._main, seed=self.seed)

    async def _main(self) -> Report:
        PROCESS.set(None)
        async with trio.open_nursery() as nursery:
            self.cluster = cluster = SimulatedCluster(
                nursery, random.Random(self.random.random()), brokers=3, settings={"heartbeat_interval_s": 0.16}
            )
            self.timeline = cluster.timeline
            handler = TimelineHandler(cluster)
            logger = logging.getLogger("streamq")
            level, logger.propagate = logger.level, False
            logger.setLevel(logging.WARNING)
            logger.addHandler(handler)
            try:
                await cluster.start()
                for number in range(ROUNDS):
                    await self._round(number)
            except Violation as found:
                cluster.fail(str(found))
            except Exception as error:
                cluster.fail(f"the run itself failed: {error!r}", error)
            finally:
                logger.removeHandler(handler)
                logger.propagate = True
                logger.setLevel(level)
            nursery.cancel_scope.cancel()
        counters = cluster.counters
        counters.update(cluster.metrics.counters())
        violation = "\n".join(cluster.violations) or None
        return Report(self.seed, counters, trio.current_time(), cluster.network.pieces, counters["left"], violation)

    async def _round(self, number: int) -> None:
        """The topic is made, used, and removed; a broker leaves in one step and is back in a later one, perhaps of the next round."""
        steps: list[Callable[[], Awaitable[None]]] = [
            self._make,
            lambda: self._send(number),
            self._read,
            lambda: self._send(number),
            self._remove,
        ]
        for step in steps:
            if self.cluster.violations:
                return
            if self.away is None and self.random.random() < 0.4:
                self._leave()
            elif self.away is not None and self.random.random() < 0.3:
                self._come_back()
            await step()
            await trio.sleep(self.random.choice((0.0, 0.0, 0.3, 2.0)))
        if number == ROUNDS - 1:
            self._come_back()
            await self._make()
            await self._send(ROUNDS)
            for broker in self.cluster.brokers:
                await self._read(broker)

    def _leave(self) -> None:
        self.away = self.random.choice(list(self.cluster.brokers))
        self.cluster.note("nemesis", f"{self.away} leaves")
        self.cluster.counters["left"] += 1
        if self.random.random() < 0.5:
            self.cluster.brokers[self.away].kill()
        else:
            for other in (*self.cluster.brokers, *CLIENTS):
                self.cluster.network.block(self.away, other)
                self.cluster.network.block(other, self.away)

    def _come_back(self) -> None:
        if self.away is not None:
            self.cluster.note("nemesis", f"{self.away} comes back")
            self.cluster.network.heal()
            self.cluster.brokers[self.away].start()
            self.away = None

    def _host(self, name: str) -> ClientHost:
        return ClientHost(self.cluster.network, name, random.Random(self.random.random()), epoch_ms=EPOCH_MS)

    async def _until_done(self, what: str, once: Callable[[], Awaitable[T]]) -> T:
        """As a person would: again and again, for as long as the answer is that it may work later."""
        error: StreamqError | None = None
        with trio.move_on_after(PATIENCE_S):
            while True:
                try:
                    return await once()
                except StreamqError as trouble:
                    error = trouble
                    self.cluster.note("client", f"{what}: {trouble.code}: {trouble}")
                await trio.sleep(0.3)
        raise Violation(f"liveness: {what} was not done within {PATIENCE_S:g} s: {error}")

    async def _make(self) -> None:
        async def once() -> None:
            try:
                async with ClientCluster(self.cluster.bootstrap, host=self._host("admin")) as client:
                    await client.request(CreateTopic(TOPIC, 1, 3, 2, 2, "fsync"), TopicCreated)
            except AlreadyExistsError:
                pass  # an earlier try whose answer was lost

        await self._until_done("making the topic", once)
        self._count("made", "made again")
        self.acked.clear()
        self.sent.clear()
        self.refused.clear()

    async def _remove(self) -> None:
        async def once() -> None:
            try:
                async with ClientCluster(self.cluster.bootstrap, host=self._host("admin")) as client:
                    await client.request(DeleteTopic(TOPIC), Ok)
            except NotFoundError:
                pass

        await self._until_done("removing the topic", once)
        self._count("removed", "removed")

    def _count(self, what: str, step: str) -> None:
        self.cluster.note("client", f"the topic was {what}")
        self.cluster.counters[what] += 1
        self.cluster.counters[f"away when it was {step}"] += self.away is not None

    async def _send(self, number: int) -> None:
        async def once() -> None:
            async with Producer(self.cluster.bootstrap, host=self._host("p"), delivery_timeout_s=20.0, close_timeout_s=5.0) as producer:
                for _ in range(self.random.randrange(1, 5)):
                    value = f"round {number}, {len(self.sent)}".encode()
                    self.sent.add(value)
                    try:
                        await producer.send(TOPIC, value)
                    except UnknownOutcomeError:
                        continue
                    except StreamqError:
                        self.refused.add(value)
                        raise
                    self.acked.append(value)
                    self.cluster.counters["acked"] += 1

        await self._until_done("sending", once)

    async def _read(self, broker: str | None = None) -> None:
        """All of it, through one broker or any: everything acked, in order, and nothing but what was sent since the topic was made."""
        found = await self._until_done("reading", lambda: self._read_once(broker))
        strangers = [value for value in found if value not in self.sent]
        if strangers:
            self.cluster.fail(f"P-39: {strangers} of an earlier topic of this name at {broker or 'some broker'}, among {found}")
        elif self.refused & set(found):
            self.cluster.fail(f"aborted read: {self.refused & set(found)} were refused, and are among {found}")
        elif len(set(found)) < len(found):
            self.cluster.fail(f"I-5: something is there twice: {found}")
        elif [value for value in found if value in self.acked] != self.acked:
            self.cluster.fail(f"I-1: {self.acked} were acked, and {found} was read from {broker or 'some broker'}")

    async def _read_once(self, broker: str | None) -> list[bytes]:
        found: list[bytes] = []
        async with Consumer(self.cluster.bootstrap, topics=[TOPIC], partitions=[0], broker=broker, host=self._host("c")) as consumer:
            with trio.fail_after(60.0):
                tip = (await consumer.tip(TOPIC, 0)).high_watermark
                while consumer.position(TOPIC, 0) < tip:
                    records = await consumer.fetch(100, timeout=1.0)
                    found += [record.value or b"" for record in records]
        self.cluster.counters["read"] += len(found)
        return found


def run_seed(seed: int) -> Report:
    return _Run(seed).run()


def account(seed: int, *, is_shortened: bool = True) -> str:
    run = _Run(seed)
    report = run.run()
    lines = [f"    {at:9.4f}  {who:10} {what}" for at, who, what in run.timeline]
    return "\n".join(
        [f"seed {seed}", report.violation or "holds", "time line:", *lines, f"again: python -m tests.sim replay topics {seed}"]
    )
