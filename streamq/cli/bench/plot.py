"""`--plot FILE`: throughput and latency over time. SVG is written as it is; PNG needs the extra `plot`, which draws it."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamq.cli.bench.chart import Line, Mark, Panel, chart
from streamq.cli.bench.plan import Sample
from streamq.model.errors import RefusedError

__all__ = ["check_plot", "write_plot"]


def check_plot(path: str | None) -> None:
    """Before anything is measured: raises RefusedError for a PNG that nothing here can draw, OSError for a file that cannot be written."""
    if path is None:
        return
    if path.endswith(".png"):
        _matplotlib()
    with open(path, "ab"):
        pass


def write_plot(
    path: Path,
    title: str,
    series: Sequence[tuple[str, Sequence[Sample]]],
    *,
    more: Sequence[Panel] = (),
    marks: Sequence[Mark] = (),
) -> None:
    """A panel with the throughput of all series, one with their latencies if there are any, and `more`."""
    rates = [Line(name, [(sample.at_s, sample.records_per_s) for sample in samples]) for name, samples in series]
    latencies = [line for name, samples in series for line in _latencies(name, samples)]
    panels = [Panel("records/s", rates)]
    if drawn := [line for line in latencies if line.points]:
        panels.append(Panel("latency, ms", drawn))
    panels += more
    drawn_panels = [panel._replace(lines=[line for line in panel.lines if line.points]) for panel in panels]
    if path.suffix == ".png":
        _write_png(path, title, drawn_panels, marks)
    else:
        path.write_text(chart(title, drawn_panels, marks), encoding="utf-8")


def _latencies(name: str, samples: Sequence[Sample]) -> list[Line]:
    """Intervals in which nothing was measured have no point."""
    return [
        Line(f"{name} p50".strip(), [(sample.at_s, sample.p50_ms) for sample in samples if sample.p50_ms]),
        Line(f"{name} p99".strip(), [(sample.at_s, sample.p99_ms) for sample in samples if sample.p99_ms]),
    ]


def _write_png(path: Path, title: str, panels: Sequence[Panel], marks: Sequence[Mark]) -> None:
    figure, axes = _matplotlib().subplots(len(panels), squeeze=False, sharex=True, figsize=(9, 2.7 * len(panels)), layout="constrained")
    figure.suptitle(title)
    for [axis], panel in zip(axes, panels, strict=True):
        axis.set_title(panel.title, loc="left")
        axis.grid(axis="y")
        for line in panel.lines:
            axis.plot(*zip(*line.points, strict=True), label=line.name, linewidth=1)
        for mark in marks:
            axis.axvline(mark.at_s, linestyle="--", color="grey")
        if any(line.name for line in panel.lines):
            axis.legend(loc="upper right")
        axis.set_ylim(bottom=0)
    axes[-1][0].set_xlabel("s")
    figure.savefig(path)


def _matplotlib() -> Any:
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise RefusedError(
            "PNG needs the extra `plot`", code="usage", hint="pip install 'streamq[plot]', or write an .svg, which needs nothing"
        ) from None
    pyplot.switch_backend("agg")
    return pyplot
