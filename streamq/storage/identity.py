"""Whose data directory this is (P-31): one cluster, one broker id, one incarnation; how often it was started; and who has it open.

    identity    written once, when the directory is made or made anew: cluster, broker, incarnation, first voters
    starts      the count of starts, replaced durably at each start before anything else is written
    lock        locked by the process that has the directory open

An empty directory is nobody's: nothing here makes one by itself. `create_identity` is the explicit step of whoever makes a cluster,
`new_incarnation` that of `streamq broker rejoin`, which throws nothing away: what lay there is set aside.
"""

from pathlib import Path
from typing import Final, TypeVar

import google_crc32c
import msgspec

from streamq.model.errors import AlreadyExistsError, CorruptDataError, NotFoundError, ProtocolError, UnavailableError
from streamq.model.ids import Incarnation, short
from streamq.model.registers import Voters
from streamq.storage.file_ops import FileOps, replace_file
from streamq.storage.interface import Identity
from streamq.wire.codec import decode_value, encode

__all__ = ["DirectoryLock", "count_start", "create_identity", "expect", "load_identity", "new_incarnation"]

IDENTITY: Final = "identity"
STARTS: Final = "starts"
LOCK: Final = "lock"
SET_ASIDE: Final = "set-aside-"
IDENTITY_MAGIC: Final = b"SQID"
STARTS_MAGIC: Final = b"SQST"
FORMAT_VERSION: Final = 1
OPERATORS_SUFFIXES: Final = (".toml", ".pid", ".log", ".out", ".err")
"""Files beside the data that belong to whoever runs the broker: its configuration, its process id, its output."""
FILE_BYTES_MAX: Final = 1 << 20
T = TypeVar("T")


class _IdentityFile(msgspec.Struct, frozen=True, array_like=True):
    version: int
    cluster: bytes
    broker: str
    incarnation: Incarnation
    first_voters: Voters


class _StartsFile(msgspec.Struct, frozen=True, array_like=True):
    incarnation: Incarnation
    starts: int


class DirectoryLock:
    """Held from construction until `release` (or the end of the process): no two processes ever open one directory.

    Raises UnavailableError if another process holds it, NotFoundError if there is no such directory.
    """

    def __init__(self, directory: Path, *, ops: FileOps | None = None) -> None:
        self._ops = ops or FileOps()
        try:
            self._fd = self._ops.lock(directory / LOCK)
        except FileNotFoundError:
            raise _nobodys(directory) from None
        except BlockingIOError:
            raise UnavailableError(
                f"the data directory {directory} is open in another process (pid {self._holder(directory / LOCK)})",
                code="busy",
                hint="stop that process first, or use another directory",
            ) from None
        except OSError as error:
            raise UnavailableError(
                f"the data directory {directory} cannot be opened for writing: {error.strerror}",
                code="unavailable",
                hint="the broker's user must own the directory, and its file system must be writable and not full",
            ) from None

    def release(self) -> None:
        """The lock file stays: removing it would let two processes lock two files."""
        self._ops.close(self._fd)

    def _holder(self, path: Path) -> str:
        fd = self._ops.open_to_read(path)
        try:
            return self._ops.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        finally:
            self._ops.close(fd)


def create_identity(
    directory: Path,
    *,
    cluster: bytes,
    broker: str,
    first_voters: Voters,
    incarnation: Incarnation | None = None,
    ops: FileOps | None = None,
) -> Identity:
    """Makes the directory (if need be) this broker's, durably. Its count of starts is 0: the first start makes it 1.

    Without an incarnation a new one is drawn; the first voters usually name it, so whoever makes the cluster passes it. Raises
    AlreadyExistsError (`wrong_directory`), with nothing changed, if anything but the operator's own files lies there.
    """
    ops = ops or FileOps()
    present = _contents(ops, directory)
    if present:
        raise AlreadyExistsError(
            f"the data directory {directory} is not empty: {', '.join(present[:3])}",
            code="wrong_directory",
            hint="use an empty directory, or `streamq broker rejoin` to set its contents aside",
        )
    ops.make_directory(directory)
    ops.sync_directory(directory.parent)
    identity = Identity(cluster, broker, incarnation or ops.random_bytes(16), first_voters, 0)
    _write_starts(ops, directory, identity)
    content = _IdentityFile(FORMAT_VERSION, cluster, broker, identity.incarnation, first_voters)
    replace_file(ops, directory / IDENTITY, _sealed(IDENTITY_MAGIC, content))
    return identity


def load_identity(directory: Path, *, ops: FileOps | None = None) -> Identity:
    """Whose directory this is, with the count of the starts so far.

    Raises NotFoundError (`unknown_broker`) for a directory that is empty or missing, AlreadyExistsError (`wrong_directory`) for one that
    holds something else, CorruptDataError if identity or count cannot be read: such a directory cannot prove what it is, and has to rejoin.
    """
    ops = ops or FileOps()
    if IDENTITY not in ops.names(directory):
        present = _contents(ops, directory)
        if not present:
            raise _nobodys(directory)
        raise AlreadyExistsError(
            f"{directory} holds {', '.join(present[:3])} and no identity: it is no data directory of streamq, or its identity is lost",
            code="wrong_directory",
            hint="use another directory, or `streamq broker rejoin` to set its contents aside and begin under a new incarnation",
        )
    own = _unsealed(ops, directory / IDENTITY, IDENTITY_MAGIC, _IdentityFile)
    if own.version != FORMAT_VERSION:
        raise AlreadyExistsError(
            f"{directory} has format {own.version}; this version of streamq reads format {FORMAT_VERSION}",
            code="wrong_directory",
            hint="start it with the version that wrote it",
        )
    count = _unsealed(ops, directory / STARTS, STARTS_MAGIC, _StartsFile)
    if count.incarnation != own.incarnation:
        raise _unreadable(directory / STARTS, "it belongs to another incarnation")
    return Identity(own.cluster, own.broker, own.incarnation, own.first_voters, count.starts)


def count_start(directory: Path, identity: Identity, *, ops: FileOps | None = None) -> Identity:
    """The identity with this start counted, durably. Nothing else may be written by this start before."""
    counted = identity._replace(starts=identity.starts + 1)
    _write_starts(ops or FileOps(), directory, counted)
    return counted


def expect(identity: Identity, directory: Path, *, broker: str | None = None, cluster: bytes | None = None) -> None:
    """Raises AlreadyExistsError unless the directory is this broker's (`wrong_directory`) and this cluster's (`wrong_cluster`)."""
    if broker is not None and identity.broker != broker:
        raise AlreadyExistsError(
            f"{directory} belongs to broker {identity.broker}, not to {broker}",
            code="wrong_directory",
            hint=f"start it as {identity.broker}, or give {broker} its own directory",
        )
    if cluster is not None and identity.cluster != cluster:
        raise AlreadyExistsError(
            f"{directory} belongs to cluster {short(identity.cluster)}, not to {short(cluster)}",
            code="wrong_cluster",
            hint="a broker never moves between clusters with its data: give it an empty directory and use `streamq broker rejoin`",
        )


def new_incarnation(
    directory: Path, *, cluster: bytes, broker: str, first_voters: Voters, ops: FileOps | None = None
) -> tuple[Identity, Path | None]:
    """Makes the directory this broker's under a new incarnation (P-31), and says where what lay there was set aside (None: nothing did).

    The identity goes first, so a crash leaves no directory that passes for the old one; calling it again carries on. The caller
    holds the lock.
    """
    ops = ops or FileOps()
    present = _contents(ops, directory)
    aside: Path | None = None
    if present:
        taken = [name.removeprefix(SET_ASIDE) for name in ops.names(directory) if name.startswith(SET_ASIDE)]
        aside = directory / f"{SET_ASIDE}{max((int(number) for number in taken if number.isdigit()), default=0) + 1}"
        ops.make_directory(aside)
        for name in sorted(present, key=lambda name: name != IDENTITY):
            ops.rename(directory / name, aside / name)
            if name == IDENTITY:
                ops.sync_directory(directory)
        ops.sync_directory(aside)
        ops.sync_directory(directory)
    return create_identity(directory, cluster=cluster, broker=broker, first_voters=first_voters, ops=ops), aside


def _contents(ops: FileOps, directory: Path) -> list[str]:
    """What lies in the directory and may be data of a broker; not what a `create_identity` that was broken off has left."""
    names = ops.names(directory)
    ignored = [LOCK, "lost+found", f"{IDENTITY}.new", f"{STARTS}.new", *([STARTS] if IDENTITY not in names else [])]
    present = [name for name in names if name not in ignored and not name.startswith(SET_ASIDE)]
    return [name for name in present if not (name.endswith(OPERATORS_SUFFIXES) and ops.is_file(directory / name))]


def _write_starts(ops: FileOps, directory: Path, identity: Identity) -> None:
    replace_file(ops, directory / STARTS, _sealed(STARTS_MAGIC, _StartsFile(identity.incarnation, identity.starts)))


def _sealed(magic: bytes, content: msgspec.Struct) -> bytes:
    body = encode(content)
    crc: int = google_crc32c.value(body)
    return magic + crc.to_bytes(4, "little") + body


def _unsealed(ops: FileOps, path: Path, magic: bytes, kind: type[T]) -> T:
    try:
        fd = ops.open_to_read(path)
        try:
            content = ops.pread(fd, FILE_BYTES_MAX, 0)
        finally:
            ops.close(fd)
    except FileNotFoundError:
        raise _unreadable(path, "it is missing") from None
    except OSError as error:
        raise _unreadable(path, str(error)) from None
    body = content[8:]
    if content[:4] != magic or content[4:8] != google_crc32c.value(body).to_bytes(4, "little"):
        raise _unreadable(path, "it fails its checksum")
    try:
        return decode_value(kind, body)
    except ProtocolError as error:
        raise _unreadable(path, error.message) from None


def _unreadable(path: Path, why: str) -> CorruptDataError:
    return CorruptDataError(
        f"{path} cannot be read: {why}",
        code="data_damaged",
        hint="the directory cannot prove that it is complete: `streamq broker rejoin` sets it aside and begins under a new incarnation",
    )


def _nobodys(directory: Path) -> NotFoundError:
    return NotFoundError(
        f"{directory} is no broker's data directory: it is empty or does not exist",
        code="unknown_broker",
        hint="`streamq cluster start` makes a new local cluster; `streamq broker rejoin` admits a broker that lost its directory",
    )
