"""One partition on one simulated broker: carries out what its `Replica` asks for, as `broker.partition` does, and writes the trace."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from streamq.log.effects import Advanced, Alarm, Cut, Effect, Persist, Reply
from streamq.log.idempotence import IdempotenceTable
from streamq.log.replica import Readable, Replica, Unreadable
from streamq.log.replica_state import ReplicaState
from streamq.log.sequencer import Sequencer
from streamq.log.table_copy import TableCopy
from streamq.model.batches import Batch
from streamq.model.errors import CorruptDataError, StreamqError, UnavailableError
from streamq.model.ids import PartitionId
from streamq.model.messages import Copied, Copy, Message, Table
from streamq.model.registers import PartitionRegister, Segment, partition_key
from tests.sim.tier1 import events
from tests.sim.tier1.checks import Violation, batch_id
from tests.sim.tier1.disk import Damage
from tests.sim.tier1.endpoint import Wait

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process
    from tests.sim.tier1.sequencing import Sequencing
    from tests.sim.tier1.takeovers import TakeoverRun

__all__ = ["BATCHES_PER_READ", "TOPIC", "Partition", "replica_key"]

BATCHES_PER_READ = 8
"""What one message carries when data is copied, fed or served: little, so that much happens in between."""
EVERYTHING = 1 << 62
TOPIC = "t"


def replica_key(partition: PartitionId) -> tuple[str, PartitionId]:
    return ("replica", partition)


class Partition:
    """Whoever calls a method of `replica` that returns effects gives them to `carry_out` before anything else happens here."""

    def __init__(self, process: "Process", state: ReplicaState, table: IdempotenceTable | None = None) -> None:
        self.process = process
        self.world = process.world
        self.id = state.id
        self.index = self.world.partition_ids.index(state.id)
        self.key = partition_key(TOPIC, self.index)
        self.disk = process.disk
        self.me = process.me
        self._key = replica_key(state.id)
        self.replica = Replica(process.me, state, self.disk.run_ends(state.id), table)
        self.sequencing: Sequencing | None = None
        self.takeover: TakeoverRun | None = None
        self.asked_in_vain: dict[str, int] = {}
        self.busy: set[str] = set()
        """Names of the long jobs under way, so that each runs once."""
        self.readers: list[Callable[[], None]] = []
        """Called when more may be readable."""
        self._stored: list[Callable[[], None]] = []
        self._is_mending = False
        self._given_back = 0

    @property
    def open_segment(self) -> Segment | None:
        """The newest segment that this replica knows of, if it is open as far as told."""
        chain = self.replica.state.chain
        return chain[-1] if chain and chain[-1].is_open else None

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if type(effect) is Persist:
                self._persist(effect)
            elif type(effect) is Reply:
                if self.world.is_traced:
                    self.world.tracer.on_reply(self, effect.message)
                effect.to(effect.message, effect.batches)  # type: ignore[operator]
            elif type(effect) is Advanced:
                self.world.checks.on_watermark(self, effect.epoch, effect.high_watermark)
                for wake in self.readers:
                    wake()
            elif type(effect) is Cut:
                self.world.counters["truncations"] += 1
                if self.world.is_traced:
                    self.world.note(events.Cut(self.me, self.index, effect.epoch, effect.end))
                self.disk.cut(effect.partition, effect.epoch, effect.end)
            elif type(effect) is Alarm:
                raise Violation(f"alarm at {self.process.name}: {effect.reason}")

    def _persist(self, persist: Persist) -> None:
        if persist.batches and self.world.is_traced:
            ids = tuple(batch_id(batch.header) for batch in persist.batches)
            self.world.note(events.Taken(self.me, self.index, persist.epoch, persist.batches[0].base, persist.end, ids))
        key = None
        if persist.state is not None:
            key = self._key
            self._state_changed(persist.state)
        self.disk.append(self.id, persist.epoch, persist.batches, key, persist.state, partial(self._durable, persist), sync=persist.sync)

    def _state_changed(self, state: ReplicaState) -> None:
        """Retires a sequencer whose epoch is over (P-14)."""
        if self.world.is_traced:
            self.world.tracer.on_state(self, state)
        sequencing = self.sequencing
        if sequencing is not None and state.opened > sequencing.epoch:
            sequencing.retire("a newer epoch was opened")

    def _durable(self, persist: Persist) -> None:
        effects = self.replica.on_durable(persist)
        if self.world.is_traced:
            self.world.tracer.on_durable(self, persist)
        self.world.checks.on_durable(self, persist)
        self.carry_out(effects)
        if self._stored:
            stored, self._stored = self._stored, []
            for resume in stored:
                resume()

    def stored(self) -> Wait:
        """Until something here has become durable."""
        return lambda resume: self._stored.append(partial(resume, None))

    def learn(self, register: PartitionRegister) -> None:
        """A completed change or quorum read returned this register."""
        if register.id == self.id and not register.deleted:
            self.carry_out(self.replica.on_learn(register))
            self.heard(register)

    def heard(self, register: PartitionRegister) -> None:
        if self.sequencing is not None:
            self.sequencing.learn(register)

    def give_back(self) -> None:
        """Has storage forget what may be forgotten by now (P-41)."""
        trimmable = self.replica.trimmable
        if trimmable > self._given_back:
            self._given_back = trimmable
            self.disk.trim(self.id, trimmable)

    # --- reading

    def read(self, offset: int) -> list[Batch] | Unreadable | Damage:
        """Readable batches from the one that contains `offset` on (P-23)."""
        readable = self.replica.readable(offset)
        if not isinstance(readable, Readable):
            return readable
        batches = self.read_epoch(readable.epoch, offset)
        if isinstance(batches, Damage):
            return batches
        return [batch for batch in batches if batch.end <= readable.limit]

    def read_epoch(self, epoch: int, offset: int, end: int = EVERYTHING) -> list[Batch] | Damage:
        return self.disk.read(self.id, epoch, offset, end=end, count=BATCHES_PER_READ)

    def read_whole(self, epoch: int, offset: int, end: int = EVERYTHING) -> Generator[Wait, Any, list[Batch]]:
        """As `read_epoch`; damage on the way is mended first. Raises CorruptDataError."""
        for _ in range(8):
            batches = self.read_epoch(epoch, offset, end)
            if not isinstance(batches, Damage):
                return batches
            yield from self.mend(batches)
        raise CorruptDataError("too much damage", code="data_damaged")

    def copy(self, copy: Copy) -> tuple[Message, Sequence[Batch]]:
        """The answer to a peer that copies: durable batches only, whatever their epoch's state."""
        tail = self.replica.local_tail(copy.epoch)
        if tail is None or copy.offset >= min(tail, copy.end):
            return Copied(copy.epoch, copy.offset if tail is None else min(tail, copy.offset)), ()
        batches = self.read_epoch(copy.epoch, copy.offset, copy.end)
        if isinstance(batches, Damage):
            raise CorruptDataError("damaged", code="data_damaged")
        return Copied(copy.epoch, tail), [batch for batch in batches if batch.end <= tail]

    def fetch(self, source: str, epoch: int, offset: int, end: int) -> Generator[Wait, Any, list[Batch]]:
        """Batches of an epoch from another replica; raises StreamqError."""
        answer, batches = yield self.process.peers.ask(source, Copy(self.id, epoch, offset, end), 2.0)
        if not isinstance(answer, Copied):
            raise UnavailableError(f"{source} gave nothing", code="unavailable")
        return list(batches)

    def holders(self, epoch: int) -> list[str]:
        """Other brokers that may hold data of this epoch, those that are alive first."""
        segment = self.replica.state.segment(epoch)
        others = [m.broker for m in segment.replicas if m.broker != self.process.name] if segment else []
        return sorted(others, key=lambda broker: not self.process.peers.is_alive(broker))

    def mend(self, damage: Damage) -> Generator[Wait, Any, None]:
        """Copies a damaged range again, byte for byte (P-30). Raises CorruptDataError when nobody can give it."""
        if self._is_mending:
            raise CorruptDataError("it is being mended", code="data_damaged")
        self._is_mending = True
        try:
            self.world.counters["damage_found"] += 1
            self.carry_out(self.replica.on_damaged(damage.epoch, damage.base, damage.end))
            offset = damage.base
            while offset < damage.end:
                batches = yield from self._fetch_again(damage, offset)
                yield self.process.sleep(0.002)
                self.disk.restore(self.id, damage.epoch, batches)
                offset = batches[-1].end
            self.carry_out(self.replica.on_restored(damage.epoch, damage.base, damage.end))
            self.world.counters["damage_mended"] += 1
        finally:
            self._is_mending = False

    def _fetch_again(self, damage: Damage, offset: int) -> Generator[Wait, Any, list[Batch]]:
        for source in self.holders(damage.epoch):
            try:
                batches = yield from self.fetch(source, damage.epoch, offset, damage.end)
            except StreamqError:
                continue
            if batches and batches[0].base <= offset < batches[0].end:
                return batches
        raise CorruptDataError("nobody can give a damaged range again", code="data_damaged")

    # --- idempotence

    def fold(self) -> Generator[Wait, Any, None]:
        """Brings the idempotence table up to what is committed here (P-34). Raises CorruptDataError, UnavailableError."""
        while True:
            needed = self.replica.fold_needed()
            if needed is None:
                if not self.replica.table_needed():
                    return
                yield from self._fetch_table()
                continue
            epoch, offset = needed
            batches = yield from self.read_whole(epoch, offset)
            if not batches:
                return
            self.replica.on_headers(epoch, [batch.header for batch in batches])

    def _fetch_table(self) -> Generator[Wait, Any, None]:
        """P-41: where headers below the start offset are gone, another replica's table goes on. Raises UnavailableError."""
        for source in self.others():
            copy = TableCopy(self.id)
            while not copy.is_whole:
                page, _ = yield self.process.peers.ask(source, copy.next_page, 1.0)
                if not isinstance(page, Table):
                    break
                copy.add(page)
            if copy.is_whole and self.replica.on_table(copy.table()):
                self.world.counters["tables_fetched"] += 1
                return
        raise UnavailableError("no replica gives a table", code="unavailable")

    def others(self) -> list[str]:
        names = dict.fromkeys(m.broker for segment in reversed(self.replica.state.chain) for m in segment.replicas)
        others = [broker for broker in names if broker != self.process.name]
        return sorted(others, key=lambda broker: not self.process.peers.is_alive(broker))

    def new_sequencer(self, register: PartitionRegister) -> Sequencer:
        return Sequencer(partition=self.id, segment=register.last, table=self.replica.table, dedup_ms=register.dedup_ms)
