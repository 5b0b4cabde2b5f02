"""Targets under atheris: `python -m tests.fuzz.guided SEED FOLDER`, started by `engines.Guided`.

Reads lines of a target's name and seconds; for each it forks a process, which writes `FOLDER/<target>.json`, and says "done" at its end.

The engine sees the branches of Python code only, and decoding is done in C; so half of its mutations are ours, which know MessagePack.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import atheris  # type: ignore[import-not-found]

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

with atheris.instrument_imports(include=["streamq", "streamq_producer", "streamq_consumer"]):
    import msgspec

    from tests.fuzz.all_targets import ALL_TARGETS
    from tests.fuzz.engines import FINDINGS_MAX, Tally, corpus_of
    from tests.fuzz.mutation import INPUT_BYTES_MAX, mutate
    from tests.fuzz.target import measured

REPORT_S: Final = 0.5


def fuzz(name: str, seconds: float, seed: int, report: Path) -> NoReturn:
    """Ends this process once the time is up, or there is enough to look at."""
    target, tally = ALL_TARGETS[name], Tally()
    corpus = corpus_of(target, random.Random(f"{seed} {name}"))
    began = told = time.monotonic()

    def tell() -> None:
        tally.seconds = time.monotonic() - began
        fresh = report.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(tally))
        fresh.rename(report)

    def try_one(data: bytes) -> None:
        nonlocal told
        tally.take(target, data)
        now = time.monotonic()
        if now - told >= REPORT_S or now - began >= seconds:
            told = now
            tell()
        if now - began >= seconds or len(tally.findings) >= FINDINGS_MAX:
            tell()
            os._exit(0)

    def change(data: bytes, size_max: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return mutate(rng, data, corpus)[:size_max]
        mutated: bytes = atheris.Mutate(data, size_max)
        return mutated

    folder = report.with_suffix(".corpus")
    folder.mkdir(exist_ok=True)
    with measured():
        for number, content in enumerate(corpus):
            Path(folder, f"{number:03d}").write_bytes(content)
        arguments = [
            sys.argv[0],
            str(folder),
            f"-seed={seed % (1 << 31) or 1}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-timeout=0",
            "-verbosity=0",
        ]
        atheris.Setup(arguments, try_one, custom_mutator=change)
        atheris.Fuzz()
    raise AssertionError("it never returns")


def main(seed: int, folder: Path) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        child = os.fork()
        if not child:
            fuzz(name, float(seconds), seed, folder / f"{name}.json")
        _, status = os.waitpid(child, 0)
        print("done" if status == 0 else f"status {status}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
