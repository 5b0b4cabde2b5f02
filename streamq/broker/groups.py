"""Consumer groups on a broker: where a group's coordinator is, and what members ask of it.

The coordinator is the first of the brokers that live, in an order of each group's own (rendezvous hashing), as far as the broker that is
asked can tell. Safety does not depend on that: whoever coordinates writes itself into the group's register first, and the changes of
another are refused (`groups.changes`).
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Final

import trio

from streamq.broker.each import each
from streamq.broker.led_group import LedGroup
from streamq.broker.node import Node
from streamq.broker.topics import check_name, unknown_topic
from streamq.broker.transactions import Transactions
from streamq.groups.changes import (
    Joining,
    TopicSeen,
    UndecidedError,
    commit,
    coordinate,
    delete,
    join,
    leave,
    pending,
    place,
    unknown_group,
    with_outcomes,
)
from streamq.model.errors import NotCoordinatorError, NotFoundError, RefusedError, TransactionAbortedError, UnavailableError
from streamq.model.groups import Entry, GroupRegister, group_key
from streamq.model.messages import (
    Attend,
    CommitPositions,
    Committed,
    GroupPosition,
    GroupView,
    JoinGroup,
    LeaveGroup,
)
from streamq.model.registers import TopicRegister, topic_key
from streamq.model.transactions import Transaction

__all__ = ["Groups"]

log = logging.getLogger(__name__)

GROUPS_LED_MAX: Final = 5_000
ATTEND_MS_MAX: Final = 30_000
AT_ONCE: Final = 16
"""Registers of one request read at a time."""


class Groups:
    def __init__(self, node: Node, transactions: Transactions) -> None:
        self.node = node
        self.transactions = transactions
        self._led: dict[str, LedGroup] = {}
        self._beginning: dict[str, trio.Lock] = {}

    # --- members

    async def join(self, message: JoinGroup) -> GroupView:
        check_group(message.group)
        if len(set(message.topics)) != len(message.topics):
            raise RefusedError("a topic is named twice", code="bad_request")
        if message.member:
            check_group(message.member)
        self._need_coordinator(message.group)
        seen = await self.seen(message.topics)
        for topic in seen:
            if not topic.partitions:
                raise unknown_topic(topic.name)
        step = join(Joining(message.token, message.member, message.topics, message.session_ms), seen)
        led = await self._lead(message.group, creates=True)
        try:
            await led.carry_out(step)
        except NotFoundError:
            # The group that was led here was removed, by way of another broker: this one makes a new one.
            led = await self._lead(message.group, creates=True)
            await led.carry_out(step)
        return await led.attend(message.token, generation=0, wait_s=0)

    async def attend(self, message: Attend) -> GroupView:
        led = await self._lead(message.group)
        return await led.attend(message.token, generation=message.generation, wait_s=min(message.wait_ms, ATTEND_MS_MAX) / 1000)

    async def commit(self, message: CommitPositions) -> Committed:
        _check_entries(message.entries)
        led = await self._lead(message.group)
        led.on_heard(message.token)
        if message.transaction is not None:
            if any(entry.releases for entry in message.entries):
                raise RefusedError("no partition is let go of in a transaction", code="bad_request")
            # Whatever waits for it from now on can be told what became of it.
            if (await self.transactions.look(message.transaction)).of(message.transaction.number) is False:
                raise TransactionAbortedError("the transaction is aborted", hint="do it again, from the committed positions")
        fenced = await led.carry_out(commit(message.token, message.entries, message.transaction))
        return Committed(fenced)  # type: ignore[arg-type]

    async def leave(self, message: LeaveGroup) -> None:
        _check_entries(message.entries)
        led = await self._lead(message.group)
        await led.carry_out(leave(message.token, message.entries))

    # --- administration: any broker, by the registers

    async def names(self) -> tuple[str, ...]:
        """By quorum reads."""
        names: list[str] = []

        async def read(key: str) -> None:
            register = await self.node.registers.get_as(GroupRegister, key)
            if register is not None and not register.deleted:
                names.append(register.name)

        await each(await self.node.registers.list(group_key("")), read, at_once=AT_ONCE)
        return tuple(sorted(names))

    async def read(self, name: str) -> GroupRegister:
        check_group(name)
        register = await self.node.registers.get_as(GroupRegister, group_key(name))
        if register is None or register.deleted:
            raise unknown_group(name)
        decided: dict[Transaction, bool] = {}
        for transaction in pending(register):
            if (outcome := (await self.transactions.look(transaction)).of(transaction.number)) is not None:
                decided[transaction] = outcome
        return with_outcomes(register, decided)

    async def place(self, name: str, positions: tuple[GroupPosition, ...]) -> GroupRegister:
        check_group(name)
        topics = tuple(dict.fromkeys(position.topic for position in positions))
        seen = await self.seen(topics)
        for topic in seen:
            if not topic.partitions:
                raise unknown_topic(topic.name)
        wanted = {(p.topic, p.partition): p.position for p in positions}
        fresh = self.node.clock.token()
        outcomes: dict[Transaction, bool] = {}
        while True:
            change = place(name, wanted, seen, fresh_id=fresh, outcomes=outcomes)
            try:
                return await self.node.registers.change_as(GroupRegister, group_key(name), change)
            except UndecidedError as undecided:
                outcomes |= await self.transactions.settle_all(undecided.transactions)

    async def delete(self, name: str) -> None:
        register = await self.read(name)
        await self.node.registers.change_as(GroupRegister, group_key(name), delete(name, group_id=register.id))

    async def seen(self, topics: tuple[str, ...]) -> list[TopicSeen]:
        """The topics as a quorum has them, in this order."""
        found: dict[str, TopicSeen] = {}

        async def read(name: str) -> None:
            check_name(name)
            register = await self.node.registers.get_as(TopicRegister, topic_key(name))
            is_there = register is not None and not register.deleted
            found[name] = TopicSeen(name, register.id, len(register.partitions)) if register and is_there else TopicSeen(name, b"", 0)

        await each(topics, read, at_once=AT_ONCE)
        return [found[name] for name in topics]

    # --- coordinating

    def coordinator_of(self, group: str) -> str:
        """The broker that should coordinate the group, as far as this one can tell."""
        node = self.node
        alive = [node.broker, *(peer.broker for peer in node.peers if node.peers.is_alive(peer.broker))]
        return max(alive, key=lambda broker: hashlib.blake2b(f"{group}/{broker}".encode(), digest_size=8).digest())

    def _need_coordinator(self, name: str) -> None:
        first = self.coordinator_of(name)
        if first != self.node.broker:
            raise NotCoordinatorError(f"broker {first} coordinates group {name!r}", coordinator=first)

    async def _lead(self, name: str, *, creates: bool = False) -> LedGroup:
        """The group, led by this broker. Raises NotCoordinatorError if that is another's part, unknown_group if there is none."""
        check_group(name)
        self._need_coordinator(name)
        if (known := self._led.get(name)) is not None and not known.is_over:
            return known
        lock = self._beginning.setdefault(name, trio.Lock())
        try:
            async with lock:
                led = self._led.get(name)
                if led is None or led.is_over:
                    led = await self._begin(name, creates)
                return led
        finally:
            if not lock.locked():
                self._beginning.pop(name, None)

    async def _begin(self, name: str, creates: bool) -> LedGroup:
        if len(self._led) >= GROUPS_LED_MAX:
            raise UnavailableError(f"broker {self.node.broker} coordinates {len(self._led)} groups, as many as it may", code="busy")
        node = self.node
        fresh = node.clock.token() if creates else None
        # Only what is read after this change counts: from now on nobody else changes the group's members.
        change: Callable[[GroupRegister | None], GroupRegister] = coordinate(name, by=node.broker, fresh_id=fresh)
        register = await node.registers.change_as(GroupRegister, group_key(name), change)
        led = self._led[name] = LedGroup(node, register, self.seen, self.transactions.settle_all)
        node.nursery.start_soon(self._run, led, name=f"group {name}")
        return led

    async def _run(self, led: LedGroup) -> None:
        try:
            await led.run()
        finally:
            if self._led.get(led.name) is led:
                del self._led[led.name]


def check_group(name: str) -> None:
    try:
        check_name(name)
    except RefusedError as error:
        message = error.message.replace("topic name", "name of a group or a member")
        raise RefusedError(message, code=error.code, hint="for example: billing") from None


def _check_entries(entries: tuple[Entry, ...]) -> None:
    if len({(entry.topic, entry.partition) for entry in entries}) != len(entries):
        raise RefusedError("a partition is named twice", code="bad_request")
