"""Transactions under faults: members that read, transform and write die, hang and come back as zombies at every stage, while brokers do;
the real code, as in `run`."""

import logging
import random
from contextlib import ExitStack
from typing import Any, Final
from unittest import mock

import trio
import trio.lowlevel

from streamq.broker import transactions as broker_transactions
from streamq.broker.transactions import Transactions as BrokerTransactions
from streamq.client.cluster import Cluster as ClientCluster
from streamq.metadata import transactions as metadata_transactions
from streamq.model import transactions as model_transactions
from streamq.model.errors import (
    FencedError,
    GroupLostError,
    StreamqError,
    TransactionAbortedError,
    UnavailableError,
    UnknownOutcomeError,
)
from streamq.model.groups import GroupRegister, group_key
from streamq.model.ids import Ballot
from streamq.model.messages import CreateTopic, EndTransaction, TopicCreated
from streamq.model.registers import ProducerRegister
from streamq.model.transactions import AbortedRegister, Transaction
from streamq.wire.codec import decode_value
from streamq_consumer import Consumer, Record
from streamq_consumer import group as consumer_group
from streamq_consumer import outcomes as consumer_outcomes
from streamq_producer import Delivery, Producer
from tests.sim.private_trio import PROCESS, Stoppable, run_seeded
from tests.sim.report import Report
from tests.sim.tier2.brokers import EPOCH_MS
from tests.sim.tier2.cluster import SimulatedCluster, TimelineHandler
from tests.sim.tier2.network import ClientHost
from tests.sim.transaction_observer import Attempt, TransactionObserver

__all__ = ["MUST_HAPPEN", "account", "run_seed"]

SOURCE: Final = "in"
OUTPUTS: Final = {"out": 2, "log": 1}
GROUP: Final = "g"
PARTITIONS: Final = 3
PLACES: Final = 3
FAULTS_UNTIL_S: Final = 20.0
CONVERGES_WITHIN_S: Final = 60.0
SESSION_S: Final = 1.5
PROCESSING_S: Final = 4.0
PARTING_S: Final = 1.0
TRANSACTION_S: Final = 3.0
DELIVERY_S: Final = 3.0
ABORTED_KEPT_MAX: Final = 3
ABORTED_BLOCK: Final = 16
STAGES: Final = ("reading", "producing", "before positions", "after positions", "committing", "idle")
FATES: Final = ("leave", "crash", "crash", "hang", "hang", "cut off", "followed", "deaf", "deaf")
MUST_HAPPEN: Final = (
    "committed", "aborted", "aborted on purpose", "raised", "aborted by others", "aborted for age", "aborted by the coordinator", "fenced",
    "lost", "unknown", "committed, found out later", "a commit asked for again", "crashed", "hung", "cut off", "deaf", "followed", "left",
    "moved to blocks", "brokers away", "read", "read late", "read from the middle",
)  # fmt: skip


class _OnPurposeError(Exception):
    pass


class _ReopenError(Exception):
    """This producer sends nothing more; another goes on with the same consumer."""


class _Acked:
    """`Outgoing` of a delivery."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def is_acked(self) -> bool:
        return self._delivery.batch.ack is not None


class _Run:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(f"transacted {seed}")
        self.is_over = False
        self.timeline: list[tuple[float, str, str]] = []
        self.cluster: SimulatedCluster
        self.observer: TransactionObserver
        self.acked = [0] * PARTITIONS
        self.lives: list[_Life] = []

    def run(self) -> Report:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(metadata_transactions, "ABORTED_KEPT_MAX", ABORTED_KEPT_MAX))
            for module in (metadata_transactions, model_transactions, broker_transactions, consumer_outcomes):
                stack.enter_context(mock.patch.object(module, "ABORTED_BLOCK", ABORTED_BLOCK))
            stack.enter_context(mock.patch.object(consumer_group, "PARTING_S_MAX", PARTING_S))
            self._count_settling(stack)
            return run_seeded(self._main, seed=self.seed)

    async def _main(self) -> Report:
        PROCESS.set(None)
        async with trio.open_nursery() as nursery:
            self.cluster = cluster = SimulatedCluster(
                nursery, random.Random(self.random.random()), brokers=3, settings={"heartbeat_interval_s": 0.16}
            )
            self.observer = TransactionObserver(cluster.fail, majority=cluster.voters.majority, source=SOURCE, outputs=list(OUTPUTS))
            self._watch_votes()
            self.timeline = cluster.timeline
            handler = TimelineHandler(cluster)
            loggers = [logging.getLogger(name) for name in ("streamq", "streamq_consumer")]
            level = loggers[0].level
            loggers[0].setLevel(logging.WARNING)
            for logger in loggers:
                logger.propagate = False
                logger.addHandler(handler)
            try:
                await cluster.start()
                await self._live()
            except Exception as error:
                cluster.fail(f"the run itself failed: {error!r}", error)
            finally:
                for logger in loggers:
                    logger.removeHandler(handler)
                    logger.propagate = True
                loggers[0].setLevel(level)
                for life in self.lives:
                    life.process.go_on()
            nursery.cancel_scope.cancel()
        counters = cluster.counters + self.observer.counters
        violation = "\n".join(cluster.violations) or None
        return Report(self.seed, counters, trio.current_time(), cluster.network.pieces, counters["brokers away"], violation)

    def _watch_votes(self) -> None:
        plain = self.cluster.voted
        observer = self.observer

        def voted(broker: str, key: str, ballot: Ballot, value: bytes) -> None:
            plain(broker, key, ballot, value)
            kind, _, name = key.partition("/")
            if key == group_key(GROUP):
                observer.on_group_voted(ballot, decode_value(GroupRegister, value))
            elif kind == "producer":
                observer.on_producer_voted(broker, name, ballot, decode_value(ProducerRegister, value))
            elif kind == "txn" and "/" in name:
                observer.on_block_voted(broker, key, ballot, decode_value(AbortedRegister, value))

        self.cluster.voted = voted  # type: ignore[method-assign]

    def _count_settling(self, stack: ExitStack) -> None:
        """Who aborts what others have begun: a reader that found it too old, or the coordinator of a group; and whose answers are lost."""
        plain, plain_all, plain_end = BrokerTransactions.settle, BrokerTransactions.settle_all, BrokerTransactions.end
        of_coordinators: set[Transaction] = set()

        async def settle(broker: BrokerTransactions, transaction: Transaction) -> bool:
            was_open = transaction not in self.observer.outcomes
            is_committed = await plain(broker, transaction)
            if was_open and not is_committed:
                self.cluster.counters["aborted by the coordinator" if transaction in of_coordinators else "aborted for age"] += 1
            return is_committed

        async def settle_all(broker: BrokerTransactions, transactions: Any) -> dict[Transaction, bool]:
            of_coordinators.update(transactions)
            return await plain_all(broker, transactions)

        async def end(broker: BrokerTransactions, message: EndTransaction) -> bool:
            was_committed = self.observer.is_committed(message.name, message.number)
            is_committed = await plain_end(broker, message)
            self.cluster.counters["a commit asked for again"] += was_committed and message.commits and is_committed
            return is_committed

        stack.enter_context(mock.patch.object(BrokerTransactions, "end", end))
        stack.enter_context(mock.patch.object(BrokerTransactions, "settle", settle))
        stack.enter_context(mock.patch.object(BrokerTransactions, "settle_all", settle_all))

    def host(self, name: str) -> ClientHost:
        if name not in self.cluster.client_hosts:
            self.cluster.client_hosts.append(name)
        return ClientHost(self.cluster.network, name, random.Random(self.random.random()), epoch_ms=EPOCH_MS)

    async def _live(self) -> None:
        cluster = self.cluster
        with trio.fail_after(30.0):
            async with ClientCluster(cluster.bootstrap, host=self.host("admin")) as client:
                for topic, partitions in {SOURCE: PARTITIONS, **OUTPUTS}.items():
                    await client.request(CreateTopic(topic, partitions, 3, 2, 2, "fsync"), TopicCreated)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            for number in range(PLACES):
                nursery.start_soon(self._place, number, nursery, name=f"place {number}")
            nursery.start_soon(self._read, "r-first", "read_committed", 0.0)
            nursery.start_soon(self._read, "r-all", "read_uncommitted", 0.0)
            nursery.start_soon(self._read, "r-late", "read_committed", self.random.uniform(5.0, FAULTS_UNTIL_S))
            nursery.start_soon(self._read, "r-last", "read_committed", FAULTS_UNTIL_S + self.random.uniform(0.0, 2.0))
            nursery.start_soon(self._read, "r-middle", "read_committed", self.random.uniform(5.0, FAULTS_UNTIL_S), True)
            nursery.start_soon(self._trouble)
            with trio.move_on_after(FAULTS_UNTIL_S):
                await cluster.failed.wait()
            self.is_over = True
            lack: str | None = "nothing was looked at"
            with trio.move_on_after(CONVERGES_WITHIN_S) as scope:
                while not cluster.violations and (lack := self._lack()) is not None:
                    await trio.sleep(0.2)
            if scope.cancelled_caught:
                cluster.fail(f"liveness: {CONVERGES_WITHIN_S:g} s after all was healed: {lack}")
            for life in self.lives:
                life.process.go_on()
            nursery.cancel_scope.cancel()
        if not cluster.violations:
            self.observer.judge(self._versions())

    def _versions(self) -> list[GroupRegister]:
        votes = self.cluster._votes.get(group_key(GROUP), {})
        chosen = sorted((ballot, value) for ballot, (value, by) in votes.items() if len(by) >= self.cluster.voters.majority)
        return [decode_value(GroupRegister, value) for _, value in chosen]

    def _lack(self) -> str | None:
        if len(self.observer.readers) < 5:
            return "not all readers have begun"
        return self.observer.lack(self.acked, self._versions()[-1])

    # --- what is read and written beside

    async def _send(self) -> None:
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        while not self.is_over:
            try:
                async with Producer(self.cluster.bootstrap, host=self.host("p"), delivery_timeout_s=60.0, close_timeout_s=1.0) as producer:
                    while not self.is_over:
                        partition = choose.randrange(PARTITIONS)
                        receipt = await producer.send(SOURCE, b"x", partition=partition)
                        self.acked[partition] = max(self.acked[partition], receipt.offset + 1)
                        await trio.sleep(choose.random() * 0.3)
            except StreamqError as error:
                self.cluster.note("p", f"{error.code}: {error}")
            await trio.sleep(0.5)

    async def _read(self, name: str, isolation: Any, begins_at_s: float, is_from_middle: bool = False) -> None:
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        await trio.sleep_until(begins_at_s)
        places = [(topic, partition) for topic, partitions in OUTPUTS.items() for partition in range(partitions)]
        starts = {place: choose.randint(0, self.observer.known_end(place)) if is_from_middle else 0 for place in places}
        seen = self.observer.reads(name, is_committed_only=isolation == "read_committed", starts=starts)
        counted = "read from the middle" if is_from_middle else "read late" if begins_at_s else "read"
        while True:
            at = {place: max(seen.last(place) + 1, starts[place]) for place in places}
            try:
                async with Consumer(
                    self.cluster.bootstrap, topics=list(OUTPUTS), isolation=isolation, start=at, host=self.host(name)
                ) as consumer:
                    until = trio.current_time() + choose.choice((3.0, 1000.0))
                    while trio.current_time() < until:
                        for record in await consumer.fetch(choose.choice((1, 5, 500)), timeout=0.5):
                            self.observer.on_read(seen, (record.topic, record.partition), record.offset, (record.value or b"").decode())
                            self.cluster.counters[counted] += 1
                        await trio.sleep(choose.choice((0.0, 0.0, 0.02)))
            except StreamqError as error:
                self.cluster.note(name, f"{error.code}: {error}")
                if error.code not in ("unavailable", "timed_out", "offset_ahead", "not_ready"):
                    self.cluster.fail(f"{name} was told {error.code}: {error}")
            await trio.sleep(0.2)

    # --- members

    async def _place(self, place: int, nursery: trio.Nursery) -> None:
        """One life after the other; the next begins when the one before is gone, or thought to be."""
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        while True:
            life = _Life(self, place, len(self.lives), random.Random(choose.random()))
            self.lives.append(life)
            nursery.start_soon(life.run, name=life.name)
            await life.gone.wait()
            await trio.sleep(choose.choice((0.0, 0.0, 0.5, 2.0)))

    # --- brokers

    async def _trouble(self) -> None:
        PROCESS.set(None)
        choose = random.Random(self.random.random())
        names = list(self.cluster.brokers)
        while not self.is_over:
            await trio.sleep(choose.choice((0.5, 2.0, 6.0)))
            if self.is_over:
                return
            broker = choose.choice(names)
            register = self._versions()[-1:]
            if register and choose.random() < 0.4:
                broker = register[0].coordinator or broker
            lasts_s = choose.choice((0.1, 1.0, 3.0, 5.0))
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
                self.cut(broker, others)
                await trio.sleep(lasts_s)
                self.join(broker, others)

    def cut(self, host: str, others: list[str], *, both_ways: bool = True) -> None:
        for other in others:
            self.cluster.network.block(host, other)
            if both_ways:
                self.cluster.network.block(other, host)

    def join(self, host: str, others: list[str]) -> None:
        dead = {life.name for life in self.lives if life.is_dead}
        for other in others:
            if host not in dead and other not in dead:
                self.cluster.network.unblock(host, other)
                self.cluster.network.unblock(other, host)


class _Life:
    """One process: a member of the group with a transactional producer, which does what it does until its fate overtakes it."""

    def __init__(self, run: _Run, place: int, number: int, choose: random.Random) -> None:
        self.name = f"m{place}.{number}"
        self.producer_name = f"t{place if choose.random() < 0.85 else choose.randrange(PLACES)}"
        self.process = Stoppable()
        self.gone = trio.Event()
        """Somebody thinks so; it may go on."""
        self.is_dead = False
        self._run = run
        self._random = choose
        self._scope = trio.CancelScope()
        self._fate = "stay" if run.is_over else choose.choice(FATES)
        stage = "committing" if self._fate == "deaf" else choose.choice(STAGES)
        self._fate_at = (choose.choice((0.0, 1.0, 4.0)), stage)
        self._is_leaving = False
        self._in_hand: list[Record] = []
        """Handed out, and in no transaction yet."""

    def _note(self, what: str) -> None:
        self._run.cluster.note(self.name, what)

    def _count(self, what: str) -> None:
        self._run.cluster.counters[what] += 1

    async def run(self) -> None:
        PROCESS.set(self.process)
        self._note(f"begins as {self.producer_name}, to {self._fate} after {self._fate_at}")
        self._until = trio.current_time() + self._fate_at[0]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            with self._scope:
                try:
                    await self._live()
                except (GroupLostError, FencedError) as error:
                    self._note(f"ended: {error.code}: {error}")
                except StreamqError as error:
                    self._note(f"ended: {error.code}: {error}")
                    if error.code not in ("unavailable", "timed_out", "unknown_outcome", "aborted", "not_ready", "busy", "conflict"):
                        self._run.cluster.fail(f"{self.name} was told {error.code}: {error}")
            nursery.cancel_scope.cancel()
        self._note("is gone")
        self.gone.set()

    # --- what befalls it

    async def _at(self, stage: str) -> None:
        """Its fate overtakes it here, or in a moment."""
        if self._fate in ("stay", "") or self._is_leaving or stage != self._fate_at[1] or trio.current_time() < self._until:
            return
        fate, self._fate = self._fate, ""
        if self._run.is_over:
            self._is_leaving = True
        elif fate == "leave":
            self._count("left")
            self._is_leaving = True
        else:
            self._nursery.start_soon(self._befalls, fate, self._random.choice((0.0, 0.0, 0.0005, 0.001, 0.003, 0.01)))
            await trio.lowlevel.checkpoint()

    async def _befalls(self, fate: str, in_s: float) -> None:
        PROCESS.set(None)
        await trio.sleep(in_s)
        run, choose = self._run, self._random
        self._note(f"its fate: {fate}")
        brokers = list(run.cluster.brokers)
        if fate == "crash":
            self._count("crashed")
            self.process.stop()
            self.is_dead = True
            await trio.sleep(choose.choice((0.0, 0.01)))
            run.cut(self.name, brokers)
            if choose.random() < 0.8:
                run.cluster.network.reset(self.name)
            self.gone.set()
            self._scope.cancel()
            self.process.go_on()
        elif fate == "hang":
            self._count("hung")
            self.process.stop()
            lasts_s = choose.choice((0.5 * SESSION_S, 1.5 * SESSION_S, TRANSACTION_S + 1.0, 2.5 * PROCESSING_S))
            await self._replaced(lasts_s)
            self.process.go_on()
            self._is_leaving = choose.random() < 0.3
        elif fate == "cut off":
            self._count("cut off")
            others = [broker for broker in brokers if choose.random() < 0.8]
            run.cut(self.name, others, both_ways=choose.random() < 0.7)
            await self._replaced(choose.choice((0.5, 2.0, 5.0, 9.0)))
            run.join(self.name, others)
        elif fate == "deaf":
            self._count("deaf")
            others = [broker for broker in brokers if choose.random() < 0.8]
            for broker in others:
                run.cluster.network.block(broker, self.name)
            await trio.sleep(choose.choice((0.01, 0.1)))
            if choose.random() < 0.6:
                run.cluster.network.reset(self.name)
            await self._replaced(choose.choice((0.1, 1.0, DELIVERY_S + 2.5)))
            run.join(self.name, others)
            self._fate = "leave" if choose.random() < 0.5 else "crash"
        else:
            self._count("followed")
            self.gone.set()

    async def _replaced(self, lasts_s: float) -> None:
        """For so long; somebody may start another in its place meanwhile."""
        until = trio.current_time() + lasts_s
        if self._random.random() < 0.7:
            await trio.sleep(self._random.choice((0.0, lasts_s / 2)))
            self.gone.set()
        await trio.sleep_until(until)

    # --- what it does

    @property
    def _goes_on(self) -> bool:
        return not self._is_leaving and not (self._run.is_over and self.gone.is_set())

    async def _live(self) -> None:
        bootstrap, choose = self._run.cluster.bootstrap, self._random
        async with Consumer(
            bootstrap, topics=[SOURCE], group=GROUP, auto_commit=False, host=self._run.host(self.name), session_s=SESSION_S,
            processing_s=PROCESSING_S, commit_interval_s=choose.choice((0.1, 0.5)), leave_s=2.0,
        ) as consumer:  # fmt: skip
            while self._goes_on:
                try:
                    async with Producer(
                        bootstrap, name=self.producer_name, transactional=True, transaction_timeout_s=TRANSACTION_S,
                        delivery_timeout_s=DELIVERY_S, close_timeout_s=1.0, host=self._run.host(self.name),
                    ) as producer:  # fmt: skip
                        while self._goes_on:
                            await self._transform(producer, consumer)
                except _ReopenError as error:
                    self._note(f"opens another producer: {error}")
                except FencedError as error:
                    self._count("fenced")
                    self._note(f"fenced: {error}")
                    if self._in_hand or choose.random() < 0.5:
                        raise
                    self.producer_name = f"t{choose.randrange(PLACES)}"
                    await trio.sleep(0.1)

    async def _transform(self, producer: Producer, consumer: Consumer) -> None:
        choose, run = self._random, self._run
        positions = _Positions(self, consumer) if run.is_over or choose.random() < 0.85 else None
        await self._at("idle")
        if positions is not None and (choose.random() < 0.7 or run.is_over):
            self._in_hand += await self._fetch(consumer)
            if not self._in_hand:
                return
        ending = "commit" if run.is_over else choose.choice(("commit",) * 7 + ("abort", "raise", "dawdle"))
        attempt: Attempt | None = None
        try:
            async with producer.transaction(positions) as transaction:
                assert transaction.name is not None
                attempt = run.observer.on_begun(self.name, self.producer_name, transaction.name)
                self._note(f"begins {attempt}")
                if positions is None:
                    await self._write_any(attempt, producer)
                else:
                    records, self._in_hand = self._in_hand, []
                    await self._write_outputs(attempt, producer, records)
                    for _ in range(choose.choice((0, 1, 1, 2)) if records else 1):
                        await self._write_outputs(attempt, producer, await self._fetch(consumer))
                if ending == "dawdle":
                    await trio.sleep(choose.choice((0.5, 1.5 * PARTING_S, TRANSACTION_S + 1.0)))
                    if positions is not None:
                        await self._write_outputs(attempt, producer, await self._fetch(consumer))
                elif ending == "raise":
                    raise _OnPurposeError
                elif ending == "abort":
                    transaction.abort()
                    self._count("aborted on purpose")
                attempt.is_to_commit = ending != "abort"
                if positions is None:
                    await self._at("committing")
            self._note(f"has ended {attempt}")
        except _OnPurposeError:
            self._count("raised")
        except TransactionAbortedError as error:
            self._count("aborted by others" if attempt is not None else "aborted, found out later")
            self._note(f"{attempt or 'the one before'}: {error}")
            if attempt is None:
                self._in_hand = []
        except GroupLostError as error:
            self._count("lost")
            self._note(f"{attempt}: {error}")
            assert consumer._group is not None
            if consumer._group.error is not None:
                raise
        except UnknownOutcomeError as error:
            self._note(f"{attempt or 'to begin'}: {error.code}: {error}")
            if attempt is not None:
                self._count("unknown")
            if choose.random() < 0.3:
                raise
            if choose.random() < 0.7:
                self._in_hand += await self._fetch(consumer)
        except UnavailableError as error:
            self._note(f"{attempt or 'to begin'}: {error.code}: {error}")
            if attempt is not None:
                raise _ReopenError(str(error)) from None
        if ending == "commit":
            await self._look_back(producer, attempt)

    async def _look_back(self, producer: Producer, attempt: Attempt | None) -> None:
        """Whether a commit whose outcome was unknown turns out to have been one is counted at the next beginning."""
        transactions = producer._transactions
        assert transactions is not None
        if attempt is not None and transactions._owed is not None and self._run.observer.outcomes.get(attempt.transaction):
            self._count("committed, found out later")

    async def _fetch(self, consumer: Consumer) -> list[Record]:
        await self._at("reading")
        records = await consumer.fetch(self._random.choice((1, 2, 5, 50)), timeout=0.3)
        await self._at("reading")
        return records

    async def _write_any(self, attempt: Attempt, producer: Producer) -> None:
        for i in range(self._random.randint(1, 4)):
            await self._write(attempt, producer, self._random.choice(list(OUTPUTS)), f"{attempt.number} - {i}")

    async def _write_outputs(self, attempt: Attempt, producer: Producer, records: list[Record]) -> None:
        for record in records:
            attempt.inputs.append((record.partition, record.offset))
            for topic in OUTPUTS:
                await self._write(attempt, producer, topic, f"{attempt.number} {record.partition} {record.offset}")

    async def _write(self, attempt: Attempt, producer: Producer, topic: str, value: str) -> None:
        choose = self._random
        partition = choose.randrange(OUTPUTS[topic])
        delivery = await producer.enqueue(topic, value.encode(), partition=partition)
        self._run.observer.on_sent(attempt, topic, value, _Acked(delivery))
        await self._at("producing")
        if choose.random() < 0.3:
            await delivery.receipt()
        elif choose.random() < 0.2:
            await trio.sleep(choose.choice((0.0, 0.01, 0.1)))


class _Positions:
    """A consumer as its producer sees it, with a fate at each step."""

    def __init__(self, life: _Life, consumer: Consumer) -> None:
        self._life = life
        self._consumer = consumer

    def check_transactional(self) -> None:
        self._consumer.check_transactional()

    async def commit_in(self, transaction: Transaction) -> None:
        await self._life._at("before positions")
        await self._consumer.commit_in(transaction)
        await self._life._at("after positions")
        await self._life._at("committing")

    def on_transaction_ended(self, *, is_committed: bool) -> None:
        self._consumer.on_transaction_ended(is_committed=is_committed)


def run_seed(seed: int) -> Report:
    return _Run(seed).run()


def account(seed: int, *, is_shortened: bool = True) -> str:
    run = _Run(seed)
    report = run.run()
    lines = [f"    {at:9.4f}  {who:10} {what}" for at, who, what in run.timeline]
    again = f"again: python -m tests.sim replay transactions {seed}"
    return "\n".join([f"seed {seed}", report.violation or "holds", "time line:", *lines, again])
