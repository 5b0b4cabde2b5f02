"""CPU time and memory of processes and writes of a disk, from /proc and /sys; nothing where there are none."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from streamq.cli.bench.plan import Usage

__all__ = ["CLIENT", "Reading", "disk_written_bytes", "read_process", "usage_since"]

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
CLIENT: Final = "client"
SECTOR_BYTES: Final = 512


class Reading(NamedTuple):
    cpu_s: float
    rss_bytes: int | None
    peak_bytes: int | None


def read_process(pid: int) -> Reading | None:
    """None for a process that is gone."""
    place = Path(f"/proc/{pid}")
    try:
        stat = (place / "stat").read_bytes()
        status = (place / "status").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Reading(
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
        rss_bytes=_kib(status, "VmRSS"),
        peak_bytes=_kib(status, "VmHWM"),
    )


def usage_since(begun: Mapping[str, Reading], pids: Mapping[str, int]) -> tuple[Usage, ...]:
    """What each process took since its first reading; one that has gone is left out."""
    rows = []
    for name, before in begun.items():
        now = read_process(pids[name])
        if now is None:
            continue
        rows.append(
            Usage(
                process=name,
                cpu_s=round(now.cpu_s - before.cpu_s, 3),
                peak_bytes=now.peak_bytes,
            )
        )
    return tuple(rows)


def disk_written_bytes(directory: str) -> int | None:
    """What was ever written to the disk that holds the directory, by whomever; None where the system does not tell.

    A process's own `write_bytes` is no measure: it counts a whole folio of the page cache for each write to a part of one.
    """
    try:
        device = os.stat(directory).st_dev
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return None
    return int(fields[6]) * SECTOR_BYTES


def _kib(status: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else None
