"""The write-ahead journal: every batch and every state of a broker, in one order, one sync for all (P-27).

It lives in preallocated files that are used again and again: a write and sync on written blocks costs half of what it costs at the end of
a growing file, and its worst case a tenth. A group (everything of one `write_group`) is written, synced, and only then is the next one
written; so each group proves the ones before it. When a file is full, the next one gets a new sequence number in its header, and that is
synced before the first group goes into it. `release` gives files back whose contents are durable elsewhere.

    prepare_spare          a new file is filled with zeros, synced, and only then gets its name
    write, sync            head, table, repeat, bodies; then fdatasync, and the position moves on
    write_mark             an empty group, soon after the last: proves that it was synced (P-29)
    release                files wholly before a checkpoint become spares

Any error of a write or a sync is final: the journal refuses everything afterwards (P-15). A full disk is no such error as long as it meets
`prepare_spare`: that is why there should always be a spare.

`write`, `sync` and what consists of them are called by one thread at a time; `prepare_spare` and `release` may run beside them.
"""

import errno
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from streamq.model.ids import Incarnation
from streamq.storage.file_ops import FileOps, replace_file, write_fully
from streamq.storage.interface import StorageFailedError
from streamq.storage.journal_files import FOLDER, MANIFEST
from streamq.storage.journal_format import (
    BLOCK_BYTES,
    ENTRY_BODY_BYTES_MAX,
    FILE_BYTES_MIN,
    GROUP_BODY_BYTES_MAX,
    GROUP_HEAD_BYTES,
    KEY_BYTES_MAX,
    NOWHERE,
    TABLE_BYTES_MAX,
    FileHeader,
    JournalEntry,
    JournalPosition,
    Manifest,
    StateEntry,
    encode_file_header,
    encode_group_head,
    encode_manifest,
    encode_row,
    file_name,
    padded,
)
from streamq.storage.journal_recovery import BEGINNING, Recovered
from streamq.storage.metrics import StorageMetrics

__all__ = ["Journal", "JournalEntry", "JournalPosition", "StateEntry"]

FILE_BYTES: Final = 64 << 20
ZEROS: Final = bytes(1 << 20)
FIRST: Final = JournalPosition(1, BLOCK_BYTES)
DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Journal:
    """A journal open for writing.

    Invariants: everything before `position` is durable; at most one group lies behind it; the files in use have consecutive sequence
    numbers, the last of them `position.file` once a group was written; no file in use is a spare.
    """

    def __init__(self, directory: Path, *, incarnation: Incarnation, recovered: Recovered, file_bytes: int, ops: FileOps | None) -> None:
        """Use `create` or `resume`."""
        if file_bytes < FILE_BYTES_MIN or file_bytes % BLOCK_BYTES:
            raise ValueError(f"a journal file has at least {FILE_BYTES_MIN} bytes, a multiple of {BLOCK_BYTES}, not {file_bytes}")
        self.metrics = StorageMetrics()
        self._ops = ops or FileOps()
        self._folder = directory / FOLDER
        self._incarnation = incarnation
        self._key = recovered.key or self._ops.random_bytes(16)
        self._file_bytes = file_bytes
        self._table_bytes_max = min(TABLE_BYTES_MAX, file_bytes // 8)
        self._start = recovered.start
        self._position = recovered.end
        self._synced = recovered.synced
        self._released = recovered.replay_from
        self._last = recovered.last
        self._unsynced: tuple[int, JournalPosition, bytes, int] | None = None  # the group that was written: where, its head, its end
        self._is_marked = False
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._numbers = recovered.numbers
        self._manifest_is_whole = recovered.manifest_is_whole
        self._in_use = {file.sequence: (file.number, file.file_bytes) for file in recovered.files if file.state == "in use"}
        spares = (file for file in recovered.files if file.state == "spare" and not file.is_short)
        self._spares = [file.number for file in spares if file.file_bytes == file_bytes]
        keep = {number for number, _ in self._in_use.values()} | set(self._spares)
        self._vacant = [file.number for file in recovered.files if file.number not in keep]
        self._foreign = {file.number for file in recovered.files if file.state == "foreign"}
        self._may_overwrite = not recovered.lost
        self._fd: int | None = None

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        incarnation: Incarnation,
        start_number: int,
        file_bytes: int = FILE_BYTES,
        files: int = 2,
        ops: FileOps | None = None,
    ) -> "Journal":
        """A new, empty journal in `directory/journal`, durable when this returns; what lay there is removed.

        Only for a directory that was never started (its count of starts is 0), and before the first start is counted: a crash in between
        then makes it anew, and from the first counted start on a missing journal is a loss.
        """
        ops = ops or FileOps()
        folder = directory / FOLDER
        ops.make_directory(folder)
        for name in ops.names(folder):
            ops.unlink(folder / name)
        nothing = Recovered((), BEGINNING, BEGINNING, None, (), (), BEGINNING, start_number, b"", (NOWHERE, b""), 0, False)
        journal = cls(directory, incarnation=incarnation, recovered=nothing, file_bytes=file_bytes, ops=ops)
        for wanted in range(1, files + 1):
            journal._prepare(wanted)
        ops.sync_directory(directory)
        return journal

    @classmethod
    def resume(
        cls, directory: Path, recovered: Recovered, *, incarnation: Incarnation, file_bytes: int = FILE_BYTES, ops: FileOps | None = None
    ) -> "Journal":
        """Goes on where `recover` ended. What was read is durable when this returns; nothing is overwritten before the first group.

        If anything is lost, the first group must hold the owner's limbo (P-29): once it is durable, damaged files are used again.
        """
        journal = cls(directory, incarnation=incarnation, recovered=recovered, file_bytes=file_bytes, ops=ops)
        number = journal._in_use.get(recovered.end.file)
        if number is not None:
            try:
                journal._fd = journal._ops.open(journal._folder / file_name(number[0]))
                journal._ops.fdatasync(journal._fd)
            except OSError as error:
                journal._fail(error)
        return journal

    # --- what there is -------------------------------------------------------------------------------------------------

    @property
    def position(self) -> JournalPosition:
        """The end of the last durable group: what a checkpoint of everything written so far names as `replay_from`."""
        return self._position

    @property
    def start(self) -> int:
        """The number of this start, as its groups carry it."""
        return self._start

    @property
    def bytes_in_use(self) -> int:
        """What a restart would read, at most."""
        oldest = max(self._released, FIRST)
        return max(0, (self._position.file - oldest.file) * self._file_bytes + self._position.offset - oldest.offset)

    @property
    def files(self) -> int:
        """How many files there are on the disk, spares included."""
        with self._lock:
            return len(self._in_use) + len(self._spares)

    # --- writing -------------------------------------------------------------------------------------------------------

    def write(self, entries: Sequence[JournalEntry]) -> None:
        """Blocks until all entries are handed to the operating system, in their order (P-37). Only `sync` may follow.

        Entries beyond one group's bounds go into several groups, each written and synced before the next; only the last is left to `sync`.
        The first group after a start carries the new number of the start, so what lay behind a cut never comes back. Raises ValueError,
        with nothing written, for an entry beyond the bounds; StorageFailedError, final, when a write or a sync fails.
        """
        self._refuse_if_failed()
        assert self._unsynced is None, "a group was written and not synced"
        parts = list(self._parts(entries))
        try:
            for at, (rows, buffers, body_bytes) in enumerate(parts):
                if at:
                    self._sync()
                self._write(rows, buffers, body_bytes)
            self._is_marked = not entries
        except OSError as error:
            self._fail(error)
        except BaseException:
            self._failure = "a write was broken off"
            raise

    def sync(self) -> JournalPosition:
        """Blocks until all that was written is durable; returns the position behind it. Raises StorageFailedError, final."""
        self._refuse_if_failed()
        try:
            self._sync()
            if not self._may_overwrite or not self._manifest_is_whole:
                self._after_first_group()
        except OSError as error:
            self._fail(error)
        except BaseException:
            self._failure = "a sync was broken off"
            raise
        return self._position

    def write_group(self, entries: Sequence[JournalEntry]) -> JournalPosition:
        """`write` and `sync`: blocks until all entries are durable, in their order; returns the position behind them."""
        self.write(entries)
        return self.sync()

    def write_mark(self) -> None:
        """Blocks until it is recorded that everything so far is synced (P-29): soon after the last group, and at a clean stop.

        Writes nothing if the last group is such a mark already.
        """
        if not self._is_marked:
            self.write_group(())

    def close(self) -> None:
        """Gives the file back; nothing is written."""
        self._failure = self._failure or "the journal is closed"
        if self._fd is not None:
            self._ops.close(self._fd)
            self._fd = None

    def _parts(self, entries: Sequence[JournalEntry]) -> Iterator[tuple[list[bytes], list[bytes], int]]:
        room = self._file_bytes - BLOCK_BYTES - 2 * (GROUP_HEAD_BYTES + self._table_bytes_max) - BLOCK_BYTES
        body_max = min(GROUP_BODY_BYTES_MAX, room)
        rows: list[bytes] = []
        buffers: list[bytes] = []
        table_bytes = body_bytes = 0
        for entry in entries:
            row, body, length = encode_row(entry)
            if length > min(ENTRY_BODY_BYTES_MAX, body_max) or len(row) > KEY_BYTES_MAX:
                raise ValueError(f"an entry of {length} bytes (described by {len(row)}) does not fit into the journal")
            if rows and (body_bytes + length > body_max or table_bytes + len(row) > self._table_bytes_max):
                yield rows, buffers, body_bytes
                rows, buffers, table_bytes, body_bytes = [], [], 0, 0
            rows.append(row)
            buffers += body
            table_bytes += len(row)
            body_bytes += length
        yield rows, buffers, body_bytes

    def _write(self, rows: list[bytes], buffers: list[bytes], body_bytes: int) -> None:
        before, repeat = self._last
        if len(repeat) > GROUP_HEAD_BYTES + self._table_bytes_max:
            repeat = b""
        length = GROUP_HEAD_BYTES + sum(map(len, rows)) + len(repeat) + body_bytes
        fd = self._file_with_room(padded(length))
        position = self._position
        head = encode_group_head(
            key=self._key, position=position, start=self._start, synced=self._synced, before=before, rows=rows,
            repeat_bytes=len(repeat), body_bytes=body_bytes,
        )  # fmt: skip
        end = write_fully(self._ops, fd, [head + repeat, *buffers, ZEROS[: padded(length) - length]], position.offset)
        assert end == position.offset + padded(length)
        self._unsynced = (fd, position, head, end)
        self.metrics.wrote_group(len(rows), padded(length))

    def _sync(self) -> None:
        assert self._unsynced is not None, "nothing was written"
        fd, position, head, end = self._unsynced
        began_us = self._ops.now_us()
        self._ops.fdatasync(fd)
        self.metrics.journal_syncs += 1
        self.metrics.journal_sync_seconds.record(self._ops.now_us() - began_us)
        self._unsynced = None
        self._last = (position, head)
        self._synced = self._position = JournalPosition(position.file, end)

    def _file_with_room(self, length: int) -> int:
        """The file to write the next group to; the position moves to the next file if this one has no room."""
        in_use = self._in_use.get(self._position.file)
        if self._fd is not None and in_use is not None and self._position.offset + length <= in_use[1]:
            return self._fd
        while True:
            with self._lock:
                number = self._spares.pop(0) if self._spares else None
            if number is not None:
                break
            self._prepare()
        sequence = max(self._position.file, *self._in_use, 0) + 1
        fd = self._ops.open(self._folder / file_name(number))
        header = FileHeader(self._incarnation, self._key, self._file_bytes, sequence, self._synced)
        write_fully(self._ops, fd, [encode_file_header(header)], 0)
        self._ops.fdatasync(fd)
        if self._fd is not None:
            self._ops.close(self._fd)
        self._fd = fd
        with self._lock:
            self._in_use[sequence] = (number, self._file_bytes)
        self._position = JournalPosition(sequence, BLOCK_BYTES)
        self.metrics.journal_files_begun += 1
        return fd

    def _after_first_group(self) -> None:
        """P-29: what was lost is on record now, so files that prove nothing any more may be made anew."""
        with self._preparing:
            if not self._manifest_is_whole:
                self._write_manifest()
            self._may_overwrite = True

    # --- files ---------------------------------------------------------------------------------------------------------

    def spare_needed(self) -> bool:
        """Whether `prepare_spare` should be called soon, in whatever thread.

        Also for each file that proves nothing any more: as long as it lies there every start reports its loss anew.
        """
        with self._lock:
            return self._failure is None and (not self._spares or self._has_useless_files)

    @property
    def has_spare(self) -> bool:
        with self._lock:
            return bool(self._spares)

    @property
    def _has_useless_files(self) -> bool:
        """P-29: only once what was lost is on record they may be made anew."""
        return bool(self._vacant) and self._may_overwrite

    def prepare_spare(self) -> bool:
        """Blocks until there is a spare, or one more. False if the disk is full: then refuse new batches and try again later.

        May run beside `write_group`, which makes a spare itself when it needs one and there is none. Raises StorageFailedError, final.
        """
        self._refuse_if_failed()
        try:
            self._prepare()
        except OSError as error:
            if error.errno in DISK_FULL:
                return False
            self._fail(error)
        return True

    def release(self, before: JournalPosition) -> None:
        """Everything before this position is durable elsewhere, and so is the checkpoint that will name it as `replay_from`."""
        with self._lock:
            self._released = max(self._released, before)
            for sequence in [sequence for sequence in self._in_use if sequence < min(before.file, self._position.file)]:
                number, file_bytes = self._in_use.pop(sequence)
                (self._spares if file_bytes == self._file_bytes else self._vacant).append(number)

    def _prepare(self, wanted: int = 1) -> None:
        """Makes a spare, of a file that proves nothing any more if there is one, unless there are as many as wanted."""
        with self._preparing:
            with self._lock:
                if len(self._spares) >= wanted and not self._has_useless_files:
                    return
                number = self._vacant[0] if self._has_useless_files else self._numbers + 1
            path = self._folder / file_name(number)
            self._ops.make_directory(self._folder)
            if number in self._foreign:
                self._ops.rename(path, path.with_suffix(".foreign"))
            self._fill(path)
            if number > self._numbers:
                self._numbers = number
                self._write_manifest()
            with self._lock:
                if self._vacant and self._vacant[0] == number:
                    self._vacant.pop(0)
                self._spares.append(number)
                self.metrics.journal_files_made += 1
                self.metrics.journal_made_bytes += self._file_bytes

    def _fill(self, path: Path) -> None:
        """Written, not only allocated: blocks never written are slow to sync. Synced piece by piece, not to hold up the group commits."""
        fresh = path.with_suffix(".new")
        fd = self._ops.open(fresh, create=True)
        try:
            header = encode_file_header(FileHeader(self._incarnation, self._key, self._file_bytes, 0, NOWHERE))
            offset = write_fully(self._ops, fd, [header], 0)
            while offset < self._file_bytes:
                offset = write_fully(self._ops, fd, [ZEROS[: self._file_bytes - offset]], offset)
                self._ops.fdatasync(fd)
            self._ops.fsync(fd)
        except OSError as error:
            if error.errno in DISK_FULL:
                self._ops.unlink(fresh)
            raise
        finally:
            self._ops.close(fd)
        self._ops.rename(fresh, path)
        self._ops.sync_directory(self._folder)

    def _write_manifest(self) -> None:
        replace_file(self._ops, self._folder / MANIFEST, encode_manifest(Manifest(self._incarnation, self._key, self._numbers)))
        self._manifest_is_whole = True

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise StorageFailedError(self._failure)

    def _fail(self, error: OSError) -> NoReturn:
        # P-15: what a failed sync has left in the cache is not on the disk, and a second sync would not say so.
        self._failure = f"the journal in {self._folder} failed: {error}"
        raise StorageFailedError(self._failure) from error
