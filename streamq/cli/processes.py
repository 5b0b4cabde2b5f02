"""Broker processes of a local cluster: started detached, remembered by a pid file, never mistaken for another process.

A pid alone proves nothing after a while, since the system gives it away again. The pid file therefore keeps the time at which the
process was started, as the system tells it; a process with that pid and another start time is somebody else's and is never signalled.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Final, Literal, NamedTuple

import streamq
from streamq.model.errors import RefusedError

__all__ = ["BROKER_LOG", "PID_FILE", "ProcessRef", "ProcessState", "find_process", "read_state", "send_signal", "start_broker", "wait_gone"]

PID_FILE: Final = "broker.pid"
BROKER_LOG: Final = "broker.log"
POLL_S: Final = 0.01

ProcessState = Literal["running", "paused", "gone"]


class ProcessRef(NamedTuple):
    """A process, told apart from any later one with the same pid."""

    pid: int
    started: str


def start_broker(directory: Path, config: Path) -> tuple[ProcessRef, subprocess.Popen[bytes]]:
    """Starts `streamq broker run --config <config>` in a session of its own, its output appended to `broker.log`.

    It inherits no file descriptor but that log, and goes on when this process ends.
    """
    environment = dict(os.environ)
    package_root = Path(streamq.__file__).parent.parent
    if package_root != Path(sysconfig.get_path("purelib")):  # a checkout: the child has to find it from another directory
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package_root), environment.get("PYTHONPATH"))))
    with (directory / BROKER_LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamq", "broker", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=environment,
            close_fds=True,
            start_new_session=True,
        )
    reference = ProcessRef(process.pid, _start_time(process.pid))
    temporary = directory / f".{PID_FILE}"
    temporary.write_text(json.dumps(reference._asdict()) + "\n")
    os.replace(temporary, directory / PID_FILE)
    return reference, process


def find_process(directory: Path) -> ProcessRef | None:
    """The broker that was started in this directory, if it is still there."""
    try:
        content = json.loads((directory / PID_FILE).read_text())
        reference = ProcessRef(int(content["pid"]), str(content["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if read_state(reference) == "gone" else reference


def read_state(reference: ProcessRef) -> ProcessState:
    """A process that has ended and waits to be collected by its parent is gone, unless a thread of it is left: one that is killed while it
    syncs goes on until the disk answers, and the process keeps its ports and locks until then."""
    started, state = _look_at(reference.pid)
    if not started or started != reference.started or (state in "ZX" and not _has_threads(reference.pid)):
        return "gone"
    return "paused" if state in "Tt" else "running"


def send_signal(reference: ProcessRef, number: signal.Signals) -> bool:
    """Whether there was still somebody to signal."""
    if read_state(reference) == "gone":
        return False
    try:
        os.kill(reference.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise RefusedError(f"process {reference.pid} belongs to another user", code="not_authorised", hint="be that user") from None
    return True


def wait_gone(reference: ProcessRef, *, timeout_s: float) -> bool:
    """Whether the process was gone before the time was over."""
    deadline = time.monotonic() + timeout_s
    while read_state(reference) != "gone":
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _start_time(pid: int) -> str:
    return _look_at(pid)[0]


def _look_at(pid: int) -> tuple[str, str]:
    """When a process was started and its state's letter; two empty texts if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ("", "") if Path("/proc/self/stat").exists() else _ask_ps(pid)
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may contain anything
    return fields[19].decode(), fields[0].decode()


def _has_threads(pid: int) -> bool:
    """Whether others than the first are left."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def _ask_ps(pid: int) -> tuple[str, str]:
    """Where there is no /proc."""
    answer = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.split(
        maxsplit=1
    )
    return (answer[1].strip(), answer[0][:1]) if len(answer) == 2 else ("", "")
