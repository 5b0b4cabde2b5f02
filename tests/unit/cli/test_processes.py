"""Processes of a local cluster: found again by pid and start time, never mistaken; their log stays bounded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamq.cli import processes
from streamq.cli.processes import PID_FILE, ProcessRef, find_process, read_state, send_signal, wait_gone


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def remember(directory: Path, reference: ProcessRef) -> None:
    (directory / PID_FILE).write_text(json.dumps(reference._asdict()))


def test_a_process_is_followed_through_its_states(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    reference = ProcessRef(sleeper.pid, processes._start_time(sleeper.pid))
    remember(tmp_path, reference)
    assert find_process(tmp_path) == reference
    assert read_state(reference) == "running"
    assert send_signal(reference, signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
    assert read_state(reference) == "paused"
    assert send_signal(reference, signal.SIGKILL)
    assert wait_gone(reference, timeout_s=5)  # although nobody has collected it yet
    assert find_process(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads of other processes are seen in /proc")
def test_a_process_is_there_as_long_as_one_of_its_threads_is() -> None:
    """Killed in the middle of a sync, a broker holds its port until the disk has answered; its first thread ends before."""
    script = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        reference = ProcessRef(process.pid, processes._start_time(process.pid))
        deadline = time.monotonic() + 5
        while processes._look_at(process.pid)[1] != "Z" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes._look_at(process.pid)[1] == "Z", "its first thread has ended"
        assert read_state(reference) == "running"
        process.kill()
        assert wait_gone(reference, timeout_s=5)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_stale_pid_is_never_signalled(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The pid was given to another process since."""
    stale = ProcessRef(sleeper.pid, "1")
    remember(tmp_path, stale)
    assert find_process(tmp_path) is None
    assert not send_signal(stale, signal.SIGKILL)
    assert sleeper.poll() is None


@pytest.mark.parametrize("content", ["", "{}", "17", '{"pid": "x", "started": 1}', '{"pid": 4194305, "started": "5"}'])
def test_a_pid_file_that_says_nothing_means_no_process(content: str, tmp_path: Path) -> None:
    assert find_process(tmp_path) is None
    (tmp_path / PID_FILE).write_text(content)
    assert find_process(tmp_path) is None


def test_a_log_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    script = (
        "import sys, logging\n"
        "from streamq.cli.bounded_log import bound_log\n"
        "bound_log(sys.stderr, bytes_max=100_000)\n"
        "logging.basicConfig(stream=sys.stderr, format='%(message)s')\n"
        "for number in range(5000): logging.warning('%06d %s', number, 'x' * 90)\n"
    )
    log = tmp_path / "broker.log"
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", script], stderr=file, check=True)
    assert 0 < log.stat().st_size < 130_000
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("004999 ")
    assert [int(line[:6]) for line in lines] == list(range(5000 - len(lines), 5000))
    assert (tmp_path / "broker.log.1").stat().st_size < 130_000
