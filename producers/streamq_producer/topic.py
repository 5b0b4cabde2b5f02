"""A topic as the producer fills it: one lane a partition, and which of them the next record goes to."""

from collections.abc import Sequence
from operator import lt
from typing import Final

from streamq.client.settings import refuse_unless
from streamq.model.errors import NotFoundError
from streamq_producer.lane import Lane
from streamq_producer.records import partition_of

__all__ = ["Topic"]

NOWHERE: Final = "a named producer's record has a key, or a partition is named: one that is sent again after a restart must go where it was"


class Topic:
    """Records without a key stick to one partition until its batch is closed, and then go to the next one that makes progress."""

    def __init__(self, name: str, lanes: Sequence[Lane], *, first: int) -> None:
        """`first` chooses where to begin, so that many producers do not begin at the same partition."""
        self.name = name
        self.lanes = tuple(lanes)
        self._at = first % len(lanes)
        self.current = self.lanes[self._at]
        """The lane that records without a key stick to as long as its batch is open."""

    def lane_of(self, key: bytes | None, partition: int | None) -> Lane:
        """Raises NotFoundError."""
        if partition is not None:
            if not 0 <= partition < len(self.lanes):
                message = f"topic {self.name!r} has partitions 0 to {len(self.lanes) - 1}, not {partition}"
                raise NotFoundError(message, code="unknown_partition")
            return self.lanes[partition]
        if key is not None:
            return self.lanes[partition_of(key, partitions=len(self.lanes))]
        return self.next_lane()

    def named_lane(self, key: bytes | None, partition: int | None) -> Lane:
        """Where a named producer's record goes: always to the same one. Raises NotFoundError, and RefusedError."""
        refuse_unless(key is not None or partition is not None, NOWHERE, code="bad_request")
        return self.lane_of(key, partition)

    def named_lanes(self, keys: Sequence[bytes | None] | None, partition: int | None) -> list[Lane]:
        """As `named_lane`, of many records."""
        if partition is not None or keys is None:
            return [self.named_lane(None, partition)]
        return list(dict.fromkeys(self.named_lane(key, None) for key in dict.fromkeys(keys)))

    def check_positions(self, positions: Sequence[int], keys: Sequence[bytes | None] | None, partition: int | None) -> None:
        """Raises RefusedError unless they rise, from above what was given or is stored wherever a record goes."""
        refuse_unless(all(map(lt, positions, positions[1:])), "positions rise", code="bad_request")
        for lane in self.named_lanes(keys, partition):
            lane.check_position(positions[0])
            lane.check_position(positions[-1])

    def next_lane(self) -> Lane:
        if self.current.rows:
            return self.current
        count = len(self.lanes)
        for step in range(1, count + 1):
            at = (self._at + step) % count
            if self.lanes[at].session.is_healthy:
                break
        else:
            at = (self._at + 1) % count
        self._at = at
        self.current = self.lanes[at]
        return self.current
