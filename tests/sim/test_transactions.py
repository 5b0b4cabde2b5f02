"""Transactions in simulation, in the default test run: a sample of seeds holds, and what is tested does happen."""

from collections import Counter

import pytest

from tests.sim.tier2.transacted import account, run_seed

pytestmark = pytest.mark.slow

SAMPLE = (1,)
HAPPENS = ("committed", "aborted on purpose", "raised", "aborted by others", "aborted for age", "fenced", "crashed", "moved to blocks")
"""In one seed already; `python -m tests.sim transactions` has seeds enough for all of `MUST_HAPPEN`."""


def test_a_sample_of_seeds_holds() -> None:
    counters: Counter[str] = Counter()
    for seed in SAMPLE:
        report = run_seed(seed)
        if report.violation is not None:
            pytest.fail(account(seed))
        counters.update(report.counters)
    assert [what for what in HAPPENS if not counters[what]] == []
