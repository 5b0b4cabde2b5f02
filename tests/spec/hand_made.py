"""A trace written by hand in which everything goes as the protocol says, and ways to spoil it at one place.

Three brokers, W = 2. b1 takes over the first epoch and sequences epoch 2; p0 is acked there, p1 lies on b1 alone when b1 crashes. b2 takes
over: p0 is repaired to b3, p1 is void, and assigned again in epoch 3. b3 loses its state and is in limbo; b1 takes over, epoch 3 is closed,
b3 copies and leaves limbo; in the end what lies below p1 is trimmed.
"""

from typing import Any, NamedTuple

import msgspec

from streamq.log.replica_state import ReplicaState
from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1.events import (
    Acked,
    Assigned,
    BatchId,
    Consumed,
    Crashed,
    Cut,
    Digested,
    Durable,
    Event,
    Founded,
    LimboEnded,
    LimboEntered,
    Lost,
    Opened,
    OpenTaken,
    RegisterChanged,
    Repaired,
    Reported,
    Sealed,
    SealTaken,
    SequencerBegan,
    SequencerStopped,
    Started,
    Taken,
    TakeoverBegan,
    TakeoverEnded,
    TipBegan,
    TipConcluded,
    Traced,
    WatermarkTold,
)

__all__ = ["B1", "B2", "B3", "P0", "P1", "Q0", "REGISTERS", "Script", "attempt", "good"]

PARTITION = b"p" * 16
B1, B2, B3 = (Member(f"b{i}", bytes([i]) * 16) for i in (1, 2, 3))
P0, P1 = BatchId(b"P" * 16, 0, 0, 0), BatchId(b"P" * 16, 0, 1, 0)
Q0 = BatchId(b"Q" * 16, 0, 0, 0)


def attempt(number: int) -> bytes:
    return b"a" * 15 + bytes([number])


def _registers() -> tuple[PartitionRegister, ...]:
    """As it is made; after each of the three takeovers; after the trim."""
    segment = Segment(1, 0, None, (B1, B2, B3), 2, 2, "fsync", "", attempt(0))
    made = PartitionRegister(PARTITION, "t", 0, ("b1", "b2", "b3"), 2, 2, "fsync", 0, (segment,))
    versions = [made]
    for epoch, end, sequencer in ((1, 0, "b1"), (2, 1, "b2"), (3, 3, "b1")):
        chain = versions[-1].chain
        closed = msgspec.structs.replace(chain[-1], end=end)
        opened = msgspec.structs.replace(segment, epoch=epoch + 1, base=end, sequencer=sequencer, attempt=attempt(epoch))
        versions.append(msgspec.structs.replace(versions[-1], chain=(*chain[:-1], closed, opened)))
    last = versions[-1]
    return (*versions, msgspec.structs.replace(last, start_offset=1, chain=last.chain[2:]))


REGISTERS = _registers()


class Step(NamedTuple):
    name: str
    event: Event


class Script(list[Step]):
    """A trace under construction; a name finds its first event of that name. Every method that spoils it returns a new one."""

    def add(self, name: str, *events: Event) -> None:
        self.extend(Step(name, event) for event in events)

    def trace(self) -> list[Traced]:
        return [Traced(float(i), step.event) for i, step in enumerate(self)]

    def _place(self, name: str) -> int:
        return next(i for i, step in enumerate(self) if step.name == name)

    def without(self, name: str) -> "Script":
        return Script(step for step in self if step.name != name)

    def instead(self, name: str, **changes: Any) -> "Script":
        place = self._place(name)
        step = self[place]
        return Script([*self[:place], Step(name, step.event._replace(**changes)), *self[place + 1 :]])

    def before(self, name: str, *events: Event) -> "Script":
        place = self._place(name)
        return Script([*self[:place], *(Step("", event) for event in events), *self[place:]])


def good() -> Script:
    script = Script()
    script.add("founded", Founded(0, REGISTERS[0]))
    for member in (B1, B2, B3):
        script.add(f"start {member.broker}", Started(member, 1, 0, ReplicaState(PARTITION), ()))
    _first_takeover(script)
    _first_batches(script)
    _second_takeover(script)
    _return_of_b1(script)
    _last_batches(script)
    _limbo_of_b3(script)
    _third_takeover(script)
    _refilling_of_b3(script)
    return script


def _first_takeover(script: Script) -> None:
    script.add("begin 1", TakeoverBegan(B1, 0, 1, attempt(1)))
    for member in (B1, B2):
        script.add(f"mark 1 {member.broker}", SealTaken(member, 0, 1))
        script.add(f"sealed 1 {member.broker}", Sealed(member, 0, 1, 0, 0, False))
    script.add("digest 1", Digested(B1, 0, 1, attempt(1), 0, 0, (B1, B2)))
    script.add("change 1", RegisterChanged(0, REGISTERS[0], REGISTERS[1]))
    script.add("opening 2 b1", OpenTaken(B1, 0, 2))
    script.add("open 2 b1", Opened(B1, 0, 2))
    script.add("sequencer 2", SequencerBegan(B1, 0, 2, 0))
    script.add("end 1", TakeoverEnded(B1, 0, 1, attempt(1), "DONE"))
    script.add("open 2 b2", Opened(B2, 0, 2))
    script.add("mark 1 b3", SealTaken(B3, 0, 1))
    script.add("open 2 b3", Opened(B3, 0, 2))


def _stored(script: Script, member: Member, epoch: int, base: int, end: int, batch: BatchId) -> None:
    what = f"{epoch} {base} {member.broker}"
    script.add(f"take {what}", Taken(member, 0, epoch, base, end, (batch,)))
    script.add(f"durable {what}", Durable(member, 0, epoch, end))
    script.add(f"report {what}", Reported(member, 0, epoch, end))


def _first_batches(script: Script) -> None:
    script.add("assign p0", Assigned(B1, 0, 2, 0, 1, P0))
    _stored(script, B1, 2, 0, 1, P0)
    _stored(script, B2, 2, 0, 1, P0)
    script.add("ack p0", Acked(B1, 0, 2, 0, 1, P0, False))
    script.add("told 2 b1", WatermarkTold(B1, 0, 2, 1))
    script.add("tip", TipBegan("t", 0))
    script.add("tip is", TipConcluded("t", 0, 2, 1))
    script.add("consume p0", Consumed("c", B1, 0, 2, 0, 1, (P0,)))
    script.add("assign p1", Assigned(B1, 0, 2, 1, 3, P1))
    script.add("take 2 1 b1", Taken(B1, 0, 2, 1, 3, (P1,)))
    script.add("durable 2 1 b1", Durable(B1, 0, 2, 3))
    script.add("stop b1", Crashed(B1))


def _second_takeover(script: Script) -> None:
    script.add("begin 2", TakeoverBegan(B2, 0, 2, attempt(2)))
    for member, tail in ((B2, 1), (B3, 0)):
        script.add(f"mark 2 {member.broker}", SealTaken(member, 0, 2))
        script.add(f"sealed 2 {member.broker}", Sealed(member, 0, 2, tail, 0, False))
    script.add("digest 2", Digested(B2, 0, 2, attempt(2), 1, 0, (B2, B3)))
    script.add("repair b3", Taken(B3, 0, 2, 0, 1, (P0,)))
    script.add("repair b3 durable", Durable(B3, 0, 2, 1))
    script.add("repaired b3", Repaired(B3, 0, 2, 1, None))
    script.add("change 2", RegisterChanged(0, REGISTERS[1], REGISTERS[2]))
    script.add("open 3 b2", Opened(B2, 0, 3))
    script.add("sequencer 3", SequencerBegan(B2, 0, 3, 1))
    script.add("end 2", TakeoverEnded(B2, 0, 2, attempt(2), "DONE"))
    script.add("open 3 b3", Opened(B3, 0, 3))


def _return_of_b1(script: Script) -> None:
    state = ReplicaState(PARTITION, "t", sealed=1, chain=REGISTERS[1].chain)
    script.add("return b1", Started(B1, 2, 0, state, ((2, 0, 3),)))
    script.add("mark 2 b1", SealTaken(B1, 0, 2))
    script.add("cut b1", Cut(B1, 0, 2, 1))
    script.add("open 3 b1", Opened(B1, 0, 3))


def _last_batches(script: Script) -> None:
    script.add("repeat p0", Acked(B2, 0, 3, 0, 1, P0, True))
    script.add("assign p1 again", Assigned(B2, 0, 3, 1, 3, P1))
    _stored(script, B2, 3, 1, 3, P1)
    _stored(script, B3, 3, 1, 3, P1)
    script.add("ack p1", Acked(B2, 0, 3, 1, 3, P1, False))
    script.add("told 3 b2", WatermarkTold(B2, 0, 3, 3))
    script.add("consume p1", Consumed("c", B2, 0, 3, 1, 3, (P1,)))
    script.add("consume closed", Consumed("d", B3, 0, 2, 0, 1, (P0,)))


def _limbo_of_b3(script: Script) -> None:
    script.add("crash b3", Crashed(B3))
    script.add("lose b3", Lost(B3, 0, "state"))
    script.add("return b3", Started(B3, 2, 0, ReplicaState(PARTITION), ()))
    script.add("limbo b3", LimboEntered(B3, 0, None))
    script.add("limbo b3 read", LimboEntered(B3, 0, (1, 2, 3)))


def _third_takeover(script: Script) -> None:
    script.add("begin 3", TakeoverBegan(B1, 0, 3, attempt(3)))
    script.add("mark 3 b2", SealTaken(B2, 0, 3))
    script.add("sealed 3 b2", Sealed(B2, 0, 3, 3, 3, False))
    script.add("mark 3 b1", SealTaken(B1, 0, 3))
    script.add("sealed 3 b1", Sealed(B1, 0, 3, 1, 1, False))
    script.add("mark 3 b3", SealTaken(B3, 0, 3))
    script.add("sealed 3 b3", Sealed(B3, 0, 3, 1, 1, True))
    script.add("digest 3", Digested(B1, 0, 3, attempt(3), 3, 3, (B1, B2)))
    script.add("stop 3", SequencerStopped(B2, 0, 3))
    script.add("copy b1", Taken(B1, 0, 3, 1, 3, (P1,)))
    script.add("copy b1 durable", Durable(B1, 0, 3, 3))
    script.add("change 3", RegisterChanged(0, REGISTERS[2], REGISTERS[3]))
    script.add("open 4 b1", Opened(B1, 0, 4))
    script.add("sequencer 4", SequencerBegan(B1, 0, 4, 3))
    script.add("end 3", TakeoverEnded(B1, 0, 3, attempt(3), "DONE"))


def _refilling_of_b3(script: Script) -> None:
    script.add("open 4 b3", Opened(B3, 0, 4))
    for epoch, base, end, batch in ((2, 0, 1, P0), (3, 1, 3, P1)):
        script.add(f"refill {epoch}", Taken(B3, 0, epoch, base, end, (batch,)))
        script.add(f"refill {epoch} durable", Durable(B3, 0, epoch, end))
        script.add(f"limbo {epoch} ends", LimboEnded(B3, 0, epoch))
    script.add("assign q0", Assigned(B1, 0, 4, 3, 4, Q0))
    _stored(script, B3, 4, 3, 4, Q0)
    script.add("trim", RegisterChanged(0, REGISTERS[3], REGISTERS[4]))
    script.add("forget b3", Cut(B3, 0, 2, 0))
