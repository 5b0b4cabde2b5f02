"""Writes the trace: what the cores' effects and writes mean in the words of `events`. Only runs that are traced pay for it."""

from typing import TYPE_CHECKING

from streamq.log.effects import Persist
from streamq.log.replica_state import ReplicaState
from streamq.model.ids import Member
from streamq.model.messages import Message, Repaired, Sealed, Stored
from tests.sim.tier1 import events

if TYPE_CHECKING:
    from tests.sim.tier1.partition import Partition
    from tests.sim.tier1.process import Process
    from tests.sim.tier1.world import World

__all__ = ["Tracer"]


class Tracer:
    def __init__(self, world: "World") -> None:
        self.world = world
        self._taken: dict[tuple[Member, int], ReplicaState] = {}
        self._durable: dict[tuple[Member, int], ReplicaState] = {}

    def on_started(self, partition: "Partition") -> None:
        process, state = partition.process, partition.replica.state
        place = (partition.me, partition.index)
        self._taken[place] = self._durable[place] = state
        runs = tuple((epoch, base, tail) for epoch, (base, tail) in sorted(partition.disk.run_ends(partition.id).items()))
        self.world.note(events.Started(partition.me, process.disk.starts, partition.index, state, runs))

    def on_started_without(self, process: "Process", index: int) -> None:
        """Nothing of that partition lies there."""
        state = ReplicaState(self.world.partition_ids[index])
        self._taken[process.me, index] = self._durable[process.me, index] = state
        self.world.note(events.Started(process.me, process.disk.starts, index, state, ()))

    def on_crashed(self, process: "Process") -> None:
        self.world.note(events.Crashed(process.me))

    def on_state(self, partition: "Partition", state: ReplicaState) -> None:
        """A new state was taken."""
        place = (partition.me, partition.index)
        before = self._taken.get(place, ReplicaState(partition.id))
        self._taken[place] = state
        if state.sealed > before.sealed:
            self.world.note(events.SealTaken(*place, state.sealed))
        if before.limbo_everywhere and not state.limbo_everywhere:
            # The register was read: from here on limbo belongs to these epochs. What is taken later lies behind it in the journal.
            self.world.note(events.LimboEntered(*place, state.limbo))
        if state.opened > before.opened:
            self.world.note(events.OpenTaken(*place, state.opened))

    def on_durable(self, partition: "Partition", persist: Persist) -> None:
        """The replica has been told that the write is durable."""
        place = (partition.me, partition.index)
        state = persist.state
        if persist.batches:
            tail = partition.replica._tails._durable.get(persist.epoch)
            if tail is not None:
                self.world.note(events.Durable(*place, persist.epoch, tail))
        if state is None:
            return
        before = self._durable.get(place, ReplicaState(partition.id))
        self._durable[place] = state
        if state.limbo_everywhere and not before.limbo_everywhere:
            self.world.note(events.LimboEntered(*place, None))
        entered = tuple(e for e in state.limbo if e not in before.limbo)
        if entered:
            self.world.note(events.LimboEntered(*place, entered))
        for epoch in before.limbo:
            if epoch not in state.limbo:
                self.world.note(events.LimboEnded(*place, epoch))
        if state.opened > before.opened:
            self.world.note(events.Opened(*place, state.opened))

    def on_reply(self, partition: "Partition", message: Message) -> None:
        """An answer leaves."""
        place = (partition.me, partition.index)
        if isinstance(message, Stored):
            for run in message.runs:
                if run.state == "stored":
                    self.world.note(events.Reported(*place, run.epoch, run.local_tail))
        elif isinstance(message, Sealed):
            self.world.note(events.Sealed(*place, message.epoch, message.local_tail, message.high_watermark, message.limbo))
        elif isinstance(message, Repaired):
            self.world.note(events.Repaired(*place, message.epoch, message.local_tail, message.end))
