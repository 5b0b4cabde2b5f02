"""Ends a benchmark's cluster whatever becomes of the benchmark: `python -m streamq.cli.bench.warden DIR`.

It waits until its stdin is closed, which the system does for a process that is killed, too; then it kills the brokers of the cluster below
DIR and removes DIR. Signals of a terminal do not reach it, since it has a session of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from streamq.cli.local_cluster import LocalCluster
from streamq.model.errors import StreamqError

__all__ = ["CLUSTER", "start_warden"]

CLUSTER = "cluster"
"""The name below DIR of the cluster's own directory."""


def start_warden(directory: Path) -> "subprocess.Popen[bytes]":
    """The caller closes its stdin and waits for it when the directory is to go."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamq.cli.bench.warden", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> int:
    directory = Path(sys.argv[1])
    sys.stdin.buffer.read()
    try:
        LocalCluster.open(directory / CLUSTER).kill([])
    except StreamqError as error:  # there is none, or a process that cannot be killed
        print(error.message, file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
