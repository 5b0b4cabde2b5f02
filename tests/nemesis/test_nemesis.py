"""A short sample of the nemesis over real processes; for longer: `python -m tests.nemesis --minutes 30 --seed 1 --brokers 3`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nemesis import network
from tests.nemesis.nemesis import Episode
from tests.nemesis.report import Gap, Quiet, longest_gaps
from tests.sim.history import History, Outcome, Send

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROCESSES = ("kill-sequencer", "pause-sequencer", "stop", "flip-log")
NETWORKS = ("isolate-from-all", "mute", "cut-pair", "lossy")


def sample(directory: Path, kinds: tuple[str, ...], *more: str) -> dict[str, object]:
    """One run in which each of the kinds happens at least once."""
    told = directory / "report.json"
    words = ["--seconds", "6", "--seed", "1", "--kinds", ",".join(kinds), "--json", str(told), *more]
    done = subprocess.run([sys.executable, "-m", "tests.nemesis", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: nothing lost, repeated or reordered" in done.stdout
    report: dict[str, object] = json.loads(told.read_text())
    return report


def test_processes_that_die_and_damage_lose_nothing(tmp_path: Path) -> None:
    """On the loopback interface, as anybody may run it."""
    report = sample(tmp_path, PROCESSES, "--no-namespaces")
    assert report["violations"] == []
    assert report["outcomes"]["acked"] > 500  # type: ignore[index]
    assert report["happened"]["takeovers"] > 0  # type: ignore[index]
    assert len(report["unavailable"]) >= 2  # type: ignore[arg-type]


@pytest.mark.skipif(network.why_not() != "", reason=f"network faults and the full disk need namespaces: {network.why_not()}")
def test_networks_that_break_lose_nothing(tmp_path: Path) -> None:
    """In network and mount namespaces that the run makes for itself."""
    report = sample(tmp_path, NETWORKS)
    assert report["violations"] == []
    assert report["skipped"] == []
    assert len(report["unavailable"]) >= 2  # type: ignore[arg-type]


def test_the_longest_gap_is_told_of_the_fault_that_it_touches() -> None:
    """In all, and what of it lies after the mending; a gap that touches none counts by itself."""

    def acked(*times: float) -> list[Send]:
        return [Send("s", i, 0, b"", at, Outcome.ACKED, at, i) for i, at in enumerate(times)]

    history = History(sends=acked(0.0, 1.0, 1.5, 4.5, 4.6, 6.0))
    gaps, quiet = longest_gaps(history, [Episode("pause", 2.0, 4.0, 4.5)])
    assert gaps == [Gap("pause", 3.0, 0.5)]
    assert quiet == Quiet(pytest.approx(1.4), 0, 4.6, "pause")  # type: ignore[arg-type]
