"""What a replica says of an offset that somebody wants to read, and of what it lacks itself."""

import enum
from typing import NamedTuple

__all__ = ["Readable", "Unreadable", "Wanted"]


class Readable(NamedTuple):
    """`[offset, limit)` of `epoch` lies here and may be shown to anybody."""

    epoch: int
    offset: int
    limit: int


class Unreadable(enum.Enum):
    TRIMMED = "The offset lies below the start offset; it will never be readable again."
    AHEAD = "The offset is at or past every high watermark known here; wait for `Advanced`."
    LACKING = "The offset may be readable elsewhere, but not here (now): go elsewhere, or wait for `Advanced`."


class Wanted(NamedTuple):
    """This replica should copy `[offset, end)` of the closed `epoch` from one of `holders` (brokers other than itself; may be empty)."""

    epoch: int
    offset: int
    end: int
    holders: tuple[str, ...]
