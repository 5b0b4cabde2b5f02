"""What a replica holds: its runs and their tails, its durable state, what of it may be read, what is missing, and what is folded.

Each epoch has an end of what was *taken* (durable or on its way to the disk) and an end of what is *durable*, the local tail. The journal
keeps the order of what is given to it, so a mark or a chain that is written after some batches is durable no earlier than they are (4.4),
and the first store of an epoch is never durable before the cuts of the epochs below it (step 6).
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from streamq.log.effects import Advanced, Alarm, Effect, Persist
from streamq.log.fold import Fold
from streamq.log.idempotence import IdempotenceTable
from streamq.log.replica_state import (
    DamagedRange,
    ReplicaState,
    contradiction,
    learned,
    limbo_epochs,
    locate,
    with_damage,
    without_damage,
)
from streamq.log.tails import Tails, end_of
from streamq.log.views import Readable, Unreadable, Wanted
from streamq.model.batches import Batch, BatchHeader
from streamq.model.errors import ProtocolError
from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister, Segment

__all__ = ["Holding", "Readable", "Unreadable", "Wanted"]


class Holding:
    """What a replica holds of one partition, and what follows from it. `Replica` adds the messages.

    Invariants: those of `Tails`; stores are accepted in one epoch at most, which is the newest opened, open, above the sealed mark, names
    this broker in this incarnation and is not in limbo; the high watermark shown is of an epoch whose chain is durable, and never falls.
    """

    def __init__(self, me: Member, state: ReplicaState, runs: Mapping[int, tuple[int, int]], table: IdempotenceTable | None = None) -> None:
        """From storage after a start (`runs`: epoch -> (base, tail), as `Storage.runs`), or `ReplicaState(id)` and no runs for a new one.

        `table` is the checkpointed idempotence table, None if there is none. Carry out `on_restart()` before anything else."""
        self._me = me
        self._state = state
        self._durable_state = state
        self._tails = Tails(runs)
        self._fold = Fold(table if table is not None else IdempotenceTable())
        self._table_kept = self.table.position
        self._pending = 0
        self._pending_synced = 0
        self._newest = max((0, *runs))
        self._told = (0, 0)
        self._shown = (0, 0)
        self._repeats: list[tuple[int, object]] = []
        self._accepts: int | None = None
        self._syncs = True
        self._become(state)
        self._shown = self._told

    def on_restart(self) -> list[Effect]:
        """The cuts that a replay of the journal has undone (step 6), to be carried out before anything else."""
        effects: list[Effect] = list(self._tails.cuts(self._state))
        self._fold_committed()
        return effects

    # --- facts --------------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ReplicaState:
        """The newest, durable or on its way."""
        return self._state

    @property
    def table(self) -> IdempotenceTable:
        """Folded over what is committed and held here, from offset 0 to its `position`. Read it, never change it."""
        return self._fold.table

    @property
    def high_watermark(self) -> tuple[int, int]:
        """(epoch, offset) of the newest epoch that was opened durably; (0, 0) if none was. Monotone (I-6)."""
        return self._shown

    @property
    def start_offset(self) -> int:
        """The trim point, as far as told (P-41)."""
        return self._state.start_offset

    @property
    def table_kept(self) -> int:
        """The position of the table that a checkpoint holds: what is durable of it (P-34)."""
        return self._table_kept

    @property
    def trimmable(self) -> int:
        """Storage may forget what lies below (`Storage.trim`): the start offset that is durable here, as far as the table has come (P-34).

        The next checkpoint, without which nothing is removed, holds that table."""
        return min(self._durable_state.start_offset, self.table.position)

    @property
    def accepts_epoch(self) -> int | None:
        """The epoch in which stores are taken now, if any."""
        return self._accepts

    def local_tail(self, epoch: int) -> int | None:
        """Up to where everything of the epoch is durable here, what `Copy` may be served up to; None if the epoch's base is not known."""
        return self._tails.durable(self._state, epoch)

    def in_limbo(self, epoch: int) -> bool:
        return self._state.in_limbo(epoch)

    # --- reading (section 6) ------------------------------------------------------------------------------------------------

    def readable(self, offset: int) -> Readable | Unreadable:
        """P-23: what lies below a high watermark told for its epoch, or below the end of its epoch, as far as it is held without a hole."""
        state = self._durable_state
        segment = locate(state.chain, offset)
        if offset < state.start_offset or (segment is None and state.chain):
            return Unreadable.TRIMMED
        if segment is None:
            return Unreadable.LACKING
        epoch = segment.epoch
        tail = self._tails.durable(state, epoch)
        assert tail is not None
        if segment.end is not None:
            limit = min(segment.end, tail)
            if offset < limit and self._tails.contains(epoch, offset):
                return Readable(epoch, offset, limit)
            return Unreadable.AHEAD if offset >= segment.end else Unreadable.LACKING
        if self._newest > self._state.opened:
            return Unreadable.LACKING  # step 6: the end is not known here, and the epoch is not the newest that is known of
        limit = min(self._shown[1], tail)
        if offset < limit and self._tails.contains(epoch, offset):
            return Readable(epoch, offset, limit)
        is_fed = self._me in segment.replicas and not self._state.in_limbo(epoch)
        return Unreadable.AHEAD if is_fed and offset >= self._shown[1] else Unreadable.LACKING

    # --- refilling and limbo (P-22, P-29, P-30) -----------------------------------------------------------------------------

    def wanted(self) -> Wanted | None:
        """The oldest closed segment that names this broker (in any incarnation) or is in limbo here, and that is not wholly taken."""
        state = self._state
        for segment in state.chain:
            if segment.end is None or not (segment.member(self._me.broker) or segment.epoch in state.limbo):
                continue
            tail = self._tails.taken(state, segment.epoch)
            assert tail is not None
            if tail < segment.end:
                others = tuple(m.broker for m in segment.replicas if m.broker != self._me.broker)
                return Wanted(segment.epoch, tail, segment.end, others)
        return None

    def on_copied(self, epoch: int, batches: Sequence[Batch]) -> list[Effect]:
        """Batches of a closed epoch from a peer: stored is what continues the own tail and ends at or below the epoch's end."""
        segment = self._state.segment(epoch)
        if segment is None or segment.end is None:
            return []
        self._verify(epoch, batches)
        fresh = self._continuation(epoch, batches, segment.end)
        return [self._take(epoch, fresh)] if fresh else []

    def renames(self) -> tuple[Segment, ...]:
        """Closed segments that name this broker in another incarnation and that it now holds whole: change the register (P-22)."""
        return tuple(s for s in self._state.chain if self._holds(s) and (named := s.member(self._me.broker)) and named != self._me)

    def enter_limbo(self) -> list[Effect]:
        """Something was, or may have been, lost: in limbo for everything, durably, until `on_limbo_read` (P-29)."""
        effects: list[Effect] = []
        self._change(effects, msgspec.structs.replace(self._state, limbo_everywhere=True))
        return effects

    def enter_limbo_of(self, epochs: Iterable[int]) -> list[Effect]:
        """In limbo for these epochs (P-37: `memory_epochs` after an unclean stop)."""
        effects: list[Effect] = []
        self._change(effects, msgspec.structs.replace(self._state, limbo=tuple(sorted({*self._state.limbo, *epochs}))))
        return effects

    def memory_epochs(self) -> tuple[int, ...]:
        """P-37: the newest epoch opened, if it is open and acknowledges from memory."""
        last = self._state.chain[-1] if self._state.chain else None
        return (last.epoch,) if last is not None and last.is_open and last.durability == "memory" else ()

    def on_limbo_read(self, register: PartitionRegister) -> list[Effect]:
        """The register, by a quorum read begun after `enter_limbo`: limbo now belongs to epochs named there (P-29)."""
        epochs = limbo_epochs(register, broker=self._me.broker, held=self._tails.epochs())
        return self._learn(register, limbo=epochs, ends_everywhere=True)

    def on_damaged(self, epoch: int, base: int, end: int) -> list[Effect]:
        """These offsets fail their checksum in a log file: in limbo for the epoch until they are restored (P-30). No tail falls."""
        effects: list[Effect] = []
        damaged = with_damage(self._state.damaged, DamagedRange(epoch, base, end))
        self._change(effects, msgspec.structs.replace(self._state, damaged=damaged))
        return effects

    def on_restored(self, epoch: int, base: int, end: int) -> list[Effect]:
        """The good bytes lie there again, durably."""
        effects: list[Effect] = []
        damaged = without_damage(self._state.damaged, DamagedRange(epoch, base, end))
        self._change(effects, msgspec.structs.replace(self._state, damaged=damaged))
        return effects

    def _holds(self, segment: Segment) -> bool:
        tail = self._tails.durable(self._state, segment.epoch)
        is_held = segment.end is not None and tail is not None and tail >= segment.end and not self._state.in_limbo(segment.epoch)
        return is_held and self._has_table_of(self._state)

    def _has_table_of(self, state: ReplicaState) -> bool:
        """P-41: who holds what lies below the start offset has the table there, durably: without it nothing of that is left."""
        return self._table_kept >= state.start_offset

    # --- idempotence (P-34) -------------------------------------------------------------------------------------------------

    def fold_needed(self) -> tuple[int, int] | None:
        """(epoch, offset) from which on headers should be read from storage and given to `on_headers`, so that the table can go on; None if
        none can. After a start and after refilling; repeat until None. Before this broker sequences, `is_complete` must hold."""
        self._fold_committed()
        position = self.table.position
        span = self._committed_span(position)
        if span is None or position >= span[1] or not self._fold.lacks(span[0]) or not self._tails.contains(span[0], position):
            return None
        return span[0], position

    @property
    def lacks_headers(self) -> bool:
        """Whether `fold_needed` may name something; after every `Advanced` it costs next to nothing to ask."""
        epoch, shown = self._shown
        return self._fold.table.position < shown and self._fold.lacks(epoch)

    def table_needed(self) -> bool:
        """Whether headers below the start offset are lacking here, which nobody may have any more: the table of another replica goes on
        from there, see `on_table` (P-41). After `fold_needed` has come to None."""
        position, state = self.table.position, self._durable_state
        if position >= state.start_offset or not any(segment.member(self._me.broker) for segment in state.chain):
            return False
        segment = locate(state.chain, position)
        return segment is None or not self._tails.contains(segment.epoch, position)

    def on_table(self, table: IdempotenceTable) -> bool:
        """Another replica's table, which is a fold over the same headers as this one's (P-34). Whether it was further."""
        if table.position <= self.table.position:
            return False
        self._fold.begin_again(table)
        self._fold_committed()
        return True

    def on_table_kept(self, position: int) -> list[Effect]:
        """A checkpoint that holds the table as of `position` is durable."""
        self._table_kept = max(self._table_kept, position)
        effects: list[Effect] = []
        if self._state.limbo:
            self._change(effects, self._state)
        return effects

    def on_headers(self, epoch: int, headers: Sequence[BatchHeader]) -> None:
        span = self._committed_span(self.table.position)
        if span is not None and span[0] == epoch:
            self._fold.take(headers, span[1])
        self._fold_committed()

    def is_complete(self, offset: int) -> bool:
        """Whether the table is folded up to exactly `offset`, the base of the epoch to sequence, as a `Sequencer` needs it."""
        return self.table.position == offset

    def _committed_span(self, offset: int) -> tuple[int, int, int | None] | None:
        """The epoch that `offset` lies in, how far it is committed and durable here, and its end if it is closed."""
        segment = locate(self._durable_state.chain, offset)
        if segment is None:
            return None
        tail = self._tails.durable(self._durable_state, segment.epoch)
        assert tail is not None
        end = segment.end
        return segment.epoch, min(tail, self._shown[1] if end is None else end), end

    def _fold_committed(self) -> None:
        table = self._fold.table
        while (span := self._committed_span(table.position)) is not None:
            epoch, limit, end = span
            self._fold.advance(epoch, limit)
            if end is None or table.position < end:
                return

    # --- state --------------------------------------------------------------------------------------------------------------

    def _learn(self, register: PartitionRegister, *, limbo: Iterable[int] = (), ends_everywhere: bool = False) -> list[Effect]:
        if wrong := contradiction(self._state, register):
            return [Alarm(wrong)]
        state = learned(self._state, register, also=limbo)
        if ends_everywhere:
            state = msgspec.structs.replace(state, limbo_everywhere=False)
        for epoch, told in (self._shown, self._told):
            end = end_of(state, epoch)
            if end is not None and end < told:
                return [Alarm(f"epoch {epoch} is closed at {end}, below the high watermark {told} that was told for it (I-6)")]
        effects: list[Effect] = []
        self._change(effects, state)
        return effects

    def _change(self, effects: list[Effect], state: ReplicaState) -> None:
        """Takes a new state, with the cuts that it asks for, and without the limbo that it ends; writes it if it differs."""
        over = tuple(e for e in state.limbo if self._limbo_is_over(state, e))
        if over:
            state = msgspec.structs.replace(state, limbo=tuple(e for e in state.limbo if e not in over))
        if state == self._state:
            return
        self._become(state)
        for cut in self._tails.cuts(state):
            self._fold.cut(cut.epoch, cut.end)
            effects.append(cut)
        effects.append(self._persist(Persist(state=state)))
        self.check()

    def _limbo_is_over(self, state: ReplicaState, epoch: int) -> bool:
        """P-29: when the epoch is closed in the register and all of it below its end is held, durably."""
        segment = state.segment(epoch)
        tail = self._tails.durable(state, epoch)
        is_held = segment is not None and segment.end is not None and tail is not None and tail >= segment.end
        return is_held and self._has_table_of(state)

    def _become(self, state: ReplicaState) -> None:
        self._state = state
        self._newest = max(self._newest, state.opened, state.sealed)
        accepts: int | None = None
        if state.chain:
            last = state.chain[-1]
            if last.epoch > self._told[0]:
                self._told = (last.epoch, last.base)
            if last.is_open and last.epoch > state.sealed and self._me in last.replicas and not state.in_limbo(last.epoch):
                accepts = last.epoch
            self._syncs = last.durability == "fsync"
        if accepts != self._accepts:
            self._accepts = accepts
            self._repeats.clear()

    def _show_watermark(self, effects: list[Effect]) -> None:
        """P-23: a high watermark counts once its epoch is opened durably."""
        opened = self._durable_state.opened
        told = self._told if self._told[0] == opened else (opened, self._durable_state.chain[-1].base if opened else 0)
        if told > self._shown:
            self._shown = told
            effects.append(Advanced(*told))
            self._fold_committed()

    def _watermark_of(self, epoch: int, base: int) -> int:
        """What is known here to be committed of the epoch."""
        segment = self._durable_state.segment(epoch)
        if segment is not None and segment.end is not None:
            return segment.end
        return self._shown[1] if epoch == self._shown[0] else base

    def _verify(self, epoch: int, batches: Iterable[Batch]) -> None:
        """P-39: before anything is changed. Raises ProtocolError."""
        partition = self._state.id
        for batch in batches:
            header = batch.header
            if header.epoch != epoch or header.partition != partition:
                raise ProtocolError(f"a batch of another epoch or partition came in a run of epoch {epoch}", code="protocol")

    def _continuation(self, epoch: int, batches: Iterable[Batch], limit: int) -> tuple[Batch, ...]:
        """Those of the batches that continue what was taken (P-13), up to `limit`: what lies below is a repeat, what lies above a gap."""
        state = self._state
        at = self._tails.taken(state, epoch)
        assert at is not None
        begins = not self._tails.has_run(epoch)
        fresh: list[Batch] = []
        for batch in batches:
            base, end = batch.base, batch.end
            if end <= at:
                continue
            # P-41: a run that begins at the start offset may begin inside a batch.
            if end > limit or (base != at and (fresh or not begins or base > at)):
                break
            fresh.append(batch)
            at = end
        return tuple(fresh)

    def _take(self, epoch: int, fresh: tuple[Batch, ...], *, report_to: object = None, then: tuple[Effect, ...] = ()) -> Persist:
        end = fresh[-1].end
        self._tails.take(epoch, fresh[0].base, end)
        add = self._fold.add
        for batch in fresh:
            add(epoch, batch.header)
        # P-37, unless something before it waits for a sync: what comes back from storage keeps its order.
        sync = self._syncs or epoch != self._accepts or self._pending_synced > 0
        return self._persist(Persist(fresh, epoch, end, None, then, report_to, sync))

    def _persist(self, persist: Persist) -> Persist:
        self._pending += 1
        self._pending_synced += persist.sync
        return persist

    def check(self) -> None:
        """The cheap invariants."""
        self._tails.check(self._state)
        assert self._accepts is None or self._accepts > self._state.sealed
        assert self._accepts in (None, self._state.opened)
        assert self._shown[0] <= self._durable_state.opened <= self._state.opened
