"""Places in a log as people write them: start, end, an offset, so many records before the end, a time, so long ago."""

import datetime
import re
from typing import Final, NamedTuple

from streamq.model.errors import RefusedError
from streamq.model.limits import OFFSET_MAX

__all__ = ["AtOffset", "AtTime", "End", "FromEnd", "Place", "Start", "parse_place", "parse_time"]

TIMES: Final = "5m (ago), 12:30, 2026-01-31T12:30, @1767225600 (seconds; milliseconds with 12 digits or more)"
PLACES: Final = f"start, end, 1000 (an offset), -10 (records before the end), {TIMES}"
_ago: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_clock: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


class Start(NamedTuple):
    """The first offset that is still there."""


class End(NamedTuple):
    """The tip, as it is when the command starts."""


class AtOffset(NamedTuple):
    offset: int


class FromEnd(NamedTuple):
    """So many records before the tip, over all partitions together."""

    records: int


class AtTime(NamedTuple):
    timestamp_ms: int


Place = Start | End | AtOffset | FromEnd | AtTime


def parse_place(text: str, *, option: str, now_ms: int) -> Place:
    """Raises RefusedError (`usage`)."""
    if text in ("start", "earliest", "beginning"):
        return Start()
    if text in ("end", "latest"):
        return End()
    if re.fullmatch(r"-?\d{1,19}", text):
        number = int(text)
        if abs(number) > OFFSET_MAX:
            raise RefusedError(f"{option}: there is no offset {text}", code="usage", hint=f"offsets go up to {OFFSET_MAX}")
        return AtOffset(number) if not text.startswith("-") else FromEnd(-number)
    if (moment := _moment(text, now_ms)) is None:
        raise RefusedError(f"{option}: {text!r} is no place in a log", code="usage", hint=f"write one of: {PLACES}")
    return AtTime(moment)


def parse_time(text: str, *, option: str, now_ms: int) -> int:
    """Milliseconds since 1970. Times without a zone are local. Raises RefusedError (`usage`)."""
    if (moment := _moment(text, now_ms)) is None:
        raise RefusedError(f"{option}: {text!r} is no time", code="usage", hint=f"write one of: {TIMES}")
    return moment


def _moment(text: str, now_ms: int) -> int | None:
    if ago := _ago.fullmatch(text):
        return max(0, now_ms - round(float(ago[1]) * UNIT_MS[ago[2]]))
    if re.fullmatch(r"@\d{1,11}(\.\d+)?", text):
        return round(float(text[1:]) * 1000)
    if re.fullmatch(r"@\d{12,16}", text):  # milliseconds, as records are printed with them: in seconds it would be past the year 5000
        return int(text[1:])
    try:
        if clock := _clock.fullmatch(text):
            today = datetime.datetime.fromtimestamp(now_ms / 1000)
            moment = today.replace(hour=int(clock[1]), minute=int(clock[2]), second=int(clock[3] or 0), microsecond=0)
        else:
            moment = datetime.datetime.fromisoformat(text)
        return max(0, round(moment.timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        return None
