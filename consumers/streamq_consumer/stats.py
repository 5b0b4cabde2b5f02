"""What a consumer has seen so far."""

import msgspec

from streamq.model.batches import BatchHeader
from streamq.model.metrics import MetricSet

__all__ = ["ConsumerMetrics", "ConsumerStats"]


class ConsumerStats(msgspec.Struct, frozen=True):
    """What was unpacked to be handed out, and what it took."""

    records: int
    batches: int
    payload_bytes: int
    """As they came, compressed, their headers aside."""
    raw_bytes: int
    """After decompression."""
    buffered: int
    """Records that are here and not unpacked yet."""
    subscriptions: int
    """Streams opened: one a partition, and one more for each that was lost, left or sought elsewhere."""
    damaged: int
    """Times that what came was damaged, and was read again from another replica."""
    stuck: int
    """Times that a handler of `run` was found stuck."""


class ConsumerMetrics(MetricSet):
    """What is counted on the way; once a batch."""

    def __init__(self) -> None:
        self.records = 0
        self.batches = 0
        self.payload_bytes = 0
        self.raw_bytes = 0
        self.subscriptions = 0
        self.damaged = 0
        self.stuck = 0

    def unpacked(self, header: BatchHeader, records: int) -> None:
        """`records` of this batch; those before the position are skipped."""
        self.batches += 1
        self.records += records
        self.payload_bytes += header.payload_bytes
        self.raw_bytes += header.raw_bytes
