"""Processes that need no time to start: forked from one that has imported everything and has no event loop.

Importing costs half a second of a core, which would be measured as the storm's. What they tell goes through one pipe, each event in one
write of at most PIPE_BUF bytes: whole even from a process that is killed, and in an order in which causes come before effects, since who
writes "handled" does so before it commits.
"""

import gc
import mmap
import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

__all__ = ["Forks", "Phase", "Teller", "set_phase"]

PIPE_BYTES: Final = 1 << 20
Work = Callable[["Teller", "Phase", Sequence[Any]], None]


class Teller:
    """The writing end of the events. Blocks while the judge is behind."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, *event: Any) -> None:
        line = msgspec.json.encode(event) + b"\n"
        assert len(line) <= select.PIPE_BUF, f"an event of {len(line)} bytes"
        os.write(self._fd, line)


class Phase:
    """One byte that all processes see."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @property
    def now(self) -> str:
        return chr(self._memory[0])


def set_phase(phase: Phase, value: str) -> None:
    phase._memory[0] = ord(value)


class Forks:
    """To be made before there is an event loop or a thread. `events` is the reading end."""

    def __init__(self, works: dict[str, Work]) -> None:
        self.events, told = os.pipe()
        self.phase = Phase(mmap.mmap(-1, mmap.PAGESIZE))
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        if os.fork() == 0:
            code = 1
            try:
                for fd in (self.events, self._orders, self._answers):
                    os.close(fd)
                gc.collect()
                gc.freeze()
                _serve(works, orders, answers, Teller(told), self.phase)
                code = 0
            finally:
                os._exit(code)
        for fd in (told, orders, answers):
            os.close(fd)
        os.set_blocking(self.events, False)

    def start(self, work: str, *arguments: Any) -> int:
        """Its process id. Takes milliseconds, and blocks for them."""
        os.write(self._orders, msgspec.json.encode(("start", work, arguments)) + b"\n")
        return int(os.read(self._answers, 16))

    def kill(self, pid: int) -> None:
        """SIGKILL; it is gone when this returns."""
        os.write(self._orders, msgspec.json.encode(("kill", pid, ())) + b"\n")
        os.read(self._answers, 16)

    def close(self) -> None:
        """Ends all of them."""
        os.close(self._orders)
        while os.read(self._answers, 16):
            pass


def _serve(works: dict[str, Work], orders: int, answers: int, teller: Teller, phase: Phase) -> None:
    """Until nobody can order anything any more, which is so, too, when who ordered has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pids: set[int] = set()
    with os.fdopen(orders, "rb") as lines:
        for line in lines:
            order, what, arguments = msgspec.json.decode(line)
            if order == "kill":
                _kill(what)
                pids.discard(what)
                os.write(answers, b"0")
                continue
            pid = os.fork()
            if pid == 0:
                os.close(answers)
                works[what](teller, phase, arguments)
                os._exit(0)
            pids.add(pid)
            os.write(answers, b"%d" % pid)
    for pid in pids:
        _kill(pid)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
