"""A stopped broker's directory, read from outside as a start would read it; nothing is written.

What counts is what the newest checkpoint and the journal behind it name. Bytes behind the end of a log file's data, journal files that are
spare, and log files that no checkpoint names (a flush that was broken off left them) hold nothing, and cannot be damaged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from streamq.model.batches import BATCH_HEADER_BYTES
from streamq.model.errors import CorruptDataError
from streamq.storage.checkpoint import Checkpoint, RunRow, load_checkpoints
from streamq.storage.disk_runs import DiskRuns
from streamq.storage.file_ops import FileOps
from streamq.storage.identity import DirectoryLock, load_identity
from streamq.storage.interface import DamagedRangeError, Identity
from streamq.storage.journal_recovery import Recovered, recover
from streamq.storage.log_file import LOG_HEADER_BYTES, LogFile, log_path
from streamq.storage.log_index import Anchor, FileIndex
from streamq.storage.log_reader import LogSource, Place, walk
from streamq.storage.restart import Replay, newest
from streamq.wire.batch_format import payload_is_whole

__all__ = ["Directory", "batches_in", "opened_offline"]

EVERYTHING: Final = 1 << 62


class Directory:
    """Identity, newest checkpoint and journal, read as a start would read them. `fault` says what is wrong with the identity, if there is
    none, and `faulty` where.
    """

    def __init__(self, path: Path, *, ops: FileOps) -> None:
        self.path = path
        self.ops = ops
        self.fault = ""
        self.faulty = "identity"
        self.identity: Identity | None = None
        try:
            self.identity = load_identity(path, ops=self.ops)
        except CorruptDataError as error:
            self.fault = error.message
            if error.message.startswith(str(path / "starts")):
                self.faulty = "starts"
        self.copies = [] if self.identity is None else load_checkpoints(self.ops, path, incarnation=self.identity.incarnation)
        self.checkpoint = newest(self.copies)
        self.replay: Replay | None = None
        self.recovered: Recovered | None = None
        if self.identity is not None and self.identity.starts > 0:
            empty = Checkpoint(0, self.identity.incarnation, 0, False, None, {}, {}, [])
            self.replay = Replay(DiskRuns(cache_bytes=EVERYTHING), self.checkpoint or empty)
            self.recovered = recover(
                path,
                incarnation=self.identity.incarnation,
                replay_from=self.checkpoint.replay_from if self.checkpoint else None,
                start_number=self.identity.starts + 1,
                deliver=self.replay.deliver,
                ops=self.ops,
            )

    @property
    def runs(self) -> list[RunRow]:
        return sorted(self.checkpoint.runs, key=lambda run: (run.partition, run.epoch)) if self.checkpoint else []

    def source(self, run: RunRow, file: LogFile) -> LogSource:
        assert self.identity is not None
        path = log_path(self.path, run.partition, file.name)
        index = FileIndex(file.base, LOG_HEADER_BYTES)
        return LogSource(path, self.identity.incarnation, run.partition, run.epoch, file, index, self.ops)

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.path))

    def size(self, path: Path) -> int:
        return self.ops.size(path) if self.ops.exists(path) else 0

    def content(self, path: Path) -> bytes:
        if not self.ops.exists(path):
            return b""
        fd = self.ops.open_to_read(path)
        try:
            return self.ops.pread(fd, self.ops.size(path), 0)
        finally:
            self.ops.close(fd)


def batches_in(source: LogSource, fd: int) -> Iterator[Place | DamagedRangeError]:
    """Every batch that has to be in the file, in order: where it is, if it is whole, else the damage; then on behind that."""
    anchor = Anchor(source.row.base, LOG_HEADER_BYTES)
    while anchor.offset < source.row.end:
        try:
            for place in walk(source, fd, anchor):
                payload = source.ops.pread(fd, place.header.payload_bytes, place.position + BATCH_HEADER_BYTES)
                if payload_is_whole(place.header, payload):
                    yield place
                else:
                    base, end = place.header.base, place.header.end
                    yield source.damaged(base=base, end=end, first_byte=place.position, last_byte=place.end_position - 1)
            return
        except DamagedRangeError as damage:
            yield damage
            anchor = Anchor(damage.end, damage.last_byte + 1)


@contextmanager
def opened_offline(path: Path, *, ops: FileOps | None = None) -> Iterator[Directory]:
    """The directory, locked: no broker runs there meanwhile. Raises UnavailableError if one does."""
    path = path.absolute()
    ops = ops or FileOps()
    lock = DirectoryLock(path, ops=ops)
    try:
        yield Directory(path, ops=ops)
    finally:
        lock.release()
