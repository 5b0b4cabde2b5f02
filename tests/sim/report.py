"""What one simulated run came to: every tier's `run_seed(seed, **options)` returns a `Report`, and the command adds them up."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """Of one seed. `violation` is None when everything held; else it says what did not, in full, for a person to read."""

    seed: int
    counters: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    messages: int = 0
    """Delivered between brokers and clients."""
    faults: int = 0
    violation: str | None = None
