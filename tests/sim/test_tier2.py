"""Tier 2 in the default test run: the same seed is the same run, in whatever process, and a sample of seeds holds."""

import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.sim.tier2.failing import account
from tests.sim.tier2.run import MUST_HAPPEN, SENDS_UNTIL_S, Run
from tests.sim.tier2.schedule import FAULTS_MIN, Fault

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRACED = [3, 7]
SAMPLE = (57, 58, 70, 101, 122)
"""Between them they meet everything that has to happen; a change moves what seeds mean."""
TRACE = "import sys; from tests.sim.tier2.run import Run; print(Run(int(sys.argv[1])).trace())"


@cache
def traced_here(seed: int) -> str:
    return Run(seed).trace()


def traced_elsewhere(seed: int, *, hash_seed: str) -> str:
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "producers", "consumers"))
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", TRACE, str(seed)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("seed", TRACED)
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    """Every step of every task at its time, and everything clients saw: here, here again, and in another process with another hash seed."""
    here = traced_here(seed)
    assert Run(seed).trace() == here
    assert traced_elsewhere(seed, hash_seed="7") == here


def test_another_seed_is_another_run() -> None:
    assert traced_here(TRACED[0]) != traced_here(TRACED[1])


def test_a_sample_of_seeds_holds() -> None:
    """At least a virtual minute and three faults each; and what is tested does happen (pitfall 60)."""
    counters: Counter[str] = Counter()
    for seed in SAMPLE:
        report = Run(seed).run()
        if report.violation is not None:
            pytest.fail(account(seed, is_shortened=False))
        assert report.virtual_s >= SENDS_UNTIL_S
        assert report.faults >= FAULTS_MIN
        counters.update(report.counters)
    assert [what for what in MUST_HAPPEN if not counters[what]] == []


@pytest.mark.long
def test_a_run_that_must_fail_does() -> None:
    """The whole chain of judgement at work: two of three disks are lost at once, which no protocol bears."""
    run = Run(2, schedule=[Fault(20.0, "empty two disks", 0, 1, 1.0, 0.5)])
    assert run.run().violation is not None
