"""The versions of every register as they come to be: one chain each, in the order of ballots, that all readers agree about.

A version is chosen when a majority of the voters has accepted it durably; nobody in the world knows of that moment but this file.
"""

from bisect import insort
from typing import TYPE_CHECKING

from streamq.metadata.acceptor import Cell
from streamq.metadata.proposer import Chosen
from streamq.model.ids import Ballot
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1 import events
from tests.sim.tier1.checks import Violation

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["Versions"]

Place = tuple[Ballot, bytes]


class Versions:
    def __init__(self, world: "World", majority: int) -> None:
        self.world = world
        self.majority = majority
        self._chosen: dict[str, list[Place]] = {}
        self._accepting: dict[tuple[str, Ballot], set[str]] = {}
        self._traced: dict[int, PartitionRegister] = {}
        self.partition_keys: dict[str, int] = {}

    def found(self, key: str, ballot: Ballot, value: bytes) -> None:
        """A value that is there from the start."""
        self._chosen[key] = [(ballot, value)]

    def newest(self, key: str) -> Ballot | None:
        """A read that begins now returns this version or a later one."""
        chosen = self._chosen.get(key)
        return chosen[-1][0] if chosen else None

    def register(self, index: int) -> PartitionRegister:
        """The newest version of that partition's register, whoever knows of it."""
        key = next(key for key, at in self.partition_keys.items() if at == index)
        return self.world.decode(PartitionRegister, self._chosen[key][-1][1])

    def history(self, index: int) -> list[PartitionRegister]:
        key = next(key for key, at in self.partition_keys.items() if at == index)
        return [self.world.decode(PartitionRegister, value) for _, value in self._chosen[key]]

    def on_cell(self, broker: str, key: str, cell: Cell) -> None:
        """An acceptor's disk has it, whether the acceptor was told or not."""
        if cell.accepted is None or cell.value is None:
            return
        by = self._accepting.setdefault((key, cell.accepted), set())
        if broker not in by:
            by.add(broker)
            if len(by) == self.majority:
                self._choose(key, cell.accepted, cell.value)

    def _choose(self, key: str, ballot: Ballot, value: bytes) -> None:
        chosen = self._chosen.setdefault(key, [])
        if any(known[0] == ballot for known in chosen[-8:]):
            return
        insort(chosen, (ballot, value))
        index = self.partition_keys.get(key)
        if index is None:
            if key.startswith("voters/") and len({value for _, value in chosen}) > 1:
                raise Violation(f"P-40: two contents were decided for {key}")
            return
        at = next(i for i in range(len(chosen) - 1, -1, -1) if chosen[i][0] == ballot)
        if at > 0:
            self._follow(index, chosen[at - 1][1], value)
        if at + 1 < len(chosen):
            self._follow(index, value, chosen[at + 1][1])

    def _follow(self, index: int, before: bytes, after: bytes) -> None:
        if before == after:
            return
        old, new = self.world.decode(PartitionRegister, before), self.world.decode(PartitionRegister, after)
        fault = step_fault(old, new)
        if fault is not None:
            raise Violation(f"I-8, P-9: the register of partition {index} went wrong: {fault}")
        if new.last.epoch > old.last.epoch:
            self.world.counters["epochs"] += 1
        if self.world.is_traced and self._traced.get(index, old) == old:
            # Choices may come to light out of their order: what was passed over then is part of the change that was noted.
            self._traced[index] = new
            self.world.note(events.RegisterChanged(index, old, new))
        self.world.checks.on_register(index, old, new)

    def on_returned(self, key: str, result: Chosen, floor: Ballot | None) -> None:
        """A change or quorum read returned this; `floor` is `newest` of when it began."""
        ballot, value = result.ballot, result.value
        if ballot is None:
            if floor is not None:
                raise Violation(f"registers: {key} was read as never written, and {floor} had been chosen before the read began")
            return
        if floor is not None and ballot < floor:
            raise Violation(f"registers: {key} was read at ballot {ballot}, and {floor} had been chosen before the read began")
        for known, content in reversed(self._chosen.get(key, ())):
            if known == ballot:
                if content != value:
                    raise Violation(f"registers: two values of {key} at ballot {ballot}")
                return
            if known < ballot:
                break
        raise Violation(f"registers: {key} was read at ballot {ballot}, which no majority has accepted")


def step_fault(before: PartitionRegister, after: PartitionRegister) -> str | None:
    """Why `after` cannot be the version after `before`."""
    if after.id != before.id or after.fault() is not None:
        return after.fault() or "its id changed"
    if after.start_offset < before.start_offset:
        return f"the start offset fell from {before.start_offset} to {after.start_offset}"
    if after.last.epoch - before.last.epoch not in (0, 1):
        return f"epoch {after.last.epoch} follows epoch {before.last.epoch}"
    for old in before.chain:
        new = after.segment(old.epoch)
        if new is None:
            if old.end is None or old.end > after.start_offset:
                return f"epoch {old.epoch} has gone, which ended at {old.end}; the start offset is {after.start_offset}"
        elif fault := _segment_fault(old, new):
            return f"epoch {old.epoch}: {fault}"
    return None


def _segment_fault(old: Segment, new: Segment) -> str | None:
    if (new.base, new.attempt, new.sequencer) != (old.base, old.attempt, old.sequencer):
        return f"it was {old}, and is {new}"
    if (new.write, new.read, new.durability) != (old.write, old.read, old.durability):
        return "its quorums changed (P-36)"
    if old.end is not None and new.end != old.end:
        return f"it ended at {old.end}, and ends at {new.end}"
    if new.is_open and new.replicas != old.replicas:
        return "its replicas changed while it is open"
    return None
