"""Consumer groups in simulation, in the default test run: a sample of seeds holds, and what is tested does happen."""

from collections import Counter

import pytest

from tests.sim.tier2.grouped import MUST_HAPPEN, account, run_seed

pytestmark = pytest.mark.slow

SAMPLE = (1, 2)


def test_a_sample_of_seeds_holds() -> None:
    counters: Counter[str] = Counter()
    for seed in SAMPLE:
        report = run_seed(seed)
        if report.violation is not None:
            pytest.fail(account(seed))
        counters.update(report.counters)
    assert [what for what in MUST_HAPPEN if not counters[what]] == []
