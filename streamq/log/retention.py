"""Which of a partition's log files have outlived its retention: pure, from what storage and the register say.

Whole closed files go, oldest first, so the new start offset is the end of a file and with it of a batch (P-41):

    by bytes   while what remains is still at least `retention_bytes`
    by time    while the newest append in the file is older than `retention_ms`

A file that is still written is closed early where retention asks for it (`wants_roll`): else a slow partition's records would stay until
a whole file is full of them.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from streamq.model.files import StoredFile

__all__ = ["Retention", "new_start", "wants_roll"]

ROLL_SHARE: Final = 8
"""A file holds at most about an eighth of what is retained: by so much, and a file, more than asked for is kept."""


class Retention(msgspec.Struct, frozen=True):
    """What a partition keeps at least, per replica; None: everything."""

    max_bytes: int | None = None
    max_ms: int | None = None

    @property
    def is_for_ever(self) -> bool:
        return self.max_bytes is None and self.max_ms is None


def new_start(files: Sequence[StoredFile], retention: Retention, *, start: int, limit: int, now_ms: int) -> int:
    """Where the log may begin: `start` if nothing may go, at most `limit`. `files` in offset order.

    What lies behind a hole stays: this replica still copies it.
    """
    remaining = sum(file.size for file in files if file.end > start)
    at = start
    for index, file in enumerate(files):
        if file.end <= at:
            continue
        if file.base > at or not file.is_closed or file.end > limit:
            break
        remaining -= file.size
        is_too_much = retention.max_bytes is not None and remaining >= retention.max_bytes
        is_too_old = retention.max_ms is not None and _is_older(files, index, now_ms - retention.max_ms)
        if not (is_too_much or is_too_old):
            break
        at = file.end
    return at


def _is_older(files: Sequence[StoredFile], index: int, than_ms: int) -> bool:
    """Append times never fall, so those of a file that are not known lie before the next ones that are."""
    newest = files[index].last_append or next((file.first_append for file in files[index + 1 :] if file.first_append), 0)
    return 0 < newest < than_ms


def wants_roll(file: StoredFile, retention: Retention, *, now_ms: int) -> bool:
    """Whether this file, which is still written, should be closed now."""
    if retention.max_bytes is not None and file.size * ROLL_SHARE >= retention.max_bytes:
        return True
    return retention.max_ms is not None and 0 < file.first_append <= now_ms - retention.max_ms // ROLL_SHARE
