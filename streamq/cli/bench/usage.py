"""CPU time, memory and writes of processes, from /proc; nothing where there is none."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from streamq.cli.bench.plan import Usage

__all__ = ["CLIENT", "Reading", "read_process", "usage_since"]

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
CLIENT: Final = "client"


class Reading(NamedTuple):
    cpu_s: float
    rss_bytes: int | None
    peak_bytes: int | None
    written_bytes: int | None


def read_process(pid: int) -> Reading | None:
    """None for a process that is gone."""
    place = Path(f"/proc/{pid}")
    try:
        stat = (place / "stat").read_bytes()
        status = (place / "status").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    try:
        written = re.search(r"^write_bytes: (\d+)", (place / "io").read_text(), re.MULTILINE)
    except OSError:  # another user's
        written = None
    return Reading(
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
        rss_bytes=_kib(status, "VmRSS"),
        peak_bytes=_kib(status, "VmHWM"),
        written_bytes=int(written[1]) if written else None,
    )


def usage_since(begun: Mapping[str, Reading], pids: Mapping[str, int]) -> tuple[Usage, ...]:
    """What each process took since its first reading; one that has gone is left out."""
    rows = []
    for name, before in begun.items():
        now = read_process(pids[name])
        if now is None:
            continue
        has_writes = now.written_bytes is not None and before.written_bytes is not None
        rows.append(
            Usage(
                process=name,
                cpu_s=round(now.cpu_s - before.cpu_s, 3),
                peak_bytes=now.peak_bytes,
                written_bytes=(now.written_bytes or 0) - (before.written_bytes or 0) if has_writes else None,
            )
        )
    return tuple(rows)


def _kib(status: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else None
