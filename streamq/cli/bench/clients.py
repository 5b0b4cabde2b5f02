"""Client processes: started with a plan, told when to begin, watched until they have an outcome or the disk's budget is used up."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

import streamq
from streamq.cli.bench.plan import Outcome, Plan
from streamq.model.errors import UnavailableError, error_of

__all__ = ["Client", "Look", "run_together"]

Look = Callable[[], None]
"""Called several times a second while something is waited for; what it raises ends the wait."""

READY_TIMEOUT_S: Final = 120.0
GRACE_S: Final = 120.0
"""How long a client may take beyond the seconds of its plan."""
LOOK_S: Final = 0.1
KILL_TIMEOUT_S: Final = 5.0


class Client:
    """One client process. Used with `with`, which ends the process whatever happens."""

    def __init__(self, plan: Plan) -> None:
        self.plan: Final = plan
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        root = Path(streamq.__file__).parent.parent
        paths = [str(root), str(root / "producers"), str(root / "consumers"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamq.cli.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends it
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._tell(msgspec.json.encode(plan).decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(KILL_TIMEOUT_S)
        self._reader.join(KILL_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def wait_ready(self) -> None:
        """Until the load is about to be measured. Raises what the client failed with."""
        row = self._next_row(time.monotonic() + READY_TIMEOUT_S + self.plan.warm_up_s, lambda: None)
        assert "ready" in row

    def go(self) -> None:
        self._tell("go")

    def stop(self) -> None:
        """Tells a steady load that it is enough."""
        self._tell("stop")

    def outcome(self, look: Look) -> Outcome:
        """Waits for it. Raises what the client failed with, UnavailableError when it takes far too long, or what `look` raises."""
        limit = self.plan.seconds + GRACE_S + self.plan.settle_s
        return msgspec.convert(self._next_row(time.monotonic() + limit, look), Outcome)

    def check(self) -> None:
        """Raises what the client failed with, if it has."""
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(block=False)
            self._lines.put(line)  # an outcome came early, and is asked for later
            _row_of(line)

    def _next_row(self, deadline: float, look: Look) -> dict[str, object]:
        while True:
            look()
            try:
                line = self._lines.get(timeout=LOOK_S)
                break
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise UnavailableError("the measuring client does not come to an end", code="timed_out") from None
        return _row_of(line)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which its outcome says
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


def _row_of(line: str) -> dict[str, object]:
    row: dict[str, object] = json.loads(line) if line else {"code": "failed", "message": "the measuring client died", "hint": ""}
    if "code" in row:
        raise error_of(str(row["code"]), str(row["message"]), hint=str(row["hint"]))
    return row


def run_together(plans: Sequence[Plan], look: Look) -> list[Outcome]:
    """A process a plan; what is measured begins at the same time."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(plan)) for plan in plans]
        for client in clients:
            client.wait_ready()
        for client in clients:
            client.go()
        return [client.outcome(look) for client in clients]
