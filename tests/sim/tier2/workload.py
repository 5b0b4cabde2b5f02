"""Clients of the simulation: the real producer and consumer libraries, and the history of what they were told."""

import random
from typing import Final

import trio

from streamq.model.errors import CorruptDataError, OffsetError, RefusedError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.sim.history import History, Outcome, Poll, Send, TipSeen
from tests.sim.private_trio import PROCESS
from tests.sim.tier2.brokers import EPOCH_MS
from tests.sim.tier2.cluster import SimulatedCluster
from tests.sim.tier2.network import ClientHost

__all__ = ["TOPIC", "Workload"]

TOPIC: Final = "t"
FETCH_RECORDS: Final = 50


class Workload:
    """Everything that uses the cluster during one run. `is_over` ends the senders; readers end with the nursery."""

    def __init__(self, cluster: SimulatedCluster, rng: random.Random, *, partitions: int) -> None:
        self.cluster = cluster
        self.random = rng
        self.partitions = partitions
        self.history = History()
        self.is_over = False
        self.pace_s = rng.choice((0.4, 1.0, 2.0))
        self.delivery_timeout_s = rng.choice((2.0, 8.0, 60.0))
        self.senders = 0
        self.reads = 0
        self.active = 0
        """Producers that have something under way, or may have soon."""
        self.followed: dict[int, dict[int, int]] = {}
        """Per follower and partition, the offset that its present run has come to."""

    def host(self, name: str) -> ClientHost:
        if name not in self.cluster.client_hosts:
            self.cluster.client_hosts.append(name)
        return ClientHost(self.cluster.network, name, random.Random(self.random.random()), epoch_ms=EPOCH_MS)

    # --- sending

    async def sender(self) -> None:
        """One application with a producer of its own, which now and then crashes and comes back as another."""
        PROCESS.set(None)
        while not self.is_over:
            self.senders += 1
            name = f"s{self.senders}"
            self.active += 1
            try:
                with trio.move_on_after(self.random.choice((20.0, 60.0, 200.0))):
                    await self._send_as(name)
            except StreamqError as error:
                self.cluster.note(name, f"gave up: {error}")
            finally:
                self.active -= 1
            await trio.sleep(0.5)

    async def _send_as(self, name: str) -> None:
        choose = random.Random(self.random.random())
        linger_s = choose.choice((0.0, 0.02))
        async with Producer(
            self.cluster.bootstrap, host=self.host(name), linger_s=linger_s, delivery_timeout_s=self.delivery_timeout_s, close_timeout_s=5.0
        ) as producer:
            number = 0
            while not self.is_over:
                burst = choose.choice((1, 1, 1, 2, 6))
                sends = [self._new(name, number + i, choose.randrange(self.partitions)) for i in range(burst)]
                number += burst
                if burst == 1:
                    await self._send(producer, sends[0])
                else:
                    await self._enqueue(producer, sends)
                await trio.sleep(choose.random() * 2 * self.pace_s)

    def _new(self, name: str, number: int, partition: int) -> Send:
        send = Send(name, number, partition, f"{name}-{number}".encode(), trio.current_time())
        self.history.sends.append(send)
        return send

    async def _send(self, producer: Producer, send: Send) -> None:
        send.began = trio.current_time()
        try:
            receipt = await producer.send(TOPIC, send.value, partition=send.partition)
        except StreamqError as error:
            self._failed(send, error)
        else:
            self._acked(send, receipt.offset)

    async def _enqueue(self, producer: Producer, sends: list[Send]) -> None:
        """Pipelined: all are on their way before the first is answered."""
        deliveries = []
        for send in sends:
            send.began = trio.current_time()
            try:
                deliveries.append((send, await producer.enqueue(TOPIC, send.value, partition=send.partition)))
            except StreamqError as error:
                self._failed(send, error)
        for send, delivery in deliveries:
            try:
                receipt = await delivery.receipt()
            except StreamqError as error:
                self._failed(send, error)
            else:
                self._acked(send, receipt.offset)

    def _acked(self, send: Send, offset: int) -> None:
        send.ended = trio.current_time()
        send.outcome = Outcome.ACKED
        if offset >= 0:
            send.offset = offset
        self.cluster.counters["acked"] += 1

    def _failed(self, send: Send, error: StreamqError) -> None:
        send.ended = trio.current_time()
        send.why = error.code
        if isinstance(error, UnknownOutcomeError):
            send.outcome = Outcome.UNKNOWN
            self.cluster.counters["unknown"] += 1
        elif isinstance(error, RefusedError | UnavailableError):
            send.outcome = Outcome.REFUSED
            self.cluster.counters["refused"] += 1
        else:
            send.outcome = Outcome.UNKNOWN
            self.cluster.fail(f"{send.sender} was told {type(error).__name__} {error.code}: {error}")

    async def storm(self, count: int) -> None:
        """Many senders at once, each with one batch and then gone."""
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                self.senders += 1
                nursery.start_soon(self._once, f"s{self.senders}")

    async def _once(self, name: str) -> None:
        PROCESS.set(None)
        send = self._new(name, 0, self.random.randrange(self.partitions))
        host = self.host("storm")
        self.active += 1
        try:
            with trio.move_on_after(20.0):
                async with Producer(self.cluster.bootstrap, host=host, delivery_timeout_s=10.0, close_timeout_s=1.0) as producer:
                    await self._send(producer, send)
        except StreamqError as error:
            self.cluster.note(name, f"gave up: {error}")
        finally:
            self.active -= 1

    async def probe(self, partition: int) -> None:
        """One record that has to be acked, by a producer that does not give up."""
        PROCESS.set(None)
        while True:
            self.senders += 1
            name = f"s{self.senders}"
            try:
                async with Producer(self.cluster.bootstrap, host=self.host(name), delivery_timeout_s=60.0) as producer:
                    send = self._new(name, 0, partition)
                    await self._send(producer, send)
                    if send.outcome is Outcome.ACKED:
                        return
            except StreamqError as error:
                self.cluster.note(name, f"gave up: {error}")
            await trio.sleep(0.5)

    async def read_all(self) -> dict[int, list[tuple[int, bytes]]]:
        """Everything that a consumer is handed from the start up to the tips that are told when it begins."""
        while True:
            try:
                return await self._read_all()
            except OffsetError as error:
                self._is_trimmed("last", error)

    async def _read_all(self) -> dict[int, list[tuple[int, bytes]]]:
        log: dict[int, list[tuple[int, bytes]]] = {partition: [] for partition in range(self.partitions)}
        async with Consumer(self.cluster.bootstrap, topics=[TOPIC], host=self.host("last")) as consumer:
            tips = {partition: (await consumer.tip(TOPIC, partition)).high_watermark for partition in log}
            while any(consumer.position(TOPIC, partition) < tip for partition, tip in tips.items()):
                for record in await consumer.fetch(500, timeout=1.0):
                    log[record.partition].append((record.offset, record.value or b""))
        return log

    async def read_from(self, broker: str) -> None:
        """Everything that one replica holds: what is damaged there is met, and mended. Raises StreamqError."""
        for partition in range(self.partitions):
            while True:
                try:
                    await self._read_partition_from(broker, partition)
                    break
                except OffsetError as error:
                    self._is_trimmed(f"from {broker}", error)

    async def _read_partition_from(self, broker: str, partition: int) -> None:
        register = self.cluster.register(TOPIC, partition)
        assert register is not None
        if all(segment.member(broker) for segment in register.chain):
            async with Consumer(
                self.cluster.bootstrap, topics=[TOPIC], partitions=[partition], broker=broker, host=self.host("last")
            ) as consumer:
                tip = (await consumer.tip(TOPIC, partition)).high_watermark
                self.reads += 1
                name = f"from {broker} {self.reads}"
                self._asks_from_start(name)
                while consumer.position(TOPIC, partition) < tip:
                    self.polled(name, await consumer.fetch(500, timeout=1.0))

    # --- reading

    async def follower(self, number: int) -> None:
        """Consumers one after the other, each from the start; the first of them may live through the whole run."""
        PROCESS.set(None)
        run = 0
        while True:
            run += 1
            name = f"c{number}.{run}"
            self.followed[number] = dict.fromkeys(range(self.partitions), 0)
            self._asks_from_start(name)
            patience = self.random.choice((6.0, 30.0, 1000.0)) if run > 1 or number else 1000.0
            with trio.move_on_after(patience):
                try:
                    async with Consumer(self.cluster.bootstrap, topics=[TOPIC], host=self.host(f"c{number}")) as consumer:
                        while True:
                            records = await consumer.fetch(FETCH_RECORDS, timeout=2.0)
                            self.polled(name, records)
                            self.followed[number].update((record.partition, record.offset + 1) for record in records)
                except StreamqError as error:
                    self.cluster.note(name, f"ended: {error.code}: {error}")
                    if isinstance(error, OffsetError):
                        self._is_trimmed(name, error)
                    elif not isinstance(error, UnavailableError | CorruptDataError):
                        self.cluster.fail(f"{name}, which follows from the start, was told {error.code}: {error}")
            await trio.sleep(0.5)

    def _is_trimmed(self, name: str, error: OffsetError) -> None:
        """A consumer that is too slow for the retention is told so, and nothing else."""
        registers = [self.cluster.register(TOPIC, partition) for partition in range(self.partitions)]
        if error.code != "offset_trimmed" or not any(register is not None and register.start_offset for register in registers):
            self.cluster.fail(f"{name}, which reads from the start, was told {error.code}: {error}")
        self.cluster.counters["consumers trimmed"] += 1

    def lagging(self) -> str | None:
        """Which follower has not come to the end of `history.log`; None if none. Who waits for ever somewhere is found here (P-26)."""
        for number, reached in self.followed.items():
            for partition, log in self.history.log.items():
                if log and reached[partition] <= log[-1][0]:
                    return f"follower {number} is at {reached[partition]} of partition {partition}, which ends at {log[-1][0] + 1}"
        return None

    def _asks_from_start(self, name: str) -> None:
        self.history.asked.update({(name, partition): 0 for partition in range(self.partitions)})

    def polled(self, name: str, records: "list[object]") -> None:
        by_partition: dict[int, list[tuple[int, bytes]]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append((record.offset, record.value or b""))  # type: ignore[attr-defined]
        for partition, found in by_partition.items():
            self.history.polls.append(Poll(name, partition, tuple(found), trio.current_time()))
            self.cluster.counters["read"] += len(found)

    async def tip_reader(self, number: int) -> None:
        PROCESS.set(None)
        name = f"t{number}"
        while True:
            try:
                async with Consumer(self.cluster.bootstrap, topics=[TOPIC], start="latest", host=self.host(name)) as consumer:
                    while True:
                        partition = self.random.randrange(self.partitions)
                        began = trio.current_time()
                        try:
                            tip = await consumer.tip(TOPIC, partition)
                        except StreamqError:
                            self.cluster.counters["tips_failed"] += 1
                        else:
                            ended = trio.current_time()
                            self.history.tips.append(TipSeen(name, partition, began, ended, tip.epoch, tip.high_watermark))
                            self.cluster.counters["tips"] += 1
                        await trio.sleep(self.random.random() * 4)
            except StreamqError as error:
                self.cluster.note(name, f"ended: {error.code}: {error}")
                await trio.sleep(0.5)
