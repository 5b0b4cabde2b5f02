"""What the records hold: made-up log lines that zstd makes about four times smaller, or the lines of a file."""

import json
import random
from typing import Final

from streamq.model.errors import RefusedError
from streamq.model.limits import RECORD_BYTES_MAX

__all__ = ["lines_of", "made_up_lines", "values_of"]

LINES: Final = 5_000
"""Different ones; they are sent over and over."""
FILE_BYTES_MAX: Final = 64 << 20
"""As much of a file as is read."""


def made_up_lines(size: int, *, seed: int, count: int = LINES) -> list[bytes]:
    """Lines of exactly so many bytes; the same seed makes the same."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        text = json.dumps(
            {"ts": draw.random(), "level": draw.choice(["INFO", "WARN"]), "svc": draw.choice(["api", "auth"]), "ms": draw.random()}
        )
        while len(text) < size:
            text += f" {draw.randrange(10**9):x}"
        lines.append(text[:size].encode())
    return lines


def lines_of(path: str) -> list[bytes]:
    """The lines of a file, up to a bound. Raises RefusedError if there is none, or one is longer than a record."""
    with open(path, "rb") as file:
        content = file.read(FILE_BYTES_MAX)
        if file.read(1):
            content = content[: content.rfind(b"\n") + 1]
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    if not lines or max(map(len, lines)) > RECORD_BYTES_MAX:
        raise RefusedError(
            f"{path} has no lines that can be records", code="usage", hint=f"a text file, a record a line, {RECORD_BYTES_MAX} bytes at most"
        )
    return lines


def values_of(*, record_bytes: int, payload: str, seed: int) -> list[bytes]:
    return lines_of(payload) if payload else made_up_lines(record_bytes, seed=seed)
