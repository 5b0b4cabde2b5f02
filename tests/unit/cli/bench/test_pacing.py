"""An open loop's schedule: a record is due when it is due, however late the sender is (coordinated omission)."""

from typing import cast

import trio
from hypothesis import given
from hypothesis import strategies as st

from streamq.cli.bench.meter import Meter
from streamq.cli.bench.pacing import Schedule
from streamq.cli.bench.plan import Plan
from streamq.cli.bench.producing import _open_loop
from streamq_producer import Producer


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


class SlowOnce:
    """A producer whose first send takes long; the others are answered at once, but only when it lets them."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = trio.Lock()

    async def send(self, topic: str, value: bytes) -> None:
        async with self._lock:
            stall_s, self._stall_s = self._stall_s, 0.0
            await trio.sleep(stall_s)


async def test_a_stall_counts_for_every_record_that_was_due_meanwhile() -> None:
    """One send of 0.2 s at 100 records/s: of 40 records about half wait, from 0.2 s down to nothing. One latency alone would hide it."""
    plan = Plan(load="latency", bootstrap="", topic="t", rate=100.0)
    meter = Meter(plan)
    await _open_loop(plan, meter, cast(Producer, SlowOnce(0.2)), [b"x"], records=40, seconds=0.0)
    latencies = meter.latencies.snapshot()
    assert latencies.count == 40
    assert latencies.largest >= 0.2
    assert latencies.percentile(0.75) >= 0.08
    assert latencies.percentile(0.25) < 0.08
