"""Quorum reads of the tip (P-24), which any broker carries out: drives the `TipRead` core."""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from streamq.broker.node import Node
from streamq.broker.partition import Answered
from streamq.log.tip import AskTakeOver, ReadRegister, SendTip, TipEffect, TipRead, TipResult
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError
from streamq.model.ids import Member
from streamq.model.messages import TakeOver, TipAnswer
from streamq.model.registers import PartitionRegister, partition_key

__all__ = ["read_tip"]

INBOX: Final = 1_000
TIP_REQUEST_S: Final = 0.5

Outcome = tuple[TipRead, Callable[[float], list[TipEffect]]]


async def read_tip(node: Node, topic: str, index: int, *, deadline_s: float) -> tuple[TipResult, PartitionRegister]:
    """The tip of one partition, linearizable: whatever was acked before the call lies below it.

    Raises NotFoundError, or UnavailableError (`timed_out`) that says which answers were missing. Cancellation has no effect on anything.
    """
    return await _TipReading(node, topic, index).run(deadline_s)


class _TipReading:
    def __init__(self, node: Node, topic: str, index: int) -> None:
        self.node = node
        self.topic = topic
        self.index = index
        self.register: PartitionRegister
        self.core: TipRead
        self.error: StreamqError | None = None
        self._send: trio.MemorySendChannel[Outcome]
        self._receive: trio.MemoryReceiveChannel[Outcome]
        self._send, self._receive = trio.open_memory_channel(INBOX)
        self._nursery: trio.Nursery

    @property
    def key(self) -> str:
        return partition_key(self.topic, self.index)

    async def run(self, deadline_s: float) -> tuple[TipResult, PartitionRegister]:
        hint = self.node.registers.cached_as(PartitionRegister, self.key)
        if hint is None or hint.deleted:
            hint = await self._read()
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._begin(hint)
                await self._until_settled()
                nursery.cancel_scope.cancel()
        if self.error is not None:
            raise self.error
        if self.core.result is None:
            raise UnavailableError(
                f"the tip of {self.topic}/{self.index} was not known after {deadline_s:g} s: {self.core.missing()}",
                code="timed_out",
                hint="too few replicas answer; `streamq cluster status` shows which brokers are up",
            )
        return self.core.result, self.register

    def _begin(self, register: PartitionRegister) -> None:
        self.register = register
        self.core = core = TipRead(register=register, now=trio.current_time())
        self._carry_out(core, core.start())

    async def _until_settled(self) -> None:
        while self.core.result is None and self.error is None:
            core = self.core
            outcome: Outcome | None = None
            with trio.move_on_at(core.next_deadline if core.next_deadline is not None else float("inf")):
                outcome = await self._receive.receive()
            now = trio.current_time()
            if outcome is None:
                self._carry_out(core, core.on_deadline(now))
            elif outcome[0] is core:  # else it is about another partition
                self._carry_out(core, outcome[1](now))

    async def _read(self) -> PartitionRegister:
        register = await self.node.registers.get_as(PartitionRegister, self.key)
        if register is None or register.deleted:
            raise NotFoundError(
                f"there is no partition {self.index} of topic {self.topic!r}",
                code="unknown_topic",
                hint="`streamq topic ls` lists the topics",
            )
        return register

    def _carry_out(self, core: TipRead, effects: Iterable[TipEffect]) -> None:
        for effect in effects:
            if isinstance(effect, SendTip):
                self._nursery.start_soon(self._ask, core, effect)
            elif isinstance(effect, ReadRegister):
                self._nursery.start_soon(self._read_register, core)
            elif isinstance(effect, AskTakeOver):
                self._nursery.start_soon(self._have_taken_over, effect)

    async def _ask(self, core: TipRead, effect: SendTip) -> None:
        node, broker = self.node, effect.broker
        try:
            if broker == node.broker:
                partition = node.partitions.get(effect.tip.partition)
                if partition is None:
                    raise UnavailableError("not held here", code="not_replica")
                answered = Answered()
                partition.carry_out(partition.replica.on_tip(effect.tip, answered))
                member, message = node.me, await answered.message()
            else:
                peer = node.peers.get(broker)
                if peer is None or peer.member is None:
                    raise UnavailableError(f"broker {broker} is not connected", code="unavailable")
                member = peer.member
                message = await node.peers.request(broker, effect.tip, TIP_REQUEST_S)
            if not isinstance(message, TipAnswer):
                raise UnavailableError(f"{broker} answered a tip read with {type(message).__name__}", code="unavailable")
        except StreamqError:
            self._send.send_nowait((core, lambda now: core.on_unreachable(broker, now)))
        else:
            answer, who = message, Member(*member)
            self._send.send_nowait((core, lambda now: core.on_answer(who, answer, now)))

    async def _read_register(self, core: TipRead) -> None:
        try:
            register = await self._read()
        except NotFoundError as error:
            self.error = error
            self._send.send_nowait((core, core.on_read_failed))
        except StreamqError:
            self._send.send_nowait((core, core.on_read_failed))
        else:
            self._send.send_nowait((core, lambda now: self._on_register(core, register, now)))

    def _on_register(self, core: TipRead, register: PartitionRegister, now: float) -> list[TipEffect]:
        if register.id != self.register.id:  # P-39: the topic was made again, and all that was heard is about another partition
            self._begin(register)
            return []
        self.register = register
        return core.on_register(register, now)

    async def _have_taken_over(self, effect: AskTakeOver) -> None:
        for broker in effect.brokers:
            try:
                if broker == self.node.broker:
                    await self.node.take_over_here(self.topic, self.index, effect.epoch, "a tip read found the watermark stuck")
                else:
                    await self.node.peers.request(broker, TakeOver(self.topic, self.index, effect.epoch), 4 * TIP_REQUEST_S)
                return
            except StreamqError:
                continue
