"""Quorum reads of the tip (P-24) on a simulated broker: drives the `TipRead` core, as `broker.tips`."""

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from streamq.log.tip import AskTakeOver, ReadRegister, SendTip, TipEffect, TipRead, TipResult
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.messages import Message, TakeOver, TipAnswer
from streamq.model.registers import PartitionRegister, partition_key
from tests.sim.tier1.endpoint import Steps, Wait
from tests.sim.tier1.partition import TOPIC

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["TIP_DEADLINE_S", "read_tip"]

TIP_DEADLINE_S = 5.0
TIP_REQUEST_S = 0.5

Outcome = Callable[[float], list[TipEffect]]


def read_tip(process: "Process", index: int, deadline_s: float) -> Generator[Wait, Any, tuple[TipResult, PartitionRegister]]:
    """The tip of one partition, linearizable. Raises UnavailableError when it takes too long."""
    key = partition_key(TOPIC, index)
    hint = process.registers.cached_as(PartitionRegister, key)
    if hint is None:
        hint = yield from process.registers.get_as(PartitionRegister, key)
    assert hint is not None
    reading = _TipReading(process, index, hint)
    yield reading.until_over(deadline_s)
    reading.is_over = True
    if reading.core.result is None:
        process.world.counters["tips_failed"] += 1
        raise UnavailableError(reading.core.missing(), code="timed_out")
    return reading.core.result, reading.register


class _TipReading:
    def __init__(self, process: "Process", index: int, hint: PartitionRegister) -> None:
        self.process = process
        self.world = process.world
        self.index = index
        self.key = partition_key(TOPIC, index)
        self.register = hint
        self.is_over = False
        self.core = TipRead(register=hint, now=self.world.now)
        self._outcomes: list[Outcome] = []
        self._is_busy = False
        self._resume: Callable[[Any], None] | None = None
        self._waking_at: float | None = None

    def until_over(self, deadline_s: float) -> Wait:
        def wait(resume: Callable[[Any], None]) -> None:
            self._resume = resume
            self.process.after(deadline_s, resume, None)
            self._tell(lambda now: self.core.start())

        return wait

    def _tell(self, outcome: Outcome) -> None:
        if self.is_over:
            return
        self._outcomes.append(outcome)
        if self._is_busy:
            return
        self._is_busy = True
        while self._outcomes and self.core.result is None:
            self._carry_out(self._outcomes.pop(0)(self.world.now))
        self._is_busy = False
        if self.core.result is not None:
            self.is_over = True
            assert self._resume is not None
            self._resume(None)
            return
        deadline = self.core.next_deadline
        if deadline is not None and (self._waking_at is None or deadline < self._waking_at or self._waking_at <= self.world.now):
            self._waking_at = deadline
            self.process.after(max(0.0, deadline - self.world.now), self._wake)

    def _wake(self) -> None:
        self._waking_at = None
        self._tell(self.core.on_deadline)

    def _carry_out(self, effects: Iterable[TipEffect]) -> None:
        for effect in effects:
            if isinstance(effect, SendTip):
                self._ask(effect)
            elif isinstance(effect, ReadRegister):
                self.process.spawn(self._read_register())
            elif isinstance(effect, AskTakeOver):
                self.process.spawn(self._have_taken_over(effect))

    def _ask(self, effect: SendTip) -> None:
        core, broker, process = self.core, effect.broker, self.process

        def unreachable() -> None:
            self._tell(lambda now: core.on_unreachable(broker, now))

        if broker == process.name:
            partition = process.partitions.get(effect.tip.partition)
            if partition is None:
                unreachable()
                return
            me = process.me

            def replied(message: Message, _batches: object = ()) -> None:
                assert isinstance(message, TipAnswer)
                self._tell(lambda now: core.on_answer(me, message, now))

            partition.carry_out(partition.replica.on_tip(effect.tip, replied))
            return
        peer = process.peers.get(broker)
        if peer is None or peer.connection is None:
            unreachable()
            return
        member = peer.connection.member

        def answered(message: Message, _batches: object) -> None:
            if isinstance(message, TipAnswer):
                self._tell(lambda now: core.on_answer(member, message, now))
            else:
                unreachable()

        peer.connection.request(effect.tip, (), TIP_REQUEST_S, answered)

    def _read_register(self) -> Steps:
        try:
            register = yield from self.process.registers.get_as(PartitionRegister, self.key)
            assert register is not None
        except StreamqError:
            self._tell(self.core.on_read_failed)
        else:
            self.register = register
            self._tell(lambda now: self.core.on_register(register, now))

    def _have_taken_over(self, effect: AskTakeOver) -> Steps:
        self.world.counters["tips_settled_by_takeover"] += 1
        for broker in effect.brokers:
            if broker == self.process.name:
                try:
                    yield from self.process.successions.take_over_here(self.index, effect.epoch)
                except StreamqError:
                    continue
                return
            answer, _ = yield self.process.peers.ask(broker, TakeOver(TOPIC, self.index, effect.epoch), 4 * TIP_REQUEST_S)
            if not hasattr(answer, "code"):
                return
