"""The replica: one partition on this broker (protocol sections 4 to 6), the only writer of its runs and its `ReplicaState`.

A store moves the end of what was taken; `on_durable` moves the local tail and reports it, unless the epoch has been sealed since.

    on_store ──► Persist(batches)     ──► on_durable ──► Stored   only while the epoch is open, not sealed, not in limbo
    on_seal  ──► Persist(mark)        ──► on_durable ──► Sealed   from the moment it is taken no Stored leaves
    on_open  ──► Cut…, Persist(chain) ──► on_durable ──► Opened   from here on the epoch's high watermark counts
"""

from collections.abc import Sequence

import msgspec

from streamq.log.effects import Advanced, Alarm, Effect, Persist, Reply
from streamq.log.holding import Holding, Readable, Unreadable, Wanted
from streamq.log.replica_state import ReplicaState
from streamq.log.tails import end_of
from streamq.model.batches import Batch
from streamq.model.errors import ProtocolError
from streamq.model.limits import OFFSET_MAX
from streamq.model.messages import Opened, Repair, Repaired, Seal, Sealed, Stored, StoredRun, StoreRun, StoreState, Tip, TipAnswer
from streamq.model.registers import PartitionRegister

__all__ = ["Readable", "Replica", "Unreadable", "Wanted"]


class Replica(Holding):
    """One partition's copy. What it asks of storage must be appended in the order of emission, or safety is lost.

    All `on_*` return effects, to be carried out in order; `reply_to` is an opaque handle that comes back in `Reply.to`. A broken message of
    another broker raises ProtocolError and changes nothing that is durable.
    """

    # --- storing (section 4) ------------------------------------------------------------------------------------------------

    def on_store(self, run: StoreRun, batches: Sequence[Batch], reply_to: object) -> list[Effect]:
        """One run of a `Store`. Effects: `Persist`, whose `Stored` follows from `on_durable`, or at once a `Reply` with a `Stored` of one
        `StoredRun`; and `Advanced` when the high watermark moved. `StoredRun`s for one handle may be merged into one message, in order."""
        epoch = run.epoch
        if epoch != self._accepts:
            return [self._stored(reply_to, epoch, *self._rejection(epoch))]
        self._verify(epoch, batches)
        effects: list[Effect] = []
        if run.high_watermark > self._told[1]:
            self._told = (epoch, run.high_watermark)
            self._show_watermark(effects)
        if not batches:
            return effects
        fresh = self._continuation(epoch, batches, OFFSET_MAX)
        if fresh:
            effects.append(self._take(epoch, fresh, report_to=reply_to))
        taken = self._tails.taken(self._state, epoch)
        assert taken is not None
        if batches[-1].end > taken:
            effects.append(self._stored(reply_to, epoch, "gap", taken))
        elif not fresh:
            durable = self._tails.durable(self._state, epoch)
            if durable == taken:
                effects.append(self._stored(reply_to, epoch, "stored", taken))
            else:
                self._repeats = [*(r for r in self._repeats if r[1] is not reply_to), (taken, reply_to)]
        return effects

    def on_durable(self, persist: Persist) -> list[Effect]:
        """Call for each `Persist`, in order, once it is durable."""
        self._pending -= 1
        self._pending_synced -= persist.sync
        effects: list[Effect] = []
        if persist.state is not None:
            self._on_state_durable(persist.state, effects)
        if persist.batches:
            self._on_batches_durable(persist, effects)
        effects.extend(persist.then)
        return effects

    def _on_state_durable(self, state: ReplicaState, effects: list[Effect]) -> None:
        opens = state.opened > self._durable_state.opened
        self._durable_state = state
        self._show_watermark(effects)
        if opens:
            self._fold.keep_from(state.opened)

    def _on_batches_durable(self, persist: Persist, effects: list[Effect]) -> None:
        epoch = persist.epoch
        before, tail = self._tails.settle(epoch, persist.end)
        # P-11, 4.4: once a seal, a loss or a newer epoch was taken, nothing is reported for this epoch any more.
        if epoch == self._accepts:
            if persist.report_to is not None:
                effects.append(self._stored(persist.report_to, epoch, "stored", tail))
            while self._repeats and self._repeats[0][0] <= tail:
                effects.append(self._stored(self._repeats.pop(0)[1], epoch, "stored", tail))
        shown_epoch, shown = self._shown
        if epoch < shown_epoch or (epoch == shown_epoch and before < shown):
            effects.append(Advanced(shown_epoch, shown))
            self._fold_committed()
        if epoch in self._state.limbo:
            self._change(effects, self._state)

    def _rejection(self, epoch: int) -> tuple[StoreState, int]:
        """Why a store is not taken, in the order of 4.3. A sealed replica tells no tail (P-11)."""
        if epoch <= self._state.sealed:
            return "sealed", 0
        if self._state.in_limbo(epoch):
            return "limbo", 0
        segment = self._state.segment(epoch)
        if segment is None:
            return "not_opened", 0
        if segment.end is not None:
            return "past_end", segment.end
        assert self._me not in segment.replicas
        return "limbo", 0  # P-10: named in another incarnation, or not at all; like one in limbo it counts in no quorum here

    def _stored(self, to: object, epoch: int, state: StoreState, tail: int) -> Reply:
        return Reply(to, Stored((StoredRun(self._state.id, epoch, state, tail),)))

    # --- takeover (section 5) and tip reads (P-24) --------------------------------------------------------------------------

    def on_seal(self, seal: Seal, reply_to: object) -> list[Effect]:
        """Answered by `Sealed` once the mark is durable (P-16), counting all that was taken before (4.4)."""
        epoch = seal.epoch
        base = self._note_base(epoch, seal.base)
        effects: list[Effect] = []
        self._change(effects, self._sealed_up_to(epoch))
        tail = self._tails.taken(self._state, epoch)
        answer = Sealed(
            epoch=epoch,
            local_tail=base if tail is None else tail,
            high_watermark=self._watermark_of(epoch, base),
            limbo=self._state.in_limbo(epoch),
            end=end_of(self._state, epoch),
        )
        self._reply_when_durable(effects, Reply(reply_to, answer))
        return effects

    def on_repair(self, repair: Repair, batches: Sequence[Batch], reply_to: object) -> list[Effect]:
        """Seals the epoch here and stores what continues the own tail, in limbo or not; answered by `Repaired` when that is durable.

        Also how the broker that runs a takeover stores what it copied below L (step 3): `reply_to` then leads back to the takeover."""
        epoch = repair.segment.epoch
        self._verify(epoch, batches)
        base = self._note_base(epoch, repair.segment.base)
        state = self._sealed_up_to(epoch)
        if not state.topic:
            state = msgspec.structs.replace(state, topic=repair.topic, index=repair.index)
        effects: list[Effect] = []
        self._change(effects, state)
        end = end_of(state, epoch)
        if state.is_dropped(epoch):
            self._reply_when_durable(effects, Reply(reply_to, Repaired(epoch=epoch, local_tail=base, end=end)))
            return effects
        # Step 4: never at or past an end that is known here; a late repair would bring back what was cut.
        fresh = self._continuation(epoch, batches, OFFSET_MAX if end is None else end)
        tail = fresh[-1].end if fresh else self._tails.taken(state, epoch)
        assert tail is not None
        # P-30: a tail never falls, but what is damaged below it is not whole, and nobody may count on it.
        whole = min((tail, *(d.base for d in state.damaged if d.epoch == epoch)))
        reply = Reply(reply_to, Repaired(epoch=epoch, local_tail=whole, end=end))
        if fresh:
            effects.append(self._take(epoch, fresh, then=(reply,)))
        else:
            self._reply_when_durable(effects, reply)
        return effects

    def on_open(self, register: PartitionRegister, reply_to: object) -> list[Effect]:
        """Step 6. Answered by `Opened`, naming the newest epoch opened here, when chain and cuts are durable."""
        effects = self._learn(register)
        if not any(type(e) is Alarm for e in effects):
            self._reply_when_durable(effects, Reply(reply_to, Opened(epoch=self._state.opened)))
        return effects

    def on_learn(self, register: PartitionRegister) -> list[Effect]:
        """A completed change or a quorum read showed this register (P-1): as `on_open`, without an answer. Not for tombstones."""
        return self._learn(register)

    def on_tip(self, tip: Tip, reply_to: object) -> list[Effect]:
        """About the epoch that `tip` names and no other; one that was not opened here is answered with its base."""
        epoch = tip.epoch
        state = self._state
        tail = self._tails.durable(state, epoch)
        answer = TipAnswer(
            epoch=epoch,
            local_tail=tip.base if tail is None else tail,
            sealed=epoch <= state.sealed,
            high_watermark=self._watermark_of(epoch, tip.base),
            limbo=state.in_limbo(epoch),
            start_offset=self._durable_state.start_offset,
            table=self.table_kept,
        )
        return [Reply(reply_to, answer)]

    def _sealed_up_to(self, epoch: int) -> ReplicaState:
        state = self._state
        return state if epoch <= state.sealed else msgspec.structs.replace(state, sealed=epoch)

    def _note_base(self, epoch: int, base: int) -> int:
        """The base of the epoch, as told first; another one now is a broken message."""
        segment = self._state.segment(epoch)
        known = self._tails.tell_base(epoch, base) if segment is None and not self._state.is_dropped(epoch) else base
        if segment is not None:
            known = segment.base
        if known != base:
            raise ProtocolError(f"epoch {epoch} has base {known}, not {base}", code="protocol")
        self._newest = max(self._newest, epoch)
        return known

    def _reply_when_durable(self, effects: list[Effect], reply: Reply) -> None:
        """After everything that was asked of storage before: the last effect if it can wait, or at once if nothing is on its way."""
        if self._pending == 0:
            effects.append(reply)
            return
        last = effects[-1] if effects else None
        if type(last) is Persist:
            effects[-1] = msgspec.structs.replace(last, then=(*last.then, reply))
            return
        effects.append(self._persist(Persist(state=self._state, then=(reply,))))
