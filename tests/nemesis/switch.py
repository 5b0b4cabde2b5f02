"""An Ethernet switch in user space, run as a process of its own: `python -m tests.nemesis.switch NAME NAME …`.

It makes a TAP device for each name, says "ready", and forwards frames between them by their fixed addresses (`mac`). Each line on
standard input is a JSON object that maps "from>to" to a `Rule`; pairs that it does not name are whole. So networks of every shape are made:
one-way cuts, delays with jitter (frames overtake each other), losses, duplicates. No kernel module, packet filter or bridge is needed, and
everything is gone when the process ends, however it ends.
"""

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from typing import Final, NamedTuple

__all__ = ["WHOLE", "Rule", "mac"]

TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
FRAME_BYTES_MAX: Final = 1 << 16
WAITING_FRAMES_MAX: Final = 20_000
"""Delayed frames in all; more are lost, as with any switch."""


class Rule(NamedTuple):
    """What becomes of frames in one direction between two ports. Probabilities in 0 to 1, times in seconds."""

    lost: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    twice: float = 0.0


WHOLE: Final = Rule()


def mac(port: int) -> str:
    return f"02:00:00:00:00:{port + 1:02x}"


class Switch:
    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.taps = [_open_tap(name) for name in names]
        self.port_of = {bytes.fromhex(mac(port).replace(":", "")): port for port in range(len(names))}
        self.rules: dict[tuple[int, int], Rule] = {}
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.numbers = 0
        self.rng = random.Random(0)

    def run(self) -> None:
        commands = sys.stdin.fileno()
        poll = select.poll()
        for fd in (*self.taps, commands):
            poll.register(fd, select.POLLIN)
        sources = {fd: port for port, fd in enumerate(self.taps)}
        while True:
            timeout = None if not self.waiting else max(0.0, (self.waiting[0][0] - time.monotonic()) * 1000)
            for fd, _ in poll.poll(timeout):
                if fd == commands:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    self.adopt(json.loads(line))
                else:
                    self.receive(sources[fd])
            self.release()

    def adopt(self, told: dict[str, list[float]]) -> None:
        """The new rules count for what is still under way, too: a cut loses it."""
        port = {name: number for number, name in enumerate(self.names)}
        self.rules = {(port[source], port[target]): Rule(*rule) for pair, rule in told.items() for source, target in [pair.split(">")]}
        print("ok", flush=True)

    def receive(self, source: int) -> None:
        try:
            frame = os.read(self.taps[source], FRAME_BYTES_MAX)
        except OSError:
            time.sleep(0.001)  # the device is on its way into its namespace, and not up yet
            return
        target = self.port_of.get(frame[:6])
        if target is None or target == source:
            return
        rule = self.rules.get((source, target))
        if rule is None:
            _send(self.taps[target], frame)
            return
        for _ in range(2 if self.rng.random() < rule.twice else 1):
            if self.rng.random() >= rule.lost and len(self.waiting) < WAITING_FRAMES_MAX:
                due = time.monotonic() + rule.delay_s + self.rng.random() * rule.jitter_s
                self.numbers += 1
                heapq.heappush(self.waiting, (due, self.numbers, source * len(self.taps) + target, frame))

    def release(self) -> None:
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            _, _, pair, frame = heapq.heappop(self.waiting)
            source, target = divmod(pair, len(self.taps))
            if self.rules.get((source, target), WHOLE).lost < 1:
                _send(self.taps[target], frame)


def _open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def _send(tap: int, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # the device is down for the moment: a lost frame
        os.write(tap, frame)


def main() -> None:
    switch = Switch(sys.argv[1:])
    print("ready", flush=True)
    switch.run()


if __name__ == "__main__":
    main()
