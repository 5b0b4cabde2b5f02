"""`python -m tests.sim`: the command itself, as a person runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tests.sim", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_seeds_are_run_in_processes_and_added_up() -> None:
    done = command("tier1", "--seeds", "60", "--jobs", "2")
    assert done.stderr == ""
    assert re.search(r"^tier1: 60 seeds in .* seeds/s with 2 jobs\), 1\.\d virtual hours, \d+ messages .* 0 violations$", done.stdout, re.M)
    assert re.search(r"^each seed at least 6\d\.\d virtual seconds and \d+ faults$", done.stdout, re.M)
    assert re.search(r"^ +[\d,]+  takeovers$", done.stdout, re.M)
    assert done.stdout.splitlines()[-1].startswith(("PASSED", "FAILED: nothing was proved"))
    assert done.returncode == (0 if "PASSED" in done.stdout else 1)


def test_a_run_that_proved_nothing_fails() -> None:
    done = command("tier1", "--seeds", "1", "--jobs", "1")
    assert done.returncode == 1
    assert "FAILED: nothing was proved, since these never happened: " in done.stdout
