"""Damage to disks: a small file system that is filled, bytes that are flipped, a directory that is lost."""

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from streamq.storage.dump import files
from tests.integration.local import flip_byte

__all__ = ["Flip", "SmallDisk", "flip_in_journal", "flip_in_log", "lose"]

SMALL_DISK_BYTES: Final = 1 << 30
FILL_TRIES: Final = 20


class Flip(NamedTuple):
    """`partition` is the id, in hex, of the partition whose batch was hit, if that is known."""

    file: str
    position: int
    partition: str = ""
    base: int = 0
    end: int = 0


class SmallDisk:
    """A file system in memory of a fixed size, mounted in this process's own mount namespace."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self._ballast = path / "ballast"
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(path)], check=True)

    def fill(self, *, leave_bytes: int) -> None:
        """The journal's next file, or a log file that grows, takes what is left. The broker writes meanwhile, so the room is asked for
        again."""
        with self._ballast.open("wb") as file:
            for _ in range(FILL_TRIES):
                room = os.statvfs(self.path)
                size = room.f_bavail * room.f_frsize - leave_bytes
                if size <= 0:
                    return
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    return

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


def flip_in_journal(data: Path, rng: random.Random) -> Flip | None:
    """Flips a byte of an entry that still counts. Only of those that a later group proves to be synced: of the last group nobody can tell
    damage from a torn write."""
    entries = [
        (str(row["path"]), entry)
        for row in files(data, entries=True)
        if row["kind"] == "journal"
        for entry in row.get("entries", ())  # type: ignore[attr-defined]
        if entry["synced"] and not entry["checkpointed"] and entry["bytes"]
    ]
    if not entries:
        return None
    path, entry = rng.choice(entries)
    position = rng.randint(entry["first_byte"], entry["last_byte"])
    flip_byte(data / path, position)
    return Flip(path, position, entry.get("partition", ""), entry.get("base", 0), entry.get("end", 0))


def flip_in_log(data: Path, rng: random.Random) -> Flip | None:
    """Flips a byte anywhere in what counts of a log file."""
    logs = [row for row in files(data) if row["kind"] == "log" and row["state"] in ("active", "closed")]
    if not logs:
        return None
    row = rng.choice(logs)
    position = rng.randrange(int(str(row["size"])))
    flip_byte(data / str(row["path"]), position)
    return Flip(str(row["path"]), position, str(row["partition"]), int(str(row["base"])), int(str(row["end"])))


def lose(data: Path) -> None:
    """All that is in it: the directory may be a mount point's."""
    for entry in data.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
