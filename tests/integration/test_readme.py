"""The examples in the READMEs are run as they stand: shell in order, in one directory, then Python, against one real cluster."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.local import environment, free_port_range

ROOT = Path(__file__).resolve().parents[2]
READMES = [path for path in (ROOT / "README.md", ROOT / "producers" / "README.md", ROOT / "consumers" / "README.md") if path.exists()]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.S | re.M)


def examples(path: Path) -> list[tuple[str, str]]:
    return [(language, text) for language, text in BLOCK.findall(path.read_text())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], int]]:
    """A directory, an environment in which `streamq` is this checkout's, and the first port of the cluster that the README starts."""
    directory = tmp_path_factory.mktemp("readme")
    port = free_port_range(3)
    programs = directory / "bin"
    programs.mkdir()
    (programs / "streamq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamq "$@"\n')
    (programs / "streamq").chmod(0o755)
    bootstrap = ",".join(f"127.0.0.1:{port + i}" for i in range(3))
    variables = environment(
        STREAMQ_DATA=str(directory / "cluster"), STREAMQ_PORT=str(port), STREAMQ_BOOTSTRAP=bootstrap, XDG_CONFIG_HOME=str(directory)
    )
    variables["PATH"] = f"{programs}{os.pathsep}{os.path.dirname(sys.executable)}{os.pathsep}{variables['PATH']}"
    yield directory, variables, port
    subprocess.run([programs / "streamq", "cluster", "kill", "--all"], env=variables, capture_output=True, check=False)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_run(readme: Path, place: tuple[Path, dict[str, str], int]) -> None:
    directory, variables, port = place
    found = examples(readme)
    assert found
    subprocess.run(
        ["streamq", "cluster", "start"], env=variables, check=True, capture_output=True, executable=directory / "bin" / "streamq"
    )
    for language, text in found:
        command = ["sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-c", _with_port(text, port)]
        done = subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{readme}:\n{text}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def _with_port(text: str, port: int) -> str:
    return text.replace("localhost:7700", f"localhost:{port}")


def test_console_blocks_name_scripts_that_exist() -> None:
    for path in re.findall(r"sh (deploy/[\w.-]+\.sh)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).exists()


def test_every_relative_link_leads_somewhere() -> None:
    for readme in [*READMES, ROOT / "deploy" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), f"{readme}: {link}"
