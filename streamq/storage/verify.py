"""`verify` checks every byte that counts in a stopped broker's directory, and names each range that is not as it was written.

`dump` and `files`, which show what is there, belong to the same interface; their code lies beside this one, in `dump`.
"""

from pathlib import Path
from typing import NamedTuple

from streamq.model.batches import BatchHeader
from streamq.storage.checkpoint import COPIES, RunRow
from streamq.storage.dump import dump, files
from streamq.storage.file_ops import FileOps
from streamq.storage.interface import DamagedRangeError, Identity, LostUnknown
from streamq.storage.journal_files import FOLDER, MANIFEST
from streamq.storage.journal_format import decode_manifest
from streamq.storage.journal_recovery import Recovered
from streamq.storage.log_file import LOG_HEADER_BYTES, LogFile, LogFileHeader, decode_file_header
from streamq.storage.log_index import decode_index, index_path
from streamq.storage.log_reader import LogSource
from streamq.storage.offline import Directory, batches_in, opened_offline
from streamq.storage.restart import checkpoint_losses

__all__ = ["Finding", "Report", "dump", "files", "verify"]


class Finding(NamedTuple):
    """Bytes `first_byte` to `last_byte` of a file (its name relative to the directory) are not what was written."""

    file: str
    first_byte: int
    last_byte: int
    what: str


class Report(NamedTuple):
    """`files` are those that were checked; batches and records are counted where they are whole."""

    findings: tuple[Finding, ...]
    files: tuple[str, ...]
    batches: int
    records: int


def verify(directory: Path, *, ops: FileOps | None = None) -> Report:
    """Blocks. Raises UnavailableError if a broker runs there, NotFoundError or AlreadyExistsError if this is no broker's directory."""
    with opened_offline(directory, ops=ops) as opened:
        return _Verification(opened).report()


class _Verification:
    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._findings: list[Finding] = []
        self._files: list[str] = []
        self._batches = 0
        self._records = 0

    def report(self) -> Report:
        directory = self._directory
        self._files += ["identity", "starts"]
        if directory.identity is None:
            self._find(directory.path / directory.faulty, 0, None, directory.fault)
        elif directory.recovered is not None:
            self._check_checkpoints(directory.identity)
            self._check_journal(directory.recovered)
            for run in directory.runs:
                for file in run.files:
                    self._check_log_file(run, file)
        return Report(tuple(self._findings), tuple(self._files), self._batches, self._records)

    def _find(self, path: Path, first: int, last: int | None, what: str) -> None:
        """`last` None: to the end of the file."""
        if last is None:
            last = max(first, self._directory.size(path) - 1)
        self._findings.append(Finding(self._directory.name(path), first, last, what))

    def _check_checkpoints(self, identity: Identity) -> None:
        directory = self._directory
        for copy in directory.copies:
            self._files.append(copy.name)
            if copy.checkpoint is None:
                self._find(directory.path / copy.name, 0, None, f"a copy of the checkpoint: {copy.fault}")
        if directory.checkpoint is not None:
            for loss in checkpoint_losses(directory.copies, identity.starts + 1):
                assert isinstance(loss, LostUnknown)
                self._find(directory.path / COPIES[0], 0, None, loss.reason)

    def _check_journal(self, recovered: Recovered) -> None:
        """What recovery has met, and what it could not pin to bytes. Batches count that lie in no log file yet."""
        directory = self._directory
        self._files += [file.name for file in recovered.files if file.state != "missing"]
        manifest = directory.path / FOLDER / MANIFEST
        if decode_manifest(directory.content(manifest)) is None:
            self._find(manifest, 0, None, "the journal's manifest")
        for file in recovered.files:
            if file.state in ("missing", "foreign", "unreadable"):
                self._find(directory.path / file.name, 0, None, f"a journal file that is {file.state}")
        self._findings += [Finding(damage.file, damage.first_byte, damage.last_byte, damage.what) for damage in recovered.damage]
        if not self._findings:
            for loss in recovered.lost:
                self._find(directory.path / FOLDER, 0, 0, loss.reason if isinstance(loss, LostUnknown) else f"lost: {loss}")
        assert directory.replay is not None
        for partition in directory.replay.runs.partitions():
            for run in directory.replay.runs.of(partition):
                for batch in run.window.since(run.flushed):
                    self._count(batch.header)

    def _check_log_file(self, run: RunRow, file: LogFile) -> None:
        directory = self._directory
        source = directory.source(run, file)
        try:
            fd = directory.ops.open_to_read(source.path)
        except FileNotFoundError:
            self._find(
                source.path, 0, file.size - 1, f"a log file that is missing (epoch {run.epoch}, offsets {file.base} to {file.end - 1})"
            )
            return
        self._files.append(directory.name(source.path))
        try:
            header = decode_file_header(directory.ops.pread(fd, LOG_HEADER_BYTES, 0))
            if header != LogFileHeader(source.incarnation, run.partition, run.epoch, file.base):
                self._find(source.path, 0, LOG_HEADER_BYTES - 1, "the header of a log file (it heals when the file is read)")
            begins: dict[int, int] = {file.end: file.size}
            for found in batches_in(source, fd):
                if isinstance(found, DamagedRangeError):
                    what = f"batches of epoch {run.epoch}, offsets {found.base} to {found.end - 1}"
                    self._find(source.path, found.first_byte, found.last_byte, what)
                else:
                    begins[found.header.base] = found.position
                    begins[found.header.end] = found.end_position
                    self._count(found.header)
        finally:
            directory.ops.close(fd)
        self._check_index(source, begins)

    def _check_index(self, source: LogSource, begins: dict[int, int]) -> None:
        """A sidecar may be missing or end early; what it says has to be true, or it is built anew (and only then)."""
        path = index_path(source.path)
        if not self._directory.ops.exists(path):
            return
        self._files.append(self._directory.name(path))
        index = decode_index(
            self._directory.content(path),
            incarnation=source.incarnation,
            file=f"{source.path.parent.name}/{source.path.name}",
            base=source.row.base,
            first_position=LOG_HEADER_BYTES,
        )
        if index is None:
            self._find(path, 0, None, "an index (it heals when the file is read)")
        elif any(begins.get(anchor.offset, anchor.position) != anchor.position for anchor in index.anchors()):
            self._find(path, 0, None, "an index that points elsewhere (it heals when the file is read)")

    def _count(self, header: BatchHeader) -> None:
        self._batches += 1
        self._records += header.records
