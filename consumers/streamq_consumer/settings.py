"""How a consumer is set up; every field has a unit and a reason."""

import msgspec

from streamq.client.settings import refuse_unless
from streamq.model.limits import CREDIT_BYTES_MAX, KiB, MiB

__all__ = ["ConsumerSettings"]

WINDOW_BYTES_MIN = 64 * KiB


class ConsumerSettings(msgspec.Struct, frozen=True, kw_only=True):
    prefetch_bytes: int = 32 * MiB
    """Compressed batches that are fetched ahead, over all partitions; past it the brokers wait. One batch a partition may go over."""
    stall_s: float = 1.0
    """A replica that does not deliver what is known to be readable for so long is left for another."""
    tip_check_s: float = 1.0
    """When nothing came for so long, another broker is asked by a quorum read whether there is more; ever more seldom while there is not.
    """
    patience_s: float | None = None
    """A partition that no broker serves for so long ends in UnavailableError; None: try for ever."""

    def __post_init__(self) -> None:
        refuse_unless(
            self.prefetch_bytes >= WINDOW_BYTES_MIN, f"prefetch_bytes must be at least {WINDOW_BYTES_MIN}, not {self.prefetch_bytes}"
        )
        refuse_unless(self.stall_s > 0, f"stall_s must be above 0, not {self.stall_s}")
        refuse_unless(self.tip_check_s > 0, f"tip_check_s must be above 0, not {self.tip_check_s}")
        refuse_unless(self.patience_s is None or self.patience_s > 0, f"patience_s must be above 0 or None, not {self.patience_s}")

    def window_bytes(self, *, partitions: int) -> int:
        """The credit that one partition has with its broker."""
        return min(max(self.prefetch_bytes // max(1, partitions), WINDOW_BYTES_MIN), CREDIT_BYTES_MAX)
