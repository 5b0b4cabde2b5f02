"""One target under atheris: `python -m tests.fuzz.guided TARGET SECONDS SEED REPORT`. Started by `engines.guided`; never returns.

The engine sees the branches of Python code only, and decoding is done in C; so half of its mutations are ours, which know MessagePack.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import atheris  # type: ignore[import-not-found]

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

with atheris.instrument_imports(include=["streamq", "streamq_producer", "streamq_consumer"]):
    import msgspec

    from tests.fuzz.all_targets import ALL_TARGETS
    from tests.fuzz.engines import FINDINGS_MAX, Tally, corpus_of
    from tests.fuzz.mutation import INPUT_BYTES_MAX, mutate
    from tests.fuzz.target import measured

REPORT_S: Final = 0.5


def main(name: str, seconds: float, seed: int, report: Path) -> None:
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

    with tempfile.TemporaryDirectory() as folder, measured():
        for number, content in enumerate(corpus):
            Path(folder, f"{number:03d}").write_bytes(content)
        arguments = [sys.argv[0], folder, f"-seed={seed % (1 << 31) or 1}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=0", "-verbosity=0"]
        atheris.Setup(arguments, try_one, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
