"""What the disk itself takes, and what writing costs the CPU: the ground below every other figure.

    python -m deploy.bench.disk [--directory DIR] [--seconds 3]

Three processes write, as three brokers on one machine do. `overwrite` is a journal's way (1 MiB and a sync, into a file that was written
before), `grow` is a log file's (new files of 64 MiB, synced each 32 MiB); `cached` goes through the page cache, `direct` past it, block
by block. In the last rows three processes of each kind share the disk, as journals and log files do.
"""

import argparse
import mmap
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final, NamedTuple

MiB: Final = 1 << 20
OVERWRITTEN_BYTES: Final = 192 * MiB
FILE_BYTES: Final = 64 * MiB
SYNC_BYTES: Final = 32 * MiB
GROUP_BYTES: Final = 1 * MiB
PIECE_BYTES: Final = 512 * 1024
WRITERS: Final = 3


class Task(NamedTuple):
    is_growing: bool
    is_direct: bool
    path: Path
    seconds: float


class Result(NamedTuple):
    is_growing: bool
    written: int
    cpu_s: float


def _open(task: Task, number: int = 0) -> int:
    return os.open(f"{task.path}-{number}", os.O_CREAT | os.O_RDWR | (os.O_DIRECT if task.is_direct else 0))


def _overwrite(task: Task, barrier: Barrier) -> Result:
    memory = mmap.mmap(-1, GROUP_BYTES)
    memory.write(os.urandom(GROUP_BYTES))
    fd = _open(task)
    for offset in range(0, OVERWRITTEN_BYTES, GROUP_BYTES):
        os.pwritev(fd, [memory], offset)
    os.fsync(fd)
    barrier.wait()
    written, cpu_s, deadline = 0, time.process_time(), time.perf_counter() + task.seconds
    while time.perf_counter() < deadline:
        os.pwritev(fd, [memory], written % OVERWRITTEN_BYTES)
        os.fdatasync(fd)
        written += GROUP_BYTES
    return Result(False, written, time.process_time() - cpu_s)


def _grow(task: Task, barrier: Barrier) -> Result:
    memory = mmap.mmap(-1, PIECE_BYTES)
    memory.write(os.urandom(PIECE_BYTES))
    barrier.wait()
    fd = _open(task)
    written, cpu_s, deadline = 0, time.process_time(), time.perf_counter() + task.seconds
    while time.perf_counter() < deadline:
        os.pwritev(fd, [memory], written % FILE_BYTES)
        written += PIECE_BYTES
        if written % SYNC_BYTES == 0:
            os.fdatasync(fd)
        if written % FILE_BYTES == 0:
            os.close(fd)
            fd = _open(task, written // FILE_BYTES)
    return Result(True, written, time.process_time() - cpu_s)


def _write(task: Task, barrier: Barrier, results: "multiprocessing.SimpleQueue[Result]") -> None:
    results.put((_grow if task.is_growing else _overwrite)(task, barrier))


def measure(ways: dict[bool, bool], directory: str | None, seconds: float) -> list[Result]:
    """`ways`: of growing (True) and overwriting (False), as far as it takes place, whether it is direct."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir=directory) as place:
        barrier = multiprocessing.Barrier(WRITERS * len(ways))
        results: multiprocessing.SimpleQueue[Result] = multiprocessing.SimpleQueue()
        tasks = [Task(grows, direct, Path(place, f"{grows}-{n}"), seconds) for grows, direct in ways.items() for n in range(WRITERS)]
        processes = [multiprocessing.Process(target=_write, args=(task, barrier, results)) for task in tasks]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="below which is written (the temporary directory)")
    parser.add_argument("--seconds", type=float, default=3, help="a row (3)")
    options = parser.parse_args()
    names = {True: "direct", False: "cached"}
    for ways in ({False: False}, {False: True}, {True: False}, {True: True}, {False: False, True: False}, {False: False, True: True}):
        found = measure(ways, options.directory, options.seconds)
        told = []
        for grows, direct in ways.items():
            mine = [result for result in found if result.is_growing == grows]
            size, cpu_s = sum(result.written for result in mine), sum(result.cpu_s for result in mine)
            rate = size / options.seconds / 1e6
            told.append(f"{'grow' if grows else 'overwrite'} {names[direct]}: {rate:,.0f} MB/s, {cpu_s / (size / 1e9):.2f} s of CPU per GB")
        print("   beside   ".join(told), flush=True)
        os.sync()


if __name__ == "__main__":
    main()
