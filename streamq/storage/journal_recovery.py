"""Reading the journal at a start: what is there, what was never acknowledged, and what is lost (P-29).

Groups are written one at a time: write, sync, then the next. So each group proves that everything before it was synced, and so does a file
that was taken into use. Reading goes from group to group:

    the next group is whole                  deliver it
    ... its head or table is not             is there any group (or file) behind it that proves it was synced?
                                             no: a torn tail; cut it, nothing acknowledged was in it
                                             yes: damage; the repeat in the group behind tells what was there
    ... one of its bodies is not             the same question; damage loses exactly what the table says

What a proof covers and no repeat tells is an unknown loss. Groups of an earlier use of a file, or left behind a cut, never count: they
name another file sequence, another place, or an earlier start than one read before them.

Nothing is written here. The owner records its limbo in the first group that it writes; only then may anything damaged be overwritten.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c

from streamq.model.batches import BATCH_HEADER_BYTES, Batch
from streamq.model.ids import Incarnation
from streamq.storage.file_ops import FileOps
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown
from streamq.storage.journal_files import FileReader, JournalFile, survey_files
from streamq.storage.journal_format import (
    BLOCK_BYTES,
    GROUP_HEAD_BYTES,
    NOWHERE,
    BatchRow,
    Group,
    JournalPosition,
    Row,
    StateEntry,
    decode_group,
    names_place,
)
from streamq.wire.batch_format import BadBatchError, decode_header

__all__ = ["DamagedBytes", "Deliver", "Recovered", "Replayed", "recover"]

Replayed = Batch | StateEntry | Lost
"""In the order of the journal; a loss stands where what it names was. A batch behind a lost one of its run does not continue the run."""
Deliver = Callable[[Sequence[Replayed], JournalPosition], None]
BEGINNING: Final = JournalPosition(0, BLOCK_BYTES)


class DamagedBytes(NamedTuple):
    """Bytes `first_byte` to `last_byte` of a file (its name relative to the data directory) are not what was written."""

    file: str
    first_byte: int
    last_byte: int
    what: str


class Recovered(NamedTuple):
    """What a start has found. A `Journal` resumes from it."""

    lost: tuple[Lost, ...]
    """What is lost in the end: a state of which a later value was read is not."""
    end: JournalPosition
    """Where the next group goes; whatever lies behind it was never acknowledged, or is reported as lost."""
    synced: JournalPosition
    """Where the last group ended: before `end` if a file was taken into use and nothing written to it."""
    torn: DamagedBytes | None
    """The torn tail, if there is one. Nothing was lost with it."""
    damage: tuple[DamagedBytes, ...]
    """Every damaged place that was met, those that a repeat made good included."""
    files: tuple[JournalFile, ...]
    replay_from: JournalPosition
    start: int
    """The number of the start under way: above every one in the journal."""
    key: bytes
    last: tuple[JournalPosition, bytes]
    """Position, head and table of the last group: what the next one repeats."""
    numbers: int
    manifest_is_whole: bool


class _Proof(NamedTuple):
    """A later group, or the header of a later file whose first group is not whole: everything before `synced` was durable."""

    position: JournalPosition
    synced: JournalPosition
    group: Group | None


def recover(
    directory: Path,
    *,
    incarnation: Incarnation,
    replay_from: JournalPosition | None,
    start_number: int,
    deliver: Deliver,
    ops: FileOps | None = None,
) -> Recovered:
    """Reads the journal from `replay_from` (None: from its beginning) and gives `deliver` the entries of one group at a time, with its end.

    `start_number` is the directory's count of starts, this one included. Writes nothing, so it may be used on a directory to verify it.
    Raises OSError only if the directory itself cannot be read: bytes that cannot be read are damage.
    """
    ops = ops or FileOps()
    origin = replay_from if replay_from is not None and replay_from.file > 0 else BEGINNING
    survey = survey_files(ops, directory, incarnation=incarnation, oldest=max(origin.file, 1))
    replay = _Replay(ops, directory, survey.files, survey.key, deliver)
    try:
        for fault in survey.faults:
            replay.lose_unknown(fault, origin)
        end = replay.run(origin)
        if replay.start >= start_number:
            replay.lose_unknown(f"the journal knows start {replay.start}, the directory counts {start_number}", end)
    finally:
        replay.close()
    return Recovered(
        lost=replay.lost(),
        end=end,
        synced=replay.synced if end.offset == BLOCK_BYTES else end,
        torn=replay.torn,
        damage=tuple(replay.damage),
        files=survey.files,
        replay_from=origin,
        start=max(start_number, replay.start + 1),
        key=survey.key,
        last=replay.last,
        numbers=survey.numbers,
        manifest_is_whole=survey.manifest_is_whole,
    )


class _Replay:
    """One walk over the files in use. `start` is the newest start read so far, `last` the last group that counts."""

    def __init__(self, ops: FileOps, directory: Path, files: Sequence[JournalFile], key: bytes, deliver: Deliver) -> None:
        self._ops = ops
        self._directory = directory
        self._files = {file.sequence: file for file in sorted(files, key=lambda f: f.sequence) if file.state == "in use"}
        self._key = key
        self._deliver = deliver
        self._readers: dict[int, FileReader] = {}
        self._losses: list[LostBatches | LostUnknown] = []
        self._lost_states: dict[str, None] = {}
        self.start = 0
        self.synced = NOWHERE
        self.last: tuple[JournalPosition, bytes] = (NOWHERE, b"")
        self.torn: DamagedBytes | None = None
        self.damage: list[DamagedBytes] = []

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def lost(self) -> tuple[Lost, ...]:
        return (*self._losses, *(LostState(key) for key in self._lost_states))

    def lose_unknown(self, reason: str, position: JournalPosition) -> None:
        self._give([LostUnknown(reason)], position)

    # --- the walk ------------------------------------------------------------------------------------------------------

    def run(self, origin: JournalPosition) -> JournalPosition:
        """Reads from `origin` to the end, which it returns."""
        cursor = self._enter(origin)
        group = self._group_at(cursor)
        while True:
            end = cursor if group is None else group.end
            proof = self._proof(end)
            if proof is None:
                return self._finish(cursor, group)
            if group is not None:
                self._deliver_group(group)
                self._accept(group, proof.group)
            if proof.synced > end:
                self._fill(end, proof)
            cursor, group = proof.position, proof.group
            self.synced = proof.synced

    def _enter(self, origin: JournalPosition) -> JournalPosition:
        """Where reading begins: at `origin`, or with the first file there is if its file is gone."""
        wanted = max(origin.file, 1)
        if wanted in self._files:
            return JournalPosition(wanted, origin.offset)
        if origin.file > 0 or self._files:
            self.lose_unknown(f"the journal file with sequence {wanted} is gone", origin)
        return JournalPosition(min(self._files), BLOCK_BYTES) if self._files else origin

    def _finish(self, cursor: JournalPosition, group: Group | None) -> JournalPosition:
        """Nothing proves that the group at the cursor was synced: it counts if the disk, not a cache, holds all of it."""
        reader = self._reader(cursor.file)
        if reader is None:
            return cursor
        name = self._files[cursor.file].name
        end = cursor
        if group is not None:
            reader.forget(cursor.offset, group.end.offset - cursor.offset)
            entries, damaged = self._entries(group)
            if self._group_at(cursor) == group and not damaged:
                end = group.end
                self._give(entries, end)
                self._accept(group, None)
            else:
                self.torn = DamagedBytes(name, cursor.offset, group.end.offset - 1, "a torn tail")
        elif names_place(reader.read(cursor.offset, GROUP_HEAD_BYTES), cursor):
            self.torn = DamagedBytes(name, cursor.offset, cursor.offset + BLOCK_BYTES - 1, "a torn tail")
        if any(offset >= end.offset for offset in reader.failed):
            self.lose_unknown(f"{name} cannot be read behind the last whole group", end)
        if self._files[cursor.file].is_short:
            self.lose_unknown(f"{name} is shorter than it was made", end)
        return end

    def _accept(self, group: Group, follower: Group | None) -> None:
        self.start = group.start
        self.last = (group.position, group.head)
        if follower is not None and follower.before == group.position and follower.repeat_bytes:
            at = follower.position.offset + follower.repeat_at
            if self._read(follower.position.file, at, follower.repeat_bytes) != group.head:
                self._note(follower.position.file, at, follower.repeat_bytes, "the repeat of a table (nothing is lost)")

    # --- proofs --------------------------------------------------------------------------------------------------------

    def _group_at(self, position: JournalPosition) -> Group | None:
        reader = self._reader(position.file)
        if reader is None:
            return None
        group = reader.group_at(position.offset, key=self._key, sequence=position.file)
        return group if group is not None and group.start >= self.start and group.synced <= position else None

    def _proof(self, position: JournalPosition) -> _Proof | None:
        """The first group at or behind `position` that is whole, or the first later file, whichever comes first."""
        group = self._first_group(position)
        if group is not None:
            return _Proof(group.position, group.synced, group)
        for sequence, file in self._files.items():
            if sequence > position.file:
                head = JournalPosition(sequence, BLOCK_BYTES)
                group = self._group_at(head)
                if group is None and file.synced is not None:
                    return _Proof(head, file.synced, None)
                group = group or self._first_group(head)
                if group is not None:
                    return _Proof(group.position, group.synced, group)
        return None

    def _first_group(self, position: JournalPosition) -> Group | None:
        """The first whole group of the position's file at or behind it."""
        file = self._files.get(position.file)
        if file is None:
            return None
        places = range(position.offset, file.file_bytes, BLOCK_BYTES)
        groups = (self._group_at(JournalPosition(position.file, offset)) for offset in places)
        return next((group for group in groups if group is not None), None)

    # --- damage --------------------------------------------------------------------------------------------------------

    def _fill(self, position: JournalPosition, proof: _Proof) -> None:
        """Everything from `position` to the proof was synced and does not read: the repeats tell what it was, one group back at a time."""
        chain: list[Group] = []
        oldest = proof.group
        while oldest is not None and oldest.synced > position:
            oldest = self._repeated(oldest)
            if oldest is None or oldest.position < position:
                break
            chain.append(oldest)
        known_from = (chain[-1] if chain else proof.group) if proof.group is not None else None
        if known_from is None or known_from.synced > position:
            until = proof.synced if known_from is None else known_from.synced
            self._lose_range(position, until)
        for group in reversed(chain):
            self._note(group.position.file, group.position.offset, len(group.head), "the head or table of a group")
            self._deliver_group(group)
            self._accept(group, None)

    def _repeated(self, group: Group) -> Group | None:
        """The group before this one, from its repeat in this one."""
        before = self._files.get(group.before.file)
        if before is None or not group.repeat_bytes:
            return None
        repeat = self._read(group.position.file, group.position.offset + group.repeat_at, group.repeat_bytes)
        return decode_group(repeat, 0, key=self._key, position=group.before, file_bytes=before.file_bytes)

    def _lose_range(self, position: JournalPosition, until: JournalPosition) -> None:
        file = self._files.get(position.file)
        if file is not None:
            last = until.offset if until.file == position.file else file.file_bytes
            self._note(position.file, position.offset, max(last - position.offset, 1), "groups that nothing describes any more")
        self.lose_unknown(f"the journal from {position} to {until} cannot be read", until)

    def _note(self, sequence: int, offset: int, length: int, what: str) -> None:
        self.damage.append(DamagedBytes(self._files[sequence].name, offset, offset + length - 1, what))

    # --- entries -------------------------------------------------------------------------------------------------------

    def _entries(self, group: Group) -> tuple[list[Replayed], list[DamagedBytes]]:
        """The group's entries, with a loss in the place of each whose body is damaged."""
        file, offset = group.position
        body = self._read(file, offset, group.end.offset - offset)
        entries: list[Replayed] = []
        damaged: list[DamagedBytes] = []
        for row in group.rows:
            entry = _entry(row, body)
            entries.append(entry)
            if isinstance(entry, LostBatches | LostState):
                first = offset + row.at
                damaged.append(DamagedBytes(self._files[file].name, first, first + (row.length or 1) - 1, f"the body of {_named(row)}"))
        return entries, damaged

    def _give(self, entries: Sequence[Replayed], end: JournalPosition) -> None:
        for entry in entries:
            if isinstance(entry, StateEntry):
                # A value is whole, so a later one makes good the loss of an earlier one.
                self._lost_states.pop(entry.key, None)
            elif isinstance(entry, LostState):
                self._lost_states[entry.key] = None
            elif isinstance(entry, LostBatches):
                self._lose_batches(entry)
            elif isinstance(entry, LostUnknown):
                self._losses.append(entry)
        if entries:
            self._deliver(entries, end)

    def _deliver_group(self, group: Group) -> None:
        """A group that was synced: what is damaged of it is lost."""
        entries, damaged = self._entries(group)
        self.damage += damaged
        self._give(entries, group.end)

    def _lose_batches(self, lost: LostBatches) -> None:
        for at, other in enumerate(self._losses):
            if isinstance(other, LostBatches) and other[:2] == lost[:2] and other.end == lost.base:
                self._losses[at] = other._replace(end=lost.end)
                return
        self._losses.append(lost)

    def _read(self, sequence: int, offset: int, length: int) -> bytes:
        reader = self._reader(sequence)
        return reader.read(offset, length) if reader is not None else b""

    def _reader(self, sequence: int) -> FileReader | None:
        reader = self._readers.get(sequence)
        file = self._files.get(sequence)
        if reader is None and file is not None:
            for other in self._readers.values():
                other.release()
            reader = self._readers[sequence] = FileReader(self._ops, self._directory / file.name, file.file_bytes)
        return reader


def _entry(row: Row, group: bytes) -> Replayed:
    """The entry that the row describes, or its loss. A batch is checked twice: its bytes, and what its own header says of itself."""
    body = group[row.at : row.at + (row.length or 0)]
    if isinstance(row, BatchRow):
        lost = LostBatches(row.partition, row.epoch, row.base, row.end)
        if google_crc32c.value(body) != row.crc:
            return lost
        head = body[:BATCH_HEADER_BYTES]
        try:
            header = decode_header(head)
        except BadBatchError:
            return lost
        described = (header.partition, header.epoch, header.base, header.end, header.size)
        return Batch(header, head, body[BATCH_HEADER_BYTES:]) if described == (*row[:4], row.length) else lost
    if row.length is None:
        return StateEntry(row.key, None)
    return StateEntry(row.key, body) if google_crc32c.value(body) == row.crc else LostState(row.key)


def _named(row: Row) -> str:
    if isinstance(row, BatchRow):
        return f"a batch (partition {row.partition.hex()}, epoch {row.epoch}, offsets {row.base} to {row.end - 1})"
    return f"the state {row.key}"
