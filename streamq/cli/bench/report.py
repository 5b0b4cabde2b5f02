"""What a benchmark prints: a line for each run, and of several the smallest, the middle and the largest of each figure."""

import statistics
from collections.abc import Mapping, Sequence

from streamq.cli.bench.plan import Outcome, Plan
from streamq.cli.output import count, json_line

__all__ = ["figures_of", "print_run", "print_summary", "spread"]

Row = dict[str, object]


def figures_of(plan: Plan, outcome: Outcome) -> Row:
    """One run in full, every figure with its unit in its name."""
    seconds = outcome.seconds
    cpu_s = sum(row.cpu_s for row in outcome.usage)
    figures: Row = {
        "load": plan.load,
        "seconds": round(seconds, 3),
        "records": outcome.records,
        "records_per_s": round(outcome.records / seconds, 1),
        "raw_MB_per_s": round(outcome.raw_bytes / seconds / 1e6, 2),
        "wire_MB_per_s": round(outcome.wire_bytes / seconds / 1e6, 2),
        **outcome.latency,
        **outcome.more,
        "latencies": outcome.latencies,
    }
    if outcome.usage:
        figures["cpu_s"] = {row.process: row.cpu_s for row in outcome.usage}
        figures["records_per_cpu_s"] = round(outcome.records / cpu_s) if cpu_s else None
        figures["peak_MiB"] = {row.process: round(row.peak_bytes / (1 << 20), 1) for row in outcome.usage if row.peak_bytes is not None}
        if plan.settle_s and outcome.disk_bytes is not None and outcome.wire_bytes:
            figures["disk_bytes_per_wire_byte"] = round(outcome.disk_bytes / outcome.wire_bytes / max(1, len(plan.pids)), 3)
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": round(statistics.median(values), 4), "max": max(values)}


def summary_of(rows: Sequence[Row]) -> Row:
    """Min, median and max of each number that all runs have; of numbers by process, the largest of each run."""
    spreads: Row = {}
    for key, value in rows[0].items():
        values = [row.get(key) for row in rows]
        if isinstance(value, Mapping):
            values = [max(one.values(), default=None) if isinstance(one, Mapping) else None for one in values]
        numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
        if len(numbers) == len(rows) and key not in ("run",):
            spreads[key] = spread(numbers)
    return spreads


def print_run(row: Row, *, as_json: bool) -> None:
    print(json_line(row) if as_json else _in_words(row), flush=True)


def print_summary(rows: Sequence[Row], *, as_json: bool, about: str) -> None:
    """After the runs; `about` says of what kind they were."""
    spreads = summary_of(rows)
    if as_json:
        print(json_line({"summary": len(rows), "about": about, **spreads}), flush=True)
        return
    if len(rows) < 2:
        return
    print(f"{len(rows)} runs ({about}): min / median / max")
    for key, value in spreads.items():
        assert isinstance(value, Mapping)
        if key not in ("latencies", "seconds"):
            print(f"  {key:<20} {' / '.join(_number(float(value[place])) for place in ('min', 'median', 'max'))}")


def _in_words(row: Row) -> str:
    lines = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{name} {_number(float(number))}" for name, number in value.items())
        else:
            text = _number(value) if isinstance(value, (int, float)) else str(value)
        lines.append(f"  {key:<20} {text}")
    return "\n".join(lines)


def _number(value: float) -> str:
    if isinstance(value, int) or value == int(value) or abs(value) >= 1000:
        return count(value)
    return f"{value:.3g}" if abs(value) < 10 else f"{value:,.1f}"
