"""How targets are fuzzed: by seeded mutation, with nothing installed, or guided by coverage where atheris is installed.

Guided, each target has a process of its own, because the engine never returns; it writes what it has found to a report now and then.
"""

import random
import subprocess
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from tests.fuzz.mutation import mutate
from tests.fuzz.target import Target, attempt, measured
from tests.fuzz.wild import Wild

__all__ = ["FINDINGS_MAX", "Finding", "Tally", "guided", "has_atheris", "mutated"]

FINDINGS_MAX: Final = 5
"""After so many of one target there is enough to look at."""
CORPUS: Final = 64
CORPUS_MAX: Final = 256
FRESH: Final = 0.1
"""How often a new valid encoding is tried instead of a mutation."""
GUIDED_START_S: Final = 60.0
"""More than a guided process takes to import everything with its instruments."""


class Finding(msgspec.Struct, frozen=True):
    what: str
    data: bytes


class Tally(msgspec.Struct):
    """What became of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    memory_bytes: int = 0
    findings: list[Finding] = []

    def take(self, target: Target, data: bytes) -> bool:
        """Tries one input; whether it was accepted. A failure of another kind than those before is a finding."""
        self.inputs += 1
        try:
            outcome = attempt(target, data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            what = _what(error)
            if all(what != finding.what for finding in self.findings):
                self.findings.append(Finding(what, data))
            return False
        self.accepted += outcome.is_accepted
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        self.memory_bytes = max(self.memory_bytes, outcome.memory_bytes)
        return outcome.is_accepted


def _what(error: BaseException) -> str:
    """The kind of failure, in one line: of a group, the first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def has_atheris() -> bool:
    return find_spec("atheris") is not None


def corpus_of(target: Target, rng: random.Random) -> list[bytes]:
    return [target.valid(Wild(rng)) for _ in range(CORPUS)]


def mutated(target: Target, *, seconds: float, seed: int) -> Tally:
    """The same inputs for the same seed, as far as the time reaches."""
    rng, tally = random.Random(f"{seed} {target.name}"), Tally()
    corpus = corpus_of(target, rng)
    began = time.monotonic()
    with measured():
        while time.monotonic() - began < seconds and len(tally.findings) < FINDINGS_MAX:
            is_fresh = rng.random() < FRESH
            data = target.valid(Wild(rng)) if is_fresh else mutate(rng, rng.choice(corpus), corpus)
            is_accepted = tally.take(target, data)
            if is_accepted and len(corpus) < CORPUS_MAX:
                corpus.append(data)
            elif is_accepted:
                corpus[rng.randrange(CORPUS_MAX)] = data
    tally.seconds = time.monotonic() - began
    return tally


def guided(target: Target, *, seconds: float, seed: int, report: Path) -> Tally:
    """The same by coverage, in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz.guided", target.name, f"{seconds:g}", str(seed), str(report)]
    began = time.monotonic()
    ended = subprocess.run(command, timeout=seconds + GUIDED_START_S, capture_output=True, text=True, check=False)
    if not report.exists():
        raise RuntimeError(f"the guided fuzzer of {target.name} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    tally = msgspec.json.decode(report.read_bytes(), type=Tally)
    tally.seconds = tally.seconds or time.monotonic() - began
    return tally
