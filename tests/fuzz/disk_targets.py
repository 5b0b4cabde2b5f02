"""What storage reads from its files: heads and tables, checkpoints, sidecars, identities, and whole files read as a restart reads them.

Under a checksum that holds lies what this program wrote; where a decoder says so (the table of a journal's group, the entries of an index)
its target has no seal, and what does not unpack there is a bug and ends the broker.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from streamq.log.idempotence import IdempotenceTable, TableSnapshot
from streamq.log.replica_state import ReplicaState
from streamq.model.batches import Batch
from streamq.model.errors import AlreadyExistsError, CorruptDataError, ProtocolError
from streamq.model.limits import DEDUP_BATCHES
from streamq.model.registers import Voters
from streamq.storage import checkpoint, identity, journal_format, log_file, log_index
from streamq.storage.file_ops import FileOps
from streamq.storage.interface import DamagedRangeError
from streamq.storage.journal_format import BLOCK_BYTES, FILE_BYTES_MIN, NOWHERE, JournalPosition, StateEntry
from streamq.storage.journal_recovery import Replayed, recover
from streamq.storage.log_file import LOG_HEADER_BYTES, LogFile, LogFileHeader
from streamq.storage.log_index import Anchor, FileIndex
from streamq.storage.log_reader import LogSource, find_offset, find_time, read_batches, read_headers
from streamq.wire.batch_format import payload_is_whole, split_batches
from streamq.wire.codec import decode_value, encode
from tests.fuzz.seals import seal_batches, sealed_behind
from tests.fuzz.target import Refused, Target
from tests.fuzz.wild import Wild
from tests.fuzz.wild_batches import PARTITION, wild_batches

__all__ = ["DISK_TARGETS"]

INCARNATION: Final = b"incarnation-of-x"
KEY: Final = b"key-of-a-journal"
DIRECTORY: Final = Path("/fuzzed")
LOG_NAME: Final = "1-0.log"
FILE_OF_INDEX: Final = f"{PARTITION.hex()}/{LOG_NAME}"
LOAD_ERRORS: Final = (CorruptDataError, AlreadyExistsError)
FIRST: Final = Anchor(0, LOG_HEADER_BYTES)


class ReadOnlyOps(FileOps):
    """Files that are bytes; nothing can be written."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = {DIRECTORY / name: content for name, content in files.items()}
        self._open = list(self._files)

    def open(self, path: Path, *, create: bool = False) -> int:
        raise PermissionError(13, "read-only")

    def open_to_read(self, path: Path) -> int:
        if path not in self._files:
            raise FileNotFoundError(2, str(path))
        return self._open.index(path)

    def close(self, fd: int) -> None:
        pass

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        assert length >= 0
        assert offset >= 0
        return self._files[self._open[fd]][offset : offset + length]

    def drop_cache(self, fd: int, offset: int, length: int) -> None:
        pass

    def size(self, path: Path) -> int:
        return len(self._files[path])

    def exists(self, path: Path) -> bool:
        return path in self._files

    def is_file(self, path: Path) -> bool:
        return path in self._files

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self._files if path.parent == directory)


# --- the journal ---------------------------------------------------------------------------------------------------------------


def journal_manifest(data: bytes) -> None:
    manifest = journal_format.decode_manifest(data)
    if manifest is None:
        raise Refused
    assert journal_format.encode_manifest(manifest) == data


def journal_file_header(data: bytes) -> None:
    header = journal_format.decode_file_header(data)
    journal_format.is_header_of(data, incarnation=INCARNATION, key=KEY)
    if header is None:
        raise Refused
    assert journal_format.decode_file_header(journal_format.encode_file_header(header)) == header


def journal_group(data: bytes) -> None:
    journal_format.head_bytes(data)
    journal_format.names_place(data, JournalPosition(1, BLOCK_BYTES))
    group = journal_format.decode_group(data, 0, key=KEY, position=None, file_bytes=1 << 40)
    if group is None:
        raise Refused
    assert data.startswith(group.head)
    assert journal_format.head_bytes(data) == len(group.head) == group.repeat_at
    ends = [row.at + (row.length or 0) for row in group.rows]
    assert ends == sorted(ends)
    assert journal_format.padded(max(ends, default=0)) <= group.end.offset - group.position.offset


def journal(data: bytes) -> None:
    """A journal file with anything in it, behind a whole manifest: what is delivered was written so."""
    manifest = journal_format.encode_manifest(journal_format.Manifest(INCARNATION, KEY, 1))
    content = data[:FILE_BYTES_MIN].ljust(FILE_BYTES_MIN, b"\0")
    ops = ReadOnlyOps({"journal/manifest": manifest, "journal/000001.journal": content})
    delivered: list[Replayed] = []

    def deliver(entries: Sequence[Replayed], end: JournalPosition) -> None:
        delivered.extend(entries)

    found = recover(DIRECTORY, incarnation=INCARNATION, replay_from=None, start_number=2, deliver=deliver, ops=ops)
    assert found.end <= JournalPosition(1, FILE_BYTES_MIN)
    for entry in delivered:
        if isinstance(entry, Batch):
            assert payload_is_whole(entry.header, entry.payload)
        elif isinstance(entry, StateEntry) and entry.value is not None:
            assert entry.value == _value_under(entry.key)
    if found.lost or found.torn or found.damage:
        raise Refused


def _value_under(key: str) -> bytes:
    """States of these journals say what they are, so that one that was not written so is recognised."""
    return key.encode() * 3


def _entries(wild: Wild) -> list[Batch | StateEntry]:
    rng = wild.rng
    entries: list[Batch | StateEntry] = list(split_batches(wild_batches(wild, rng.randrange(3))))
    for _ in range(rng.randrange(3)):
        key = rng.choice(("voters", "acceptor/x", "replica/y", "é" * rng.randrange(1, 40)))
        entries.append(StateEntry(key, rng.choice((None, _value_under(key)))))
    return entries


def _valid_manifest(wild: Wild) -> bytes:
    return journal_format.encode_manifest(journal_format.Manifest(INCARNATION, KEY, wild.rng.choice((0, 1, 9, (1 << 32) - 1))))


def _valid_file_header(wild: Wild) -> bytes:
    numbers = [wild.rng.choice((0, 1, FILE_BYTES_MIN, (1 << 64) - 1)) for _ in range(4)]
    header = journal_format.FileHeader(INCARNATION, KEY, numbers[0], numbers[1], JournalPosition(numbers[2], numbers[3]))
    return journal_format.encode_file_header(header)


def _seal_file_header(data: bytes) -> bytes:
    return sealed_behind(journal_format.FILE_MAGIC, end=journal_format._file.size)(data)


def _group(entries: list[Batch | StateEntry], position: JournalPosition, before: JournalPosition, repeat: bytes) -> tuple[bytes, bytes]:
    """The group, padded, and its head with the table."""
    rows: list[bytes] = []
    bodies: list[bytes] = []
    for entry in entries:
        row, body, _ = journal_format.encode_row(entry)
        rows.append(row)
        bodies += body
    body_bytes = sum(map(len, bodies))
    head = journal_format.encode_group_head(
        key=KEY, position=position, start=1, synced=position if before != NOWHERE else NOWHERE, before=before, rows=rows,
        repeat_bytes=len(repeat), body_bytes=body_bytes,
    )  # fmt: skip
    content = b"".join([head, repeat, *bodies])
    return content.ljust(journal_format.padded(len(content)), b"\0"), head


def _valid_group(wild: Wild) -> bytes:
    return _group(_entries(wild), JournalPosition(1, BLOCK_BYTES), NOWHERE, b"")[0]


def _valid_journal(wild: Wild) -> bytes:
    header = journal_format.FileHeader(INCARNATION, KEY, FILE_BYTES_MIN, 1, NOWHERE)
    content = journal_format.encode_file_header(header)
    before, head = NOWHERE, b""
    for _ in range(wild.rng.randrange(4)):
        position = JournalPosition(1, len(content))
        group, head = _group(_entries(wild), position, before, head)
        content += group
        before = position
    return content


# --- log files and their sidecars ----------------------------------------------------------------------------------------------


def log_file_header(data: bytes) -> None:
    header = log_file.decode_file_header(data)
    if header is None:
        raise Refused
    assert log_file.decode_file_header(log_file.encode_file_header(header)) == header


def log_sidecar(data: bytes) -> None:
    index = log_index.decode_index(data, incarnation=INCARNATION, file=FILE_OF_INDEX, base=0, first_position=LOG_HEADER_BYTES)
    if index is None:
        raise Refused
    assert log_index.encode_index(index, incarnation=INCARNATION, file=FILE_OF_INDEX) == data
    for offset in (0, 1, index.covered.offset, 1 << 62):
        index.before(offset)
        index.before_time(offset)
    assert index.anchors()[-1] == index.covered


def log_file_read(data: bytes) -> None:
    """Four bytes say where the file's offsets end, then comes the file: what is read is contiguous, whole, and of this run."""
    if len(data) < 4:
        raise Refused
    (end,) = struct.unpack_from("<I", data)
    content = data[4:]
    row = LogFile(LOG_NAME, 0, end, len(content), 1 << 62)
    path = DIRECTORY / "logs" / PARTITION.hex() / LOG_NAME
    ops = ReadOnlyOps({str(path.relative_to(DIRECTORY)): content})
    source = LogSource(path, INCARNATION, PARTITION, 1, row, FileIndex(*FIRST), ops)
    damage: list[DamagedRangeError] = []
    for offset in {0, end // 2, max(0, end - 1)}:
        for look in (_batches, _headers, _places):
            try:
                look(source, offset)
            except DamagedRangeError as damaged:
                damage.append(damaged)
    assert all(0 <= damaged.base < damaged.end <= end for damaged in damage)
    if damage:
        raise Refused


def _batches(source: LogSource, offset: int) -> None:
    at = offset
    for batch in read_batches(source, offset, max_bytes=1 << 20):
        assert batch.base <= at < batch.end
        assert (batch.header.partition, batch.header.epoch) == (PARTITION, 1)
        assert payload_is_whole(batch.header, batch.payload)
        at = batch.end


def _headers(source: LogSource, offset: int) -> None:
    ends = [header.end for header in read_headers(source, offset, max_batches=100)]
    assert ends == sorted(ends)


def _places(source: LogSource, offset: int) -> None:
    find_time(source, offset)
    try:
        find_offset(source, offset)
    except DamagedRangeError:
        raise
    except CorruptDataError:
        pass  # no batch ends there


def _valid_log_header(wild: Wild) -> bytes:
    epoch, base = (wild.rng.choice((0, 1, (1 << 63) - 1, (1 << 64) - 1)) for _ in range(2))
    return log_file.encode_file_header(LogFileHeader(INCARNATION, PARTITION, epoch, base))


def _valid_log_file(wild: Wild) -> bytes:
    content = wild_batches(wild, wild.rng.randrange(1, 5))
    end = sum(batch.header.records for batch in split_batches(content))
    return struct.pack("<I", end) + log_file.encode_file_header(LogFileHeader(INCARNATION, PARTITION, 1, 0)) + content


def _seal_log_file(data: bytes) -> bytes:
    at = 4 + LOG_HEADER_BYTES
    return data[:at] + seal_batches(data[at:])


def _valid_sidecar(wild: Wild) -> bytes:
    index = FileIndex(*FIRST)
    position = LOG_HEADER_BYTES
    for batch in split_batches(wild_batches(wild, wild.rng.randrange(4))):
        header = msgspec.structs.replace(batch.header, payload_bytes=wild.rng.choice((10, 200_000)))
        index.note(header, position)
        position += header.size
    return log_index.encode_index(index, incarnation=INCARNATION, file=FILE_OF_INDEX)


# --- what a restart knows ------------------------------------------------------------------------------------------------------


def stored_checkpoint(data: bytes) -> None:
    found = checkpoint.decode_checkpoint(data, incarnation=INCARNATION)
    if isinstance(found, str):
        raise Refused(found)
    assert checkpoint.decode_checkpoint(checkpoint.encode_checkpoint(found), incarnation=INCARNATION) == found


def stored_identity(data: bytes) -> None:
    ops = ReadOnlyOps({identity.IDENTITY: data, identity.STARTS: _starts(3)})
    found = identity.load_identity(DIRECTORY, ops=ops)
    assert found.starts == 3


def stored_starts(data: bytes) -> None:
    own = identity._IdentityFile(identity.FORMAT_VERSION, b"c", "b1", INCARNATION, Voters(1, ()))
    files = {identity.IDENTITY: identity._sealed(identity.IDENTITY_MAGIC, own), identity.STARTS: data}
    assert identity.load_identity(DIRECTORY, ops=ReadOnlyOps(files)).incarnation == INCARNATION


def replica_state(data: bytes) -> None:
    state = decode_value(ReplicaState, data)
    assert decode_value(ReplicaState, encode(state)) == state


def idempotence_table(data: bytes) -> None:
    """A table that was restored is stored as it was, but for the order, and for what two producers of one name, or too many places, say."""
    snapshot = decode_value(TableSnapshot, data)
    stored = IdempotenceTable.restore(snapshot).snapshot()
    assert IdempotenceTable.restore(stored).snapshot() == stored
    names = [producer.producer for producer in snapshot.producers]
    if len(set(names)) == len(names) and all(len(producer.places) <= DEDUP_BATCHES for producer in snapshot.producers):
        assert {producer.producer: producer for producer in stored.producers} == {p.producer: p for p in snapshot.producers}
        assert (stored.position, stored.last_append_time) == (snapshot.position, snapshot.last_append_time)


def _valid_checkpoint(wild: Wild) -> bytes:
    content = msgspec.structs.replace(wild.value(checkpoint.Checkpoint), incarnation=INCARNATION)
    return checkpoint.encode_checkpoint(content)


def _valid_identity(wild: Wild) -> bytes:
    content = msgspec.structs.replace(wild.value(identity._IdentityFile), version=identity.FORMAT_VERSION, incarnation=INCARNATION)
    return identity._sealed(identity.IDENTITY_MAGIC, content)


def _starts(starts: int) -> bytes:
    return identity._sealed(identity.STARTS_MAGIC, identity._StartsFile(INCARNATION, starts))


DISK_TARGETS: Final = (
    Target("journal_manifest", journal_manifest, _valid_manifest, (Refused,), seal=sealed_behind(journal_format.MANIFEST_MAGIC)),
    Target("journal_file_header", journal_file_header, _valid_file_header, (Refused,), seal=_seal_file_header),
    Target("journal_group", journal_group, _valid_group, (Refused,)),
    Target("journal", journal, _valid_journal, (Refused,), floor_bytes=4 * FILE_BYTES_MIN),
    Target("log_file_header", log_file_header, _valid_log_header, (Refused,), seal=sealed_behind(log_file.MAGIC, end=LOG_HEADER_BYTES)),
    Target("log_sidecar", log_sidecar, _valid_sidecar, (Refused,)),
    Target("log_file", log_file_read, _valid_log_file, (Refused,), seal=_seal_log_file),
    Target("checkpoint", stored_checkpoint, _valid_checkpoint, (Refused,), seal=sealed_behind(checkpoint.MAGIC)),
    Target("identity", stored_identity, _valid_identity, LOAD_ERRORS, seal=sealed_behind(identity.IDENTITY_MAGIC)),
    Target("starts", stored_starts, lambda wild: _starts(wild.value(int)), LOAD_ERRORS, seal=sealed_behind(identity.STARTS_MAGIC)),
    Target("state.replica", replica_state, lambda wild: encode(wild.value(ReplicaState)), (ProtocolError,)),
    Target("state.table", idempotence_table, lambda wild: encode(wild.value(TableSnapshot)), (ProtocolError,)),
)
