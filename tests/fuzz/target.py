"""What a decoder promises about any bytes, as something that fuzzers and tests can try: one `Target` a decoder.

A target's function decodes the bytes, encodes again what came out, and asserts that the copy is equal. Bytes that are no such thing it
refuses with an error that the decoder documents; whatever else it raises is a finding. So is an input that costs more memory or time than
its size accounts for.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from tests.fuzz.watchdog import ends_within
from tests.fuzz.wild import Wild

__all__ = ["Outcome", "Refused", "Target", "attempt", "measured"]

HANG_S: Final = 20.0
"""Of real time on a machine that others use, too: whatever takes so long for a few kilobytes does not end."""
FLOOR_BYTES: Final = 128 << 10


class Refused(Exception):
    """For decoders that say `None`, or why not, instead of raising."""


class Target(NamedTuple):
    name: str
    decode: Callable[[bytes], object]
    """Raises one of `refuses`, or nothing."""
    valid: Callable[[Wild], bytes]
    """Bytes that are not refused."""
    refuses: tuple[type[Exception], ...]
    seal: Callable[[bytes], bytes] | None = None
    """Makes the checksums hold, as whoever sends bytes can; each input is tried as it is and sealed."""
    growth: int = 64
    """Bytes of memory that a byte of input may cost, its copy's encoding and decoding included."""
    floor_bytes: int = FLOOR_BYTES
    """Bytes of memory that any input may cost."""


class Outcome(NamedTuple):
    is_accepted: bool
    seconds: float
    memory_bytes: int


def attempt(target: Target, data: bytes) -> Outcome:
    """One input, as it is and sealed. Raises what the target does not document, Hung, or AssertionError for what broke a bound."""
    outcome = _attempt(target, data)
    if target.seal is not None and (sealed := target.seal(data)) != data:
        other = _attempt(target, sealed)
        outcome = Outcome(other.is_accepted, max(outcome.seconds, other.seconds), max(outcome.memory_bytes, other.memory_bytes))
    return outcome


def _attempt(target: Target, data: bytes) -> Outcome:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    began = time.perf_counter()
    is_accepted = True
    with ends_within(HANG_S):
        try:
            target.decode(data)
        except target.refuses:
            is_accepted = False
    seconds = time.perf_counter() - began
    memory = tracemalloc.get_traced_memory()[1] - before
    limit = target.floor_bytes + target.growth * len(data)
    assert memory <= limit, f"{len(data)} bytes cost {target.name} {memory} bytes of memory, over {limit}"
    return Outcome(is_accepted, seconds, memory)


@contextmanager
def measured() -> Iterator[None]:
    """Inside, `attempt` knows what memory is used."""
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        yield
    finally:
        if not was_tracing:
            tracemalloc.stop()
