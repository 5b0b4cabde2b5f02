"""Broker processes that the nemesis owns: founded, started, signalled and collected here, on loopback or in a network that can be cut."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from streamq.broker.config import load_config
from streamq.cli.founding import config_text, draw_founding, found_directory
from tests.integration.local import environment, free_port_range
from tests.nemesis.network import ROOT, Network

__all__ = ["Broker", "Cluster"]

HAPPENED: Final = {
    "takeovers": ": sequencer of epoch",
    "sequencers deposed": "no longer sequencer",
    "replicas in limbo": "in limbo",
    "damage copied again": "were copied again",
    "segments held again": "holder of epoch",
    "voters replaced": "is decided",
}
STOP_S: Final = 30.0
PORT_INSIDE: Final = 7700
SETTINGS: Final = (
    "journal_file_bytes = 16777216",
    "log_file_bytes = 2097152",
    "flush_interval_s = 0.3",
    "flush_bytes = 1048576",
    "cache_bytes = 2097152",
    "reserve_bytes = 33554432",
)
"""Small, so that a short run sees full journal files, many log files, and reads that memory can't answer."""


class Broker:
    """One broker: `process` is the one started last; `is_wanted` whether it should be running now."""

    def __init__(self, name: str, directory: Path, data: Path, address: str, within: Sequence[str]) -> None:
        self.name = name
        self.directory = directory
        self.data = data
        self.address = address
        self.within = list(within)
        self.process: subprocess.Popen[bytes] | None = None
        self.is_wanted = False
        self.starts = 0

    @property
    def config(self) -> Path:
        return self.directory / "broker.toml"

    @property
    def log(self) -> Path:
        return self.directory / "broker.log"

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def start(self) -> None:
        assert self.has_ended
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, "-m", "streamq", "broker", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment(),
                start_new_session=True,
            )
        self.is_wanted = True
        self.starts += 1

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and not self.has_ended:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.is_wanted = False
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self) -> bool:
        """Gracefully; whether it did so in time and without an error."""
        self.is_wanted = False
        if self.process is None or self.has_ended:
            return False
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False


class Cluster:
    """`directory` keeps everything; `data_at` puts one broker's data elsewhere, on a small file system."""

    def __init__(self, directory: Path, brokers: int, *, network: Network | None = None, data_at: dict[str, Path] | None = None) -> None:
        self.network = network
        names = [f"b{i + 1}" for i in range(brokers)]
        port = PORT_INSIDE if network else free_port_range(brokers)
        places = [(network.address(name), port) if network else ("127.0.0.1", port + i) for i, name in enumerate(names)]
        self.founding = draw_founding([(name, host, port, "") for name, (host, port) in zip(names, places, strict=True)])
        self.brokers: dict[str, Broker] = {}
        for name, (host, port) in zip(names, places, strict=True):
            own = directory / name
            within = network.within(name) if network else ()
            data = (data_at or {}).get(name, own / "data")
            self.brokers[name] = Broker(name, own, data, f"{host}:{port}", within)

    def __enter__(self) -> Self:
        for broker in self.brokers.values():
            broker.directory.mkdir(parents=True)
            founding = self.founding.broker(broker.name)
            assert founding is not None
            broker.config.write_text(config_text(founding, data_directory=broker.data, settings=SETTINGS))
            found_directory(load_config(broker.config), self.founding)
            broker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for broker in self.brokers.values():
            broker.kill()

    @property
    def names(self) -> list[str]:
        return list(self.brokers)

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.address for broker in self.brokers.values())

    def rejoin(self, name: str, *, timeout_s: float) -> None:
        """`streamq broker rejoin`, which other brokers have to answer; again until they do. Then it is started."""
        broker = self.brokers[name]
        others = ",".join(b.address for b in self.brokers.values() if b.name != name)
        words = ["broker", "rejoin", "--config", str(broker.config), "--bootstrap", others, "--yes"]
        deadline = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "streamq", *words], cwd=ROOT, env=environment(), capture_output=True, timeout=60, check=False
            )
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} can't rejoin: {done.stderr.decode()}")
            time.sleep(0.2)
        broker.start()

    def happened(self) -> dict[str, int]:
        """How often the brokers' logs tell of what the faults are meant to bring about."""
        logs = [broker.log.read_text(errors="replace") for broker in self.brokers.values()]
        return {what: sum(log.count(words) for log in logs) for what, words in HAPPENED.items()}

    def faults_in_logs(self) -> list[str]:
        """Lines of the brokers' logs that must never be there."""
        return [
            f"{broker.name}: {line}"
            for broker in self.brokers.values()
            for line in broker.log.read_text(errors="replace").splitlines()
            if any(word in line for word in ("ALARM", "Traceback", "AssertionError"))
        ]

    def unexpected_ends(self) -> list[str]:
        """Brokers that ended though nobody ended them."""
        return [
            f"{broker.name} ended by itself with {broker.process.returncode}"
            for broker in self.brokers.values()
            if broker.is_wanted and broker.process is not None and broker.has_ended
        ]
