"""Measures rows of the table, each beside its other side within the same minutes: sh deploy/bench/run.sh [ROW…]"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from deploy.bench.results import ROWS_FILE, Row, load_results, load_rows
from deploy.bench.table import table

__all__ = ["machine"]

ROOT: Final = Path(__file__).parents[2]
LIBRARIES: Final = ("trio", "anyio", "msgspec", "zstandard", "google-crc32c", "msgpack")


def machine(directory: Path) -> dict[str, object]:
    """What the figures hold for."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "CPU": f"{os.cpu_count()} x {_cpu_model()}",
        "memory": f"{memory_bytes / (1 << 30):.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": _disk(directory),
        "Python": platform.python_version(),
        "streamq": commit or importlib.metadata.version("streamq"),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _disk(directory: Path) -> str:
    """Device and file system that hold the directory: the longest mount point above it."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    above = [mount for mount in mounts if directory.resolve().is_relative_to(mount[1])]
    device, _, kind, *_ = max(above, key=lambda mount: len(mount[1]))
    return f"{kind} on {device}"


def command_of(words: str, data: str) -> list[str]:
    program, *rest = shlex.split(words)
    if program.startswith("bare"):
        place = ["--directory", data] if data and program == "bare" else []
        return [sys.executable, "-m", f"deploy.bench.{program}", *rest, *place, "--json"]
    return [sys.executable, "-m", "streamq", "bench", program, *rest, *(["--data", data] if data else []), "-o", "json"]


def measure(words: str, data: str) -> list[dict[str, Any]]:
    """What the command printed, object by object. Raises CalledProcessError when it failed; its errors are on stderr already."""
    done = subprocess.run(command_of(words, data), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run_row(row: Row, *, session: str, pairs: int, data: str, results: Path) -> bool:
    """Whether all of it was measured; what was is appended to the results at once."""
    for pair in range(1, pairs + 1):
        sides = [("own", row.own)] + ([("other", row.other)] if row.other else [])
        for side, words in sides if pair % 2 else sides[::-1]:
            print(f"{row.name} {pair}/{pairs}: {words}", file=sys.stderr, flush=True)
            try:
                documents = measure(words, data)
            except subprocess.CalledProcessError as error:
                print(f"{row.name}: ended with {error.returncode}", file=sys.stderr, flush=True)
                return False
            _append(results, {"session": session, "row": row.name, "pair": pair, "side": side, "command": words, "documents": documents})
    return True


def _append(results: Path, document: dict[str, object]) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(document) + "\n")


def main() -> int:
    rows = load_rows()
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("row", nargs="*", default=[], help="names, * stands for anything; all rows if none is named")
    parser.add_argument("--list", action="store_true", help="only list the rows")
    parser.add_argument("--results", type=Path, default=Path("bench-results.jsonl"), help="appended to (bench-results.jsonl)")
    parser.add_argument("--pairs", type=int, default=0, help=f"instead of those in {ROWS_FILE.name}")
    parser.add_argument("--data", default="", help="below which everything is stored meanwhile (the temporary directory)")
    options = parser.parse_args()
    chosen = [row for name, row in rows.items() if not options.row or any(fnmatch(name, pattern) for pattern in options.row)]
    unknown = [pattern for pattern in options.row if not any(fnmatch(name, pattern) for name in rows)]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(rows)}")
    if options.list:
        for row in chosen:
            print(f"{row.name}: streamq bench {row.own}" + (f"  |  {row.other}" if row.other else ""))
        return 0
    session = f"{time.strftime('%Y-%m-%dT%H:%M:%S')}-{os.getpid()}"
    _append(options.results, {"session": session, "machine": machine(Path(options.data or os.environ.get("TMPDIR", "/tmp")))})
    done = [run_row(row, session=session, pairs=options.pairs or row.pairs, data=options.data, results=options.results) for row in chosen]
    print(table(load_results(options.results)), end="")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
