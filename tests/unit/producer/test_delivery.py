"""What a record's receipt says of the ack that its batch got."""

import pytest
import trio

from streamq.model.messages import Ack
from streamq_producer.delivery import BatchOutcome, Delivery


@pytest.mark.parametrize(("base", "offsets"), [(40, [40, 41, 43]), (0, [0, 1, 3]), (-1, [-1, -1, -1])])
def test_each_record_has_the_offset_of_its_place_or_none(base: int, offsets: list[int]) -> None:
    """A repeat of which the broker knows no place any more has none, wherever in the batch the record lies (P-35)."""
    batch = BatchOutcome("t", 0)
    batch.settle(ack=Ack(1, base, 1_000, 2, 3, True))

    async def told() -> list[int]:
        return [(await Delivery(batch, first).receipt()).offset for first in (0, 1, 3)]

    assert trio.run(told) == offsets
