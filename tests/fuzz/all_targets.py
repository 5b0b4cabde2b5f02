"""All targets by name: decoders, which take microseconds, and whole programs, which take seconds."""

from typing import Final

from tests.fuzz.live_targets import LIVE_TARGETS
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

__all__ = ["ALL_TARGETS", "share_of"]

ALL_TARGETS: Final[dict[str, Target]] = TARGETS | {target.name: target for target in LIVE_TARGETS}
LIVE: Final = frozenset(target.name for target in LIVE_TARGETS)


def share_of(name: str) -> int:
    """Of the time: the messages share one decoder, and a program runs a second for one input."""
    return 1 if name.startswith("message.") else 16 if name in LIVE else 4
