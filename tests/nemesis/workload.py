"""Producers and consumers that work through every fault and write down what they saw: a `History`.

Senders of several sorts (one at a time, many at once, impatient ones that give up, ones without idempotence, ones that come and go),
consumers that follow from the start, fresh ones that begin anywhere, tip readers that ask one broker or any, and one that watches the
registers. Each keeps to the client libraries; what they raise is an outcome, never an end.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.errors import CorruptDataError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq.model.messages import DescribePartition, PartitionDescription, ReadTip, TipRead
from streamq_consumer import Consumer, Record
from streamq_producer import Delivery, Producer, Receipt
from tests.nemesis.cluster import Cluster
from tests.sim.history import History, Outcome, Poll, Send, TipSeen

__all__ = ["TOPIC", "Workload"]

TOPIC: Final = "t"
STEADY_PAUSE_S: Final = 0.02
BULK: Final = 20
BULKS_UNDER_WAY_MAX: Final = 8
GIVE_UP_S: Final = 0.6
CATCH_UP_S: Final = 180.0
FRESH_RECORDS_MAX: Final = 3000
now: Final = time.monotonic


class Workload:
    """`run` starts everything in a nursery and returns when `stop_sending` was called and what was under way is settled."""

    def __init__(self, cluster: Cluster, *, partitions: int, seed: int) -> None:
        self.cluster = cluster
        self.partitions = partitions
        self.rng = random.Random(f"workload {seed}")
        self.history = History()
        self.troubles: Counter[str] = Counter()
        """Errors that clients met beside outcomes, by what they say."""
        self.wrong: list[str] = []
        """What no client may be told, and readers that never come to the end."""
        self._followed: dict[tuple[str, int], int] = {}
        """Per follower and partition, the offset that its present run has come to."""
        self.acked_at: list[float] = [now()] * partitions
        self.is_over = False
        self._values: dict[bytes, bytes] = {}

    async def run(self) -> None:
        """Cancelled, sends that are under way stay open."""
        async with trio.open_nursery() as readers:
            for number in range(2):
                readers.start_soon(self._follow, f"follower {number}")
                readers.start_soon(self._read_tips, f"tip reader {number}", number == 0)
            readers.start_soon(self._read_afresh)
            readers.start_soon(self._watch_registers)
            async with trio.open_nursery() as senders:
                senders.start_soon(self._steady_producer)
                senders.start_soon(self._impatient_producer)
                senders.start_soon(self._plain_producer)
                senders.start_soon(self._restless_producers)
            await self._let_followers_catch_up()
            readers.cancel_scope.cancel()

    def stop_sending(self) -> None:
        self.is_over = True

    # --- senders -------------------------------------------------------------------------------------------------------------

    async def _steady_producer(self) -> None:
        async with Producer(self.cluster.bootstrap, delivery_timeout_s=300.0) as producer, trio.open_nursery() as nursery:
            for partition in range(self.partitions):
                for number in range(2):
                    nursery.start_soon(self._send_each, producer, f"steady {partition}.{number}", partition, STEADY_PAUSE_S)
                nursery.start_soon(self._send_bulks, producer, f"bulk {partition}", partition)

    async def _impatient_producer(self) -> None:
        async with Producer(self.cluster.bootstrap, delivery_timeout_s=GIVE_UP_S) as producer, trio.open_nursery() as nursery:
            for partition in range(self.partitions):
                nursery.start_soon(self._send_each, producer, f"impatient {partition}", partition, 3 * STEADY_PAUSE_S)

    async def _plain_producer(self) -> None:
        async with Producer(self.cluster.bootstrap, idempotent=False) as producer:
            self.history.plain_senders.add("plain")
            await self._send_each(producer, "plain", self.partitions - 1, 3 * STEADY_PAUSE_S)

    async def _restless_producers(self) -> None:
        """Producers that live for a moment. Many are cancelled with records under way: nobody learns what became of those."""
        life = 0
        async with trio.open_nursery() as settling:
            while not self.is_over:
                life += 1
                with trio.move_on_after(self.rng.uniform(0.1, 3)):
                    try:
                        await self._live_for_a_moment(f"restless {life}", settling)
                    except StreamqError as error:
                        self._trouble("restless", error)
                await trio.sleep(self.rng.random())
            settling.cancel_scope.cancel()

    async def _live_for_a_moment(self, sender: str, settling: trio.Nursery) -> None:
        async with Producer(self.cluster.bootstrap) as producer:
            for number in range(self.rng.randrange(1, 30)):
                send = self._new_send(sender, number, self.rng.randrange(self.partitions))
                try:
                    delivery = await producer.enqueue(TOPIC, send.value, partition=send.partition)
                    settling.start_soon(self._await_delivery, delivery, [send])
                except StreamqError as error:
                    self._settle(send, error)
            if self.rng.random() < 0.5:
                await producer.flush()

    async def _send_each(self, producer: Producer, sender: str, partition: int, pause_s: float) -> None:
        number = 0
        while not self.is_over:
            send = self._new_send(sender, number, partition)
            try:
                self._settle(send, await producer.send(TOPIC, send.value, partition=partition))
            except StreamqError as error:
                self._settle(send, error)
            number += 1
            await trio.sleep(pause_s)

    async def _send_bulks(self, producer: Producer, sender: str, partition: int) -> None:
        under_way = trio.CapacityLimiter(BULKS_UNDER_WAY_MAX)
        number = 0

        async def settle(deliveries: Sequence[Delivery], sends: list[Send]) -> None:
            async with under_way:
                for delivery in deliveries:
                    await self._await_delivery(delivery, [sends[index] for index in delivery.indexes])

        async with trio.open_nursery() as nursery:
            while not self.is_over:
                sends = [self._new_send(sender, number + i, partition) for i in range(BULK)]
                number += BULK
                try:
                    deliveries = await producer.enqueue_many(TOPIC, [send.value for send in sends], partition=partition)
                    nursery.start_soon(settle, deliveries, sends)
                except StreamqError as error:
                    for send in sends:
                        self._settle(send, error)
                await trio.sleep(self.rng.uniform(0.05, 0.4))
                while under_way.available_tokens == 0:
                    await trio.sleep(0.05)

    async def _await_delivery(self, delivery: Delivery, sends: list[Send]) -> None:
        outcome = await delivery.outcome()
        for place, send in enumerate(sends):
            self._settle(send, outcome, place)

    def _new_send(self, sender: str, number: int, partition: int) -> Send:
        padding = self.rng.randbytes(self.rng.choice((0, 20, 100, 400))).hex()
        value = f"{sender}:{number}:{padding}".encode()
        send = Send(sender, number, partition, value, now())
        self._values[value] = value
        self.history.sends.append(send)
        return send

    def _settle(self, send: Send, outcome: Receipt | StreamqError, place: int = 0) -> None:
        send.ended = now()
        if isinstance(outcome, Receipt):
            send.outcome = Outcome.ACKED
            if outcome.offset >= 0:  # else a repeat whose place is not known any more (P-35)
                send.offset = outcome.offset + place
            self.acked_at[send.partition] = send.ended
        else:
            send.outcome = Outcome.UNKNOWN if isinstance(outcome, UnknownOutcomeError) else Outcome.REFUSED
            send.why = f"{outcome.code}: {outcome.message}"

    # --- readers -------------------------------------------------------------------------------------------------------------

    async def _follow(self, name: str) -> None:
        run = 0
        while True:
            run += 1
            self._followed.update({(name, partition): 0 for partition in range(self.partitions)})
            try:
                async with Consumer(self.cluster.bootstrap, topics=[TOPIC]) as consumer:
                    for partition in range(self.partitions):
                        self.history.asked[f"{name} run {run}", partition] = 0
                    while True:
                        records = await consumer.fetch(500, timeout=0.5)
                        self.saw(f"{name} run {run}", records)
                        self._followed.update(((name, record.partition), record.offset + 1) for record in records)
            except StreamqError as error:
                self._trouble("follower", error)
                if not isinstance(error, UnavailableError | CorruptDataError):
                    self.wrong.append(f"{name}, which follows from the start, was told {error.code}: {error.message}")
                await trio.sleep(0.2)

    async def _let_followers_catch_up(self) -> None:
        """Whoever waits for ever somewhere is found here (P-26)."""
        ends = [0] * self.partitions
        for send in self.history.sends:
            if send.offset is not None:
                ends[send.partition] = max(ends[send.partition], send.offset + 1)

        def lagging() -> list[str]:
            return [
                f"{name} is at {at} of partition {p}, acked up to {ends[p]}" for (name, p), at in self._followed.items() if at < ends[p]
            ]

        with trio.move_on_after(CATCH_UP_S):
            while lagging():
                await trio.sleep(0.1)
        self.wrong += [f"{what}, {CATCH_UP_S:g} s after the last record was sent" for what in lagging()]

    async def _read_afresh(self) -> None:
        number = 0
        while True:
            number += 1
            partition = self.rng.randrange(self.partitions)
            last = max((tip.high_watermark for tip in self.history.tips[-50:] if tip.partition == partition), default=0)
            start = self.rng.choice(("earliest", self.rng.randint(0, last), max(0, last - 500)))
            broker = self.rng.choice((None, *self.cluster.names))
            with trio.move_on_after(self.rng.uniform(1, 6)):
                await self._read_some(f"fresh {number}", partition, start, broker)
            await trio.sleep(self.rng.random())

    async def _read_some(self, name: str, partition: int, start: str | int, broker: str | None) -> None:
        self.history.asked[name, partition] = start if isinstance(start, int) else 0
        seen = 0
        try:
            async with Consumer(
                self.cluster.bootstrap,
                topics=[TOPIC],
                partitions=[partition],
                start=start,  # type: ignore[arg-type]
                broker=broker,
            ) as consumer:
                while seen < FRESH_RECORDS_MAX:
                    records = await consumer.fetch(500, timeout=0.5)
                    self.saw(name, records)
                    seen += len(records)
        except StreamqError as error:
            self._trouble("fresh consumer", error)

    def saw(self, consumer: str, records: Sequence[Record]) -> None:
        at = now()
        by_partition: dict[int, list[tuple[int, bytes]]] = {}
        for record in records:
            value = record.value or b""
            by_partition.setdefault(record.partition, []).append((record.offset, self._values.get(value, value)))
        for partition, rows in by_partition.items():
            self.history.polls.append(Poll(consumer, partition, tuple(rows), at))

    async def _read_tips(self, name: str, asks_one: bool) -> None:
        while True:
            try:
                async with ClientCluster(self.cluster.bootstrap) as client:
                    while True:
                        await self._read_tip(client, name, asks_one)
                        await trio.sleep(self.rng.uniform(0.01, 0.1))
            except StreamqError as error:
                self._trouble("tip reader", error)
                await trio.sleep(0.2)

    async def _read_tip(self, client: ClientCluster, name: str, asks_one: bool) -> None:
        partition = self.rng.randrange(self.partitions)
        broker = self.rng.choice(self.cluster.names) if asks_one else ""
        began = now()
        try:
            told = await client.request(ReadTip(TOPIC, partition), TipRead, broker=broker, timeout_s=2.0)
        except StreamqError as error:
            self._trouble("tip read", error)
        else:
            self.history.tips.append(TipSeen(name, partition, began, now(), told.epoch, told.high_watermark))

    async def _watch_registers(self) -> None:
        while True:
            try:
                async with ClientCluster(self.cluster.bootstrap) as client:
                    while True:
                        for partition in range(self.partitions):
                            await self.look_at_register(client, partition, timeout_s=3.0)
                        await trio.sleep(0.1)
            except StreamqError as error:
                self._trouble("register watcher", error)
                await trio.sleep(0.2)

    async def look_at_register(self, client: ClientCluster, partition: int, *, timeout_s: float) -> PartitionDescription:
        told = await client.request(DescribePartition(TOPIC, partition), PartitionDescription, timeout_s=timeout_s)
        versions = self.history.registers.setdefault(partition, [])
        if not versions or versions[-1] != told.register:
            versions.append(told.register)
        return told

    def _trouble(self, whose: str, error: StreamqError) -> None:
        self.troubles[f"{whose}: {error.code}"] += 1
