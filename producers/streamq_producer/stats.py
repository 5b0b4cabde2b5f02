"""What a producer has seen so far."""

from typing import Final

import msgspec

from streamq.model.batches import BatchHeader
from streamq.model.metrics import Histogram, HistogramSnapshot, MetricSet

__all__ = ["ProducerMetrics", "ProducerStats"]

US_PER_S: Final = 1_000_000


class ProducerStats(msgspec.Struct, frozen=True):
    """Counts of records, up to `waiting`; of batches, from there on.

    acked: stored, with a receipt. refused: certainly not stored. unknown: may be stored. waiting: none of these yet.
    `longest_gap_s` is the longest time without an ack while something waited for one.
    """

    acked: int
    refused: int
    unknown: int
    waiting: int
    retries: int
    """Batches that were sent again."""
    longest_gap_s: float
    batches: int
    """Closed, and so packed and compressed."""
    in_flight: int
    """Sent and not answered yet."""
    frames: int
    """Sent; each carries one batch or more, some of them perhaps again."""
    raw_bytes: int
    """Of the closed batches, before compression."""
    payload_bytes: int
    """Of the closed batches, as they are sent, their headers aside."""
    ack_seconds: HistogramSnapshot
    """Of each acked batch, from the moment when it was closed."""


class ProducerMetrics(MetricSet):
    """What is counted on the way; once a batch or once a frame."""

    def __init__(self) -> None:
        self.batches = 0
        self.frames = 0
        self.raw_bytes = 0
        self.payload_bytes = 0
        self.ack_seconds = Histogram(US_PER_S)

    def closed(self, header: BatchHeader) -> None:
        self.batches += 1
        self.raw_bytes += header.raw_bytes
        self.payload_bytes += header.payload_bytes

    def acked(self, after_s: float) -> None:
        self.ack_seconds.record(int(after_s * US_PER_S))
