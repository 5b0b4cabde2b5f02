"""How targets are fuzzed: by seeded mutation, with nothing installed, or guided by coverage where atheris is installed.

Guided, each target has a process of its own, because that engine never returns; it leaves a report of what it has found.
"""

import random
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

import msgspec

from tests.fuzz.mutation import mutate
from tests.fuzz.target import Target, attempt, measured
from tests.fuzz.wild import Wild

__all__ = ["FINDINGS_MAX", "Finding", "Guided", "Tally", "corpus_of", "has_atheris", "mutated"]

FINDINGS_MAX: Final = 5
"""After so many of one target there is enough to look at."""
CORPUS: Final = 64
CORPUS_MAX: Final = 256
FRESH: Final = 0.1
"""How often a new valid encoding is tried instead of a mutation."""


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


class Guided:
    """Guided by coverage, from `with` on: one process imports everything with its instruments, and forks for each target."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._told = open(Path(self._folder.name, "told"), "w+b")
        command = [sys.executable, "-m", "tests.fuzz.guided", str(self._seed), self._folder.name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, text=True)
        self._expect("ready", "the imports")
        return self

    def __exit__(self, *_: object) -> None:
        """It ends when nothing more is asked."""
        self._process.communicate()
        self._told.close()
        self._folder.cleanup()

    def fuzz(self, target: Target, *, seconds: float) -> Tally:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{target.name} {seconds:g}\n")
        self._process.stdin.flush()
        self._expect("done", target.name)
        return msgspec.json.decode(Path(self._folder.name, f"{target.name}.json").read_bytes(), type=Tally)

    def _expect(self, word: str, what: str) -> None:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if answer != word:
            self._told.seek(0)
            raise RuntimeError(f"the guided fuzzer ended at {what} ({answer}): {self._told.read()[-2000:].decode(errors='replace')}")
