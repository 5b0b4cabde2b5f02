"""A cluster on this machine: brokers b1, b2, … on consecutive ports, each a process of its own, all below one directory.

    DIR/cluster.json       the founding: id, brokers, incarnations; `founded` once every broker's directory has its identity
    DIR/b1/broker.toml     its configuration; may be edited while the broker is stopped
    DIR/b1/data            its data directory
    DIR/b1/broker.log      what it had to say; DIR/b1/broker.pid the process that was started last

A cluster is founded once. A broker whose data is gone afterwards refuses to start and has to rejoin; nothing here makes it a new identity.
"""

import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from streamq.broker.config import BrokerConfig, load_config, parse_config
from streamq.cli.admin import ask_state
from streamq.cli.founding import Founding, config_text, draw_founding, found_directory, load_founding
from streamq.cli.output import note
from streamq.cli.processes import BROKER_LOG, PID_FILE, ProcessRef, find_process, read_state, send_signal, start_broker, wait_gone
from streamq.cli.settings import new_cluster_port
from streamq.client.settings import Address
from streamq.model.errors import AlreadyExistsError, NotFoundError, RefusedError, StreamqError, UnavailableError, error_of

__all__ = ["LocalBroker", "LocalCluster", "Status", "free_ports"]

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 60.0
KILL_TIMEOUT_S: Final = 5.0
STOP_MARGIN_S: Final = 5.0
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 8192
_error_line: Final = re.compile(r"(?:error|streamq: broker \S+ cannot serve )\[(\w+)\]: (.*)")
_hint_line: Final = re.compile(r"  (?:try: )?(\S.*)")


class LocalBroker(NamedTuple):
    name: str
    port: int
    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "broker.toml"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def address(self) -> Address:
        return Address(HOST, self.port)


class Status(NamedTuple):
    """A broker as `cluster status` shows it; `state` is serving, starting, joining, stopping, paused, unreachable or stopped."""

    id: str
    state: str
    pid: int | None
    port: int
    directory: str
    partitions: int | None
    sequencing: int | None


class LocalCluster:
    """The cluster below one directory. Changes are made under a lock, so that two commands never start one broker twice."""

    def __init__(self, directory: Path, founding: Founding) -> None:
        self.directory = directory
        self.founding = founding
        self.brokers = tuple(LocalBroker(b.broker, b.port, directory / b.broker) for b in founding.brokers)
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def bootstrap(self) -> str:
        return ",".join(str(broker.address) for broker in self.brokers)

    @classmethod
    def open(cls, directory: Path) -> "LocalCluster":
        """Raises NotFoundError if there is no cluster."""
        try:
            return cls(directory, load_founding(directory / "cluster.json"))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"there is no local cluster in {directory}",
                code="not_found",
                hint=f"`streamq cluster start --data {directory}` makes one; --data names another directory",
            ) from None

    @classmethod
    def open_or_found(cls, directory: Path, *, brokers: int | None, port: int | None, settings: Sequence[str] = ()) -> "LocalCluster":
        """The cluster that is there, or a new one with so many brokers (3) on consecutive ports from `port` (STREAMQ_PORT, 7700) on.

        Raises AlreadyExistsError if the one that is there differs from what was asked for, or the directory holds something else.
        """
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            try:
                cluster = cls.open(directory)
            except NotFoundError:
                cluster = cls._draw(directory, brokers or 3, port or new_cluster_port(), settings)
            cluster._check_wishes(brokers, port)
            if not cluster.founding.founded:
                cluster._found(settings)
            elif settings:
                note(f"--set is for new clusters; this one's configurations are {directory}/b*/broker.toml")
            return cluster

    @classmethod
    def _draw(cls, directory: Path, brokers: int, port: int, settings: Sequence[str]) -> "LocalCluster":
        """A new cluster. Nothing is written unless it can start, so that other ports and settings can be tried in the same directory."""
        strangers = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        if strangers:
            raise AlreadyExistsError(
                f"{directory} holds something else already: {', '.join(strangers[:5])}",
                code="wrong_directory",
                hint="choose an empty or new directory with --data",
            )
        if port + brokers - 1 > 65535:
            raise RefusedError(f"there are no {brokers} ports from {port} on", code="usage", hint="choose a lower --port")
        cluster = cls(directory, draw_founding([(f"b{i + 1}", HOST, port + i, "") for i in range(brokers)]))
        for broker in cluster.brokers:
            parse_config(cluster._config_text(broker, settings), source="--set")
            _refuse_port_in_use(broker)
        cluster.founding.write(directory / "cluster.json")
        return cluster

    def _check_wishes(self, brokers: int | None, port: int | None) -> None:
        has = len(self.brokers), self.brokers[0].port
        wants = brokers or has[0], port or has[1]
        if has != wants:
            raise AlreadyExistsError(
                f"the cluster in {self.directory} has {has[0]} brokers from port {has[1]} on, not {wants[0]} from {wants[1]} on",
                code="precondition_failed",
                hint="leave --brokers and --port out to start it as it is, or choose another --data directory for a new cluster",
            )

    def _found(self, settings: Sequence[str]) -> None:
        """Every directory gets its identity. A founding that was interrupted goes on with the incarnations that were drawn for it."""
        for broker in self.brokers:
            self.write_config(broker, settings)
            if not (broker.data / "identity").exists():
                found_directory(load_config(broker.config), self.founding)
        founded = Founding(self.founding.cluster, self.founding.brokers, founded=True)
        founded.write(self.directory / "cluster.json")
        self.founding = founded

    def write_config(self, broker: LocalBroker, settings: Sequence[str] = ()) -> BrokerConfig:
        broker.directory.mkdir(parents=True, exist_ok=True)
        if not broker.config.exists():
            text = self._config_text(broker, settings)
            temporary = broker.config.with_suffix(".new")
            temporary.write_text(text)
            load_config(temporary)  # a wrong setting is refused before it counts
            temporary.replace(broker.config)
        return load_config(broker.config)

    def _config_text(self, broker: LocalBroker, settings: Sequence[str]) -> str:
        founding = next(b for b in self.founding.brokers if b.broker == broker.name)
        return config_text(founding, data_directory=broker.data, settings=settings)

    def pick(self, names: Sequence[str]) -> list[LocalBroker]:
        """The brokers with these ids, all if none is named. Raises NotFoundError."""
        known = {broker.name: broker for broker in self.brokers}
        for name in names:
            if name not in known:
                raise NotFoundError(
                    f"this cluster has no broker {name!r}", code="unknown_broker", hint=f"its brokers are {', '.join(known)}"
                )
        return [known[name] for name in dict.fromkeys(names)] or list(self.brokers)

    # --- starting ------------------------------------------------------------------------------------------------------

    def start(self, names: Sequence[str] = (), *, timeout_s: float = START_TIMEOUT_S) -> list[str]:
        """Starts what is not running and returns when all of it serves; the ids of the brokers that were started.

        Raises the error of the first broker that does not come up, after the others had their chance; those keep running.
        """
        started: dict[LocalBroker, tuple[subprocess.Popen[bytes], int]] = {}
        with _locked(self.directory):
            waiting = [
                broker for broker in self.pick(names) if (ref := find_process(broker.directory)) is None or read_state(ref) == "running"
            ]
            missing = [broker for broker in waiting if find_process(broker.directory) is None]
            for broker in missing:
                _refuse_port_in_use(broker)
            for broker in missing:
                self.write_config(broker)
                log_begin = _rotate_log(broker)
                _, process = start_broker(broker.directory, broker.config)
                self._children.append(process)
                started[broker] = process, log_begin
        self._wait_serving(waiting, started, timeout_s)
        return [broker.name for broker in started]

    def _wait_serving(
        self, waiting: Sequence[LocalBroker], started: dict[LocalBroker, tuple[subprocess.Popen[bytes], int]], timeout_s: float
    ) -> None:
        deadline = time.monotonic() + timeout_s
        pending, states = list(waiting), dict.fromkeys(waiting, "no answer yet")
        failures: list[StreamqError] = []
        while pending:
            for broker in list(pending):
                process, log_begin = started.get(broker, (None, 0))
                if process is not None and process.poll() is not None:
                    failures.append(_why_ended(broker, process.returncode, log_begin))
                    pending.remove(broker)
                    continue
                with contextlib.suppress(OSError, StreamqError):
                    states[broker] = ask_state(broker.address, timeout_s=0.5).state
                if states[broker] == "serving":
                    pending.remove(broker)
            if pending and time.monotonic() > deadline:
                slow = ", ".join(f"{broker.name} ({states[broker]})" for broker in pending)
                failures.append(
                    UnavailableError(
                        f"not serving after {timeout_s:g} s: {slow}",
                        code="timed_out",
                        hint=f"see {pending[0].directory / BROKER_LOG}; a majority of the brokers has to be up",
                    )
                )
                break
            if pending:
                time.sleep(POLL_S)
        if failures:
            raise failures[0]

    # --- what goes on, and ending it -----------------------------------------------------------------------------------

    def status(self, names: Sequence[str] = ()) -> list[Status]:
        brokers = self.pick(names)
        with ThreadPoolExecutor(max_workers=len(brokers)) as pool:
            return list(pool.map(self._status_of, brokers))

    def _status_of(self, broker: LocalBroker) -> Status:
        process = find_process(broker.directory)
        state, partitions, sequencing = "stopped", None, None
        if process is not None:
            state = "paused" if read_state(process) == "paused" else "unreachable"
        if state == "unreachable":
            with contextlib.suppress(OSError, StreamqError):
                answer = ask_state(broker.address)
                state, partitions, sequencing = answer.state, answer.partitions, answer.sequencing
        pid = process.pid if process else None
        return Status(broker.name, state, pid, broker.port, str(broker.directory), partitions, sequencing)

    def stop(self, names: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """Asks brokers to stop and waits. The ids of those that did, and of those that had to be killed since they did not in time."""
        running = self._running(names)
        for _, process in running:
            send_signal(process, signal.SIGTERM)
            send_signal(process, signal.SIGCONT)  # a paused one has to run to stop
        stopped, killed = [], []
        for broker, process in running:
            if wait_gone(process, timeout_s=_stop_timeout(broker) + STOP_MARGIN_S):
                stopped.append(broker.name)
            else:
                send_signal(process, signal.SIGKILL)
                wait_gone(process, timeout_s=KILL_TIMEOUT_S)
                killed.append(broker.name)
            (broker.directory / PID_FILE).unlink(missing_ok=True)
        self._collect()
        return stopped, killed

    def kill(self, names: Sequence[str]) -> list[str]:
        """SIGKILL; returns when the processes are gone."""
        running = self._running(names)
        for _, process in running:
            send_signal(process, signal.SIGKILL)
        for broker, process in running:
            if not wait_gone(process, timeout_s=KILL_TIMEOUT_S):
                raise UnavailableError(
                    f"{broker.name} (pid {process.pid}) is still there after SIGKILL", code="timed_out", hint="its disk may hang"
                )
            (broker.directory / PID_FILE).unlink(missing_ok=True)
        self._collect()
        return [broker.name for broker, _ in running]

    def pause(self, names: Sequence[str]) -> list[str]:
        return [broker.name for broker, process in self._running(names) if send_signal(process, signal.SIGSTOP)]

    def resume(self, names: Sequence[str]) -> list[str]:
        return [broker.name for broker, process in self._running(names) if send_signal(process, signal.SIGCONT)]

    def _running(self, names: Sequence[str]) -> list[tuple[LocalBroker, ProcessRef]]:
        return [(broker, process) for broker in self.pick(names) if (process := find_process(broker.directory)) is not None]

    def _collect(self) -> None:
        self._children = [process for process in self._children if process.poll() is None]


def free_ports(number: int) -> int:
    """The first of so many consecutive ports of which none is in use at the moment."""
    for first in random.sample(range(20_000, 32_000), 200):
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + number):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise UnavailableError(f"no {number} consecutive ports are free", code="unavailable", hint="name a cluster with --bootstrap")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _stop_timeout(broker: LocalBroker) -> float:
    try:
        return load_config(broker.config).stop_timeout_s
    except StreamqError:
        return 10.0


def _refuse_port_in_use(broker: LocalBroker) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(broker.address)
        except OSError as error:
            raise AlreadyExistsError(
                f"{broker.name} cannot listen on {broker.address}: {error.strerror}",
                code="precondition_failed",
                hint="stop what uses the port; for a new cluster, --port chooses others",
            ) from None


def _rotate_log(broker: LocalBroker) -> int:
    """Keeps the log of the starts before this one as long as it is small; where this start's part begins."""
    log = broker.directory / BROKER_LOG
    if log.exists() and log.stat().st_size > 1 << 20:
        log.replace(log.with_suffix(".log.1"))
    return log.stat().st_size if log.exists() else 0


def _why_ended(broker: LocalBroker, exit_code: int, log_begin: int) -> StreamqError:
    """The error that a broker printed before it ended, or its last lines."""
    log = broker.directory / BROKER_LOG
    with log.open("rb") as file:
        file.seek(max(log_begin, log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if found := _error_line.fullmatch(lines[number]):
            hint = _hint_line.fullmatch(lines[number + 1]) if number + 1 < len(lines) else None
            return error_of(found[1], f"{broker.name} did not start: {found[2]}", hint=hint[1] if hint else f"see {log}")
    last = lines[-1] if lines else "it said nothing"
    return StreamqError(f"{broker.name} ended with exit code {exit_code}: {last}", code="internal", hint=f"see {log}")
