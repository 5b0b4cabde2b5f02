"""Bytes into records: split on \\n and nothing else. A \\r stays, an empty line is a record, so is a last line without its \\n."""

from typing import Final, NamedTuple

__all__ = ["LineSplitter", "Run", "TooLong"]

SHOWN_BYTES: Final = 120


class Run(NamedTuple):
    """Lines that follow each other; `first` is the number of the first, counted from 0 over the whole input."""

    first: int
    lines: list[bytes]


class TooLong(NamedTuple):
    """A line that no record can hold: its number, its length, how it begins."""

    number: int
    length: int
    begin: bytes


class LineSplitter:
    """Takes what was read, in pieces of any size. Holds at most one unfinished line, and of one that is too long only how it begins.

    Invariants: `count` is the number of all lines so far, too long ones included; `_rest_bytes` is the true length of the unfinished line.
    """

    def __init__(self, *, line_bytes_max: int) -> None:
        assert line_bytes_max > SHOWN_BYTES
        self.count = 0
        self.too_long: list[TooLong] = []
        self._line_bytes_max = line_bytes_max
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def feed(self, piece: bytes) -> list[Run]:
        """The lines that this piece completes."""
        lines = piece.split(b"\n")
        if len(lines) == 1:
            self._keep(piece)
            return []
        if self._rest_bytes:
            self._keep(lines[0])
            lines[0] = b"".join(self._rest)
        length = max(self._rest_bytes, len(lines[0]))
        self._rest, self._rest_bytes = [], 0
        last = lines.pop()
        runs = self._runs(lines, length)
        self._keep(last)
        return runs

    def end(self) -> list[Run]:
        """The last line, if no newline ended it."""
        if not self._rest_bytes:
            return []
        line, length = b"".join(self._rest), self._rest_bytes
        self._rest, self._rest_bytes = [], 0
        return self._runs([line], length)

    def _runs(self, lines: list[bytes], first_length: int) -> list[Run]:
        """`first_length` is the true length of the first line, of which only the beginning may have been kept."""
        first, limit = self.count, self._line_bytes_max
        self.count += len(lines)
        if first_length <= limit and len(max(lines, key=len)) <= limit:
            return [Run(first, lines)]
        runs, begin = [], 0
        for index, line in enumerate(lines):
            length = len(line) if index else first_length
            if length > limit:
                self.too_long.append(TooLong(first + index, length, line[:SHOWN_BYTES]))
                if index > begin:
                    runs.append(Run(first + begin, lines[begin:index]))
                begin = index + 1
        if begin < len(lines):
            runs.append(Run(first + begin, lines[begin:]))
        return runs

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._rest_bytes += len(piece)
        self._rest.append(piece)
        if self._rest_bytes > self._line_bytes_max:
            self._rest = [b"".join(self._rest)[:SHOWN_BYTES]]
