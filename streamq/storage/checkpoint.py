"""The checkpoint: what a restart knows without reading anything else (P-32), in two copies.

A checkpoint is the storage's state at one position of the journal: the newest value of every state, every run with the log files that hold
it, and that position, from which the journal is replayed. Everything that it names is durable before it is written. Each copy is replaced
atomically, first `checkpoint.a`, then `checkpoint.b`; the journal is released only after both, so each of them alone will do.
"""

import struct
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c
import msgspec

from streamq.model.errors import ProtocolError
from streamq.model.ids import Incarnation, PartitionId
from streamq.storage.file_ops import FileOps, replace_file
from streamq.storage.journal_format import JournalPosition
from streamq.storage.log_file import LogFile
from streamq.wire.codec import decode_value, encode

__all__ = [
    "COPIES",
    "Checkpoint",
    "RunRow",
    "StoredCheckpoint",
    "encode_checkpoint",
    "load_checkpoints",
    "load_copy",
    "save_checkpoint",
    "save_copy",
]

COPIES: Final = ("checkpoint.a", "checkpoint.b")
FORMAT_VERSION: Final = 1
MAGIC: Final = b"SQCP"
_head: Final = struct.Struct("<4sIIQ")


class RunRow(msgspec.Struct, frozen=True, array_like=True):
    """A run as far as it lies in log files: `[base, tail)`."""

    partition: PartitionId
    epoch: int
    base: int
    tail: int
    files: tuple[LogFile, ...]


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """`start` wrote it; `stopped` says that it was its last act. `derived` are the owner's own (`Storage.at_checkpoint`)."""

    number: int
    incarnation: Incarnation
    start: int
    stopped: bool
    replay_from: JournalPosition | None
    states: dict[str, bytes]
    derived: dict[str, bytes]
    runs: list[RunRow]


class StoredCheckpoint(NamedTuple):
    """One copy: `checkpoint` is None if the file is missing or cannot be read, for the reason in `fault`."""

    name: str
    checkpoint: Checkpoint | None
    fault: str


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    body = encode(checkpoint)
    rest = struct.pack("<IQ", FORMAT_VERSION, len(body)) + body
    return MAGIC + struct.pack("<I", google_crc32c.value(rest)) + rest


def decode_checkpoint(content: bytes, *, incarnation: Incarnation) -> Checkpoint | str:
    """The checkpoint, or what is wrong with it."""
    if len(content) < _head.size:
        return f"{len(content)} bytes are too few"
    magic, crc, version, length = _head.unpack_from(content)
    if magic != MAGIC or version != FORMAT_VERSION:
        return "not a checkpoint of this version"
    if len(content) != _head.size + length or google_crc32c.value(content[8:]) != crc:
        return "the checksum fails"
    try:
        checkpoint = decode_value(Checkpoint, content[_head.size :])
    except ProtocolError as error:
        return error.message
    return checkpoint if checkpoint.incarnation == incarnation else "it belongs to another directory"


def save_checkpoint(ops: FileOps, directory: Path, checkpoint: Checkpoint) -> None:
    """Both copies, one after the other, each durable before the next is touched."""
    for name in COPIES:
        save_copy(ops, directory, name, encode_checkpoint(checkpoint))


def save_copy(ops: FileOps, directory: Path, name: str, content: bytes) -> None:
    replace_file(ops, directory / name, content)


def load_checkpoints(ops: FileOps, directory: Path, *, incarnation: Incarnation) -> list[StoredCheckpoint]:
    """Both copies, whatever is left of them."""
    return [load_copy(ops, directory, name, incarnation=incarnation) for name in COPIES]


def load_copy(ops: FileOps, directory: Path, name: str, *, incarnation: Incarnation) -> StoredCheckpoint:
    try:
        length = ops.size(directory / name)
        fd = ops.open_to_read(directory / name)
        try:
            content = ops.pread(fd, length, 0)
        finally:
            ops.close(fd)
    except FileNotFoundError:
        return StoredCheckpoint(name, None, "it is missing")
    except OSError as error:
        return StoredCheckpoint(name, None, str(error))
    decoded = decode_checkpoint(content, incarnation=incarnation)
    return StoredCheckpoint(name, None, decoded) if isinstance(decoded, str) else StoredCheckpoint(name, decoded, "")
