"""`streamq broker stats`: what brokers have counted, or with --watch what they do now, side by side.

Text leaves out counters that are zero everywhere and histograms without values; `-o json` tells everything, an object a broker.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from streamq.cli.admin import Admin, ask_metrics
from streamq.cli.output import EXIT_PARTLY, Style, count, duration, json_line, note, size
from streamq.cli.settings import find_bootstrap
from streamq.client.settings import Address
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError
from streamq.model.messages import BrokerAddress, Metadata, MetadataView, Metrics
from streamq.model.metrics import HistogramSnapshot

__all__ = ["Look", "change_of", "figures_of", "run"]

ASKERS_MAX: Final = 16
ASK_TIMEOUT_S: Final = 2.0
CLEAR: Final = "\x1b[H\x1b[2J"

Numbers = Mapping[str, int | float]


class Look(NamedTuple):
    """What one broker told, and when (`time.monotonic`)."""

    at_s: float
    metrics: Metrics


class Figures(NamedTuple):
    """Of one broker: totals since its start, or, with `seconds`, what changed meanwhile."""

    gauges: Numbers
    counters: Numbers
    histograms: Mapping[str, HistogramSnapshot]
    seconds: float | None = None


def run(options: argparse.Namespace) -> int:
    with Admin(find_bootstrap(flag=options.bootstrap, profile=options.profile)) as admin:
        view = admin.ask(Metadata(()), MetadataView)
    brokers = _chosen(sorted(view.brokers), options.broker)
    exit_code = 0
    for looks, before in _looks(brokers, options.watch, options.count):
        silent = [broker.broker for broker in brokers if broker.broker not in looks]
        if len(silent) == len(brokers):
            raise UnavailableError(
                f"no answer from {', '.join(silent)}", code="unavailable", hint="`streamq doctor` shows which addresses answer"
            )
        if silent:
            note(f"no answer from {', '.join(silent)}")
        exit_code = EXIT_PARTLY if silent else 0
        figures = {name: change_of(before[name], look) if name in before else figures_of(look) for name, look in looks.items()}
        if options.output == "json":
            _print_json(figures)
        else:
            _print_table(figures, clear=options.watch is not None)
        sys.stdout.flush()
    return exit_code


def _chosen(brokers: Sequence[BrokerAddress], names: Sequence[str]) -> list[BrokerAddress]:
    known = {broker.broker: broker for broker in brokers}
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"the cluster has no broker {name!r}; it has {', '.join(known)}", code="unknown_broker", hint="streamq broker ls"
            )
    return [known[name] for name in dict.fromkeys(names)] if names else list(brokers)


# --- asking ----------------------------------------------------------------------------------------------------------------


def _looks(brokers: Sequence[BrokerAddress], watch_s: float | None, times: int | None) -> Iterator[tuple[dict[str, Look], dict[str, Look]]]:
    """What the brokers tell, and what they told the time before: once, or every `watch_s` seconds, `times` times or for ever."""
    with ThreadPoolExecutor(max_workers=ASKERS_MAX) as pool:
        before: dict[str, Look] = {}
        seen = 0
        if watch_s is not None:
            before = dict(filter(None, pool.map(_look, brokers)))
            time.sleep(watch_s)
        while True:
            began_s = time.monotonic()
            looks = dict(filter(None, pool.map(_look, brokers)))
            yield looks, before
            seen += 1
            if watch_s is None or seen == times:
                return
            before = looks
            time.sleep(max(0.0, began_s + watch_s - time.monotonic()))


def _look(broker: BrokerAddress) -> tuple[str, Look] | None:
    try:
        metrics = ask_metrics(Address(broker.host, broker.port), timeout_s=ASK_TIMEOUT_S)
    except (OSError, StreamqError):
        return None
    return broker.broker, Look(time.monotonic(), metrics)


def figures_of(look: Look) -> Figures:
    return Figures(look.metrics.gauges, look.metrics.counters, look.metrics.histograms)


def change_of(before: Look, look: Look) -> Figures:
    """What happened between the two; all that there is, if the broker was started anew meanwhile."""
    earlier, now = before.metrics, look.metrics
    if now.gauges.get("uptime_seconds", 0) < earlier.gauges.get("uptime_seconds", 0):
        earlier = Metrics({}, {}, {})
    counters = {name: value - earlier.counters.get(name, 0) for name, value in now.counters.items()}
    histograms = {
        name: histogram.since(earlier.histograms[name]) if name in earlier.histograms else histogram
        for name, histogram in now.histograms.items()
    }
    return Figures(now.gauges, counters, histograms, max(1e-3, look.at_s - before.at_s))


# --- showing ---------------------------------------------------------------------------------------------------------------


def _print_json(figures: Mapping[str, Figures]) -> None:
    for broker, each in figures.items():
        row: dict[str, object] = {"broker": broker, "gauges": each.gauges, "counters": each.counters}
        if each.seconds is not None:
            row |= {
                "seconds": round(each.seconds, 3),
                "rates": {name: round(value / each.seconds, 3) for name, value in each.counters.items()},
            }
        row["histograms"] = {name: _summary(histogram) for name, histogram in each.histograms.items()}
        print(json_line(row))


def _summary(histogram: HistogramSnapshot) -> dict[str, float]:
    return {
        "count": histogram.count,
        "mean": histogram.mean,
        "p50": histogram.percentile(0.5),
        "p99": histogram.percentile(0.99),
        "p999": histogram.percentile(0.999),
        "max": histogram.largest,
    }


def _print_table(figures: Mapping[str, Figures], *, clear: bool) -> None:
    style = Style(sys.stdout)
    if clear:
        print(CLEAR if style.is_on else time.strftime("%H:%M:%S"))
    sections: list[tuple[str, list[tuple[str, list[str]]]]] = [
        ("now", _rows(figures, lambda each: each.gauges, _stands)),
        (
            "per second" if any(each.seconds for each in figures.values()) else "since the start",
            _rows(figures, _met, _counted),
        ),
        ("p50 / p99 / max (count)", _rows(figures, _measured, _spread)),
    ]
    names = [name for _, rows in sections for name, _ in rows]
    first = max(map(len, [*names, *(title for title, _ in sections)]))
    widths = [max([len(broker), *(len(cells[at]) for _, rows in sections for _, cells in rows)]) for at, broker in enumerate(figures)]
    for number, (title, rows) in enumerate(sections):
        if not rows:
            continue
        heads = figures if number == 0 else [""] * len(widths)
        print(style.bold(_line(title, heads, first, widths)))
        for name, cells in rows:
            print(_line(name, cells, first, widths))


def _line(name: str, cells: Sequence[str] | Mapping[str, object], first: int, widths: Sequence[int]) -> str:
    return "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip()


def _rows(
    figures: Mapping[str, Figures], told: Callable[[Figures], Mapping[str, object]], cell: Callable[[Figures, str], str]
) -> list[tuple[str, list[str]]]:
    """A row for each name that one of the brokers has something to tell of."""
    names = dict.fromkeys(name for each in figures.values() for name in told(each))
    return [(name, [cell(each, name) for each in figures.values()]) for name in names]


def _met(each: Figures) -> Numbers:
    return {name: value for name, value in each.counters.items() if value}


def _measured(each: Figures) -> Mapping[str, HistogramSnapshot]:
    return {name: histogram for name, histogram in each.histograms.items() if histogram.buckets}


def _counted(each: Figures, name: str) -> str:
    value = each.counters.get(name, 0)
    if each.seconds is None:
        return _number(name, value)
    rate = value / each.seconds
    if name.endswith("_seconds"):
        return f"{rate:.1%}"
    return size(rate) if name.endswith("_bytes") or name.startswith("bytes_") else f"{rate:,.1f}" if rate < 10 else count(rate)


def _stands(each: Figures, name: str) -> str:
    return _number(name, each.gauges[name]) if name in each.gauges else "-"


def _spread(each: Figures, name: str) -> str:
    histogram = each.histograms.get(name)
    if histogram is None or not histogram.buckets:
        return "-"
    values = (histogram.percentile(0.5), histogram.percentile(0.99), histogram.largest)
    return f"{' / '.join(_number(name, value) for value in values)} ({count(histogram.count)})"


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes") or name.startswith("bytes_"):
        return size(value)
    if name.endswith("_seconds"):
        return _time(value)
    return count(value)


def _time(seconds: float) -> str:
    if 0 < seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if 0 < seconds < 0.1 else duration(seconds)
