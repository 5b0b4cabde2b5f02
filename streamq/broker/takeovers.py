"""Runs takeovers: carries out what the `Takeover` core asks for, and feeds each outcome back. Safety is the core's; this is plumbing."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from streamq.broker.partition import Answered
from streamq.broker.sequencing import Sequencing
from streamq.broker.session import buffers
from streamq.log.takeover import Phase, Takeover
from streamq.log.takeover_effects import (
    AskTakeOver,
    ChangeRegister,
    OpenEpoch,
    ReadRegister,
    SendRepair,
    SendSeal,
    StartCopy,
    TakeoverAlarm,
    TakeoverEffect,
)
from streamq.metadata.changes import close_and_open
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.ids import Member
from streamq.model.limits import COPY_BYTES_MAX
from streamq.model.messages import Open, Repair, Repaired, Sealed, TakeOver
from streamq.model.registers import PartitionRegister, partition_key

if TYPE_CHECKING:
    from streamq.broker.partition import Partition

__all__ = ["take_over"]

log = logging.getLogger(__name__)

DEFER_ABOVE_OFFSETS: Final = 200_000
"""A candidate that lacks more than this below L asks the most complete replica instead (step 3)."""
TAKEOVER_TIMEOUT_S: Final = 15.0
INBOX: Final = 1_000

T = TypeVar("T")
Outcome = Callable[[float], list[TakeoverEffect]]


async def take_over(partition: "Partition", epoch: int, why: str) -> Phase:
    """One attempt to take `partition` over from `epoch`; one at a time here. Returns how it ended; DONE: this broker sequences.

    Cancelled at any point it leaves what any crash would: the next attempt, by whoever, starts from there (P-19).
    """
    if partition.takeover_under_way is not None:
        await partition.takeover_under_way.wait()
        return Phase.LOST
    partition.takeover_under_way = done = trio.Event()
    try:
        return await _Run(partition, epoch, why).run()
    finally:
        partition.takeover_under_way = None
        partition.node.changed[partition.id] = None
        done.set()


class _Run:
    def __init__(self, partition: "Partition", epoch: int, why: str) -> None:
        self.partition = partition
        self.node = partition.node
        self.epoch = epoch
        self.why = why
        self.core = Takeover(
            me=self.node.me,
            partition=partition.id,
            epoch=epoch,
            attempt=self.node.clock.token(),
            now=trio.current_time(),
            defer_above=DEFER_ABOVE_OFFSETS,
            not_to=[broker for broker, asked in partition.asked_in_vain.items() if asked == epoch],
        )
        self._send: trio.MemorySendChannel[Outcome]
        self._receive: trio.MemoryReceiveChannel[Outcome]
        self._send, self._receive = trio.open_memory_channel(INBOX)
        self._nursery: trio.Nursery
        self._transfers: set[trio.CancelScope] = set()
        self._began = trio.current_time()

    async def run(self) -> Phase:
        core = self.core
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.node.metrics.takeovers["begun"] += 1
            self._carry_out(core.start())
            with trio.move_on_after(TAKEOVER_TIMEOUT_S):
                while not core.is_over:
                    outcome: Outcome | None = None
                    with trio.move_on_at(core.next_deadline if core.next_deadline is not None else float("inf")):
                        outcome = await self._receive.receive()
                    phase = core.phase
                    now = trio.current_time()
                    effects = core.on_deadline(now) if outcome is None else outcome(now)
                    if core.phase is not phase and phase in (Phase.COPY, Phase.REPAIR):
                        for transfer in self._transfers:
                            transfer.cancel()
                    self._carry_out(effects)
            nursery.cancel_scope.cancel()
        await self._conclude()
        return core.phase

    async def _conclude(self) -> None:
        core, partition, node = self.core, self.partition, self.node
        took_ms = (trio.current_time() - self._began) * 1000
        if core.register is not None and core.phase is not Phase.DONE:
            partition.learn(core.register)
        if core.phase is Phase.DONE:
            assert core.register is not None
            try:
                await partition.fold()
            except StreamqError as error:
                log.warning("%s: the idempotence table cannot be completed: %s", partition.name, error)
            segment = core.register.last
            newest = partition.open_segment
            is_over = partition.is_dropped or newest is None or newest.epoch != segment.epoch
            if is_over or not partition.replica.is_complete(segment.base):
                log.info("%s: epoch %d was opened here, but is over already or not whole", partition.name, segment.epoch)
                return
            if partition.sequencing is not None:
                partition.sequencing.retire("this broker opened a newer epoch")
            partition.sequencing = Sequencing(partition, core.register)
            partition.sequencing.start()
            node.metrics.takeovers["won"] += 1
            node.metrics.takeover_seconds.record(int(took_ms * 1000))
            log.info(
                "%s: sequencer of epoch %d from offset %d on, in %.1f ms: %s",
                partition.name,
                segment.epoch,
                segment.base,
                took_ms,
                self.why,
            )
        else:
            node.metrics.takeovers[core.phase.name.lower()] += 1
            trouble = f"takeover of epoch {self.epoch} ended {core.phase.name}: {core.reason or self.why}"
            if trouble != partition.trouble:  # what is tried again and again for the same reason is told once
                partition.trouble = trouble
                log.info("%s: %s (after %.1f ms)", partition.name, trouble, took_ms)

    def _carry_out(self, effects: Iterable[TakeoverEffect]) -> None:
        start = self._nursery.start_soon
        for effect in effects:
            if isinstance(effect, ReadRegister):
                start(self._read_register)
            elif isinstance(effect, SendSeal):
                start(self._seal, effect)
            elif isinstance(effect, StartCopy):
                start(self._transfer, self._copy, effect)
            elif isinstance(effect, SendRepair):
                start(self._transfer, self._repair, effect)
            elif isinstance(effect, ChangeRegister):
                start(self._change, effect)
            elif isinstance(effect, OpenEpoch):
                start(self._open, effect.register)
            elif isinstance(effect, AskTakeOver):
                self.node.nursery.start_soon(self._ask, effect)
            elif isinstance(effect, TakeoverAlarm):
                log.error("%s: ALARM: %s", self.partition.name, effect.reason)
                self.node.metrics.alarms += 1

    def _tell(self, outcome: Outcome) -> None:
        self._send.send_nowait(outcome)

    async def _read_register(self) -> None:
        state = self.partition.replica.state
        try:
            register = await self.node.registers.get_as(PartitionRegister, partition_key(state.topic, state.index))
            if register is None or register.id != self.partition.id or register.deleted:
                if register is not None:
                    self.partition.drop()  # P-39: a quorum read said so
                raise UnavailableError(f"{self.partition.name} was deleted", code="unavailable")
            await self._become_whole(register)
        except StreamqError as error:
            reason = str(error)
            self._tell(lambda now: self.core.on_read_failed(reason, now))
        else:
            self._tell(lambda now: self.core.on_register(register, now))

    async def _become_whole(self, register: PartitionRegister) -> None:
        """P-34: who cannot complete its idempotence table must not close the epoch of somebody who could go on. Raises StreamqError."""
        partition, last = self.partition, register.last
        if last.epoch != self.epoch or not last.is_open:
            return
        partition.learn(register)
        await partition.fold()
        while partition.replica.table.position < last.base:
            if partition.replica.high_watermark[0] >= last.epoch:
                raise UnavailableError(f"{self.node.broker} does not hold all of {partition.name} before this epoch", code="not_replica")
            await partition.stored.park()  # the chain is not durable yet
            await partition.fold()

    async def _seal(self, effect: SendSeal) -> None:
        """The own replica is sealed like any other."""
        try:
            if effect.broker == self.node.broker:
                answered = Answered()
                self.partition.carry_out(self.partition.replica.on_seal(effect.seal, answered))
                member, message = self.node.me, await answered.message()
            else:
                member = self._member(effect.broker)
                message = await self.node.peers.request(effect.broker, effect.seal, self.node.config.request_timeout_s)
            if not isinstance(message, Sealed):
                raise UnavailableError(f"{effect.broker} answered a seal with {type(message).__name__}", code="unavailable")
        except StreamqError:
            self._tell(lambda now: self.core.on_unreachable(effect.broker, now))
        else:
            sealed = message
            self._tell(lambda now: self.core.on_sealed(member, sealed, now))

    def _member(self, broker: str) -> Member:
        """Who answers on the connection to `broker` now; an answer of a later connection fails with this one."""
        peer = self.node.peers.get(broker)
        if peer is None or peer.member is None:
            raise UnavailableError(f"broker {broker} is not connected", code="unavailable")
        return peer.member

    async def _transfer(self, work: Callable[[T], Awaitable[None]], effect: T) -> None:
        """Each in a scope of its own: several brokers may be repaired at once."""
        with trio.CancelScope() as scope:
            self._transfers.add(scope)
            try:
                await work(effect)
            finally:
                self._transfers.discard(scope)

    async def _copy(self, effect: StartCopy) -> None:
        state = self.partition.replica.state
        repair = Repair(self.partition.id, state.topic, state.index, effect.segment)
        offset = effect.offset
        for source in effect.sources:
            try:
                while offset < effect.end and self.node.storage.refusal() is None:
                    fetched = await self.partition.fetch(source, effect.segment.epoch, offset, effect.end)
                    batches = [batch for batch in fetched if batch.end <= effect.end]
                    if not batches:
                        break
                    answered = Answered()
                    self.partition.carry_out(self.partition.replica.on_repair(repair, batches, answered))
                    message = await answered.message()
                    assert isinstance(message, Repaired)
                    if message.local_tail <= offset:
                        break
                    offset = message.local_tail
                    self._tell(lambda now, tail=offset: self.core.on_copied(tail, now))  # type: ignore[misc]
            except StreamqError as error:
                log.info("%s: copying from %s failed: %s", self.partition.name, source, error)
        if offset < effect.end:
            self._tell(self.core.on_copy_failed)

    async def _repair(self, effect: SendRepair) -> None:
        partition, node = self.partition, self.node
        state = partition.replica.state
        message = Repair(partition.id, state.topic, state.index, effect.segment)
        offset = effect.offset
        try:
            if offset < state.start_offset:
                # P-41: below it nobody may have anything to repair with; who is behind takes the start offset first.
                assert self.core.register is not None
                register = msgspec.structs.replace(self.core.register, start_offset=state.start_offset)
                await node.peers.request(effect.broker, Open(register), node.config.request_timeout_s)
                offset = min(state.start_offset, effect.end)
            while True:
                read = await partition.read_epoch(effect.segment.epoch, offset, max_bytes=COPY_BYTES_MAX) if offset < effect.end else []
                batches = [batch for batch in read if batch.end <= effect.end]
                member = self._member(effect.broker)
                answer = await node.peers.request(effect.broker, message, 2 * node.config.request_timeout_s, payload=buffers(batches))
                if not isinstance(answer, Repaired):
                    raise UnavailableError(f"{effect.broker} answered a repair with {type(answer).__name__}", code="unavailable")
                node.metrics.repairs += 1
                self._tell(lambda now, member=member, answer=answer: self.core.on_repaired(member, answer, now))  # type: ignore[misc]
                if answer.end is not None or answer.local_tail >= effect.end or answer.local_tail <= offset:
                    return
                offset = answer.local_tail
        except StreamqError:
            self._tell(lambda now: self.core.on_unreachable(effect.broker, now))

    async def _change(self, effect: ChangeRegister) -> None:
        state = self.partition.replica.state
        closed = effect.closed
        assert closed.end is not None
        change = close_and_open(
            state.topic,
            state.index,
            partition=self.partition.id,
            epoch=closed.epoch,
            end=closed.end,
            opened=effect.opened,
            holders=closed.replicas,
        )
        try:
            register = await self.node.registers.change_as(PartitionRegister, partition_key(state.topic, state.index), change)
        except StreamqError as error:
            log.info("%s: closing epoch %d: %s", self.partition.name, effect.closed.epoch, error)
            self._tell(self.core.on_change_failed)
        else:
            self._tell(lambda now: self.core.on_changed(register, now))

    async def _open(self, register: PartitionRegister) -> None:
        """The own replica; the others are told when `Sequencing` starts, ahead of the first store on the same connection."""
        answered = Answered()
        self.partition.carry_out(self.partition.replica.on_open(register, answered))
        await answered.message()
        self._tell(self.core.on_opened)

    async def _ask(self, effect: AskTakeOver) -> None:
        state = self.partition.replica.state
        try:
            await self.node.peers.request(effect.broker, TakeOver(state.topic, state.index, effect.epoch), TAKEOVER_TIMEOUT_S)
        except StreamqError as error:
            log.info("%s: %s was asked to take over: %s", self.partition.name, effect.broker, error)
            self.partition.asked_in_vain[effect.broker] = effect.epoch
