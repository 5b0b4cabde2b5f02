"""Disks that keep a record of what was written to the journal and synced, in one order with the acks that left; syncs can be held back.

All brokers of a test are in one process, so one list is one order. Each event is recorded on the side that makes a broken promise visible:
a write after it was made, a sync's beginning before it and its end after it, an ack before its bytes leave the sequencer's socket.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from streamq.model.batches import Batch
from streamq.model.messages import Ack
from streamq.storage.file_ops import FileOps
from streamq.storage.journal_files import FOLDER

__all__ = ["AckLeft", "Event", "RecordedDisk", "SyncBegan", "Synced", "Wrote"]

HELD_S_MAX: Final = 30.0
"""A sync that is held for longer fails: a test that forgets it does not hang."""


class Wrote(NamedTuple):
    disk: str
    file: str
    offset: int
    content: bytes


class SyncBegan(NamedTuple):
    """`number` is the same for the beginning and the end of one sync, and of no other on that disk."""

    disk: str
    file: str
    number: int


class Synced(NamedTuple):
    disk: str
    file: str
    number: int


class AckLeft(NamedTuple):
    """`batch` is as its producer sent it."""

    batch: Batch
    ack: Ack


Event = Wrote | SyncBegan | Synced | AckLeft


class RecordedDisk(FileOps):
    """The real disk of one broker. Events of its journal's files go to `record`; files being prepared have other names and are left out.

    `delays_s` is drawn from before each sync of the journal, by `delays`.
    """

    def __init__(self, name: str, record: list[Event], *, delays_s: Sequence[float] = (), delays: random.Random | None = None) -> None:
        self.name = name
        self._record = record
        self._delays_s = delays_s
        self._delays = delays or random.Random(0)
        self._journal_files: dict[int, str] = {}
        self._unsynced: dict[str, list[bytes]] = {}
        self._held = b""
        self._may_sync = threading.Event()
        self._may_sync.set()
        self._syncs = 0

    def hold(self, content: bytes) -> None:
        """From now on no sync of a journal file to which this was written, and not synced since, gets through to the disk."""
        self._held = content
        self._may_sync.clear()

    def let_go(self) -> None:
        self._held = b""
        self._may_sync.set()

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        if path.parent.name == FOLDER and path.suffix == ".journal":
            self._journal_files[fd] = path.name
        return fd

    def close(self, fd: int) -> None:
        self._journal_files.pop(fd, None)  # before the number is given to another file
        super().close(fd)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        wrote = super().pwritev(fd, buffers, offset)
        file = self._journal_files.get(fd)
        if file is not None:
            content = b"".join(buffers)[:wrote]
            self._unsynced.setdefault(file, []).append(content)
            self._record.append(Wrote(self.name, file, offset, content))
        return wrote

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, super().fdatasync)

    def fsync(self, fd: int) -> None:
        self._sync(fd, super().fsync)

    def _sync(self, fd: int, sync: Callable[[int], None]) -> None:
        file = self._journal_files.get(fd)
        if file is None:
            sync(fd)
            return
        self._syncs += 1
        number = self._syncs
        covered = self._unsynced.pop(file, [])
        self._record.append(SyncBegan(self.name, file, number))
        if self._delays_s:
            time.sleep(self._delays.choice(self._delays_s))
        if self._held and any(self._held in content for content in covered) and not self._may_sync.wait(HELD_S_MAX):
            raise OSError("the sync was held and never let go")
        self.reach_disk(fd, sync, Synced(self.name, file, number))

    def reach_disk(self, fd: int, sync: Callable[[int], None], done: Synced) -> None:
        """Carries the sync out and records that; a disk that lies does otherwise."""
        sync(fd)
        self._record.append(done)
