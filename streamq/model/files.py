"""What a replica's log files look like from outside storage: enough to decide which of them may go."""

from typing import NamedTuple

__all__ = ["StoredFile"]


class StoredFile(NamedTuple):
    """One log file: `[base, end)` of an epoch, `size` bytes, and the append times of its first and last batch in milliseconds.

    `is_closed`: nothing is added to it any more. An append time that is not known is 0.
    """

    epoch: int
    base: int
    end: int
    size: int
    first_append: int
    last_append: int
    is_closed: bool
