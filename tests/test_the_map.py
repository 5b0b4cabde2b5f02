"""tests/README.md maps every rule and every pitfall to the tests that guard it; this keeps the map true.

A guard is written `path/of/test_file.py::test_name`, from `tests/` on. A row without a guard says why in a cell that begins with "None:".
Names are looked up in the syntax trees of the files, so nothing is imported and the map is checked in a fraction of a second.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MAP = (TESTS / "README.md").read_text()
WANTED = {*(f"P-{n}" for n in range(1, 42)), *(f"I-{n}" for n in range(1, 9)), *(f"{n}" for n in range(1, 61))}
ROW = re.compile(r"^\| *((?:P-|I-)?\d+) *\|")
GUARD = re.compile(r"`([^`\s]+\.py)::([^`\s]+)`")
FILE = re.compile(r"`([\w/]+\.py)`")
REASON_CHARS_MIN = 30


@cache
def names_in(path: str) -> frozenset[str]:
    """Test functions, `Class::method`s, and the test cases of state machines (`TestX = Machine.TestCase`); empty without that file."""
    file = TESTS / path
    if not file.is_file():
        return frozenset()
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.update(f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset(name for name in found if name.split("::")[-1].lower().startswith("test"))


def faults(text: str) -> list[str]:
    """What is wrong with this map."""
    found: list[str] = []
    seen: list[str] = []
    for line in text.splitlines():
        found += [f"there is no {path}" for path in FILE.findall(line) if not (TESTS / path).is_file()]
        row = ROW.match(line)
        if row is None:
            continue
        seen.append(row[1])
        reason = line.split("None:", 1)[1].strip(" |") if "None:" in line else ""
        if not GUARD.search(line) and len(reason) < REASON_CHARS_MIN:
            found.append(f"{row[1]} names neither a test nor a reason why there is none")
        found += [f"{path} has no {name}" for path, name in GUARD.findall(line) if name not in names_in(path)]
        found += [f"not understood: {cell}" for cell in re.findall(r"`[^`]*::[^`]*`", line) if not GUARD.fullmatch(cell)]
    found += [f"{missing} is in no table" for missing in sorted(WANTED - set(seen))]
    found += [f"{extra} is no rule and no pitfall" for extra in sorted(set(seen) - WANTED)]
    found += [f"{twice} has two rows" for twice in sorted({each for each in seen if seen.count(each) > 1})]
    return found


def test_every_rule_and_every_pitfall_is_guarded_by_tests_that_exist() -> None:
    assert faults(MAP) == []


@pytest.mark.parametrize("gone", ["P-1", "P-41", "I-8", "1", "60"])
def test_a_row_that_is_missing_is_noticed(gone: str) -> None:
    without = "\n".join(line for line in MAP.splitlines() if not re.match(rf"^\| *{gone} *\|", line))
    assert set(faults(without)) - set(faults(MAP)) == {f"{gone} is in no table"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("::test_mut_no_repair`", "::test_mut_no_repairs`"),
        ("`scenarios/test_log_counterexamples.py::", "`scenarios/test_log_counterexample.py::"),
        ("::test_mut_no_repair`", "::test_mut no_repair`"),
        ("None:", "None, and no"),
        ("| P-2 |", "| P-1 |"),
    ],
)
def test_a_guard_that_does_not_exist_and_a_row_that_says_nothing_are_noticed(before: str, after: str) -> None:
    assert before in MAP
    assert set(faults(MAP.replace(before, after))) - set(faults(MAP)) != set()
