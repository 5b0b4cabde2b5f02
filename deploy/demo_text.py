"""Writes real text that is on every machine into one file: what logs may be read, and the sources of Python's library.

python deploy/demo_text.py FILE LINES      at most so many lines; prints how many there are
"""

import sys
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 4 << 20
"""Of each log; a machine's logs can be as large as its disk."""
LOG_SUFFIXES: Final = (".log", ".txt", ".1", "")
LINE_BYTES_MAX: Final = 64 << 10


def main(target: str, lines_max: int) -> int:
    lines = 0
    with open(target, "wb") as output:
        for path in chain(log_files(Path("/var/log")), source_files(Path(sysconfig.get_path("stdlib")))):
            try:
                with path.open("rb") as file:
                    content = file.read(LOG_BYTES_MAX)
            except OSError:
                continue
            if b"\0" in content[:4096]:
                continue
            for line in content.splitlines(keepends=False):
                if len(line) <= LINE_BYTES_MAX:
                    output.write(line + b"\n")
                    lines += 1
                    if lines >= lines_max:
                        return lines
    return lines


def log_files(directory: Path) -> Iterator[Path]:
    yield from sorted(path for path in _files(directory) if path.suffix in LOG_SUFFIXES)


def source_files(directory: Path) -> Iterator[Path]:
    """The library itself before what is installed beside it."""
    files = [path for path in _files(directory) if path.suffix == ".py"]
    yield from sorted(files, key=lambda path: ("site-packages" in path.parts, path))


def _files(directory: Path) -> Iterator[Path]:
    try:
        yield from (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    except OSError:
        return


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
