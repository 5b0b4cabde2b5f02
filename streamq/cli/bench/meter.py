"""What a client process measures while it runs, in bounded memory and without a word per record.

A load says how many records it has had acked when it is asked, a few times a second; latencies are recorded one a batch or one a
sample. What goes on before `begin` counts for nothing.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec
import trio

from streamq.cli.bench.plan import Outcome, Plan, Sample
from streamq.cli.bench.usage import CLIENT, Reading, disk_written_bytes, read_process, usage_since
from streamq.model.metrics import Histogram, HistogramSnapshot

__all__ = ["Meter", "Ready"]

Ready = Callable[[], Awaitable[None]]
"""Tells that a load is about to be measured, and waits until it may begin."""

SAMPLES_MAX: Final = 600
"""Of these, neighbours are joined and the interval is doubled when there would be more."""
FIRST_INTERVAL_S: Final = 0.1
US_PER_S: Final = 1_000_000


class Meter:
    def __init__(self, plan: Plan) -> None:
        self.records: Callable[[], int] = lambda: 0
        """How many records the load has done so far; replaced by the load."""
        self.wire_bytes: Callable[[], int] = lambda: 0
        self.latencies = Histogram(US_PER_S)
        self.more: dict[str, float] = {}
        self.stop = trio.Event()
        """Set when a load that goes on until it is told has to end."""
        self.gaps: list[tuple[float, float, int]] = []
        self.acked: tuple[int, ...] = ()
        self._plan = plan
        self._pids = {CLIENT: os.getpid(), **plan.pids}
        self._recent = Histogram(US_PER_S)
        self._interval_s = FIRST_INTERVAL_S
        self._series: list[Sample] = []
        self._readings: dict[str, Reading] = {}
        self._has_begun = trio.Event()
        self._begun_at = 0.0
        self._begun_cpu_s = 0.0
        self._begun = (0, 0)
        self._begun_disk: int | None = None
        self._outcome: Outcome | None = None

    async def begin(self) -> None:
        self._begun_disk = await self._disk_bytes()
        self._readings = {name: reading for name, pid in self._pids.items() if (reading := read_process(pid)) is not None}
        self._begun = (self.records(), self.wire_bytes())
        self.latencies, self._recent = Histogram(US_PER_S), Histogram(US_PER_S)
        self._begun_cpu_s = time.process_time()
        self._begun_at = time.perf_counter()
        self._has_begun.set()

    def latency(self, duration_s: float, count: int = 1) -> None:
        """A negative one, as of a clock that was set, counts as none."""
        duration_us = max(0, int(duration_s * US_PER_S))
        self.latencies.record(duration_us, count)
        self._recent.record(duration_us, count)

    async def end(self, *, raw_bytes_per_record: float) -> None:
        """Freezes the figures; then waits for what the brokers still have to write, and counts it."""
        seconds = time.perf_counter() - self._begun_at
        cpu_s = time.process_time() - self._begun_cpu_s
        records, wire = self.records() - self._begun[0], self.wire_bytes() - self._begun[1]
        usage = tuple(
            msgspec.structs.replace(row, cpu_s=round(cpu_s, 3)) if row.process == CLIENT else row
            for row in usage_since(self._readings, self._pids)
        )
        await trio.sleep(self._plan.settle_s)
        disk = await self._disk_bytes()
        latencies = self.latencies.snapshot()
        self._outcome = Outcome(
            seconds=seconds,
            records=records,
            raw_bytes=round(records * raw_bytes_per_record),
            wire_bytes=wire,
            latencies=latencies.count,
            latency=milliseconds(latencies) if latencies.buckets else {},
            usage=usage,
            disk_bytes=None if disk is None or self._begun_disk is None else disk - self._begun_disk,
            series=tuple(self._series),
            more=self.more,
            acked=self.acked,
            gaps=tuple(self.gaps),
        )

    async def _disk_bytes(self) -> int | None:
        """After everything that was written before is on the disk."""
        if not self._plan.data_directory:
            return None
        await trio.to_thread.run_sync(os.sync)
        return disk_written_bytes(self._plan.data_directory)

    @property
    def outcome(self) -> Outcome:
        assert self._outcome is not None, "the load has not ended"
        return self._outcome

    async def sample(self) -> None:
        """Until cancelled: throughput and latency of each interval."""
        await self._has_begun.wait()
        at, records = self._begun_at, self._begun[0]
        while self._outcome is None:
            await trio.sleep(self._interval_s)
            now, total = time.perf_counter(), self.records()
            recent, self._recent = self._recent.snapshot(), Histogram(US_PER_S)
            self._series.append(
                Sample(
                    at_s=round(now - self._begun_at, 3),
                    records_per_s=round((total - records) / (now - at), 1),
                    p50_ms=round(recent.percentile(0.5) * 1000, 3),
                    p99_ms=round(recent.percentile(0.99) * 1000, 3),
                )
            )
            at, records = now, total
            if len(self._series) >= SAMPLES_MAX:
                self._series = joined(self._series)
                self._interval_s *= 2


def milliseconds(latencies: HistogramSnapshot) -> dict[str, float]:
    """As reports show them."""
    places = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    return {name: round(latencies.percentile(fraction) * 1000, 3) for name, fraction in places.items()}


def joined(samples: list[Sample]) -> list[Sample]:
    """Half as many: the rates of neighbours averaged, the slower of their latencies kept."""
    pairs: Iterator[tuple[Sample, Sample]] = zip(samples[::2], samples[1::2], strict=False)
    return [
        Sample(
            at_s=two.at_s,
            records_per_s=round((one.records_per_s + two.records_per_s) / 2, 1),
            p50_ms=max(one.p50_ms, two.p50_ms),
            p99_ms=max(one.p99_ms, two.p99_ms),
        )
        for one, two in pairs
    ]
