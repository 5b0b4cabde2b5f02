"""A steady load that is behind catches up in steps, however far behind it is: one call for all of it would stop the loop for as long."""

import trio.testing

from streamq.cli.bench.meter import Meter
from streamq.cli.bench.plan import Plan
from streamq.cli.bench.steady import RECORDS_PER_CALL_MAX, _PartitionLoad


class Taking:
    """A producer that notes how many values each call has given it."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.first: list[int] = []

    async def enqueue_many(self, topic: str, values: list[bytes], *, partition: int) -> list[object]:
        await trio.lowlevel.checkpoint()
        self.calls.append(len(values))
        self.first.append(int.from_bytes(values[0][:8], "big"))
        return []


async def test_what_is_due_is_sent_in_steps_and_none_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    plan, taking = Plan(load="steady", bootstrap="", topic="t"), Taking()
    load = _PartitionLoad(plan, Meter(plan), taking, 0, [b"value"])  # type: ignore[arg-type]
    due = 3 * RECORDS_PER_CALL_MAX + 7
    while load.sent < due:
        await load.send_until(due)
    await load.send_until(due)
    assert taking.calls == [RECORDS_PER_CALL_MAX] * 3 + [7]
    assert taking.first == [RECORDS_PER_CALL_MAX * call for call in range(4)]
