"""What a consumer group promises, judged while it happens: by what members are handed and handle, and by the register that is voted for.

- No record is passed over: what is handed out next was preceded by everything below it, handled by whomever, or in the same hands.
- Within one hold (a member, and the generation in which it got the partition) records come consecutively, none twice.
- A partition has one owner at a time: once somebody was handed records of a later hold, nobody is of an earlier one.
- What a living member has in its hands nobody else is handed: a partition is let go of, not taken.
- A committed position never passes what was handled, and never moves back; who holds a partition changes only with the generation.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from streamq.model.groups import GroupRegister
from streamq.model.ids import Ballot

__all__ = ["GroupObserver"]


class GroupObserver:
    def __init__(self, fail: Callable[[str], None]) -> None:
        self._fail = fail
        self.handled_to: dict[int, int] = {}
        """Per partition, everything below it was handled by somebody."""
        self._beyond: dict[int, set[int]] = {}
        self._newest_hold: dict[int, int] = {}
        self._next_in_hold: dict[tuple[str, int, int], int] = {}
        self._voted: dict[Ballot, GroupRegister] = {}
        self._in_hand: dict[int, dict[bytes, str]] = {}

    def on_handed(self, member: str, token: bytes, partition: int, since: int, offsets: Sequence[int]) -> None:
        in_hand = self._in_hand.setdefault(partition, {})
        newest_register = self._voted[max(self._voted)]
        for other, name in in_hand.items():
            if other != token and newest_register.member(other) is not None:
                self._fail(f"{member} was handed {offsets[0]} of {partition}, of which {name}, a member, still had records in hand")
        in_hand[token] = member
        newest = self._newest_hold.get(partition, 0)
        if since < newest:
            self._fail(f"two owners: {member} was handed {offsets[0]} of {partition} in generation {since}, after another in {newest}")
        self._newest_hold[partition] = max(newest, since)
        expected = self._next_in_hold.get((member, partition, since))
        if expected is not None and offsets[0] != expected:
            self._fail(f"{member} was handed {offsets[0]} of {partition} in generation {since}, where {expected} comes next")
        if expected is None and offsets[0] > self.handled_to.get(partition, 0):
            handled = self.handled_to.get(partition, 0)
            self._fail(f"passed over: {member} begins {partition} at {offsets[0]}, and only what is below {handled} was handled")
        if list(offsets) != list(range(offsets[0], offsets[0] + len(offsets))):
            self._fail(f"{member} was handed {offsets} of {partition}")
        self._next_in_hold[member, partition, since] = offsets[-1] + 1

    def on_handled(self, token: bytes, partition: int, offsets: Sequence[int]) -> None:
        self._in_hand[partition].pop(token, None)
        beyond = self._beyond.setdefault(partition, set())
        beyond.update(offsets)
        at = self.handled_to.get(partition, 0)
        while at in beyond:
            beyond.discard(at)
            at += 1
        self.handled_to[partition] = at

    def on_voted(self, ballot: Ballot, register: GroupRegister) -> None:
        """An acceptor has taken this value: whoever proposed it must have known all that it says."""
        if ballot not in self._voted:
            self._voted[ballot] = register
            for topic in register.topics:
                for index, partition in enumerate(topic.partitions):
                    if (partition.position or 0) > self.handled_to.get(index, 0):
                        self._fail(f"position {partition.position} of {index} was committed, and {self.handled_to.get(index, 0)} handled")

    def judge(self, chosen: Sequence[GroupRegister]) -> None:
        """The versions of the register that were chosen, oldest first."""
        for before, after in pairwise(chosen):
            if fault := after.fault():
                self._fail(f"the group's register is broken: {fault}")
            if after.generation < before.generation:
                self._fail(f"generation {before.generation} was followed by {after.generation}")
            for topic in before.topics:
                for index, old in enumerate(topic.partitions):
                    new = after.partition(topic.name, index)
                    if new is None or (old.position is not None and (new.position is None or new.position < old.position)):
                        self._fail(f"the position of {index} moved from {old.position} to {new and new.position}")
                    elif (new.holder, new.since) != (old.holder, old.since) and new.holder and new.since <= old.since:
                        self._fail(f"{index} went from {old} to {new} without a new generation")
