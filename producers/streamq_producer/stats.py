"""What a producer has seen so far."""

import msgspec

__all__ = ["ProducerStats"]


class ProducerStats(msgspec.Struct, frozen=True):
    """Counts of records, except for `retries`, which counts batches that were sent again.

    acked: stored, with a receipt. refused: certainly not stored. unknown: may be stored. waiting: none of these yet.
    `longest_gap_s` is the longest time without an ack while something waited for one.
    """

    acked: int
    refused: int
    unknown: int
    waiting: int
    retries: int
    longest_gap_s: float
