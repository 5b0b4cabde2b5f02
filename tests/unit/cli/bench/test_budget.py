"""A benchmark ends before it takes more of the disk than it was given."""

import pytest

from streamq.cli.bench import budget as module
from streamq.cli.bench.budget import JOURNALS_BYTES, Budget
from streamq.log.retention import ROLL_SHARE
from streamq.model.errors import RefusedError, UnavailableError
from streamq.model.limits import RETENTION_BYTES_MIN

GB = 10**9


def test_what_cannot_fit_is_refused_before_it_begins() -> None:
    budget = Budget(5 * GB, lambda: 0, None)
    budget.refuse_over(5 * GB - JOURNALS_BYTES, what="this")
    with pytest.raises(RefusedError, match="--disk-budget"):
        budget.refuse_over(5 * GB, what="this")


@pytest.mark.parametrize("partitions", [1, 6, 1000])
def test_what_three_replicas_keep_leaves_room_for_what_retention_has_not_seen_yet(partitions: int) -> None:
    stored = 6 * GB
    retained = Budget(20 * GB, lambda: 0, None).retained_bytes(partitions, stored_bytes=stored)
    kept = 3 * partitions * retained * (ROLL_SHARE + 1) / ROLL_SHARE
    assert kept + stored + JOURNALS_BYTES < 0.9 * 20 * GB
    assert kept > 0.3 * (20 * GB - stored)


def test_a_small_budget_keeps_no_less_than_a_topic_may() -> None:
    assert Budget(GB, lambda: 0, None).retained_bytes(2_000) == RETENTION_BYTES_MIN


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
