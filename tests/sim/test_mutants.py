"""Every rule that is broken alone is noticed by the simulations (pitfall 60); the whole table: `python -m tests.sim mutants`."""

import pytest

from tests.sim.mutants import MUTANTS, Mutant, hunt

pytestmark = pytest.mark.slow


SAMPLE_OF_TRANSACTIONS = ("undecided data is handed out", "positions count before the transaction", "a zombie is told aborted")
"""The others take a minute, and are `long`."""


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(
            mutant,
            id=f"{mutant.rule} {mutant.name}",
            marks=pytest.mark.long if mutant.tier == "transactions" and mutant.name not in SAMPLE_OF_TRANSACTIONS else (),
        )
        for mutant in MUTANTS
    ],
)
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    """Near the seed that caught it before, or else anywhere in the number of seeds that is promised."""
    assert (hunt(mutant, mutant.near, 3) or hunt(mutant, 0, mutant.within)) is not None


def test_a_mutant_ends_with_its_hunt() -> None:
    """What it replaced is back, or every test after it would be of other code."""
    before = {(owner, name): vars(owner)[name] for owner, name in _replaced()}
    for mutant in MUTANTS:
        with mutant.applied():
            pass
    assert {(owner, name): vars(owner)[name] for owner, name in before} == before


def test_each_mutant_replaces_something() -> None:
    for mutant in MUTANTS:
        replaced: list[object] = []
        mutant.breaks(lambda owner, name, value, replaced=replaced: replaced.append((owner, name, value)))  # type: ignore[misc]
        assert replaced, mutant
        assert all(vars(owner)[name] is not value for owner, name, value in replaced)  # type: ignore[misc]


def _replaced() -> list[tuple[type, str]]:
    found: list[tuple[type, str]] = []
    for mutant in MUTANTS:
        mutant.breaks(lambda owner, name, value: found.append((owner, name)))  # type: ignore[arg-type, func-returns-value]
    return found
