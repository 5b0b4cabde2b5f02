"""Fuzzes every decoder, the broker and the clients.

    python -m tests.fuzz --seconds 120                      everything, the time shared out
    python -m tests.fuzz --seconds 600 --target journal     one target; --list names them
    python -m tests.fuzz --replay tests/fuzz/found/x.hex    an input that was found, with what comes of it

Guided by coverage where atheris is installed (the extra `fuzz`), by seeded mutation elsewhere or with --engine mutation. Prints for each
target inputs/s, inputs, how many were accepted, the slowest, the most memory. An input that finds something is kept in `--out` under its
target's name; one that is moved to tests/fuzz/found is a test from then on. Ends with 1 when something was found.
"""

import argparse
import hashlib
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Final

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

from tests.fuzz import engines  # noqa: E402
from tests.fuzz.all_targets import ALL_TARGETS, share_of  # noqa: E402
from tests.fuzz.found import FOUND, load, save  # noqa: E402
from tests.fuzz.target import attempt, measured  # noqa: E402

ENGINES: Final = ("atheris", "mutation")


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    logging.getLogger("streamq").setLevel(logging.CRITICAL)
    if options.list:
        print("\n".join(ALL_TARGETS))
        return 0
    if options.replay:
        return _replay(options.replay)
    engine, why = _engine(options.engine)
    print(f"engine: {engine} ({why}); seed {options.seed}", flush=True)
    names = options.target or list(ALL_TARGETS)
    shares = sum(map(share_of, names))
    print(f"{'target':<30}{'inputs/s':>10}{'inputs':>10}{'accepted':>10}{'refused':>10}{'slowest':>10}{'memory':>10}  findings")
    total = found = 0
    with engines.Guided(seed=options.seed) if engine == "atheris" else nullcontext() as guided:
        for name in names:
            target, seconds = ALL_TARGETS[name], options.seconds * share_of(name) / shares
            tally = guided.fuzz(target, seconds=seconds) if guided else engines.mutated(target, seconds=seconds, seed=options.seed)
            _tell(name, tally, options.out)
            total += tally.inputs
            found += len(tally.findings)
    print(f"{len(names)} targets, {total} inputs, {found} findings")
    return 1 if found else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="for all targets together")
    parser.add_argument("--target", action="append", choices=list(ALL_TARGETS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, help="atheris if it is installed, else mutation")
    parser.add_argument("--out", type=Path, default=FOUND, help="where inputs that found something are kept")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(arguments)


def _engine(asked: str | None) -> tuple[str, str]:
    if asked == "mutation":
        return asked, "asked for: seeded mutation of valid encodings, not guided by coverage"
    if engines.has_atheris():
        return "atheris", "installed: guided by coverage of streamq's Python code"
    if asked:
        raise SystemExit("atheris is not installed: pip install 'streamq[fuzz]'")
    return "mutation", "atheris is not installed, so nothing is guided by coverage: pip install 'streamq[fuzz]'"


def _tell(name: str, tally: engines.Tally, out: Path) -> None:
    refused = tally.inputs - tally.accepted
    rate = tally.inputs / max(tally.seconds, 1e-9)
    print(
        f"{name:<30}{rate:>10.1f}{tally.inputs:>10}{tally.accepted:>10}{refused:>10}{tally.slowest_s * 1e3:>7.1f} ms"
        f"{tally.memory_bytes / 1024:>6.0f} KiB  {len(tally.findings) or ''}",
        flush=True,
    )
    for finding in tally.findings:
        path = save(out, name, finding.data)
        print(f"    {finding.what}")
        print(f"    {finding.data[:64].hex()} ({len(finding.data)} bytes) -> {path}")


def _replay(paths: list[Path]) -> int:
    with measured():
        for path in paths:
            name, data = load(path)
            print(f"{path}: {name}, {len(data)} bytes, {hashlib.sha256(data).hexdigest()[:12]}")
            print(f"    {attempt(ALL_TARGETS[name], data)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
