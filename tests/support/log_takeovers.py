"""Runs a `Takeover` core in the world of `log_world`: every effect becomes a message, every outcome comes back late, twice or never."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streamq.log.takeover import (
    AskTakeOver,
    ChangeRegister,
    OpenEpoch,
    Phase,
    ReadRegister,
    SendRepair,
    SendSeal,
    StartCopy,
    Takeover,
    TakeoverAlarm,
    TakeoverEffect,
)
from streamq.metadata.changes import close_and_open
from streamq.model.batches import Batch
from streamq.model.ids import Member
from streamq.model.messages import Message, Repair, Repaired, Sealed

if TYPE_CHECKING:
    from tests.support.log_world import Broker, World


class TakeoverRun:
    """One attempt. Its mail begins with "takeover"; outcomes for a broker that has crashed since go nowhere."""

    def __init__(self, world: "World", broker: "Broker", epoch: int) -> None:
        self.world = world
        self.broker = broker
        self.start_number = broker.start_number
        self.core = Takeover(me=broker.me, partition=world.register.id, epoch=epoch, attempt=world.token(), now=self.now)

    @property
    def now(self) -> float:
        return self.world.now_ms / 1000

    def start(self) -> None:
        self.carry_out(self.core.start())

    def outcome(self, what: str, call: Callable[[], list[TakeoverEffect]]) -> None:
        def arrive(here: "Broker") -> None:
            if here.start_number == self.start_number and not self.core.is_over:
                self.carry_out(call())

        self.world.post(self.broker.me, f"takeover {what}", arrive)

    def carry_out(self, effects: Sequence[TakeoverEffect]) -> None:
        from tests.support.log_world import Violation

        for effect in effects:
            if isinstance(effect, ReadRegister):
                self._read()
            elif isinstance(effect, SendSeal):
                self._seal(effect)
            elif isinstance(effect, StartCopy):
                self._copy(effect, effect.offset, effect.sources)
            elif isinstance(effect, SendRepair):
                self._repair(effect, effect.offset)
            elif isinstance(effect, ChangeRegister):
                self._change(effect)
            elif isinstance(effect, OpenEpoch):
                self._open(effect)
            elif isinstance(effect, AskTakeOver):
                self.world.counts["deferred"] = self.world.counts.get("deferred", 0) + 1
            elif isinstance(effect, TakeoverAlarm):
                raise Violation(effect.reason)
        if self.core.phase is Phase.LOST:
            self.world.counts["lost_races"] += 1
        if self.core.is_over and self in self.broker.takeovers:
            self.broker.takeovers.remove(self)

    def _unreachable(self, broker: str) -> None:
        self.outcome("unreachable", lambda: self.core.on_unreachable(broker, self.now))

    def _there(self, name: str) -> Member:
        return self.world.brokers[name].me

    def _request(self, name: str, what: str, deliver: Callable[["Broker"], None]) -> None:
        """A connection that is refused is noticed; a message that is lost on the way is not."""
        if self.world.brokers[name].is_up:
            self.world.post(self._there(name), f"takeover {what}", deliver)
        else:
            self._unreachable(name)

    def _read(self) -> None:
        def read(_: "Broker") -> None:
            register = self.world.register
            self.outcome("register", lambda: self.core.on_register(register, self.now))

        self.world.post(self.broker.me, "takeover read", read)

    def _seal(self, effect: SendSeal) -> None:
        def seal(there: "Broker") -> None:
            speaker = there.me

            def reply(message: Message, _batches: object = ()) -> None:
                assert isinstance(message, Sealed)
                self.outcome("sealed", lambda: self.core.on_sealed(speaker, message, self.now))

            there.carry_out(there.replica.on_seal(effect.seal, reply))

        self._request(effect.broker, "seal", seal)

    def _copy(self, effect: StartCopy, offset: int, sources: tuple[str, ...]) -> None:
        if self.core.phase is not Phase.COPY:
            return
        if not sources:
            self.outcome("copy failed", lambda: self.core.on_copy_failed(self.now))
            return

        def copy(there: "Broker") -> None:
            _, batches = there.copied(effect.segment.epoch, offset, effect.end)
            self.outcome("copied", lambda: self._copied(effect, offset, sources, batches))

        if self.world.brokers[sources[0]].is_up:
            self.world.post(self._there(sources[0]), "takeover copy", copy)
        else:
            self._copy(effect, offset, sources[1:])

    def _copied(self, effect: StartCopy, offset: int, sources: tuple[str, ...], batches: list[Batch]) -> list[TakeoverEffect]:
        if not batches:
            self._copy(effect, offset, sources[1:])
            return []

        def reply(message: Message, _batches: object = ()) -> None:
            assert isinstance(message, Repaired)
            tail = message.local_tail
            self.carry_out(self.core.on_copied(tail, self.now))
            if tail < effect.end:
                self._copy(effect, tail, sources if tail > offset else sources[1:])

        repair = Repair(self.world.register.id, self.world.register.topic, 0, effect.segment)
        self.broker.carry_out(self.broker.replica.on_repair(repair, batches, reply))
        return []

    def _repair(self, effect: SendRepair, offset: int) -> None:
        batches = self.broker.batches(effect.segment.epoch, offset, effect.end)[:2]
        repair = Repair(self.world.register.id, self.world.register.topic, 0, effect.segment)
        self.world.counts["repairs"] += 1

        def deliver(there: "Broker") -> None:
            speaker = there.me

            def reply(message: Message, _batches: object = ()) -> None:
                assert isinstance(message, Repaired)
                self.outcome("repaired", lambda: self._repaired(effect, offset, speaker, message))

            there.carry_out(there.replica.on_repair(repair, batches, reply))

        self._request(effect.broker, "repair", deliver)

    def _repaired(self, effect: SendRepair, offset: int, speaker: Member, message: Repaired) -> list[TakeoverEffect]:
        effects = self.core.on_repaired(speaker, message, self.now)
        if self.core.phase is Phase.REPAIR and message.end is None and offset < message.local_tail < effect.end:
            self._repair(effect, message.local_tail)
        return effects

    def _change(self, effect: ChangeRegister) -> None:
        """Takes effect whenever it does, also after this broker is gone."""
        closed = effect.closed
        assert closed.end is not None
        change = close_and_open(
            self.world.register.topic, 0, partition=self.world.register.id, epoch=closed.epoch, end=closed.end,
            opened=effect.opened, holders=closed.replicas,
        )  # fmt: skip

        def apply(_: "Broker | None" = None) -> None:
            before = self.world.register
            self.world.register = after = change(before)
            if after != before:
                self.world.counts["takeovers"] += 1
                self.world.check_register(before)
            self.outcome("changed", lambda: self.core.on_changed(after, self.now))

        if self.world.random.random() < self.world.faults:
            self.world.late_changes.append(apply)
            self.outcome("change failed", lambda: self.core.on_change_failed(self.now))
        else:
            self.world.post(self.broker.me, "takeover change", apply)

    def _open(self, effect: OpenEpoch) -> None:
        def opened(_message: Message, _batches: object = ()) -> None:
            self.carry_out(self.core.on_opened(self.now))
            if self.core.phase is Phase.DONE:
                self.broker.become_sequencer(effect.register.last)

        for member in effect.register.last.replicas:
            if member != self.broker.me:
                self.world.tell_open(member)
        self.broker.carry_out(self.broker.replica.on_open(effect.register, opened))
