"""What a client process is told to do, and what it tells afterwards: one JSON line each way."""

from typing import Literal

import msgspec

__all__ = ["Outcome", "Plan", "Sample", "Usage"]

Load = Literal["produce", "raw", "fill", "consume", "latency", "fan-in", "connections", "seek", "steady", "verify"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Durations in seconds, sizes in bytes. `records` above 0 ends it after so many, else `seconds` does."""

    load: Load
    bootstrap: str
    topic: str
    partitions: int = 1
    pids: dict[str, int] = {}
    """Processes of brokers on this machine, by id: their CPU time and memory are measured."""
    data_directory: str = ""
    """Where these brokers keep their data: what goes to its disk is counted."""
    record_bytes: int = 100
    payload: str = ""
    """A file whose lines are the records; empty: made up."""
    seed: int = 1
    records: int = 0
    seconds: float = 5.0
    warm_up_s: float = 0.0
    """Load that is not measured, first."""
    settle_s: float = 0.0
    """How long to wait at the end for what brokers still write, so that it is counted."""
    rate: float = 0.0
    """Records per second that are offered; 0: as many as go in."""
    api: Literal["enqueue", "enqueue-many", "send"] = "enqueue-many"
    compression: Literal["zstd", "none"] = "zstd"
    level: int = 1
    batch_bytes: int = 256 << 10
    raw_bytes: int = 0
    """Of a ready-made batch, compressed."""
    window: int = 1
    """Batches that a minimal client has in flight a connection."""
    tasks: int = 64
    producers: int = 1
    """Producers, or connections of the minimal client."""
    seeks: int = 0
    by: Literal["offset", "time"] = "offset"
    expected: tuple[int, ...] = ()
    """How many records a steady load had acked, by partition: what `verify` has to find."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one process took during a run; `peak_bytes` is since it was started. None: the system does not tell."""

    process: str
    cpu_s: float
    peak_bytes: int | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One interval of a run, which ends `at_s` after its beginning."""

    at_s: float
    records_per_s: float
    p50_ms: float
    p99_ms: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`wire_bytes` is what went over the client's connections in the direction that counts, compressed and with headers."""

    seconds: float
    records: int
    raw_bytes: int
    wire_bytes: int
    latencies: int = 0
    """How many the percentiles are of; 0: there are none."""
    latency: dict[str, float] = {}
    usage: tuple[Usage, ...] = ()
    disk_bytes: int | None = None
    """What was written to the brokers' disk, by whomever, until all of it was there. None: not known."""
    series: tuple[Sample, ...] = ()
    more: dict[str, float] = {}
    """Figures of this load alone, with their units in their names."""
    acked: tuple[int, ...] = ()
    """Of a steady load, by partition."""
    gaps: tuple[tuple[float, float, int], ...] = ()
    """Of a steady load: times without an ack (from, until, in seconds of the system's monotonic clock, partition)."""
