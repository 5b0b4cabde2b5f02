"""Completion scripts: complete, and understood by their shells where these are installed."""

import shutil
import subprocess

import pytest

from streamq.cli.__main__ import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for word in ("describe", "write-quorum", "exit-at-end", "rejoin"):
        assert word in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("to", "topic"),
        ("topic cr", "create"),
        ("topic al", "alter"),
        ("topic trim x --bef", "--before"),
        ("exp", "export"),
        ("import x --keep", "--keep-partitions"),
        ("topic alter x --retention-t", "--retention-time"),
        ("topic create x --write", "--write-quorum"),
        ("-o json clus", "cluster"),
        ("completion z", "zsh"),
    ],
)
def test_bash_completes(words: str, offered: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["streamq", *words.split()]
    test = f'COMP_WORDS=({" ".join(typed)}); COMP_CWORD={len(typed) - 1}; _streamq; echo "${{COMPREPLY[*]}}"'
    ended = subprocess.run(["bash"], input=script("bash", capsys) + test, text=True, capture_output=True, check=True)
    assert offered in ended.stdout.split()
