"""Transactions on a broker: their outcomes, read from and written to the registers of their producers, and who waits for them.

Any broker answers for any transaction; `metadata.transactions` says why the registers alone decide. What is decided is kept here, since it
never changes. Who waits for an open one has the register read again and again, once for all that wait, soon after this broker's acceptor
has voted for a value of a producer: that is a hint that something ended.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
import trio

from streamq.broker.each import each
from streamq.broker.node import Node
from streamq.broker.partition import unknown_partition
from streamq.broker.tips import read_tip
from streamq.broker.topics import TOPIC_NAME
from streamq.metadata.changes import open_producer
from streamq.metadata.transactions import (
    Change,
    Outcomes,
    TooManyAbortedError,
    end,
    ended,
    forget,
    move_in,
    name_producer,
    needs_block,
    outcomes,
    settle,
)
from streamq.model.errors import NotFoundError, RefusedError, StreamqError, UnavailableError
from streamq.model.ids import PartitionId, ProducerId
from streamq.model.limits import NAME_CHARS_MAX, NAMED_PRODUCERS_MAX, TRANSACTION_MS_MAX, TRANSACTION_MS_MIN
from streamq.model.messages import EndTransaction, OpenProducer, ProducerOpened, ReadStableHere, StableRead
from streamq.model.registers import ProducerRegister, producer_key
from streamq.model.transactions import ABORTED_BLOCK, AbortedRegister, Transaction, TransactionalRegister, aborted_key, transactional_key

__all__ = ["WAIT_MS_MAX", "Transactions"]

log = logging.getLogger(__name__)

WAIT_MS_MAX: Final = 30_000
POLL_S: Final = 0.02
POLL_S_MAX: Final = 1.0
"""A broker that votes is woken by what it votes for, which is nearly always sooner."""
VOTED_S: Final = 0.002
"""After a vote, until the value may be expected to be chosen: a read in between would have to complete it, and get in its way."""
NAMES_KEPT_MAX: Final = NAMED_PRODUCERS_MAX
BLOCKS_KEPT_MAX: Final = 2_000
READ_AT_ONCE: Final = 16
TIP_DEADLINE_S: Final = 2.0
FOLD_S: Final = 0.5
"""How long a replica is waited for whose table is behind the tip."""


class Transactions:
    """Invariant: `_blocks` holds what quorum reads have told; "committed" and "aborted" in it are so for ever."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._names: OrderedDict[ProducerId, str] = OrderedDict()
        self._blocks: OrderedDict[tuple[ProducerId, int], Outcomes] = OrderedDict()
        self._looks: dict[Transaction, trio.Event] = {}
        self._waiting: dict[str, tuple[trio.Event, int]] = {}
        """By the key of the producer's register: set when something was voted there, and how many wait for it."""

    # --- producers -----------------------------------------------------------------------------------------------------------

    async def open_named(self, message: OpenProducer) -> ProducerOpened:
        """Raises RefusedError for a bad name or one too many, and what `Registers` raise."""
        name, timeout_ms = message.name, message.transaction_ms
        if not TOPIC_NAME.fullmatch(name) or name in (".", ".."):
            raise RefusedError(
                f"{name[:80]!r} is no name of a producer: 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes and underscores",
                code="bad_name",
                hint="for example: ingest-1",
            )
        if len(message.attempt) != 16:
            raise RefusedError("an attempt is 16 random bytes", code="bad_request")
        if timeout_ms and not TRANSACTION_MS_MIN <= timeout_ms <= TRANSACTION_MS_MAX:
            limits = f"{TRANSACTION_MS_MIN} to {TRANSACTION_MS_MAX} ms"
            raise RefusedError(f"transactions become {limits} old at most, not {timeout_ms}", code="bad_request")
        registers = self._node.registers
        if await registers.get(producer_key(name)) is None and len(await registers.list("producer/")) >= NAMED_PRODUCERS_MAX:
            raise RefusedError(f"there are {NAMED_PRODUCERS_MAX} named producers, the most that a cluster keeps", code="limit_reached")
        change = open_producer(name, fresh=self._node.clock.token(), attempt=message.attempt, timeout_ms=timeout_ms)
        opened = await self._change(name, change)
        if opened.is_transactional:
            # Before anything of a transaction can be read anywhere.
            await registers.change_as(TransactionalRegister, transactional_key(opened.id), name_producer(name))
        return ProducerOpened(opened.id, opened.epoch, opened.decided)

    async def end(self, message: EndTransaction) -> bool:
        """Whether it is committed, now or before. Raises FencedError, and what `Registers` raise."""
        change = end(message.name, message.number, epoch=message.epoch, commits=message.commits)
        register = await self._change(message.name, change)
        known = await self._read_on(register, message.number)
        return ended(message.name, register, known, message.number, epoch=message.epoch)

    async def settle(self, transaction: Transaction) -> bool:
        """Aborts it if it is open; whether it is committed."""
        outcome = (await self.look(transaction)).of(transaction.number)
        if outcome is None:
            name = await self._name_of(transaction.producer)
            register = await self._change(name, settle(name, transaction.number))
            outcome = (await self._read_on(register, transaction.number)).of(transaction.number)
        assert outcome is not None
        return outcome

    async def settle_all(self, transactions: Collection[Transaction]) -> dict[Transaction, bool]:
        """As `settle`, of several."""
        found: dict[Transaction, bool] = {}

        async def settle_one(transaction: Transaction) -> None:
            found[transaction] = await self.settle(transaction)

        await each(sorted(transactions), settle_one, at_once=READ_AT_ONCE)
        return found

    # --- readers -------------------------------------------------------------------------------------------------------------

    async def outcomes(self, transaction: Transaction, *, began_ms: int, wait_s: float) -> Outcomes:
        """Once it is decided, or after `wait_s` as it is then. One that began too long ago, by this broker's clock, is aborted.

        Raises NotFoundError if it can be no transaction: nobody has opened the producer for any, or those before it are open.
        """
        pause_s = POLL_S
        key = producer_key(await self._name_of(transaction.producer))
        until = trio.current_time() + wait_s
        with self._waits(key) as voted:
            while True:
                event = voted()
                found = await self.look(transaction)
                if found.of(transaction.number) is not None:
                    return found
                register = self._node.registers.cached_as(ProducerRegister, key)
                if register is not None and began_ms + register.timeout_ms < self._node.clock.now_ms():
                    log.info("%s: transaction %d is over %d ms old: aborted", key, transaction.number, register.timeout_ms)
                    await self.settle(transaction)
                elif trio.current_time() >= until:
                    return found
                else:
                    with trio.move_on_at(min(until, trio.current_time() + pause_s)):
                        await event.wait()
                        await trio.sleep(VOTED_S)
                    pause_s = min(2 * pause_s, POLL_S_MAX)

    async def stable(self, topic: str, index: int) -> StableRead:
        """The last stable offset of a partition: whatever was acked before the call, and is decided, with all before it, lies below it.

        Raises NotFoundError, UnavailableError.
        """
        node = self._node
        read, register = await read_tip(node, topic, index, deadline_s=TIP_DEADLINE_S)
        tip, start = read.high_watermark, read.start_offset
        failure: StreamqError = UnavailableError(f"no replica of {topic}/{index} tells its last stable offset", code="unavailable")
        holders = sorted(register.last.replicas, key=lambda m: (m.broker != node.broker, m.broker != register.last.sequencer))
        for member in holders:
            try:
                if member.broker == node.broker:
                    return msgspec.structs.replace(await self.stable_here(register.id, tip), start_offset=start)
                answer = await node.peers.request(member.broker, ReadStableHere(register.id, tip), 2 * FOLD_S)
                if isinstance(answer, StableRead):
                    return msgspec.structs.replace(answer, start_offset=start)
            except StreamqError as error:
                failure = error
        raise failure

    async def stable_here(self, partition_id: PartitionId, tip: int) -> StableRead:
        """From the idempotence table of the replica here (P-34), once it is folded to `tip`. Raises UnavailableError if it is not, soon."""
        partition = self._node.partitions.get(partition_id)
        if partition is None:
            raise unknown_partition(partition_id)
        until = trio.current_time() + FOLD_S
        await partition.fold()
        while partition.replica.table.position < tip:
            if trio.current_time() >= until:
                behind = f"{partition.name} is known to {partition.replica.table.position} on broker {self._node.broker}, not to {tip}"
                raise UnavailableError(behind, code="not_replica")
            await trio.sleep(POLL_S)
            await partition.fold()
        for base, producer, first in sorted((begun.base, name, begun) for name, begun in partition.replica.table.transactions()):
            transaction = Transaction(producer, first.number)
            if base < tip and (await self._outcome(transaction, first.append_time)) is None:
                name = await self._name_of(producer)
                return StableRead(base, tip, transaction=transaction, name=name, began_ms=first.append_time)
        return StableRead(tip, tip)

    async def _outcome(self, transaction: Transaction, began_ms: int) -> bool | None:
        try:
            return (await self.outcomes(transaction, began_ms=began_ms, wait_s=0.0)).of(transaction.number)
        except NotFoundError:
            return False  # no transaction of anybody's; consumers leave it out

    def on_voted(self, key: str) -> None:
        """The acceptor of this broker has taken a value of this register; it may become what it says."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            event, count = waiting
            self._waiting[key] = trio.Event(), count
            event.set()

    # --- inside --------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _waits(self, key: str) -> Iterator[Callable[[], trio.Event]]:
        event, count = self._waiting.get(key, (trio.Event(), 0))
        self._waiting[key] = event, count + 1
        try:
            yield lambda: self._waiting[key][0]
        finally:
            event, count = self._waiting.pop(key)
            if count > 1:
                self._waiting[key] = event, count - 1

    async def look(self, transaction: Transaction) -> Outcomes:
        """By what is known, or a quorum read: one at a time for all that ask, who are told an "open" of a moment ago at worst."""
        while True:
            known = self._blocks.get((transaction.producer, transaction.number // ABORTED_BLOCK))
            if known is not None and known.of(transaction.number) is not None:
                return known
            look = self._looks.get(transaction)
            if look is None:
                break
            await look.wait()
        look = self._looks[transaction] = trio.Event()
        try:
            name = await self._name_of(transaction.producer)
            register = await self._node.registers.get_as(ProducerRegister, producer_key(name))
            if register is None or register.id != transaction.producer or transaction.number > register.decided + 1:
                # Whoever sends a batch of it has seen those before it decided.
                raise NotFoundError(f"there is no transaction {transaction.number} of producer {name!r} yet", code="not_found")
            return await self._read_on(register, transaction.number)
        finally:
            del self._looks[transaction]
            look.set()

    async def _read_on(self, register: ProducerRegister, number: int) -> Outcomes:
        """What `register`, just read, says of this number; its block is read after it (`metadata.transactions`, 6)."""
        block: AbortedRegister | None = None
        if needs_block(register, number):
            block = await self._node.registers.get_as(AbortedRegister, aborted_key(register.id, number))
        found = outcomes(register, number, block)
        key = (register.id, number // ABORTED_BLOCK)
        known = self._blocks.get(key)
        if known is None or known.decided < found.decided:
            self._blocks[key] = found
            if len(self._blocks) > BLOCKS_KEPT_MAX:
                self._blocks.popitem(last=False)
        return found

    async def _name_of(self, producer: ProducerId) -> str:
        name = self._names.get(producer)
        if name is None:
            register = await self._node.registers.get_as(TransactionalRegister, transactional_key(producer))
            if register is None:
                raise NotFoundError(f"producer {producer.hex()} was never opened for transactions", code="not_found")
            name = self._names[producer] = register.name
            if len(self._names) > NAMES_KEPT_MAX:
                self._names.popitem(last=False)
        return name

    async def _change(self, name: str, change: Change) -> ProducerRegister:
        while True:
            try:
                return await self._node.registers.change_as(ProducerRegister, producer_key(name), change)
            except TooManyAbortedError:
                await self._move_aborted(name)

    async def _move_aborted(self, name: str) -> None:
        """Into the registers of their blocks, and only then out of the producer's."""
        registers = self._node.registers
        register = await registers.get_as(ProducerRegister, producer_key(name))
        if register is None or not register.aborted:
            raise UnavailableError(f"the transactions of producer {name!r} are being changed", code="conflict", hint="try again")
        blocks: dict[str, list[int]] = {}
        for number in register.aborted:
            blocks.setdefault(aborted_key(register.id, number), []).append(number)
        for key, numbers in blocks.items():
            await registers.change_as(AbortedRegister, key, move_in(numbers))
        await registers.change_as(ProducerRegister, producer_key(name), forget(name, register.aborted))
