"""How a consumer is set up; every field has a unit and a reason."""

from typing import Literal

import msgspec

from streamq.client.settings import refuse_unless
from streamq.model.limits import CREDIT_BYTES_MAX, GROUP_SESSION_MS_MAX, GROUP_SESSION_MS_MIN, NAME_CHARS_MAX, KiB, MiB

__all__ = ["ConsumerSettings", "GroupSettings", "Isolation"]

Isolation = Literal["read_committed", "read_uncommitted"]

WINDOW_BYTES_MIN = 64 * KiB


class ConsumerSettings(msgspec.Struct, frozen=True, kw_only=True):
    prefetch_bytes: int = 32 * MiB
    """Compressed batches that are fetched ahead, over all partitions; past it the brokers wait. One batch a partition may go over."""
    stall_s: float = 1.0
    """A replica that does not deliver what is known to be readable for so long is left for another."""
    tip_check_s: float = 1.0
    """When nothing came for so long, another broker is asked by a quorum read whether there is more; ever more seldom while there is not.
    """
    isolation: Isolation = "read_committed"
    """Of transactions, only what is committed is handed out, and nothing from behind an open one's records in their partition;
    "read_uncommitted" hands out all, also what is or will be aborted."""
    patience_s: float | None = None
    """A partition that no broker serves for so long ends in UnavailableError; None: try for ever."""

    def __post_init__(self) -> None:
        refuse_unless(
            self.prefetch_bytes >= WINDOW_BYTES_MIN, f"prefetch_bytes must be at least {WINDOW_BYTES_MIN}, not {self.prefetch_bytes}"
        )
        refuse_unless(self.stall_s > 0, f"stall_s must be above 0, not {self.stall_s}")
        refuse_unless(self.tip_check_s > 0, f"tip_check_s must be above 0, not {self.tip_check_s}")
        refuse_unless(
            self.isolation in ("read_committed", "read_uncommitted"),
            f"isolation must be read_committed or read_uncommitted, not {self.isolation!r}",
        )
        refuse_unless(self.patience_s is None or self.patience_s > 0, f"patience_s must be above 0 or None, not {self.patience_s}")

    def window_bytes(self, *, partitions: int) -> int:
        """The credit that one partition has with its broker."""
        return min(max(self.prefetch_bytes // max(1, partitions), WINDOW_BYTES_MIN), CREDIT_BYTES_MAX)


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    group: str
    member_name: str = ""
    """A static member: started again under its name within the session, it has the same partitions, and nobody else notices."""
    session_s: float = 10.0
    """A member that was not heard of for so long has lost its partitions; one that gets no answer for so long stops handing out."""
    processing_s: float = 300.0
    """A member whose application does not come back for more within this time has hung, and leaves the group."""
    auto_commit: bool = True
    """What was handed out counts as handled, and is committed, once the application comes for more; False: `commit` says so."""
    commit_interval_s: float = 1.0
    join_s: float = 10.0
    leave_s: float = 5.0
    """How long leaving the block waits for the last commit."""

    def __post_init__(self) -> None:
        low, high = GROUP_SESSION_MS_MIN / 1000, GROUP_SESSION_MS_MAX / 1000
        refuse_unless(0 < len(self.group) <= NAME_CHARS_MAX, f"the name of a group has 1 to {NAME_CHARS_MAX} characters")
        refuse_unless(len(self.member_name) <= NAME_CHARS_MAX, f"the name of a member has at most {NAME_CHARS_MAX} characters")
        refuse_unless(low <= self.session_s <= high, f"session_s must be {low:g} to {high:g}, not {self.session_s}")
        refuse_unless(self.processing_s > 0, f"processing_s must be above 0, not {self.processing_s}")
        refuse_unless(self.commit_interval_s > 0, f"commit_interval_s must be above 0, not {self.commit_interval_s}")
        refuse_unless(self.join_s > 0 and self.leave_s > 0, "join_s and leave_s must be above 0")
