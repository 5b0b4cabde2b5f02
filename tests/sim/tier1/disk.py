"""A broker's data directory: one ordered journal with group commits, a checkpoint, and all that may become of them.

`view` is what the running process sees: everything appended. `raw` is what would be found after a crash: the durable prefix of the journal
on top of the last checkpoint. Cuts may be journal entries (as `DiskStorage` writes them) or not be there after a crash at all (what
`Storage.cut` asks its owners to bear): a replay then brings cut batches back.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.log.idempotence import TableSnapshot
from streamq.model.batches import Batch
from streamq.model.ids import Incarnation, Member, PartitionId
from streamq.model.registers import Voters
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process
    from tests.sim.tier1.world import World

__all__ = ["Damage", "Disk", "DiskProfile", "batch_at"]

TRIM_CHECKPOINT_S = 0.3
Runs = dict[PartitionId, dict[int, list[Batch]]]
Token = Callable[[], None]


class DiskProfile(NamedTuple):
    """Times in seconds; a group commit takes write, then sync."""

    write_s: float = 0.0002
    sync_s: float = 0.001
    spread_s: float = 0.003
    are_cuts_volatile: bool = False
    checkpoint_entries: int = 60


class Damage(NamedTuple):
    """Offsets whose bytes in a log file fail their checksum (P-30)."""

    partition: PartitionId
    epoch: int
    base: int
    end: int


class _Entry(NamedTuple):
    """One of: batches of an epoch; a state (None: forgotten); a cut at `end`."""

    partition: PartitionId
    epoch: int
    batches: tuple[Batch, ...]
    end: int
    key: Any
    value: Any
    token: Token | None
    sync: bool


def _base(batch: Batch) -> int:
    return batch.header.base


def batch_at(run: Sequence[Batch], offset: int) -> int:
    """The place of the batch that contains `offset`, or of the first after it."""
    place = bisect_right(run, offset, key=_base)
    return place - 1 if place and run[place - 1].end > offset else place


class Disk:
    """Invariant: in `view` and in `raw` every run is contiguous (P-13)."""

    def __init__(self, world: "World", broker: str, incarnation: Incarnation, first_voters: Voters) -> None:
        self.world = world
        self.broker = broker
        self.incarnation = incarnation
        self.first_voters = first_voters
        self.starts = 0
        self.slowness = 1.0
        self.is_full = False
        self.fails = False
        """The next sync fails (P-15)."""
        self.was_stopped_cleanly = False
        self.lost: list[Lost] = []
        """Found damaged at each start, until what was made of it is durable: nothing damaged is overwritten before (P-29)."""
        self._is_loss_new = True
        self.damaged: list[Damage] = []
        self.states: dict[Any, Any] = {}
        self.runs: Runs = {}
        self.tables: dict[PartitionId, TableSnapshot] = {}
        self.raw_states: dict[Any, Any] = {}
        self.raw_runs: Runs = {}
        self._pending: list[_Entry] = []
        self._group = 0
        self._written = 0
        self._since_checkpoint = 0
        self.process: Process | None = None

    @property
    def member(self) -> Member:
        return Member(self.broker, self.incarnation)

    @property
    def unsynced(self) -> int:
        return len(self._pending)

    # --- writing

    def append(
        self,
        partition: PartitionId,
        epoch: int,
        batches: tuple[Batch, ...],
        key: Any,
        value: Any,
        token: Token | None,
        *,
        sync: bool = True,
    ) -> None:
        """Batches of one epoch, or a state (`key` not None), or both, in one entry."""
        if batches:
            run = self.runs.setdefault(partition, {}).setdefault(epoch, [])
            for batch in batches:
                assert not run or run[-1].end == batch.base, f"P-13: a batch at {batch.base} follows a run that ends at {run[-1].end}"
                run.append(batch)
        if key is not None:
            _set(self.states, key, value)
        self._put(_Entry(partition, epoch, batches, 0, key, value, token, sync))

    def cut(self, partition: PartitionId, epoch: int, end: int) -> None:
        self.damaged = [each for each in self.damaged if each.partition != partition or each.epoch != epoch or each.base < end]
        if _cut(self.runs, partition, epoch, end) and not self.world.plan.disk.are_cuts_volatile:
            self._put(_Entry(partition, epoch, (), end, None, None, None, True))

    def trim(self, partition: PartitionId, start_offset: int) -> None:
        """Batches take the place of files here. What a crash finds is not touched before the next checkpoint, which holds the table."""
        for run in self.runs.get(partition, {}).values():
            count = next((place for place, batch in enumerate(run) if batch.end > start_offset), len(run))
            self.world.counters["batches_trimmed"] += count
            del run[:count]
        self._since_checkpoint += self.world.plan.disk.checkpoint_entries
        self.world.after(TRIM_CHECKPOINT_S, self.process, self._checkpoint_when_idle)

    def _checkpoint_when_idle(self) -> None:
        if not self._pending and self._since_checkpoint:
            self.checkpoint()

    def _put(self, entry: _Entry) -> None:
        self._pending.append(entry)
        if not self._group:
            self._begin_group()

    def _begin_group(self) -> None:
        profile = self.world.plan.disk
        self._group = len(self._pending)
        sync_s = (profile.write_s + profile.sync_s + profile.spread_s * self.world.random.random() ** 3) * self.slowness
        if any(not entry.sync for entry in self._pending):
            self.world.after(profile.write_s * self.slowness, self.process, self._wrote)
        self.world.after(sync_s, self.process, self._synced)

    def _wrote(self) -> None:
        """P-37: the operating system has it."""
        self._written = self._group
        for entry in self._pending[: self._group]:
            if not entry.sync and entry.token is not None:
                entry.token()

    def _synced(self) -> None:
        process = self.process
        assert process is not None
        if self.fails:
            self.fails = False
            process.stop_on_failed_disk()
            return
        group, self._pending = self._pending[: self._group], self._pending[self._group :]
        self._group = self._written = 0
        for entry in group:
            self._settle(entry)
        self._since_checkpoint += len(group)
        if self._pending:
            self._begin_group()
        for entry in group:
            if entry.sync and entry.token is not None:
                entry.token()
        process.after_group()
        if not self._pending and self._since_checkpoint >= self.world.plan.disk.checkpoint_entries:
            self.checkpoint()

    def _settle(self, entry: _Entry) -> None:
        if entry.batches:
            run = self.raw_runs.setdefault(entry.partition, {}).setdefault(entry.epoch, [])
            first = entry.batches[0].base
            while run and run[-1].base >= first:
                run.pop()
            if run and run[-1].end != first:
                run.clear()
            run.extend(entry.batches)
        if entry.key is not None:
            _set(self.raw_states, entry.key, entry.value)
            if entry.key[0] == "acceptor" and entry.value is not None:
                self.world.versions.on_cell(self.broker, entry.key[1], entry.value)
        elif not entry.batches:
            _cut(self.raw_runs, entry.partition, entry.epoch, entry.end)

    def checkpoint(self) -> None:
        """Everything appended is durable: runs and states as they are, with the idempotence tables, begin the next restart."""
        assert not self._pending
        self._since_checkpoint = 0
        self.raw_runs = _copy(self.runs)
        if self.process is not None:
            self.tables = self.process.table_snapshots()
            self.process.on_checkpoint()

    # --- what becomes of it

    def stop(self, *, keep: float, keeps_written: bool) -> None:
        """The process ends. Of what was not synced a prefix is kept: at least what was written if only the process died."""
        count = len(self._pending)
        kept = max(self._written if keeps_written else 0, round(keep * count))
        self.world.counters["torn_tails"] += kept < count
        for entry in self._pending[:kept]:
            self._settle(entry)
        self._pending.clear()
        self._group = self._written = 0
        self.was_stopped_cleanly = False
        self.process = None

    def close(self) -> None:
        """A clean stop: everything is written, with a checkpoint behind it."""
        for entry in self._pending:
            self._settle(entry)
        self._pending.clear()
        self._group = self._written = 0
        self.checkpoint()
        self.was_stopped_cleanly = True
        self.process = None

    def open(self) -> tuple[Lost, ...]:
        """A start finds this. Returns what is lost for good (P-29)."""
        self.starts += 1
        if self._is_loss_new:
            for loss in self.lost:
                self._lose(loss)
        self._is_loss_new = False
        self.states = dict(self.raw_states)
        self.runs = _copy(self.raw_runs)
        return tuple(self.lost)

    def loaded(self) -> None:
        """What was made of the losses has been appended: when that is durable they are history."""
        if self.lost:
            self._put(_Entry(b"", 0, (), 0, None, None, self._forget_losses, True))

    def _forget_losses(self) -> None:
        self.lost = []

    def lose(self, lost: list[Lost]) -> None:
        """Found out at the next start."""
        self.lost = lost
        self._is_loss_new = True

    def _lose(self, loss: Lost) -> None:
        if isinstance(loss, LostBatches):
            _cut(self.raw_runs, loss.partition, loss.epoch, loss.base)
        elif isinstance(loss, LostState):
            self.raw_states.pop(loss.key, None)
        else:
            assert isinstance(loss, LostUnknown)
            self.tables = {}

    # --- reading

    def run_ends(self, partition: PartitionId) -> dict[int, tuple[int, int]]:
        return {epoch: (run[0].base, run[-1].end) for epoch, run in self.runs.get(partition, {}).items() if run}

    def read(self, partition: PartitionId, epoch: int, offset: int, *, end: int, count: int) -> list[Batch] | Damage:
        """Up to `count` batches from the one that contains `offset` on, those that begin below `end`; or the damage that is met first."""
        run = self.runs.get(partition, {}).get(epoch)
        if not run or offset < run[0].base:
            return []
        place = batch_at(run, offset)
        found = [batch for batch in run[place : place + count] if batch.base < end]
        if not self.damaged:
            return found
        for index, batch in enumerate(found):
            damage = self.damage_in(partition, epoch, batch.base, batch.end)
            if damage is not None:
                return found[:index] or Damage(partition, epoch, batch.base, batch.end)
        return found

    def damage_in(self, partition: PartitionId, epoch: int, base: int, end: int) -> Damage | None:
        for each in self.damaged:
            if each.partition == partition and each.epoch == epoch and base < each.end and each.base < end:
                return each
        return None

    def restore(self, partition: PartitionId, epoch: int, batches: Sequence[Batch]) -> None:
        """Good copies lie there again."""
        run = self.runs.get(partition, {}).get(epoch, [])
        for batch in batches:
            place = batch_at(run, batch.base)
            if place < len(run):
                assert run[place] == batch, "these bytes were not there"
            self.damaged = [
                part
                for each in self.damaged
                for part in ([each] if (each.partition, each.epoch) != (partition, epoch) else _without(each, batch.base, batch.end))
            ]


def _without(damage: Damage, base: int, end: int) -> list[Damage]:
    if end <= damage.base or damage.end <= base:
        return [damage]
    parts = [damage._replace(end=base), damage._replace(base=end)]
    return [part for part in parts if part.base < part.end]


def _set(states: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        states.pop(key, None)
    else:
        states[key] = value


def _cut(runs: Runs, partition: PartitionId, epoch: int, end: int) -> bool:
    """Whether there was something to forget."""
    run = runs.get(partition, {}).get(epoch)
    if not run or run[-1].end <= end:
        return False
    while run and run[-1].end > end:
        run.pop()
    if not run:
        del runs[partition][epoch]
    return True


def _copy(runs: Runs) -> Runs:
    return {partition: {epoch: list(run) for epoch, run in of.items() if run} for partition, of in runs.items()}
