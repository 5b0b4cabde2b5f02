"""Makes the table of what was measured: python -m deploy.bench.table results.jsonl > table.md"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.bench.results import Line, lines_of, load_results, load_rows

__all__ = ["table"]

HEAD = "| row | what | target | measured (min / median / max) | the other side | ratio | met |\n| --- | --- | --- | --- | --- | --- | --- |"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each target that was measured, the commands below it, then the machines."""
    texts, commands = [HEAD], []
    for row in load_rows().values():
        lines = lines_of(row, results)
        texts += [_line(line) for line in lines]
        if lines:
            other = "" if not row.other else f", beside `{_command(row.other)}`"
            commands.append(f"- `{row.name}`: `{_command(row.own)}`{other}")
    machines = [result["machine"] for result in results if "machine" in result]
    distinct = [machine for number, machine in enumerate(machines) if machine not in machines[:number]]
    about = ["On: " + "; ".join(f"{key} {value}" for key, value in machine.items()) for machine in distinct]
    return "\n".join([*texts, "", "Measured by (`sh deploy/bench/run.sh ROW`):", "", *commands, "", *about]) + "\n"


def _line(line: Line) -> str:
    target = line.target
    unit = f" {target.unit}" if target.unit else ""
    cells = [
        line.row.name,
        target.what,
        target.in_words(),
        f"{_spread(line.values)}{unit}",
        f"{_spread(line.others)}{unit}" if line.others else "",
        _spread(line.ratios) if line.ratios else "",
        "yes" if target.is_met(line.values, line.ratios) else "**no**",
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _number(values[0])
    return " / ".join(_number(value) for value in (min(values), statistics.median(values), max(values)))


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _command(words: str) -> str:
    program, _, rest = words.partition(" ")
    return f"python -m deploy.bench.{program} {rest}" if program.startswith("bare") else f"streamq bench {words}"


if __name__ == "__main__":
    print(table([result for path in sys.argv[1:] for result in load_results(Path(path))]), end="")
