"""The runner of one replica: carries out the effects of its core, reads for consumers and peers, repairs damaged ranges."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from streamq.broker.node import Node
from streamq.broker.subscription import Subscription
from streamq.broker.tables import fetch_table
from streamq.log.effects import Advanced, Alarm, Cut, Effect, Persist, Reply
from streamq.log.idempotence import IdempotenceTable
from streamq.log.replica import Readable, Replica, Unreadable
from streamq.log.replica_state import DamagedRange, ReplicaState
from streamq.model.batches import Batch
from streamq.model.errors import CorruptDataError, NotFoundError, OffsetError, StreamqError, UnavailableError
from streamq.model.ids import PartitionId, short
from streamq.model.limits import COPY_BYTES_MAX
from streamq.model.messages import Copied, Copy, Message
from streamq.model.registers import PartitionRegister, Segment
from streamq.storage.interface import DamagedRangeError
from streamq.wire.batch_format import BadBatchError, split_batches
from streamq.wire.codec import encode

if TYPE_CHECKING:
    from streamq.broker.sequencing import Sequencing

__all__ = ["Answered", "Partition", "nothing", "replica_key", "table_key", "unknown_partition"]

log = logging.getLogger(__name__)

FOLD_BATCHES: Final = 4_096
"""Headers read at a time when the idempotence table has to catch up."""
REPAIRS_PER_READ_MAX: Final = 64
"""Damaged ranges mended during one read; a disk that is worse than that is for an operator."""


def replica_key(partition: PartitionId) -> str:
    return f"replica/{partition.hex()}"


def table_key(partition: PartitionId) -> str:
    return f"table/{partition.hex()}"


class Partition:
    """Owns the `Replica` of one partition on this broker, and its sequencing while this broker is the sequencer.

    Whoever calls a method of `replica` that returns effects gives them to `carry_out` before anything else happens to this partition.
    """

    def __init__(self, node: Node, state: ReplicaState, table: IdempotenceTable | None = None) -> None:
        self.node = node
        self.id = state.id
        self.replica = Replica(node.me, state, node.storage.runs(state.id), table)
        self.sequencing: Sequencing | None = None
        self.subscriptions: dict[Subscription, None] = {}
        self.takeover_under_way: trio.Event | None = None
        self.stored = trio.lowlevel.ParkingLot()
        """Where those wait who need something here to become durable."""
        self.busy: set[str] = set()
        """Names of the long jobs under way for this partition, so that each runs once."""
        self.changed = trio.Event()
        self.is_dropped = False
        self.trouble = ""
        """What the last takeover here failed of, as told in the log."""
        self.asked_in_vain: dict[str, int] = {}
        """Brokers that could not take over when a takeover here was deferred to them, and from which epoch."""
        self.newest_epoch = (self.replica.state.opened, trio.current_time())
        """And when this broker learned of it."""
        self.tables_of = self.replica.table.position
        """Of the table that the checkpoint under way holds."""
        self._encoded_table = b""
        self._given_back = 0
        self._mending: dict[DamagedRange, trio.Event] = {}
        node.changed[self.id] = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def name(self) -> str:
        state = self.replica.state
        return f"{state.topic}/{state.index}" if state.topic else f"partition {short(self.id)}"

    @property
    def open_segment(self) -> Segment | None:
        """The newest segment that this replica knows of, if it is open as far as told."""
        chain = self.replica.state.chain
        return chain[-1] if chain and chain[-1].is_open else None

    def carry_out(self, effects: Sequence[Effect]) -> None:
        storage = self.node.storage
        if self.is_dropped:
            return  # what comes late must not write anything of it again
        for effect in effects:
            if isinstance(effect, Persist):
                states = () if effect.state is None else ((replica_key(self.id), encode(effect.state)),)
                storage.append(effect.batches, states, partial(self._durable, effect), sync=effect.sync)
                if effect.state is not None:
                    self._state_changed()
            elif isinstance(effect, Reply):
                to = effect.to
                assert callable(to)
                to(effect.message, effect.batches)
            elif isinstance(effect, Advanced):
                if self.replica.lacks_headers:
                    self.node.changed[self.id] = None
                for subscription in self.subscriptions:
                    subscription.wake()
            elif isinstance(effect, Cut):
                storage.cut(effect.partition, effect.epoch, effect.end)
                self.node.metrics.cuts += 1
            elif isinstance(effect, Alarm):
                self.node.alarms.log(f"{self.name}: ALARM: {effect.reason}")
                self.node.metrics.alarms += 1

    def _durable(self, persist: Persist) -> None:
        self.carry_out(self.replica.on_durable(persist))
        if persist.state is not None or persist.epoch != self.replica.accepts_epoch:
            self.node.changed[self.id] = None
        if self.stored:
            self.stored.unpark_all()

    def _state_changed(self) -> None:
        """Wakes who waits for another epoch, and retires a sequencer whose epoch is over (P-14)."""
        self.node.changed[self.id] = None
        self.changed.set()
        self.changed = trio.Event()
        if self.replica.state.opened > self.newest_epoch[0]:
            self.newest_epoch = (self.replica.state.opened, trio.current_time())
        sequencing = self.sequencing
        if sequencing is not None and self.replica.state.opened > sequencing.epoch:
            sequencing.retire("a newer epoch was opened")

    def learn(self, register: PartitionRegister) -> None:
        """A completed change or quorum read returned this register."""
        if register.id == self.id and not register.deleted:
            self.carry_out(self.replica.on_learn(register))
            self.heard(register)

    def heard(self, register: PartitionRegister) -> None:
        """The sequencer here goes by the newest settings and start offset of its epoch, and tells them."""
        if self.sequencing is not None:
            self.sequencing.learn(register)

    # --- reading

    async def read(self, offset: int, *, max_bytes: int) -> list[Batch]:
        """Readable batches from the one that contains `offset` on (P-23); [] if there are none yet.

        Raises OffsetError (trimmed), UnavailableError `not_replica` (this replica lacks what others have), CorruptDataError when a damaged
        range cannot be mended now. Cancellation leaves a repair that was begun to finish another time.
        """
        readable = self.replica.readable(offset)
        if readable is Unreadable.AHEAD:
            return []
        if readable is Unreadable.TRIMMED:
            start = self.replica.state.start_offset
            raise OffsetError(
                f"offset {offset} of {self.name} is trimmed; the log starts at {start}",
                code="offset_trimmed",
                hint=f"start at {start} or later",
            )
        if readable is Unreadable.LACKING:
            raise UnavailableError(f"broker {self.node.broker} does not hold offset {offset} of {self.name} yet", code="not_replica")
        assert isinstance(readable, Readable)
        recent = self.node.storage.recent(self.id, readable.epoch, offset, max_bytes=max_bytes)
        batches = await self.read_epoch(readable.epoch, offset, max_bytes=max_bytes) if recent is None else recent
        served = [batch for batch in batches if batch.end <= readable.limit]
        self.node.metrics.served(served, is_from_disk=recent is None)
        return served

    async def read_epoch(self, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        """Batches of one epoch as they lie here, checked; damaged ranges are copied again from other replicas first (P-30)."""
        storage = self.node.storage
        recent = storage.recent(self.id, epoch, offset, max_bytes=max_bytes)
        if recent is not None:
            return recent
        for _ in range(REPAIRS_PER_READ_MAX):
            try:
                return await storage.read(self.id, epoch, offset, max_bytes=max_bytes)
            except DamagedRangeError as damage:
                if damage.base > offset:
                    limit = damage.base
                    whole = await self._read_below(epoch, offset, limit, max_bytes)
                    if whole:
                        return whole
                await self._mend(damage)
        raise CorruptDataError(f"{self.name} has too many damaged ranges from offset {offset} on", code="data_damaged")

    async def _read_below(self, epoch: int, offset: int, limit: int, max_bytes: int) -> list[Batch]:
        """What is good before a damaged range, in smaller bites."""
        try:
            batches = await self.node.storage.read(self.id, epoch, offset, max_bytes=min(max_bytes, 1))
        except DamagedRangeError:
            return []
        return [batch for batch in batches if batch.end <= limit]

    async def copy(self, copy: Copy) -> tuple[Copied, list[Batch]]:
        """The answer to a peer that copies: durable batches only, whatever their epoch's state."""
        tail = self.replica.local_tail(copy.epoch)
        if tail is None or copy.offset >= min(tail, copy.end):
            return Copied(copy.epoch, copy.offset if tail is None else min(tail, copy.offset)), []
        # In limbo too: a copy counts in no quorum, and each batch says and proves which place it has (P-12, P-28). A damaged range is not
        # mended for a peer, which may be here to mend its own: it has others to ask.
        storage = self.node.storage
        batches = storage.recent(self.id, copy.epoch, copy.offset, max_bytes=COPY_BYTES_MAX)
        if batches is None:
            try:
                batches = await storage.read(self.id, copy.epoch, copy.offset, max_bytes=COPY_BYTES_MAX)
            except DamagedRangeError as damage:
                batches = await self._read_below(copy.epoch, copy.offset, damage.base, 1)
                if not batches:
                    raise
        return Copied(copy.epoch, tail), [batch for batch in batches if batch.base < copy.end and batch.end <= tail]

    async def fetch(self, source: str, epoch: int, offset: int, end: int) -> list[Batch]:
        """Batches `[offset, …)` of an epoch from another replica, checked again here. [] if it has none; raises StreamqError.

        The last may end past `end`: batches are never cut, and the end of a damaged range is only where the next good one was found.
        """
        node = self.node
        frame = await node.peers.request_frame(source, Copy(self.id, epoch, offset, end), 2 * node.config.request_timeout_s)
        try:
            batches = list(split_batches(frame.payload))
        except BadBatchError as error:
            raise CorruptDataError(f"broker {source} sent a bad batch: {error}", code="data_damaged") from None
        expected = offset
        for batch in batches:
            header = batch.header
            if (
                header.partition != self.id
                or header.epoch != epoch
                or (header.base != expected and batch is not batches[0])
                or batch.base >= end
            ):
                raise CorruptDataError(f"broker {source} sent a batch of another place", code="data_damaged")
            expected = batch.end
        return batches

    def holders(self, epoch: int) -> list[str]:
        """Other brokers that may hold data of this epoch, those that are alive first."""
        segment = self.replica.state.segment(epoch)
        others = [m.broker for m in segment.replicas if m.broker != self.node.broker] if segment else []
        return sorted(others, key=lambda broker: not self.node.peers.is_alive(broker))

    def others(self) -> list[str]:
        """Other brokers that hold, or held, something of this partition: those that are alive first, of the newest segments first."""
        names = dict.fromkeys(m.broker for segment in reversed(self.replica.state.chain) for m in segment.replicas)
        others = [broker for broker in names if broker != self.node.broker]
        return sorted(others, key=lambda broker: not self.node.peers.is_alive(broker))

    async def find_time(self, epoch: int, timestamp_ms: int) -> int | None:
        """As `Storage.find_time`; damaged ranges are copied again from other replicas first (P-30)."""
        for _ in range(REPAIRS_PER_READ_MAX):
            try:
                return await self.node.storage.find_time(self.id, epoch, timestamp_ms)
            except DamagedRangeError as damage:
                await self._mend(damage)
        raise CorruptDataError(f"{self.name} has too many damaged ranges before time {timestamp_ms}", code="data_damaged")

    async def _mend(self, damage: DamagedRangeError) -> None:
        """Of a damaged range that a read has met; raises the damage when no other replica can give it."""
        start = self.replica.start_offset
        if damage.end <= start:  # P-41: nobody misses it but the table, and others have theirs; storage steps over it from now on
            if self.replica.table.position < start:
                await fetch_table(self)
                self.node.changed[self.id] = None
            self.give_back()
            return
        damaged = DamagedRange(damage.epoch, max(damage.base, start), damage.end)
        if damaged not in self.replica.state.damaged:
            log.warning("%s: %s", self.name, damage)
            self.node.metrics.damaged_ranges += 1
            self.carry_out(self.replica.on_damaged(*damaged))
        await self._mend_range(damaged, damage)

    async def mend_all(self) -> None:
        """What is known to be damaged here, though nobody reads it: until it is mended this replica counts in none of the epoch's quorums
        (P-30). Raises CorruptDataError when no other replica can give it now."""
        for damaged in self.replica.state.damaged:
            text = f"offsets {damaged.base} to {damaged.end - 1} of {self.name} are damaged here, and no other replica can give them now"
            await self._mend_range(damaged, CorruptDataError(text, code="data_damaged"))

    async def _mend_range(self, damaged: DamagedRange, failure: CorruptDataError) -> None:
        """Copies it again, byte for byte; once at a time."""
        if damaged in self._mending:
            await self._mending[damaged].wait()
            return
        done = self._mending[damaged] = trio.Event()
        try:
            await self._restore(damaged, failure)
            self.carry_out(self.replica.on_restored(*damaged))
            self.node.metrics.mended_ranges += 1
            log.warning("%s: offsets %d to %d were copied again", self.name, damaged.base, damaged.end - 1)
        finally:
            del self._mending[damaged]
            done.set()

    async def _restore(self, damage: DamagedRange, failure: CorruptDataError) -> None:
        storage, offset = self.node.storage, damage.base
        file = next((file for file in storage.files(self.id) if file.epoch == damage.epoch and file.base <= offset < file.end), None)
        if file is not None and file.base < offset <= self.replica.start_offset:
            # P-41: what lies before it in its file may be gone as well, and nobody has that: the range has to be there as a whole.
            async with self.node.restoring:
                whole: list[Batch] = []
                while offset < min(file.end, damage.end):
                    whole += await self._copies(damage, offset, failure)
                    offset = whole[-1].end
                    if sum(batch.size for batch in whole) > file.size:
                        raise failure  # whatever these are, they were never in this file
                await storage.restore(self.id, damage.epoch, whole)
        while offset < damage.end:
            batches = await self._copies(damage, offset, failure)
            await storage.restore(self.id, damage.epoch, batches)
            offset = batches[-1].end

    async def _copies(self, damage: DamagedRange, offset: int, failure: CorruptDataError) -> list[Batch]:
        """Some batches of the range, from another replica, from the one that contains `offset` on."""
        for source in self.holders(damage.epoch):
            try:
                batches = await self.fetch(source, damage.epoch, offset, damage.end)
            except StreamqError as error:
                log.info("%s: %s cannot give offset %d: %s", self.name, source, offset, error)
                continue
            if batches and batches[0].base <= offset < batches[0].end:
                return batches  # a range that begins at the start offset may begin inside a batch (P-41)
        raise failure

    # --- idempotence

    async def fold(self) -> None:
        """Brings the idempotence table up to what is committed here (P-34); returns when it can go no further.

        Where headers below the start offset are gone it goes on from another replica's table. Raises UnavailableError when none gives it.
        """
        while True:
            needed = self.replica.fold_needed()
            if needed is None:
                if not self.replica.table_needed():
                    return
                await fetch_table(self)
                self.node.changed[self.id] = None
                continue
            epoch, offset = needed
            try:
                headers = await self.node.storage.headers(self.id, epoch, offset, max_batches=FOLD_BATCHES)
            except DamagedRangeError as damage:
                await self._mend(damage)
                continue
            if not headers:
                return
            self.replica.on_headers(epoch, headers)
            self.node.changed[self.id] = None

    # --- trimming

    def give_back(self) -> None:
        """Has storage forget what may be forgotten by now (P-41)."""
        trimmable = self.replica.trimmable
        if trimmable > self._given_back and not self.is_dropped:
            self._given_back = trimmable
            self.node.storage.trim(self.id, trimmable)

    def encoded_table(self) -> bytes:
        """The idempotence table for the checkpoint that begins now. Of an idle partition it is the one that was encoded before."""
        table = self.replica.table
        if self.tables_of != table.position or not self._encoded_table:
            self.tables_of, self._encoded_table = table.position, encode(table.snapshot())
        return self._encoded_table

    def on_checkpoint(self) -> None:
        """The one that was collected last is durable. What may be forgotten since the one before goes with the next."""
        replica = self.replica
        if self.tables_of > replica.table_kept:
            if replica.table_kept < replica.start_offset:
                self.node.changed[self.id] = None  # P-41: it may count as a holder now
            self.carry_out(replica.on_table_kept(self.tables_of))
        self.give_back()

    def drop(self) -> None:
        """The topic is deleted: everything of this partition goes."""
        for subscription in list(self.subscriptions):
            subscription.scope.cancel()
        if self.sequencing is not None:
            self.sequencing.retire("the topic was deleted")
        self.is_dropped = True
        self.node.storage.append((), ((replica_key(self.id), None),), nothing)
        self.node.storage.drop(self.id)
        self.node.partitions.pop(self.id, None)
        self.node.dropped.add(self.id)
        self.stored.unpark_all()


def nothing() -> None:
    """The token of a write that nobody waits for."""


class Answered:
    """A reply handle for a request that this broker makes to itself: `await` its message."""

    __slots__ = ("_event", "_message")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._message: Message | None = None

    def __call__(self, message: Message, batches: Sequence[Batch] = ()) -> None:
        self._message = message
        self._event.set()

    async def message(self) -> Message:
        await self._event.wait()
        assert self._message is not None
        return self._message


def unknown_partition(partition: PartitionId) -> NotFoundError:
    return NotFoundError(
        f"no partition {short(partition)} here",
        code="unknown_partition",
        hint="its topic was deleted, or this broker holds no replica of it",
    )
