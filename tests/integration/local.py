"""A local cluster of real broker processes for tests, driven through the `streamq` command as a user would."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PORTS = range(21_000, 32_000)
"""Below those that Linux and macOS take for connections; tests that run side by side draw from them."""


def environment(**more: str) -> dict[str, str]:
    """Without the caller's own streamq settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("STREAMQ_")}
    paths = [str(ROOT), str(ROOT / "producers"), str(ROOT / "consumers")]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **more}


def free_port_range(count: int) -> int:
    """The first of `count` consecutive free ports, none of which the system gives to a connection before a broker has it."""
    for base in (random.SystemRandom().choice(PORTS) for _ in range(200)):
        sockets: list[socket.socket] = []
        try:
            for port in range(base, base + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise RuntimeError("no free ports")


class LocalCluster:
    def __init__(self, directory: Path, brokers: int, port: int) -> None:
        self.directory = directory
        self.names = [f"b{i + 1}" for i in range(brokers)]
        self.port = port

    @property
    def bootstrap(self) -> str:
        return ",".join(self.address(name) for name in self.names)

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.port + self.names.index(name)}"

    def data(self, name: str) -> Path:
        return self.directory / name / "data"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "streamq", *words]

    def run(
        self, *words: str, expect: int | None = 0, bootstrap: str = "", stdin: bytes = b"", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """One command of the CLI against this cluster; `expect` is the exit code it must end with, None for any."""
        variables = environment(STREAMQ_BOOTSTRAP=bootstrap or self.bootstrap, XDG_CONFIG_HOME=str(self.directory / "config"))
        done = subprocess.run(self.command(*words), input=stdin, capture_output=True, env=variables, timeout=timeout_s, check=False)
        if expect is not None and done.returncode != expect:
            raise AssertionError(f"streamq {' '.join(words)} ended with {done.returncode}, not {expect}:\n{done.stderr.decode()[-3000:]}")
        return done

    def start_command(self, *words: str, bootstrap: str = "", **options: Any) -> subprocess.Popen[bytes]:
        variables = environment(STREAMQ_BOOTSTRAP=bootstrap or self.bootstrap, XDG_CONFIG_HOME=str(self.directory / "config"))
        return subprocess.Popen(self.command(*words), env=variables, **options)

    def cluster(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return self.run("cluster", *words, "--data", str(self.directory), **options)

    def start(self, *names: str) -> None:
        self.cluster("start", *names)

    def kill(self, *names: str) -> None:
        self.cluster("kill", *names)

    def status(self) -> dict[str, dict[str, Any]]:
        lines = self.cluster("status", "-o", "json").stdout.decode()
        rows = json.loads(lines) if lines.lstrip().startswith("[") else [json.loads(line) for line in lines.splitlines()]
        return {row["id"]: row for row in rows}

    def pid(self, name: str) -> int:
        return int(self.status()[name]["pid"])

    def produce(self, topic: str, values: Sequence[bytes], *words: str) -> None:
        self.run("produce", topic, "-q", *words, stdin=b"".join(value + b"\n" for value in values))

    def tail(self, topic: str, *words: str, bootstrap: str = "") -> list[bytes]:
        """Every value, in the order printed."""
        out = self.run("tail", topic, "--from", "start", "--exit-at-end", *words, bootstrap=bootstrap).stdout
        return out.split(b"\n")[:-1]

    def describe(self, topic: str) -> list[dict[str, Any]]:
        out = self.run("topic", "describe", topic, "-o", "json").stdout.decode()
        described = json.loads(out)
        partitions: list[dict[str, Any]] = described["partition_list"]
        return partitions

    def sequencer(self, topic: str) -> str:
        return str(self.describe(topic)[0]["sequencer"])

    def log(self, name: str) -> str:
        return (self.directory / name / "broker.log").read_text(errors="replace")


@contextmanager
def local_cluster(brokers: int = 3, **settings: object) -> Iterator[LocalCluster]:
    """A running cluster in a directory of its own; all of it is gone afterwards. `settings` go into each broker's configuration."""
    directory = Path(tempfile.mkdtemp(prefix="streamq-test-"))
    cluster = LocalCluster(directory, brokers, free_port_range(brokers))
    chosen = {"journal_file_bytes": 16 << 20, **settings}
    words = [word for key, value in chosen.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    try:
        cluster.cluster("start", "--brokers", str(brokers), "--port", str(cluster.port), *words)
        yield cluster
    finally:
        cluster.run("cluster", "kill", *cluster.names, "--data", str(directory), expect=None)
        shutil.rmtree(directory, ignore_errors=True)


def wait_until(condition: Any, *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.1)


def flip_byte(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 0x40]))
