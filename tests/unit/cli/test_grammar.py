"""What can be typed: every verb has a function, help is quick, wrong usage is an error like every other."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamq import __version__
from streamq.cli.__main__ import main
from streamq.cli.grammar import VERB, parser, wants_json


def verbs(node: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    groups = [action for action in node._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield words, node
    for group in groups:
        for name, child in group.choices.items():
            yield from verbs(child, (*words, name))


ALL = dict(verbs(parser()))
DEMANDED = {
    *(("dev",), ("demo",), ("produce",), ("tail",), ("export",), ("import",), ("doctor",), ("completion",)),
    *(("cluster", verb) for verb in ("start", "stop", "status", "kill", "pause", "resume")),
    *(("broker", verb) for verb in ("run", "rejoin", "ls", "stats")),
    *(("topic", verb) for verb in ("create", "ls", "describe", "alter", "trim", "rm")),
    *(("log", verb) for verb in ("verify", "dump")),
    *(("profile", verb) for verb in ("ls", "use")),
    *(("bench", verb) for verb in ("produce", "consume", "latency", "fan-in", "partitions", "failover", "restart", "soak")),
}


def test_every_verb_that_users_were_promised_is_there() -> None:
    assert set(ALL) >= DEMANDED


@pytest.mark.parametrize("words", sorted(ALL), ids=" ".join)
def test_each_verb_names_a_function_that_exists_and_prints_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    module, function = ALL[words].get_default(VERB).split(":")
    assert callable(getattr(importlib.import_module(f"streamq.cli.{module}"), function))
    assert main([*words, "--help"]) == 0
    assert "usage: streamq" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tail", "--help"], ["completion", "bash"]])
def test_what_asks_nobody_answers_at_once_and_imports_no_event_loop(arguments: list[str]) -> None:
    """Under 150 ms on an idle machine; asserted generously, and by what is imported."""
    script = (
        "import sys; from streamq.cli.__main__ import main; code = main(sys.argv[1:])\n"
        "print(sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 5
    assert ended.stdout
    for heavy in ("'trio'", "'anyio'", "'asyncio'", "'msgspec'", "'zstandard'"):
        assert heavy not in ended.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"streamq {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["topic"],
        ["topic", "create"],
        ["topic", "create", "x", "--partitions", "many"],
        ["tail", "x", "-n", "-1"],
        ["tail", "x", "--fol"],
        ["produce", "x", "--rate", "0"],
        ["cluster", "kill"],
        ["cluster", "start", "--port", "-4"],
        ["tail", "x", "-f", "--exit-at-end"],
        ["tail", "x", "--from", "0", "--since", "5m"],
        ["tail", "x", "--from", "soon"],
        ["tail", "x", "--grep", "("],
        ["tail", "x", "-F", "%z"],
        ["produce", "x", "-k", "a", "--key-sep", ":"],
        ["produce", "x", "-H", "novalue"],
        ["produce", "x", "-H", "\udcff=1"],
        ["tail", "x", "-F", "%d{\udcff}"],
        ["tail", "x", "--nope", "y"],
        ["tail", "x", "-f", "--until=end"],
        ["topic", "alter", "x"],
        ["topic", "alter", "x", "--partitions", "9"],
        ["topic", "alter", "x", "--replicas", "5"],
        ["topic", "alter", "x", "--retention-bytes", "1KiB"],
        ["topic", "alter", "x", "--retention-time", "soon"],
        ["topic", "alter", "x", "--dedup-window", "59s"],
        ["topic", "create", "x", "--dedup-window", "8d"],
        ["produce", "x", "--id-from", "offset"],
        ["produce", "x", "--id-from", "header:"],
        ["produce", "x", "--resume", "n", "--id-from", "key", "pyproject.toml"],
        ["topic", "trim", "x"],
        ["topic", "trim", "x", "--before", "start"],
        ["topic", "trim", "x", "--before=-5"],
        ["export", "x y"],
        ["export", "x", "--from", "0", "--since", "5m"],
        ["import"],
        ["topic", "ls", "y"],
        ["produce", "x", "--compression", "zstd:99"],
        ["topic", "rm", "x y"],
        ["--bootstrap", "nowhere"],
        ["bench"],
        ["bench", "produce", "--record-bytes", "2MiB"],
        ["bench", "produce", "--raw", "100"],
        ["bench", "produce", "--raw", "64KiB", "--rate", "5"],
        ["bench", "produce", "--partitions", "2001"],
        ["bench", "produce", "--plot", "figure.gif"],
        ["bench", "produce", "--bootstrap", "127.0.0.1:1", "--brokers", "5"],
        ["bench", "fan-in", "--tasks", "2", "--connections", "2"],
        ["bench", "consume", "--from-disk", "--bootstrap", "127.0.0.1:1"],
        ["bench", "consume", "--from-disk", "--seeks", "3"],
        ["bench", "partitions", "--partitions", "1,2001"],
        ["bench", "failover", "--share", "1.5"],
        ["bench", "restart", "--stored", "much"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error[")
    assert "try: " in shown.err
    assert "Traceback" not in shown.err


def test_with_o_json_an_error_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "create", "orders", "--replicas", "3", "-W", "1", "-R", "2", "-o", "json"]) == 2
    row = json.loads(capsys.readouterr().err)
    assert row["code"] == "bad_quorum"
    assert row["exit_code"] == 2
    assert "streamq topic create orders" in row["hint"]


def test_json_is_recognised_on_a_line_that_cannot_be_parsed() -> None:
    assert wants_json(["topic", "nonsense", "-o", "json"])
    assert wants_json(["--output=json"])
    assert wants_json(["-ojson"])
    assert not wants_json(["topic", "-o"])
    assert not wants_json(["produce", "json"])


def test_lists_go_on_behind_options() -> None:
    options = parser().parse_args(["produce", "orders", "one", "--rate", "5", "two", "-"])
    assert (options.topic, options.file) == ("orders", ["one", "two", "-"])
    assert parser().parse_args(["produce", "orders", "--rate", "5"]).file == []
    assert parser().parse_args(["tail", "a", "-n", "3", "b"]).topic == ["a", "b"]
    assert parser().parse_args(["cluster", "kill", "b1", "--data", "x", "b2"]).broker == ["b1", "b2"]


def test_a_topic_alone_is_what_produce_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["produce"]) == 2
    assert "required: TOPIC\n" in capsys.readouterr().err


def test_rejects_never_overwrite_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rejects = tmp_path / "rejects"
    rejects.write_text("precious\n")
    (tmp_path / "link").symlink_to(rejects)
    for word in ("--rejects", "--receipts"):
        assert main(["produce", "orders", str(rejects), word, str(tmp_path / "link")]) == 2
    assert rejects.read_text() == "precious\n"
    assert main(["produce", "orders", str(rejects), "--receipts", str(tmp_path / "new"), "--rejects", str(tmp_path / "new")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_and_poor_encodings_are_no_bug(redirection: str) -> None:
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m streamq tail --help {redirection}"], env=variables, capture_output=True)
    assert done.returncode == 0
    assert b"bug in streamq" not in done.stderr
