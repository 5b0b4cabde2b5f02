"""The files of a journal as they lie on the disk: which there are, which are in use, and how they are read where they are damaged.

A file's sequence number is told by its header. If the header is damaged, the groups in the file tell it, since each names its file. A file
of which nothing can be read may have held anything: that is a fault, and so are a file that is missing and one of another journal.
"""

from pathlib import Path
from typing import Final, Literal, NamedTuple

from streamq.model.ids import Incarnation
from streamq.storage.file_ops import FileOps
from streamq.storage.journal_format import (
    BLOCK_BYTES,
    GROUP_HEAD_BYTES,
    FileHeader,
    Group,
    JournalPosition,
    Manifest,
    decode_file_header,
    decode_group,
    decode_manifest,
    file_name,
    head_bytes,
    is_header_of,
)

__all__ = ["FOLDER", "MANIFEST", "FileReader", "FileState", "JournalFile", "Survey", "survey_files"]

FOLDER: Final = "journal"
MANIFEST: Final = "manifest"
WINDOW_BYTES: Final = 1 << 20
FileState = Literal["in use", "spare", "unreadable", "missing", "foreign"]


class JournalFile(NamedTuple):
    """A physical file. `name` is relative to the data directory; `sequence` is 0 if the file was never used or nobody can tell."""

    number: int
    name: str
    sequence: int
    file_bytes: int
    state: FileState
    synced: JournalPosition | None = None
    """What a whole header says: the journal was durable up to here when the file was taken into use."""
    is_short: bool = False
    """The file ends before its preallocated size: no crash does that."""


class Survey(NamedTuple):
    """`key` is empty if no manifest and no header tells it; `numbers` is the highest number that a file has or should have."""

    key: bytes
    files: tuple[JournalFile, ...]
    numbers: int
    manifest_is_whole: bool
    faults: tuple[str, ...]


class FileReader:
    """Reads a file through a window. What cannot be read or lies behind the file's end is zeros; `failed` names blocks that cannot."""

    def __init__(self, ops: FileOps, path: Path, file_bytes: int) -> None:
        self._ops = ops
        self._fd = ops.open_to_read(path)
        self._window = b""
        self._window_at = 0
        self.file_bytes = file_bytes
        self.failed: list[int] = []

    def close(self) -> None:
        self._ops.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        at = offset - self._window_at
        if at < 0 or at + length > len(self._window):
            self._window = self._load(offset, max(length, min(WINDOW_BYTES, self.file_bytes - offset)))
            self._window_at = offset
            at = 0
        return self._window[at : at + length]

    def release(self) -> None:
        """Gives the window's memory back."""
        self._window = b""

    def forget(self, offset: int, length: int) -> None:
        """The next read of this range asks the disk, not a cache."""
        self._window = b""
        self._ops.drop_cache(self._fd, offset, length)

    def group_at(self, offset: int, *, key: bytes, sequence: int | None) -> Group | None:
        """The group that was written for this very place, if its head and table are whole. Without a sequence: in any use of the file."""
        if offset + GROUP_HEAD_BYTES > self.file_bytes:
            return None
        length = head_bytes(self.read(offset, GROUP_HEAD_BYTES))
        if not length:
            return None
        head = self.read(offset, length)
        position = None if sequence is None else JournalPosition(sequence, offset)
        group = decode_group(head, 0, key=key, position=position, file_bytes=self.file_bytes)
        return group if group is not None and group.position.offset == offset else None

    def _load(self, offset: int, length: int) -> bytes:
        try:
            return self._ops.pread(self._fd, length, offset).ljust(length, b"\0")
        except OSError:
            blocks = [self._load_block(at) for at in range(offset // BLOCK_BYTES * BLOCK_BYTES, offset + length, BLOCK_BYTES)]
            start = offset % BLOCK_BYTES
            return b"".join(blocks)[start : start + length]

    def _load_block(self, offset: int) -> bytes:
        try:
            return self._ops.pread(self._fd, BLOCK_BYTES, offset).ljust(BLOCK_BYTES, b"\0")
        except OSError:
            self.failed.append(offset)
            return bytes(BLOCK_BYTES)


def survey_files(ops: FileOps, directory: Path, *, incarnation: Incarnation, oldest: int) -> Survey:
    """Looks at every file of `directory/journal`; those with a sequence from `oldest` on are in use. Writes nothing."""
    folder = directory / FOLDER
    names = ops.names(folder)
    manifest = _read_manifest(ops, folder) if MANIFEST in names else None
    faults = [] if names else ["there is no journal"]
    if manifest is not None and manifest.incarnation != incarnation:
        faults.append("the manifest is of another journal")
        manifest = None
    present = {int(name.partition(".")[0]) for name in names if name.endswith(".journal") and name.partition(".")[0].isdigit()}
    numbers = max([*present, manifest.files if manifest else 0])
    blocks = {number: _read_header_block(ops, folder / file_name(number)) for number in sorted(present)}
    headers = {number: decode_file_header(block) for number, block in blocks.items()}
    key = _key(manifest, headers, incarnation)
    if not key and names:
        faults.append("neither the manifest nor any file header can be read")
    files: list[JournalFile] = []
    for number in range(1, numbers + 1):
        if number not in present:
            file = JournalFile(number, f"{FOLDER}/{file_name(number)}", 0, 0, "missing")
        else:
            file = _identify(ops, directory, number, headers[number], blocks[number], key=key, incarnation=incarnation, oldest=oldest)
        if file.sequence and any(other.sequence == file.sequence for other in files):
            file = file._replace(sequence=0, state="unreadable")
        if file.state in ("missing", "foreign", "unreadable"):
            faults.append(f"{file.name} is {file.state}")
        files.append(file)
    return Survey(key, tuple(files), numbers, manifest is not None, tuple(faults))


def _read_manifest(ops: FileOps, folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    try:
        fd = ops.open_to_read(path)
        try:
            return decode_manifest(ops.pread(fd, BLOCK_BYTES, 0))
        finally:
            ops.close(fd)
    except OSError:
        return None


def _read_header_block(ops: FileOps, path: Path) -> bytes:
    reader = FileReader(ops, path, BLOCK_BYTES)
    try:
        return reader.read(0, BLOCK_BYTES)
    finally:
        reader.close()


def _key(manifest: Manifest | None, headers: dict[int, FileHeader | None], incarnation: Incarnation) -> bytes:
    if manifest is not None:
        return manifest.key
    return next((h.key for h in headers.values() if h is not None and h.incarnation == incarnation), b"")


def _identify(
    ops: FileOps,
    directory: Path,
    number: int,
    header: FileHeader | None,
    block: bytes,
    *,
    key: bytes,
    incarnation: Incarnation,
    oldest: int,
) -> JournalFile:
    name = f"{FOLDER}/{file_name(number)}"
    size = ops.size(directory / name)
    if header is not None:
        is_ours = header.incarnation == incarnation and header.key == key
        state: FileState = "foreign" if not is_ours else "in use" if header.sequence >= max(oldest, 1) else "spare"
        sequence = header.sequence if is_ours else 0
        return JournalFile(number, name, sequence, header.file_bytes, state, header.synced, size < header.file_bytes)
    file = JournalFile(number, name, 0, size, "unreadable")
    if not key:
        return file
    reader = FileReader(ops, directory / name, size)
    try:
        first = reader.group_at(BLOCK_BYTES, key=key, sequence=None)
        if first is not None:
            # The header was torn when the file was to be used again, or is damaged; the first group was written after the header.
            sequence = first.position.file
            return file._replace(sequence=sequence, state="in use" if sequence >= oldest else "spare")
        if is_header_of(block, incarnation=incarnation, key=key) and not any(reader.read(BLOCK_BYTES, BLOCK_BYTES)):
            return file._replace(state="spare")
        groups = (reader.group_at(at, key=key, sequence=None) for at in range(2 * BLOCK_BYTES, size, BLOCK_BYTES))
        sequence = max((group.position.file for group in groups if group is not None), default=0)
        # Only groups of an earlier use can be read: whether the file was in use, nobody can tell.
        return file._replace(sequence=sequence, state="in use") if sequence >= max(oldest, 1) else file
    finally:
        reader.close()
