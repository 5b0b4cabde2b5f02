"""One replica against a tiny model of its promises, whatever order its messages come in and wherever it crashes."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamq.log.replica import Readable
from streamq.model.batches import Batch
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import Message, Opened, Repair, Repaired, Seal, Sealed, Stored, StoreRun, Tip, TipAnswer
from streamq.model.registers import PartitionRegister, Segment
from tests.support.log_chaos import header
from tests.support.log_world import PARTITION, Assigned, World

EPOCHS = 4
LENGTH = 6
"""Batches of one record that each epoch's sequencer ever assigned."""
draws = st.sampled_from([0, 0, 1, 1, 2, 3, 4])
shifts = st.sampled_from([0, 0, 0, -1, 1])


class ReplicaPromises(RuleBasedStateMachine):
    """The model: the largest tail acked in each epoch, the first tail answered to a seal, what was opened, and what the world decided."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.broker = self.world.brokers["b2"]
        self.registers = [self.world.register]
        self.acked: dict[int, int] = {}
        self.sealed_at: dict[int, int] = {}
        self.shown = (0, 0)

    @property
    def register(self) -> PartitionRegister:
        return self.registers[-1]

    def segment(self, epoch: int) -> Segment:
        """Of epochs that do not exist yet, what they would be."""
        segment = self.register.segment(epoch)
        return segment if segment is not None else msgspec.structs.replace(self.register.last, epoch=epoch, base=self.register.last.base)

    def batch(self, epoch: int, place: int) -> Batch:
        base = self.segment(epoch).base + place
        return self.world.stamp(header((NO_PRODUCER, 0, epoch * 100 + place)), Assigned(epoch, base, 1))

    def known(self, draw: int) -> int:
        """Most often the newest epoch that the world has, or the newest that this replica has opened."""
        opened = self.broker.replica.state.opened
        return {0: self.register.last.epoch, 1: opened}.get(draw, self.register.chain[draw % len(self.register.chain)].epoch)

    # --- inputs

    def batches(self, epoch: int, shift: int, count: int) -> list[Batch]:
        """Some that continue what is taken here, or (by `shift`) repeat some of it, or leave a gap."""
        run = self.broker.disk.view.get(epoch)
        first = max(0, (run[-1].end - self.segment(epoch).base if run else 0) + shift)
        return [self.batch(epoch, place) for place in range(first, min(LENGTH, first + count))]

    @rule(draw=draws, shift=shifts, count=st.integers(0, 3), mark=st.integers(0, LENGTH))
    def store(self, draw: int, shift: int, count: int, mark: int) -> None:
        epoch = self.known(draw)
        segment = self.segment(epoch)
        batches = self.batches(epoch, shift, count)
        if segment.end is not None:
            mark = min(mark, segment.end - segment.base)
        run = StoreRun(PARTITION, epoch, min(segment.base + mark, self.most(epoch)), len(batches))
        self.broker.carry_out(self.broker.replica.on_store(run, batches, self.stored))

    def most(self, epoch: int) -> int:
        """A high watermark that some sequencer could tell: of an open epoch only what this replica alone keeps from being cut."""
        segment = self.segment(epoch)
        return segment.end if segment.end is not None else max(segment.base, self.acked.get(epoch, segment.base))

    @rule(draw=draws)
    def seal(self, draw: int) -> None:
        segment = self.segment(self.known(draw))
        self.broker.carry_out(self.broker.replica.on_seal(Seal(PARTITION, segment.epoch, segment.base), self.sealed))

    @rule(draw=draws, shift=shifts, count=st.integers(0, 3))
    def repair(self, draw: int, shift: int, count: int) -> None:
        epoch = self.known(draw)
        batches = self.batches(epoch, shift, count)
        segment = msgspec.structs.replace(self.segment(epoch), end=None)
        self.broker.carry_out(self.broker.replica.on_repair(Repair(PARTITION, "t", 0, segment), batches, self.repaired))

    @rule(extra=st.integers(0, LENGTH))
    def world_moves_on(self, extra: int) -> None:
        """A takeover that this replica may know nothing of closes the epoch, at or above what was acked here."""
        last = self.register.last
        if last.epoch < EPOCHS:
            floor = max(self.acked.get(last.epoch, last.base), last.base)
            end = min(max(floor, last.base + extra), last.base + LENGTH)
            opened = msgspec.structs.replace(last, epoch=last.epoch + 1, base=end, sequencer="b3")
            chain = (*self.register.chain[:-1], msgspec.structs.replace(last, end=end), opened)
            self.registers.append(msgspec.structs.replace(self.register, chain=chain))

    @rule(draw=draws)
    def open(self, draw: int) -> None:
        """Perhaps an old register, late."""
        register = self.registers[-1 if draw < 2 else draw % len(self.registers)]
        self.broker.carry_out(self.broker.replica.on_open(register, self.opened))

    @rule(count=st.integers(1, 4))
    def write(self, count: int) -> None:
        if self.broker.disk.pending:
            self.broker.settle(count)

    @rule(keep=st.integers(0, 4))
    def crash(self, keep: int) -> None:
        self.broker.crash(keep)
        self.broker.start()
        self.shown = (0, 0)

    @rule(draw=draws)
    def tip(self, draw: int) -> None:
        segment = self.segment(self.known(draw))
        self.broker.carry_out(self.broker.replica.on_tip(Tip(PARTITION, segment.epoch, segment.base), self.told))

    # --- promises

    def durable(self, epoch: int) -> int:
        run = self.broker.disk.raw.get(epoch)
        return run[-1].end if run else self.segment(epoch).base

    def stored(self, message: Message, _: object = ()) -> None:
        assert isinstance(message, Stored)
        [run] = message.runs
        state = self.broker.disk.state
        if run.state == "stored":
            assert state is not None
            assert run.epoch not in self.sealed_at
            assert state.sealed < run.epoch == state.opened
            assert run.local_tail <= self.durable(run.epoch)
            self.acked[run.epoch] = max(run.local_tail, self.acked.get(run.epoch, 0))
        elif run.state == "gap":
            assert run.epoch > self.broker.replica.state.sealed
        else:
            assert run.epoch <= self.broker.replica.state.sealed or run.epoch > self.broker.replica.state.opened

    def sealed(self, message: Message, _: object = ()) -> None:
        assert isinstance(message, Sealed)
        state = self.broker.disk.state
        assert state is not None
        assert state.sealed >= message.epoch
        assert message.local_tail >= self.acked.get(message.epoch, 0)
        tail = self.durable(message.epoch)
        assert message.local_tail <= tail
        self.sealed_at.setdefault(message.epoch, message.local_tail)

    def repaired(self, message: Message, _: object = ()) -> None:
        assert isinstance(message, Repaired)
        assert message.local_tail <= self.durable(message.epoch)
        end = self.segment(message.epoch).end
        assert message.end in (None, end)
        assert message.end is None or message.local_tail <= message.end

    def opened(self, message: Message, _: object = ()) -> None:
        assert isinstance(message, Opened)
        state = self.broker.disk.state
        assert state is not None
        assert state.opened >= message.epoch
        assert state.sealed >= message.epoch - 1

    def told(self, message: Message, _: object = ()) -> None:
        assert isinstance(message, TipAnswer)
        assert message.local_tail <= self.durable(message.epoch)
        assert message.sealed or message.epoch not in self.sealed_at
        assert message.high_watermark <= max(self.most(message.epoch), self.segment(message.epoch).base)

    @invariant()
    def holds_prefixes_of_what_was_assigned(self) -> None:
        replica = self.broker.replica
        for epoch, run in self.broker.disk.view.items():
            base = self.segment(epoch).base
            assert run == [self.batch(epoch, place) for place in range(len(run))], (epoch, base)
            segment = replica.state.segment(epoch)
            assert segment is None or segment.end is None or run[-1].end <= segment.end

    @invariant()
    def serves_what_is_committed_and_in_order(self) -> None:
        offset = 0
        while isinstance(place := self.broker.replica.readable(offset), Readable):
            segment = self.segment(place.epoch)
            assert segment.base <= offset
            assert place.limit <= self.most(place.epoch)
            offset = place.limit
        assert self.broker.replica.high_watermark >= self.shown
        self.shown = self.broker.replica.high_watermark

    @invariant()
    def keeps_its_own_invariants(self) -> None:
        self.broker.replica.check()


TestReplicaPromises = ReplicaPromises.TestCase
TestReplicaPromises.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
