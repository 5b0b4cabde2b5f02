"""Throughput and latency over time, drawn as SVG."""

from collections.abc import Sequence
from pathlib import Path

from streamq.cli.bench.plan import Sample

__all__ = ["write_plot"]


def write_plot(path: Path, series: Sequence[tuple[str, Sequence[Sample]]]) -> None:
    raise NotImplementedError
