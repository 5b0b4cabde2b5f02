"""Networks between brokers that can be cut: each broker in a network namespace of its own, all of them on a switch in user space.

The whole run lives in namespaces made for it (`enter`): network, mounts and processes. They end with the run, whatever ends it, and nothing
of them was ever visible outside. Where that is not allowed, brokers are on the loopback interface and the network faults are left out.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.nemesis.switch import Rule, mac

__all__ = ["CLIENTS", "CUT", "Network", "enter", "why_not"]

CLIENTS: Final = "clients"
CUT: Final = Rule(lost=1.0)
MARK: Final = "STREAMQ_NEMESIS_INSIDE"
NAMESPACES: Final = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
ROOT: Final = Path(__file__).resolve().parents[2]


def _command() -> list[str]:
    return ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), *NAMESPACES]


def why_not() -> str:
    """Why this machine can't make such networks; empty if it can."""
    if is_inside():
        return ""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"the command {tool} is not installed"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun can't be opened"
    tried = subprocess.run([*_command(), "ip", "tuntap", "add", "probe", "mode", "tap"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"namespaces can't be made here: {tried.stderr.strip()}"


def is_inside() -> bool:
    return MARK in os.environ


def enter(module: str, words: Sequence[str], **options: object) -> int:
    """Runs `python -m module words` in fresh namespaces; the code that it ends with. All its processes end with this call."""
    command = [*_command(), sys.executable, "-m", module, *words]
    with subprocess.Popen(command, env={**os.environ, MARK: "1"}, cwd=ROOT) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue  # the child has it as well, and winds up


class Network:
    """The ports are brokers and `CLIENTS`, which is where this process is. Rules count per direction; `heal` drops them all."""

    def __init__(self, brokers: Sequence[str]) -> None:
        self.brokers = tuple(brokers)
        self.ports = (*brokers, CLIENTS)
        self._rules: dict[tuple[str, str], Rule] = {}
        self._anchors: dict[str, subprocess.Popen[str]] = {}
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.nemesis.switch", *self.ports]
        self._switch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
        self._expect("ready")
        for broker in self.brokers:
            hold = ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"]
            anchor = self._anchors[broker] = subprocess.Popen(hold, stdout=subprocess.PIPE, text=True, start_new_session=True)
            assert anchor.stdout is not None
            assert anchor.stdout.readline() == "ready\n"
            _run("ip", "link", "set", broker, "netns", str(anchor.pid))
        for name in self.ports:
            self._set_up(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for process in (*self._anchors.values(), *([self._switch] if self._switch else [])):
            process.kill()
            process.wait()

    def address(self, name: str) -> str:
        return f"10.77.0.{self.ports.index(name) + 1}"

    def within(self, name: str) -> list[str]:
        """What to put before a command so that it runs where this broker's network is."""
        return [] if name == CLIENTS else ["nsenter", f"--net=/proc/{self._anchors[name].pid}/ns/net", "--"]

    def rule(self, sources: Iterable[str], targets: Iterable[str], rule: Rule) -> None:
        """In this direction only."""
        to = list(targets)
        self._rules |= {(source, target): rule for source in sources for target in to if source != target}
        self._tell()

    def both_ways(self, ones: Iterable[str], others: Iterable[str], rule: Rule) -> None:
        ones, others = list(ones), list(others)
        self._rules |= {(a, b): rule for a in ones for b in others if a != b}
        self._rules |= {(b, a): rule for a in ones for b in others if a != b}
        self._tell()

    def heal(self) -> None:
        self._rules = {}
        self._tell()

    def _tell(self) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        told = {f"{source}>{target}": rule for (source, target), rule in self._rules.items()}
        self._switch.stdin.write(json.dumps(told) + "\n")
        self._switch.stdin.flush()
        self._expect("ok")

    def _expect(self, line: str) -> None:
        assert self._switch is not None
        assert self._switch.stdout is not None
        answer = self._switch.stdout.readline()
        assert answer == line + "\n", f"the switch said {answer!r}, not {line!r}"

    def _set_up(self, name: str) -> None:
        within = self.within(name)
        _run(*within, "ip", "link", "set", "lo", "up")
        _run(*within, "ip", "link", "set", name, "address", mac(self.ports.index(name)), "arp", "off", "up")
        _run(*within, "ip", "addr", "add", f"{self.address(name)}/24", "dev", name)
        for other in self.ports:
            if other != name:
                lladdr = mac(self.ports.index(other))
                _run(*within, "ip", "neigh", "replace", self.address(other), "lladdr", lladdr, "dev", name, "nud", "permanent")


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
