"""A start: the newest checkpoint, then the journal from where it says, and nothing else (P-32). What is damaged is found out, not repaired.

    first start          a journal and a checkpoint are made, then the start is counted: a crash in between makes them again
    any other            the start is counted; the newest copy of the checkpoint that is whole; the journal replayed on top of it

Cuts and drops travel through the journal as states under keys of their own, so a replay repeats them in their place among the batches.
A batch that does not continue its run, because one before it was lost, is lost too: a run never has a hole (P-13).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from streamq.model.batches import Batch
from streamq.model.ids import PartitionId
from streamq.storage.checkpoint import Checkpoint, StoredCheckpoint, load_checkpoints, save_checkpoint
from streamq.storage.disk_runs import DiskRuns, RunKey
from streamq.storage.file_ops import FileOps
from streamq.storage.identity import count_start
from streamq.storage.interface import Identity, Lost, LostBatches, LostState, LostUnknown
from streamq.storage.journal import Journal
from streamq.storage.journal_format import JournalPosition, StateEntry
from streamq.storage.journal_recovery import Recovered, Replayed, recover

__all__ = ["Replay", "Restarted", "cut_entry", "drop_entry", "is_reserved", "newest", "restart"]

CUT_PREFIX: Final = "!cut/"
DROP_PREFIX: Final = "!drop/"


class Restarted(NamedTuple):
    identity: Identity
    checkpoint: Checkpoint
    replay: "Replay"
    journal: Journal
    lost: tuple[Lost, ...]
    was_stopped_cleanly: bool


def cut_entry(partition: PartitionId, epoch: int, end: int) -> StateEntry:
    return StateEntry(f"{CUT_PREFIX}{partition.hex()}/{epoch}", end.to_bytes(8, "little"))


def drop_entry(partition: PartitionId) -> StateEntry:
    return StateEntry(f"{DROP_PREFIX}{partition.hex()}", b"")


def is_reserved(key: str) -> bool:
    return key.startswith((CUT_PREFIX, DROP_PREFIX))


def restart(directory: Path, identity: Identity, runs: DiskRuns, *, journal_file_bytes: int, ops: FileOps) -> Restarted:
    """Blocks. `identity` is as it was loaded, this start not counted yet; the caller holds the directory's lock."""
    incarnation = identity.incarnation
    if identity.starts == 0:
        journal = Journal.create(directory, incarnation=incarnation, start_number=1, file_bytes=journal_file_bytes, ops=ops)
        checkpoint = _empty(identity)
        save_checkpoint(ops, directory, checkpoint)
        identity = count_start(directory, identity, ops=ops)
        return Restarted(identity, checkpoint, Replay(runs, checkpoint), journal, (), False)
    identity = count_start(directory, identity, ops=ops)
    stored = load_checkpoints(ops, directory, incarnation=incarnation)
    checkpoint = newest(stored) or _empty(identity)
    replay = Replay(runs, checkpoint)
    recovered = recover(
        directory,
        incarnation=incarnation,
        replay_from=checkpoint.replay_from,
        start_number=identity.starts,
        deliver=replay.deliver,
        ops=ops,
    )
    journal = Journal.resume(directory, recovered, incarnation=incarnation, file_bytes=journal_file_bytes, ops=ops)
    lost = (*checkpoint_losses(stored, identity.starts), *replay.lost(recovered))
    was_last_act = checkpoint.stopped and checkpoint.start == identity.starts - 1
    return Restarted(identity, checkpoint, replay, journal, lost, was_last_act and not lost and replay.entries == 0)


def newest(stored: Sequence[StoredCheckpoint]) -> Checkpoint | None:
    whole = [copy.checkpoint for copy in stored if copy.checkpoint is not None]
    return max(whole, key=lambda checkpoint: checkpoint.number, default=None)


def checkpoint_losses(stored: Sequence[StoredCheckpoint], starts: int) -> list[Lost]:
    """`starts` counts the start under way. An older copy of the directory is found out here, or by the journal."""
    checkpoint = newest(stored)
    if checkpoint is None:
        return [LostUnknown("no copy of the checkpoint can be read: " + "; ".join(f"{copy.name}: {copy.fault}" for copy in stored))]
    if checkpoint.start >= starts:
        return [LostUnknown(f"the checkpoint is of start {checkpoint.start}, the directory counts {starts - 1} before this one")]
    return []


def _empty(identity: Identity) -> Checkpoint:
    return Checkpoint(0, identity.incarnation, 0, False, None, {}, {}, [])


class Replay:
    """A checkpoint's runs and states, and what the journal makes of them."""

    def __init__(self, runs: DiskRuns, checkpoint: Checkpoint) -> None:
        self.runs = runs
        self.states = dict(checkpoint.states)
        self.entries = 0
        self._holes: dict[RunKey, tuple[int, int]] = {}
        runs.load(checkpoint.runs)

    def deliver(self, entries: Sequence[Replayed], _position: JournalPosition) -> None:
        for entry in entries:
            if isinstance(entry, Batch):
                self._append(entry)
            elif isinstance(entry, StateEntry):
                self._set(entry)
            elif isinstance(entry, LostBatches):
                self._lose(entry)
            elif isinstance(entry, LostState):
                self.states.pop(entry.key, None)
        self.entries += len(entries)

    def lost(self, recovered: Recovered) -> list[Lost]:
        """What is missing in the end. The loss of a cut or drop loses nothing: owners repeat them."""
        lost: list[Lost] = [loss for loss in recovered.lost if isinstance(loss, LostUnknown)]
        lost += [loss for loss in recovered.lost if isinstance(loss, LostState) and not is_reserved(loss.key)]
        lost += [LostBatches(partition, epoch, base, end) for (partition, epoch), (base, end) in self._holes.items()]
        return lost

    def _append(self, batch: Batch) -> None:
        header = batch.header
        key = (header.partition, header.epoch)
        hole = self._holes.get(key) if self._holes else None
        if hole is not None and header.base >= hole[0]:
            self._holes[key] = (hole[0], max(hole[1], header.end))
            return
        run = self.runs.get(*key)
        if run is None or header.base == run.tail:
            self.runs.append((batch,))
        elif header.end > run.tail:
            self._holes[key] = (run.tail, header.end)

    def _lose(self, loss: LostBatches) -> None:
        key = (loss.partition, loss.epoch)
        run = self.runs.get(*key)
        if run is not None and loss.end <= run.tail:
            return
        base, end = self._holes.get(key, (loss.base if run is None else run.tail, loss.end))
        self._holes[key] = (base, max(end, loss.end))

    def _set(self, entry: StateEntry) -> None:
        key, value = entry
        if not is_reserved(key):
            if value is None:
                self.states.pop(key, None)
            else:
                self.states[key] = value
            return
        _, partition_hex, *rest = key.split("/")
        partition = bytes.fromhex(partition_hex)
        if rest:
            self._cut(partition, int(rest[0]), int.from_bytes(value or b"", "little"))
        else:
            self.runs.drop(partition)
            self._holes = {of: hole for of, hole in self._holes.items() if of[0] != partition}

    def _cut(self, partition: PartitionId, epoch: int, end: int) -> None:
        self.runs.cut(partition, epoch, end)
        hole = self._holes.get((partition, epoch))
        if hole is not None:
            del self._holes[partition, epoch]
            if hole[0] < end:
                self._holes[partition, epoch] = (hole[0], min(hole[1], end))
