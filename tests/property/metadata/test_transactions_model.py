"""Outcomes of transactions under every order of opening, ending, settling, moving and reading, against a list of what was decided.

Each act is one atomic change or read of one register, as brokers make them: who moves aborted numbers, and who reads, does it in several,
and anything may come in between. The model knows nothing of blocks: it has the outcome of each number, which is for ever.
"""

from collections.abc import Callable
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamq.metadata import transactions
from streamq.metadata.changes import open_producer
from streamq.metadata.transactions import TooManyAbortedError, end, ended, forget, move_in, needs_block, outcomes, settle
from streamq.model.errors import FencedError, RefusedError
from streamq.model.registers import ProducerRegister
from streamq.model.transactions import ABORTED_BLOCK, AbortedRegister

NAME = "p"
ID = b"p" * 16
KEPT_MAX = 4
FAR = ABORTED_BLOCK - 3
"""Where numbers begin, so that they go over into another block."""


class Instance(NamedTuple):
    epoch: int
    begun: int
    """The number that it writes under; it goes on with the next only when told how that one ended."""


class Reading(NamedTuple):
    number: int
    register: ProducerRegister
    told_before: dict[int, bool]


class Producers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.register = ProducerRegister(ID, 1, b"0", 1, decided=FAR)
        self.blocks: dict[int, AbortedRegister] = {}
        self.outcomes: dict[int, bool] = {}
        self.writers: dict[int, set[int]] = {}
        """By number, the epochs of the instances that may have written under it."""
        self.instances = [Instance(1, FAR + 1)]
        self.attempts = 0
        self.moving: tuple[int, ...] = ()
        self.moved_in: set[int] = set()
        self.readings: list[Reading] = []
        self.write(self.instances[0])

    def write(self, instance: Instance) -> None:
        self.writers.setdefault(instance.begun, set()).add(instance.epoch)

    def change(self, function: Callable[[ProducerRegister | None], ProducerRegister]) -> bool:
        """Applied, and applied again to its own result (P-5)."""
        kept, transactions.ABORTED_KEPT_MAX = transactions.ABORTED_KEPT_MAX, KEPT_MAX  # type: ignore[misc]
        try:
            before, after = self.register, function(self.register)
            assert function(after) == after
        except TooManyAbortedError:
            return False
        finally:
            transactions.ABORTED_KEPT_MAX = kept  # type: ignore[misc]
        assert after.decided - before.decided in (0, 1)
        if after.decided > before.decided:
            self.outcomes[after.decided] = after.decided not in after.aborted
        self.register = after
        return True

    @rule()
    def open(self) -> None:
        self.attempts += 1
        if self.change(open_producer(NAME, fresh=ID, attempt=str(self.attempts).encode(), timeout_ms=1)):
            self.instances.append(Instance(self.register.epoch, self.register.decided + 1))
            self.write(self.instances[-1])

    @rule(data=st.data(), commits=st.booleans())
    def end_one(self, data: st.DataObject, commits: bool) -> None:
        """The newest instance, or a zombie, which goes on as long as it is told how its transactions ended."""
        at = data.draw(st.integers(0, len(self.instances) - 1))
        instance = self.instances[at]
        try:
            if not self.change(end(NAME, instance.begun, epoch=instance.epoch, commits=commits)):
                return
            known = outcomes(self.register, instance.begun, self.block_of(self.register, instance.begun))
            is_committed = ended(NAME, self.register, known, instance.begun, epoch=instance.epoch)
        except FencedError:
            assert instance.epoch < self.register.epoch, "the newest goes on"
            return
        assert is_committed == self.outcomes[instance.begun]
        self.instances[at] = Instance(instance.epoch, instance.begun + 1)
        self.write(self.instances[at])

    @rule(ahead=st.integers(-6, 2))
    def settle_one(self, ahead: int) -> None:
        number = max(1, self.register.decided + ahead)
        try:
            self.change(settle(NAME, number))
        except RefusedError:
            assert ahead == 2

    @precondition(lambda self: self.register.aborted)
    @rule()
    def begin_to_move(self) -> None:
        self.moving, self.moved_in = self.register.aborted, set()

    @precondition(lambda self: set(self.moving) - self.moved_in)
    @rule(data=st.data())
    def move_some_in(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted({number // ABORTED_BLOCK for number in set(self.moving) - self.moved_in})))
        numbers = [number for number in self.moving if number // ABORTED_BLOCK == block]
        once = move_in(numbers)(self.blocks.get(block))
        assert move_in(numbers)(once) == once
        self.blocks[block] = once
        self.moved_in |= set(numbers)

    @precondition(lambda self: self.moving and not set(self.moving) - self.moved_in)
    @rule()
    def forget_moved(self) -> None:
        """Also long after, when others have moved the same and more."""
        self.change(forget(NAME, self.moving))

    def block_of(self, register: ProducerRegister, number: int) -> AbortedRegister | None:
        return self.blocks.get(number // ABORTED_BLOCK) if needs_block(register, number) else None

    @rule(ahead=st.integers(-8, 1))
    def begin_to_read(self, ahead: int) -> None:
        """The producer's register; its block is read later."""
        number = max(FAR + 1, self.register.decided + ahead)
        self.readings.append(Reading(number, self.register, dict(self.outcomes)))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def read_block(self, data: st.DataObject) -> None:
        reading = self.readings.pop(data.draw(st.integers(0, len(self.readings) - 1)))
        found = outcomes(reading.register, reading.number, self.block_of(reading.register, reading.number))
        assert found.first <= reading.number
        for number in range(max(found.first, FAR + 1), found.decided + 1):
            assert found.of(number) == self.outcomes[number], number
        if reading.number in reading.told_before:
            assert found.of(reading.number) is not None, "what was decided when the read began is not open"

    @invariant()
    def all_is_told_as_it_was_decided(self) -> None:
        for number, is_committed in self.outcomes.items():
            known = outcomes(self.register, number, self.block_of(self.register, number))
            assert known.of(number) == is_committed

    @invariant()
    def nobody_but_one_writes_what_is_committed(self) -> None:
        for number, epochs in self.writers.items():
            assert len(epochs) == 1 or self.outcomes.get(number) is False, "a zombie's writes are committed by its successor"


TestProducers = Producers.TestCase
TestProducers.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
