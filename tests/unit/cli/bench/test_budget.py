"""A benchmark ends before it takes more of the disk than it was given."""

import pytest

from streamq.cli.bench import budget as module
from streamq.cli.bench.budget import JOURNALS_BYTES, Budget
from streamq.model.errors import RefusedError, UnavailableError

GB = 10**9


def test_what_cannot_fit_is_refused_before_it_begins() -> None:
    budget = Budget(5 * GB, lambda: 0, None)
    budget.refuse_over(5 * GB - JOURNALS_BYTES, what="this")
    with pytest.raises(RefusedError, match="--disk-budget"):
        budget.refuse_over(5 * GB, what="this")


def test_it_is_stopped_while_there_is_room_for_another_second_of_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = 100.0, 0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    budget = Budget(10 * GB, lambda: used, None)
    budget.check()
    for _ in range(9):
        now, used = now + 1.0, used + GB
        budget.check()
    now, used = now + 1.0, used + GB * 6 // 10
    with pytest.raises(UnavailableError) as stopped:
        budget.check()
    assert stopped.value.code == "disk_full"
