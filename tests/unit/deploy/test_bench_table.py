"""The table of deploy/bench: figures are read from where rows.toml says, pairs stay pairs, and a target is met by the median."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.bench.results import Row, Target, lines_of, load_results, load_rows, values_of
from deploy.bench.run import command_of, machine
from deploy.bench.table import table
from streamq.cli.grammar import parser

ROWS = load_rows()


def result(side: str, pair: int, *documents: dict[str, Any], session: str = "s", row: str = "r") -> dict[str, Any]:
    return {"session": session, "row": row, "pair": pair, "side": side, "command": "", "documents": list(documents)}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_row_s_commands_can_be_typed_and_its_targets_say_a_limit(row: Row) -> None:
    for words in filter(None, (row.own, row.other)):
        command = command_of(words, "")
        if "streamq" in command:
            parser().parse_args(command[command.index("streamq") + 1 :])
        else:
            assert words.split()[0] in ("bare", "bare_clients")
    assert row.targets
    for target in row.targets:
        assert target.in_words()
        has_ratio = target.least_ratio is not None or target.most_ratio is not None
        assert has_ratio == bool(row.other), "a ratio needs another side, and another side is there for a ratio"


def test_a_figure_is_that_of_the_runs_and_only_without_them_the_summary_s() -> None:
    summary = {"summary": 2, "p99_ms": {"min": 1.0, "median": 2.0, "max": 3.0}}
    assert values_of([{"run": 1, "p99_ms": 1.0}, {"run": 2, "p99_ms": 3.0}, summary], figure="p99_ms") == [1.0, 3.0]
    assert values_of([summary], figure="p99_ms") == [2.0]
    assert values_of([{"part": 1}, {"summary": 1, "takeovers": 0}], figure="takeovers") == [0.0]


def test_of_figures_by_process_the_largest_that_matches_is_taken() -> None:
    row = {"run": 1, "peak_MiB": {"client": 300.0, "b1": 100.0, "b2": 120.0}}
    summary = {"summary": 1, "peak_MiB": {"min": 1.0, "median": 1.0, "max": 1.0}}
    assert values_of([row, summary], figure="peak_MiB/b*") == [120.0]
    assert values_of([row, summary], figure="peak_MiB/client") == [300.0]


def test_a_load_chooses_among_those_that_ran_together() -> None:
    rows = [{"load": "consume", "records_per_s": 5.0}, {"load": "produce", "records_per_s": 7.0}]
    assert values_of(rows, figure="records_per_s", load="produce") == [7.0]


def test_ratios_are_pair_by_pair_and_of_the_last_session_only() -> None:
    row = Row("r", "produce", (Target("what", "MB/s", "mine", "theirs", least_ratio=0.5),), "bare")
    old = [result("own", 1, {"mine": 1000.0}, session="old"), result("other", 1, {"theirs": 1.0}, session="old")]
    new = [
        result("own", 1, {"mine": 10.0}),
        result("other", 1, {"theirs": 20.0}),
        result("other", 2, {"theirs": 100.0}),
        result("own", 2, {"mine": 90.0}),
        result("own", 3, {"mine": 7.0}),  # its other side failed
    ]
    [line] = lines_of(row, old + new)
    assert line.values == (10.0, 90.0, 7.0)
    assert line.ratios == (0.5, 0.9)


@pytest.mark.parametrize(
    ("target", "values", "ratios", "is_met"),
    [
        (Target("", "", "", least=5), [1, 5, 9], [], True),
        (Target("", "", "", least=5), [1, 4, 9], [], False),
        (Target("", "", "", most=5), [1, 5, 9], [], True),
        (Target("", "", "", most=5, worst=8), [1, 5, 9], [], False),
        (Target("", "", "", least=5, least_ratio=0.8), [6], [0.9, 0.8, 0.1], True),
        (Target("", "", "", least=5, least_ratio=0.8), [6], [0.7], False),
        (Target("", "", "", least_ratio=0.8), [6], [], False),
        (Target("", "", "", most_ratio=1.2), [6], [1.1, 1.3, 1.2], True),
        (Target("", "", "", most_ratio=1.2), [6], [1.3], False),
    ],
)
def test_a_target_is_met_by_the_medians_and_the_worst(target: Target, values: list[float], ratios: list[float], is_met: bool) -> None:
    assert target.is_met(values, ratios) is is_met


def test_rows_measured_at_different_times_make_one_table_with_each_machine_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    this = machine(tmp_path)
    assert {"CPU", "kernel", "disk", "Python", "streamq"} <= set(this)
    documents = [
        {"session": "a", "machine": this},
        result("own", 1, {"records_per_s": 44_000.0, "p99_ms": 9.0}, session="a", row="fan-in"),
        {"session": "b", "machine": this},
        result("own", 1, {"wire_MB_per_s": 200.0}, session="b", row="raw-64KiB"),
        result("other", 1, {"MB_per_s": 400.0}, session="b", row="raw-64KiB"),
    ]
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    text = table(load_results(path))
    rows = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["64 tasks with one send in flight each, sharing a producer"].endswith("| 44,000 acks/s |  |  | yes |")
    assert rows["the same, p99"].endswith("| 9 ms |  |  | **no** |")
    assert "| 200 MB/s | 400 MB/s | 0.50 | **no** |" in rows["brokers alone, ready-made batches of 64 KiB, 5 s"]
    assert text.count("\nOn: ") == 1
    assert "streamq bench fan-in" in text
