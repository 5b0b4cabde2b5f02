"""What people and programs see: errors, tables, rows of JSON, sizes. Answers go to stdout, everything else to stderr.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or timed out (retry), 5 not authorised, 6 partly done,
7 precondition failed, 8 data corrupt, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TextIO

from streamq.model.errors import StreamqError

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_PARTLY",
    "EXIT_UNAVAILABLE",
    "EXIT_USAGE",
    "Style",
    "count",
    "duration",
    "exit_code_of",
    "json_line",
    "note",
    "print_error",
    "print_rows",
    "size",
    "span",
    "survival",
]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 4
EXIT_NOT_AUTHORISED: Final = 5
EXIT_PARTLY: Final = 6
EXIT_INTERRUPTED: Final = 130

Row = Mapping[str, object]


class Style:
    """Colours for a stream: ANSI on a terminal, nothing in a pipe, with `NO_COLOR` set or on a dumb terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.is_on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_on else text

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def dim(self, text: str) -> str:
        return self._paint("2", text)

    def red(self, text: str) -> str:
        return self._paint("31", text)

    def green(self, text: str) -> str:
        return self._paint("32", text)

    def yellow(self, text: str) -> str:
        return self._paint("33", text)


def exit_code_of(error: StreamqError) -> int:
    return EXIT_NOT_AUTHORISED if error.code == "not_authorised" else error.exit_code


def print_error(error: StreamqError, *, as_json: bool) -> None:
    """What went wrong and why, then what to do, on stderr; one object with `-o json`."""
    if as_json:
        row = {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": exit_code_of(error)}
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr)
        return
    style = Style(sys.stderr)
    print(f"{style.red(f'error[{error.code}]:')} {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {style.bold('try:')} {error.hint}", file=sys.stderr)


def note(text: str) -> None:
    """Something worth knowing that is no answer and no error."""
    print(text, file=sys.stderr, flush=True)


def json_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def print_rows(rows: Iterable[Row], *, columns: Sequence[str], as_json: bool, empty: str = "") -> None:
    """A table with these columns, or every row in full as an object a line. `empty` is said on stderr when there is no row."""
    rows = list(rows)
    if as_json:
        for row in rows:
            print(json_line(row))
        return
    if not rows:
        if empty:
            note(empty)
        return
    cells = [[column.upper().replace("_", " ") for column in columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    style = Style(sys.stdout)
    for number, line in enumerate(cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        print(style.bold(text) if number == 0 else text)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "-"
    return str(value)


def size(count_bytes: float) -> str:
    """Bytes for people: 12 B, 3.4 KiB, 1.2 GiB."""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: float) -> str:
    """A count for people, in groups of three digits."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """12 ms, 3.4 s, 2 min 5 s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def span(milliseconds: int) -> str:
    """A span of time as it is typed, in the largest unit that it is a whole number of: 90s, 7d."""
    units = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    unit = next(unit for unit, size_ms in units.items() if milliseconds % size_ms == 0)
    return f"{milliseconds // units[unit]}{unit}"


def survival(*, replicas: int, write: int, read: int) -> dict[str, str]:
    """Which losses a topic survives (I-1, I-7), by what is lost to them: `topic create` prints it and `topic describe` shows it."""
    from streamq.model.quorum import Quorum, survives  # `--help` and errors need no arithmetic

    data_loss, append, takeover, tip = survives(Quorum(replicas, write, read))
    appending = f"{_brokers(append)} down"
    if append > takeover:
        appending += f"; only {_brokers(takeover)} if the sequencer is among them"
    if takeover == 0:
        appending = "the sequencer cannot be replaced while any broker is down (W = 1)" if append else "no broker down"
    return {
        "acked_records": f"{_brokers(data_loss)} lost for good",
        "append": appending,
        "takeover": f"{_brokers(takeover)} down",
        "tip_reads": f"{_brokers(tip)} down",
    }


def _brokers(number: int) -> str:
    return "no broker" if number == 0 else "1 broker" if number == 1 else f"{number} brokers"
