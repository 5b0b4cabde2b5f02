"""The last records over several partitions, in order of time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from streamq_consumer import Record
from streamq_consumer.latest import in_time_order


@given(st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=4))
@settings(max_examples=100)
def test_each_partition_keeps_its_order_whatever_times_its_producers_gave(times: list[list[int]]) -> None:
    held = {("t", p): [Record("t", p, o, time, None, b"") for o, time in enumerate(row)] for p, row in enumerate(times)}
    merged = in_time_order(held)
    assert len(merged) == sum(map(len, times))
    for place, records in held.items():
        assert [record for record in merged if (record.topic, record.partition) == place] == records


def test_partitions_are_merged_by_time() -> None:
    held = {("t", p): [Record("t", p, o, 10 * o + p, None, b"") for o in range(3)] for p in range(2)}
    assert [record.timestamp for record in in_time_order(held)] == [0, 1, 10, 11, 20, 21]
