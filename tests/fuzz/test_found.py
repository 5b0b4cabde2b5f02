"""Inputs that once found something: each file in `found` is tried again. And the command that finds them finds what is there to find."""

from pathlib import Path

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import engines
from tests.fuzz.all_targets import ALL_TARGETS
from tests.fuzz.found import FOUND, load, save
from tests.fuzz.target import Target, attempt, measured


def test_what_was_found_is_found_no_more() -> None:
    with measured():
        for path in sorted(FOUND.glob("*.hex")):
            name, data = load(path)
            attempt(ALL_TARGETS[name], data)


def test_an_input_comes_back_from_its_file(tmp_path: Path) -> None:
    for data in (b"", b"x", bytes(range(256)) * 3):
        assert load(save(tmp_path, "message.Hello", data)) == ("message.Hello", data)


def test_the_command_tells_what_it_ran_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--seconds", "0.3", "--target", "records", "--target", "message.Hello", "--engine", "mutation", "--out", str(tmp_path)]
    assert command.main(asked) == 0
    told = capsys.readouterr().out
    assert "engine: mutation" in told
    assert "2 targets" in told
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_badly_keeps_what_it_found_and_can_replay_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that fails on empty input is found out, and its input kept."""

    def sloppy(data: bytes) -> object:
        return data[0]

    monkeypatch.setitem(ALL_TARGETS, "sloppy", Target("sloppy", sloppy, lambda wild: b"\0", ()))
    assert command.main(["--seconds", "0.3", "--target", "sloppy", "--engine", "mutation", "--out", str(tmp_path)]) == 1
    [kept] = tmp_path.iterdir()
    assert load(kept) == ("sloppy", b"")
    assert "IndexError" in capsys.readouterr().out
    with pytest.raises(IndexError):
        command.main(["--replay", str(kept)])


def test_equal_seeds_try_equal_inputs() -> None:
    tried: list[list[bytes]] = [[], []]
    for inputs in tried:
        target = ALL_TARGETS["records"]._replace(decode=inputs.append)
        engines.mutated(target, seconds=0.2, seed=5)
    shorter = min(map(len, tried))
    assert shorter > 20
    assert tried[0][:shorter] == tried[1][:shorter]


def test_without_atheris_the_command_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert command.main(["--seconds", "0.1", "--target", "records"]) == 0
    assert "atheris is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_with_atheris_each_target_is_fuzzed_for_its_time_and_what_it_finds_comes_back() -> None:
    pytest.importorskip("atheris")
    with engines.Guided(seed=3) as guided:
        for name in ("records", "message.Hello", "records"):
            tally = guided.fuzz(ALL_TARGETS[name], seconds=0.5)
            assert tally.inputs > tally.accepted > 0
            assert tally.findings == []
