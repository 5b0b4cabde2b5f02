"""How a producer is set up; every field has a unit and a reason."""

from typing import Literal

import msgspec

from streamq.client.settings import refuse_unless
from streamq.model.limits import IN_FLIGHT_BATCHES_MAX, RECORD_BYTES_MAX, TRANSACTION_MS_MAX, TRANSACTION_MS_MIN, KiB, MiB
from streamq.wire.compression import ZSTD_LEVELS

__all__ = ["BATCH_BYTES_LIMIT", "ProducerSettings"]

BATCH_BYTES_LIMIT = RECORD_BYTES_MAX
"""The largest `batch_bytes`: with one more record, and packed, a batch stays within BATCH_RAW_BYTES_MAX."""


class ProducerSettings(msgspec.Struct, frozen=True, kw_only=True):
    linger_s: float = 0.005
    """How long a batch may fill up while others of its partition are under way. With none under way nothing lingers."""
    batch_bytes: int = 256 * KiB
    """A batch is closed at this size, before compression. Larger ones cost less per record, smaller ones arrive earlier."""
    buffer_bytes: int = 64 * MiB
    """What may wait for an outcome; past it `send` and `enqueue` wait."""
    compression: Literal["zstd", "none"] = "zstd"
    level: int = 1
    """Of zstd, 1 to 19; above 3 it soon costs more time than it saves."""
    idempotent: bool = True
    """Batches are numbered, so that one sent again after a broken connection is stored once. Without, such a batch's outcome is unknown."""
    in_flight: int = 16
    """Batches of one partition that are sent and not yet answered."""
    delivery_timeout_s: float = 30.0
    """From `enqueue` on; a record without an outcome by then is unknown if it was sent, else not stored."""
    transactional: bool = False
    """A named producer that has transactions; opening it again aborts an open one of its former self."""
    transaction_timeout_s: float = 60.0
    """A transaction whose first record is so old is aborted by the brokers, as soon as anybody waits for it."""
    close_timeout_s: float = 30.0
    """How long leaving the block waits for what is under way."""

    def __post_init__(self) -> None:
        refuse_unless(self.linger_s >= 0, f"linger_s must not be negative, as {self.linger_s} is")
        refuse_unless(1 <= self.batch_bytes <= BATCH_BYTES_LIMIT, f"batch_bytes must be 1 to {BATCH_BYTES_LIMIT}, not {self.batch_bytes}")
        refuse_unless(
            self.buffer_bytes >= self.batch_bytes,
            f"buffer_bytes ({self.buffer_bytes}) must hold at least one batch of batch_bytes ({self.batch_bytes})",
        )
        refuse_unless(self.compression in ("zstd", "none"), f"compression must be zstd or none, not {self.compression!r}")
        refuse_unless(self.level in ZSTD_LEVELS, f"level must be {ZSTD_LEVELS.start} to {ZSTD_LEVELS.stop - 1}, not {self.level}")
        refuse_unless(1 <= self.in_flight <= IN_FLIGHT_BATCHES_MAX, f"in_flight must be 1 to {IN_FLIGHT_BATCHES_MAX}, not {self.in_flight}")
        refuse_unless(self.delivery_timeout_s > 0, f"delivery_timeout_s must be above 0, not {self.delivery_timeout_s}")
        low, high = TRANSACTION_MS_MIN / 1000, TRANSACTION_MS_MAX / 1000
        timeout_s = self.transaction_timeout_s
        refuse_unless(low <= timeout_s <= high, f"transaction_timeout_s must be {low:g} to {high:g}, not {timeout_s}")
        refuse_unless(self.close_timeout_s >= 0, f"close_timeout_s must not be negative, as {self.close_timeout_s} is")
