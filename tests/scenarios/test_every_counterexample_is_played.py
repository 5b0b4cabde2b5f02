"""Every configuration of the model in which TLC finds a counterexample has a scenario that the real cores survive, by the same name.

So no counterexample is forgotten when one is added or renamed, and no scenario bears a name that means nothing.
"""

import ast
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parent / "spec"
PREFIXES = ("mut_", "lit_")


def counterexamples() -> set[str]:
    return {file.stem for file in MODEL.glob("*.cfg") if file.stem.startswith(PREFIXES)}


def scenarios() -> list[str]:
    """The names of all tests in this folder, `test_` left out."""
    modules = [ast.parse(file.read_text()) for file in sorted(HERE.glob("test_*.py"))]
    functions = [node.name for module in modules for node in module.body if isinstance(node, ast.FunctionDef)]
    return [name.removeprefix("test_") for name in functions if name.startswith("test_")]


def test_every_counterexample_has_its_scenario() -> None:
    assert len(counterexamples()) > 30
    assert counterexamples() - set(scenarios()) == set()


def test_every_scenario_named_after_a_counterexample_has_one() -> None:
    """A second scenario of one counterexample goes on after its name."""
    known = tuple(counterexamples())
    assert [name for name in scenarios() if name.startswith(PREFIXES) and not name.startswith(known)] == []


def test_no_two_scenarios_have_one_name() -> None:
    """Of two functions of one name in a module, the first is never run."""
    assert len(scenarios()) == len(set(scenarios()))
