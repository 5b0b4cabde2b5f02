"""Runs a `Takeover` core on a simulated broker: every effect becomes messages and writes, every outcome comes back, as in the shell."""

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

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
from streamq.model.messages import Failure, Message, Open, Repair, Repaired, Sealed, TakeOver
from streamq.model.registers import PartitionRegister
from tests.sim.tier1 import events
from tests.sim.tier1.checks import Violation
from tests.sim.tier1.endpoint import Steps, Task, Wait
from tests.sim.tier1.partition import TOPIC
from tests.sim.tier1.sequencing import Sequencing

if TYPE_CHECKING:
    from tests.sim.tier1.partition import Partition

__all__ = ["TakeoverRun"]

TAKEOVER_TIMEOUT_S = 15.0
DEFER_ABOVE_OFFSETS = 40
"""Low, so that candidates that lack much are met."""

Outcome = Callable[[float], list[TakeoverEffect]]
Ended = Callable[[Phase], None]


class TakeoverRun:
    """One attempt to take `partition` over from `epoch`; one at a time on a broker. `ended` is told how it came out."""

    def __init__(self, partition: "Partition", epoch: int, ended: Ended) -> None:
        assert partition.takeover is None
        partition.takeover = self
        self.partition = partition
        self.process = partition.process
        self.world = partition.world
        self.epoch = epoch
        self.ended = [ended]
        self.attempt = self.world.token()
        self.core = Takeover(
            me=partition.me,
            partition=partition.id,
            epoch=epoch,
            attempt=self.attempt,
            now=self.world.now,
            defer_above=DEFER_ABOVE_OFFSETS,
            not_to=[broker for broker, asked in partition.asked_in_vain.items() if asked == epoch],
        )
        self._outcomes: list[Outcome] = []
        self._is_busy = False
        self._is_ended = False
        self._waking_at: float | None = None
        self._tasks: list[Task] = []
        self._transfers: list[Task] = []
        if self.world.is_traced:
            self.world.note(events.TakeoverBegan(partition.me, partition.index, epoch, self.attempt))
        self.process.after(TAKEOVER_TIMEOUT_S, self._give_up)
        self._tell(lambda now: self.core.start())

    def _tell(self, outcome: Outcome) -> None:
        """Outcomes wait for one another: an effect's own may come before the effects beside it are carried out."""
        self._outcomes.append(outcome)
        if self._is_busy or self._is_ended:
            return
        self._is_busy = True
        core = self.core
        while self._outcomes and not core.is_over:
            phase = core.phase
            effects = self._outcomes.pop(0)(self.world.now)
            if core.phase is not phase:
                self._left(phase)
            self._carry_out(effects)
        self._is_busy = False
        if core.is_over:
            self._end()
        else:
            self._wake_in_time()

    def _left(self, phase: Phase) -> None:
        if phase in (Phase.COPY, Phase.REPAIR):
            for transfer in self._transfers:
                transfer.cancel()
            self._transfers.clear()
        if self.core.phase in (Phase.COPY, Phase.REPAIR, Phase.CLOSE) and phase is Phase.SEAL and self.world.is_traced:
            core = self.core
            answered = tuple(answer.member for answer in core._digest.good().values())
            place = (self.partition.me, self.partition.index, self.epoch, self.attempt)
            self.world.note(events.Digested(*place, core.tail, core.high_watermark, answered))

    def _wake_in_time(self) -> None:
        deadline = self.core.next_deadline
        if deadline is not None and (self._waking_at is None or deadline < self._waking_at or self._waking_at <= self.world.now):
            self._waking_at = deadline
            self.process.after(max(0.0, deadline - self.world.now), self._wake)

    def _wake(self) -> None:
        if not self._is_ended:
            self._waking_at = None
            self._tell(self.core.on_deadline)

    def _give_up(self) -> None:
        if not self._is_ended:
            self._end()

    # --- the end

    def _end(self) -> None:
        self._is_ended = True
        for task in self._tasks:
            task.cancel()
        core, partition = self.core, self.partition
        if core.register is not None and core.phase is not Phase.DONE:
            partition.learn(core.register)
        self.world.counters[f"takeovers_{core.phase.name.lower()}"] += 1
        if self.world.is_traced:
            self.world.note(events.TakeoverEnded(partition.me, partition.index, self.epoch, self.attempt, core.phase.name))
        if core.phase is Phase.DONE:
            self.process.spawn(self._begin_sequencing())
        else:
            self._tell_ended()

    def _begin_sequencing(self) -> Steps:
        core, partition = self.core, self.partition
        assert core.register is not None
        with suppress(StreamqError):
            yield from partition.fold()
        segment = core.register.last
        newest = partition.open_segment
        if newest is not None and newest.epoch == segment.epoch and partition.replica.is_complete(segment.base):
            if partition.sequencing is not None:
                partition.sequencing.retire("this broker opened a newer epoch")
            partition.sequencing = Sequencing(partition, core.register)
            partition.sequencing.start()
            self.world.counters["takeovers"] += 1
        self._tell_ended()

    def _tell_ended(self) -> None:
        self.partition.takeover = None
        for ended in self.ended:
            self.process.after(0.0, ended, self.core.phase)

    # --- effects

    def _spawn(self, steps: Steps) -> None:
        self._tasks.append(self.process.spawn(steps))

    def _transfer(self, steps: Steps) -> None:
        task = self.process.spawn(steps)
        self._transfers.append(task)
        self._tasks.append(task)

    def _carry_out(self, effects: Iterable[TakeoverEffect]) -> None:
        for effect in effects:
            if isinstance(effect, ReadRegister):
                self._spawn(self._read_register())
            elif isinstance(effect, SendSeal):
                self._seal(effect)
            elif isinstance(effect, StartCopy):
                self._transfer(self._copy(effect))
            elif isinstance(effect, SendRepair):
                self._transfer(self._repair(effect))
            elif isinstance(effect, ChangeRegister):
                self._spawn(self._change(effect))
            elif isinstance(effect, OpenEpoch):
                self.partition.carry_out(self.partition.replica.on_open(effect.register, self._opened))
            elif isinstance(effect, AskTakeOver):
                self._ask(effect)
            elif isinstance(effect, TakeoverAlarm):
                raise Violation(f"alarm at {self.process.name}: {effect.reason}")

    def _ask(self, effect: AskTakeOver) -> None:
        def answered(message: Message, _batches: object) -> None:
            if isinstance(message, Failure):
                self.partition.asked_in_vain[effect.broker] = effect.epoch

        self.process.peers.request(effect.broker, TakeOver(TOPIC, self.partition.index, effect.epoch), (), 15.0, answered)

    def _opened(self, _message: Message, _batches: object = ()) -> None:
        self._tell(self.core.on_opened)

    def _read_register(self) -> Steps:
        try:
            register = yield from self.process.registers.get_as(PartitionRegister, self.partition.key)
            assert register is not None
            yield from self._become_whole(register)
        except StreamqError as error:
            reason = str(error)
            self._tell(lambda now: self.core.on_read_failed(reason, now))
        else:
            self._tell(lambda now: self.core.on_register(register, now))

    def _become_whole(self, register: PartitionRegister) -> Generator[Wait, Any, None]:
        """P-34: who cannot complete its idempotence table must not close the epoch of somebody who could go on."""
        partition, last = self.partition, register.last
        if last.epoch != self.epoch or not last.is_open:
            return
        partition.learn(register)
        yield from partition.fold()
        while partition.replica.table.position < last.base:
            if partition.replica.high_watermark[0] >= last.epoch:
                self.world.counters["not_whole"] += 1
                raise UnavailableError("this broker does not hold all before this epoch", code="not_replica")
            yield partition.stored()
            yield from partition.fold()

    def _seal(self, effect: SendSeal) -> None:
        """The own replica is sealed like any other."""
        core, broker = self.core, effect.broker

        def unreachable() -> None:
            self._tell(lambda now: core.on_unreachable(broker, now))

        if broker == self.process.name:
            me = self.partition.me

            def sealed(message: Message, _batches: object = ()) -> None:
                assert isinstance(message, Sealed)
                self._tell(lambda now: core.on_sealed(me, message, now))

            self.partition.carry_out(self.partition.replica.on_seal(effect.seal, sealed))
            return
        peer = self.process.peers.get(broker)
        member = peer.member if peer is not None else None
        if peer is None or peer.connection is None or member is None:
            unreachable()
            return

        def answered(message: Message, _batches: object) -> None:
            if isinstance(message, Sealed):
                self._tell(lambda now: core.on_sealed(member, message, now))
            else:
                unreachable()

        peer.connection.request(effect.seal, (), 1.0, answered)

    def _copy(self, effect: StartCopy) -> Steps:
        partition = self.partition
        repair = Repair(partition.id, TOPIC, partition.index, effect.segment)
        offset = effect.offset
        for source in effect.sources:
            try:
                while offset < effect.end and not self.process.disk.is_full:
                    fetched = yield from partition.fetch(source, effect.segment.epoch, offset, effect.end)
                    batches = [batch for batch in fetched if batch.end <= effect.end]
                    if not batches:
                        break
                    message = yield self._own_repair(repair, batches)
                    assert isinstance(message, Repaired)
                    if message.local_tail <= offset:
                        break
                    offset = message.local_tail
                    self._tell(lambda now, tail=offset: self.core.on_copied(tail, now))  # type: ignore[misc]
            except StreamqError:
                continue
        if offset < effect.end:
            self._tell(self.core.on_copy_failed)

    def _own_repair(self, repair: Repair, batches: list[Any]) -> Wait:
        replica = self.partition.replica
        return lambda resume: self.partition.carry_out(replica.on_repair(repair, batches, lambda message, _=(): resume(message)))

    def _repair(self, effect: SendRepair) -> Steps:
        partition, broker = self.partition, effect.broker
        message = Repair(partition.id, TOPIC, partition.index, effect.segment)
        offset = effect.offset
        start = partition.replica.start_offset
        try:
            if offset < start:
                # P-41: below it nobody may have anything to repair with; who is behind takes the start offset first.
                assert self.core.register is not None
                register = msgspec.structs.replace(self.core.register, start_offset=start)
                yield from self.process.peers.ask_whole(broker, Open(register), 1.0)
                offset = min(start, effect.end)
            while True:
                read = (yield from partition.read_whole(effect.segment.epoch, offset)) if offset < effect.end else []
                batches = [batch for batch in read if batch.end <= effect.end]
                peer = self.process.peers.get(broker)
                member = peer.member if peer is not None else None
                answer, _ = yield self.process.peers.ask(broker, message, 2.0, batches)
                if not isinstance(answer, Repaired) or member is None:
                    raise UnavailableError(f"{broker} did not repair", code="unavailable")
                self.world.counters["repairs"] += 1
                self._tell(lambda now, member=member, answer=answer: self.core.on_repaired(member, answer, now))  # type: ignore[misc]
                if answer.end is not None or answer.local_tail >= effect.end or answer.local_tail <= offset:
                    return
                offset = answer.local_tail
        except StreamqError:
            self._tell(lambda now: self.core.on_unreachable(broker, now))

    def _change(self, effect: ChangeRegister) -> Steps:
        closed = effect.closed
        assert closed.end is not None
        change = close_and_open(
            TOPIC,
            self.partition.index,
            partition=self.partition.id,
            epoch=closed.epoch,
            end=closed.end,
            opened=effect.opened,
            holders=closed.replicas,
        )
        try:
            register = yield from self.process.registers.change_as(PartitionRegister, self.partition.key, change)
        except StreamqError:
            self.world.counters["changes_unknown"] += 1
            self._tell(self.core.on_change_failed)
        else:
            self._tell(lambda now: self.core.on_changed(register, now))
