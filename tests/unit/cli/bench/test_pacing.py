"""An open loop's schedule: a record is due when it is due, however late the sender is (coordinated omission)."""

from hypothesis import given
from hypothesis import strategies as st

from streamq.cli.bench.pacing import Schedule


def test_records_are_evenly_spaced_from_the_beginning() -> None:
    schedule = Schedule(1000.0, begun=50.0)
    assert [round(schedule.due_at(number), 6) for number in range(3)] == [50.0, 50.001, 50.002]


@given(st.floats(0.1, 1e6), st.floats(0, 1e6), st.floats(0, 100))
def test_exactly_the_records_whose_instant_has_passed_are_due(rate: float, begun: float, after: float) -> None:
    schedule = Schedule(rate, begun=begun)
    now = begun + after
    due = schedule.due_by(now)
    slack = 1e-6 * max(1.0, now)
    assert schedule.due_at(due - 1) <= now + slack
    assert schedule.due_at(due) >= now - slack


def test_a_sender_that_stood_still_owes_all_that_became_due_meanwhile() -> None:
    """Their latency counts from when each was due, not from when the sender came back."""
    schedule = Schedule(100.0, begun=0.0)
    assert schedule.due_by(5.0) - schedule.due_by(4.0) == 100
    assert 5.0 - schedule.due_at(schedule.due_by(4.0)) > 0.98
