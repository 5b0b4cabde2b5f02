"""The wheel: it holds everything, and works outside of the checkout. And the scripts in deploy/ are what they say."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = ("streamq", "streamq_producer", "streamq_consumer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend itself, so that nothing has to be fetched."""
    directory = tmp_path_factory.mktemp("wheel")
    script = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", script, str(directory)], cwd=ROOT, capture_output=True, text=True, check=True)
    return directory / built.stdout.split()[-1]


def test_the_wheel_holds_three_packages_typed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(DISTRIBUTION)
    for package in DISTRIBUTION:
        assert f"{package}/py.typed" in names
    assert "streamq/cli/local_cluster.py" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "streamq").rglob("*.py")}
    assert modules <= set(names)


def test_the_wheel_works_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed into a fresh environment that borrows the dependencies of this one; founding and starting a broker included."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    [site_packages] = environment.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site_packages), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # After the environment's own packages, so that the checkout's editable install does not come first.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("STREAMQ_", "PYTHON"))}
    variables |= {"XDG_CONFIG_HOME": str(tmp_path)}
    python = environment / "bin" / "python"

    def run(*words: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            [python, "-m", "streamq", *words], cwd=tmp_path, env=variables, input=stdin, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import streamq; print(streamq.__file__)"], cwd=tmp_path, env=variables, capture_output=True, check=True
    )
    assert Path(where.stdout.decode().strip()).is_relative_to(environment)
    assert run("--version").startswith(b"streamq ")
    port = 20_000 + os.getpid() % 10_000
    try:
        run("cluster", "start", "--brokers", "1", "--port", str(port), "--data", str(tmp_path / "c"))
        at = ("--bootstrap", f"127.0.0.1:{port}")
        run("topic", "create", "t", *at)
        run("produce", "t", *at, stdin=b"from the wheel\n")
        assert run("tail", "t", *at) == b"from the wheel\n"
    finally:
        run("cluster", "kill", "--all", "--data", str(tmp_path / "c"))


@pytest.mark.parametrize("script", sorted((ROOT / "deploy").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_plain_sh(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert "\t" not in script.read_text()


def test_one_command_runs_everything() -> None:
    assert "sh deploy/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_demo_finds_real_text_everywhere(tmp_path: Path) -> None:
    target = tmp_path / "text"
    done = subprocess.run([sys.executable, str(ROOT / "deploy" / "demo_text.py"), str(target), "20000"], capture_output=True, check=True)
    content = target.read_bytes()
    assert int(done.stdout) == content.count(b"\n") == 20_000
    assert content.endswith(b"\n")
