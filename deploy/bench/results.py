"""Rows, their results, and what is read from them. Results are JSON lines, so that rows measured at different times make one table.

{"session": ID, "machine": {…}}                                           once a session
{"session": ID, "row": NAME, "pair": N, "side": "own", "command": TEXT, "documents": [{…}, …]}
"""

import json
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["ROWS_FILE", "Line", "Row", "Target", "lines_of", "load_results", "load_rows", "values_of"]

ROWS_FILE: Final = Path(__file__).with_name("rows.toml")
PAIRS: Final = 5
Document = Mapping[str, Any]


class Target(NamedTuple):
    """A line of the table; rows.toml says what each field means."""

    what: str
    unit: str
    figure: str
    other_figure: str = ""
    load: str = ""
    least: float | None = None
    most: float | None = None
    worst: float | None = None
    least_ratio: float | None = None
    most_ratio: float | None = None

    def in_words(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        texts = {
            "at least {:,g}" + unit: self.least,
            "at most {:,g}" + unit: self.most,
            "never over {:,g}" + unit: self.worst,
            "at least {:g} of the other": self.least_ratio,
            "at most {:g} times the other": self.most_ratio,
        }
        return ", ".join(text.format(limit) for text, limit in texts.items() if limit is not None)

    def is_met(self, values: Sequence[float], ratios: Sequence[float]) -> bool:
        middle = statistics.median(values)
        ratio = statistics.median(ratios) if ratios else None
        verdicts = [
            self.least is None or middle >= self.least,
            self.most is None or middle <= self.most,
            self.worst is None or max(values) <= self.worst,
            self.least_ratio is None or (ratio is not None and ratio >= self.least_ratio),
            self.most_ratio is None or (ratio is not None and ratio <= self.most_ratio),
        ]
        return all(verdicts)


class Row(NamedTuple):
    name: str
    own: str
    targets: tuple[Target, ...]
    other: str = ""
    pairs: int = PAIRS


class Line(NamedTuple):
    """What was measured for a target. `others` and `ratios` are empty where there is no other side."""

    row: Row
    target: Target
    values: tuple[float, ...]
    others: tuple[float, ...]
    ratios: tuple[float, ...]


def load_rows(path: Path = ROWS_FILE) -> dict[str, Row]:
    table = tomllib.loads(path.read_text("utf-8"))
    rows = {}
    for entry in table["row"]:
        targets = tuple(Target(**target) for target in entry.pop("target"))
        rows[entry["name"]] = Row(targets=targets, **entry)
    return rows


def load_results(path: Path) -> list[Document]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def values_of(documents: Iterable[Document], *, figure: str, load: str = "") -> list[float]:
    """The figure in each run's object; in the summary's, if no run has it (a summary gives the median)."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for document in documents:
        value = _look_up(document, figure)
        if value is not None and (not load or document.get("load") == load):
            found["summary" in document].append(value)
    return found[False] or found[True]


def _look_up(document: Document, figure: str) -> float | None:
    key, _, inner = figure.partition("/")
    value = document.get(key)
    if isinstance(value, Mapping):
        if inner:
            numbers = [float(number) for name, number in value.items() if fnmatch(name, inner)]
            return max(numbers) if numbers and "median" not in value else None
        value = value.get("median")
    return float(value) if isinstance(value, (int, float)) else None


def lines_of(row: Row, results: Iterable[Document]) -> list[Line]:
    """A line for each target of the row, from the last session in which it was measured; none if it never was."""
    mine = [result for result in results if result.get("row") == row.name]
    if not mine:
        return []
    mine = [result for result in mine if result["session"] == mine[-1]["session"]]
    lines = []
    for target in row.targets:
        sides: dict[str, dict[int, list[float]]] = {"own": {}, "other": {}}
        for result in mine:
            figure, load = (target.figure, target.load) if result["side"] == "own" else (target.other_figure or target.figure, "")
            sides[result["side"]][result["pair"]] = values_of(result["documents"], figure=figure, load=load)
        own, other = sides["own"], sides["other"]
        pairs = [pair for pair in own if own[pair] and other.get(pair)]
        values = tuple(value for pair in own for value in own[pair])
        if values:
            others = tuple(value for pair in other for value in other[pair])
            ratios = tuple(statistics.median(own[pair]) / statistics.median(other[pair]) for pair in pairs)
            lines.append(Line(row, target, values, others, ratios))
    return lines
