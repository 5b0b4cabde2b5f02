"""The barest pipeline of streamq's shape, as a ceiling for the real one on the same machine.

    python -m deploy.bench.bare                        # every row, about a minute
    python -m deploy.bench.bare --rows 65536x32x1      # batch bytes x window x connections
    python -m deploy.bench.bare --json                 # an object a row
    python -m deploy.bench.bare --codec                # what packing and compressing cost one core

Three processes on loopback. The first numbers opaque batches, writes them to a preallocated file and passes them on to the two others,
which do the same; a batch is acked when two of the three have synced it. CRC-32C, copy, group commit, ack, and nothing else: no
recovery, no errors, nobody looks into a batch. Each byte is written once, by streamq twice. It is a yardstick, not an optimum: it sends a
frame for each batch and peer and one for each ack, and a system that gathers those can pass it.

Compare figures of the same minutes only; `deploy/bench/run.sh` alternates the two sides.
"""

import argparse
import collections
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google_crc32c
import trio

__all__ = ["FRAME", "SUBMIT", "Link", "pipeline"]

HOST: Final = "127.0.0.1"
FRAME: Final = struct.Struct("<IBQI")
"""Payload bytes, kind, number, CRC-32C of the payload."""
SUBMIT, ACK, STORE, STORED = 1, 2, 3, 4
JOURNAL_BYTES: Final = 256 << 20
GROUP_BYTES_MAX: Final = 8 << 20
BUFFERS_PER_WRITE_MAX: Final = 512
JOIN_BYTES_MAX: Final = 256 << 10
ROWS: Final = ((1 << 20, 8, 1), (1 << 18, 16, 1), (1 << 16, 32, 1), (1 << 14, 64, 1), (200, 256, 1), (200, 1, 64), (200, 1, 1))
Row = dict[str, float]


class Journal:
    """A file of fixed size, written round and round. One thread takes whatever waits, writes it, syncs once, and reports all of it."""

    def __init__(self, path: Path, token: trio.lowlevel.TrioToken) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR)
        for position in range(0, JOURNAL_BYTES, 1 << 20):
            os.pwrite(self._file, bytes(1 << 20), position)
        os.fsync(self._file)
        self._position = 0
        self._waiting: collections.deque[tuple[tuple[bytes, bytes], Callable[[], None]]] = collections.deque()
        self._news = threading.Semaphore(0)
        self._token = token
        threading.Thread(target=self._run, daemon=True).start()

    def append(self, head: bytes, payload: bytes, on_synced: Callable[[], None]) -> None:
        self._waiting.append(((head, payload), on_synced))
        self._news.release()

    def _run(self) -> None:
        while True:
            self._news.acquire()
            buffers: list[bytes] = []
            callbacks: list[Callable[[], None]] = []
            size = 0
            while self._waiting and size < GROUP_BYTES_MAX:
                parts, on_synced = self._waiting.popleft()
                buffers += parts
                callbacks.append(on_synced)
                size += sum(map(len, parts))
            if not callbacks:
                continue  # an earlier group took it along
            if self._position + size > JOURNAL_BYTES:
                self._position = 0
            for start in range(0, len(buffers), BUFFERS_PER_WRITE_MAX):
                self._position += os.pwritev(self._file, buffers[start : start + BUFFERS_PER_WRITE_MAX], self._position)
            os.fdatasync(self._file)
            self._token.run_sync_soon(_call_all, callbacks)


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


class Link:
    """One connection: what is sent waits for `write`, which has to run; `frames` yields what comes."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._waiting: list[bytes] = []
        self._news = trio.Event()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    async def open(cls, port: int) -> "Link":
        sock = trio.socket.socket()
        await sock.connect((HOST, port))
        return cls(sock)

    def send(self, *parts: bytes) -> None:
        self._waiting += parts
        self._news.set()

    async def write(self) -> None:
        """Until cancelled, or the other side has left."""
        while True:
            if not self._waiting:
                self._news = trio.Event()
                await self._news.wait()
            parts, self._waiting = self._waiting, []
            if len(parts) > 1 and sum(map(len, parts)) < JOIN_BYTES_MAX:
                parts = [b"".join(parts)]
            try:
                for part in parts:
                    view = memoryview(part)
                    while view:
                        view = view[await self._socket.send(view) :]
            except OSError:
                return

    async def frames(self) -> AsyncIterator[tuple[int, int, int, bytes]]:
        """Kind, number, CRC and payload of each frame, until the other side closes."""
        buffer, start, have = bytearray(256 << 10), 0, 0
        while True:
            need = FRAME.size
            while have - start >= FRAME.size:
                length, kind, number, crc = FRAME.unpack_from(buffer, start)
                if have - start < FRAME.size + length:
                    need = FRAME.size + length
                    break
                body = start + FRAME.size
                start = body + length
                yield kind, number, crc, bytes(memoryview(buffer)[body:start])
            if start or len(buffer) < need:
                rest = bytes(memoryview(buffer)[start:have])
                if len(buffer) < need:
                    buffer = bytearray(2 * need)
                buffer[: len(rest)] = rest
                start, have = 0, len(rest)
            received = await self._socket.recv_into(memoryview(buffer)[have:])
            if not received:
                return
            have += received


class Node:
    """One process of the pipeline; number 0 is the one that clients talk to."""

    def __init__(self, index: int, port: int, replicas: int, quorum: int, directory: Path) -> None:
        self._index, self._port, self._replicas, self._quorum = index, port, replicas, quorum
        self._journal = Journal(directory / f"journal-{index}", trio.lowlevel.current_trio_token())
        self._followers: list[Link] = []
        self._copies: dict[int, int] = {}
        self._waiters: dict[int, tuple[Link, int]] = {}
        self._next = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            listener = trio.socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listener.bind((HOST, self._port + self._index))
            listener.listen(128)
            if self._index == 0:
                for other in range(1, self._replicas):
                    follower = await Link.open(self._port + other)
                    self._followers.append(follower)
                    nursery.start_soon(self._follow, follower)
            print("ready", flush=True)
            while True:
                sock, _ = await listener.accept()
                nursery.start_soon(self._serve, Link(sock))

    async def _follow(self, link: Link) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write)
            async for _, number, _, _ in link.frames():
                self._stored(number)

    async def _serve(self, link: Link) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write)
            try:
                async for kind, number, crc, payload in link.frames():
                    assert google_crc32c.value(payload) == crc
                    if kind == SUBMIT:
                        self._submit(link, number, crc, payload)
                    else:
                        head = FRAME.pack(len(payload), STORE, number, crc)
                        self._journal.append(head, payload, lambda number=number: link.send(FRAME.pack(0, STORED, number, 0)))  # type: ignore[misc]
            except (OSError, trio.BrokenResourceError):
                pass
            nursery.cancel_scope.cancel()

    def _submit(self, link: Link, number: int, crc: int, payload: bytes) -> None:
        mine, self._next = self._next, self._next + 1
        self._copies[mine] = 0
        self._waiters[mine] = link, number
        head = FRAME.pack(len(payload), STORE, mine, crc)
        self._journal.append(head, payload, lambda: self._stored(mine))
        for follower in self._followers:
            follower.send(head, payload)

    def _stored(self, number: int) -> None:
        copies = self._copies[number] = self._copies[number] + 1
        if copies == self._quorum:
            link, theirs = self._waiters.pop(number)
            link.send(FRAME.pack(0, ACK, theirs, 0))
        if copies == self._replicas:
            del self._copies[number]


@contextmanager
def pipeline(*, replicas: int = 3, quorum: int = 2, directory: str | None = None) -> Iterator[int]:
    """A running pipeline; the port to submit to. Its processes and files are gone afterwards."""
    port = random.randrange(20_000, 30_000)
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="bare-", dir=directory) as place:
        try:
            for index in (*range(1, replicas), 0):
                words = ["--serve", str(index), "--port", str(port), "--directory", place]
                words += ["--replicas", str(replicas), "--quorum", str(quorum)]
                command = [sys.executable, "-m", "deploy.bench.bare", *words]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
                processes.append(process)
                assert process.stdout is not None
                assert process.stdout.readline().strip() == "ready", "a process of the pipeline did not start"
            yield port
        finally:
            for process in reversed(processes):  # the first process before its followers, which it would miss
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def load(port: int, *, batch_bytes: int, window: int, connections: int, seconds: float) -> Row:
    """Batches of random bytes for so long, a window of them in flight on each connection."""
    payload = os.urandom(batch_bytes)
    crc = google_crc32c.value(payload)
    latencies: list[float] = []

    async def one(deadline: float) -> None:
        link, sent, slots = await Link.open(port), dict[int, float](), trio.Semaphore(window)

        async def settle() -> None:
            async for _, number, _, _ in link.frames():
                latencies.append(time.perf_counter() - sent.pop(number))
                slots.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write)
            nursery.start_soon(settle)
            number = 0
            while time.perf_counter() < deadline:
                await slots.acquire()
                sent[number] = time.perf_counter()
                link.send(FRAME.pack(batch_bytes, SUBMIT, number, crc), payload)
                number += 1
            nursery.cancel_scope.cancel()

    async def all_of_them() -> None:
        deadline = time.perf_counter() + seconds
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(one, deadline)

    begun = time.perf_counter()
    trio.run(all_of_them)
    took = time.perf_counter() - begun
    latencies.sort()
    count = len(latencies)
    return {
        "batch_bytes": batch_bytes,
        "window": window,
        "connections": connections,
        "batches_per_s": round(count / took, 1),
        "MB_per_s": round(count * batch_bytes / took / 1e6, 1),
        "p50_ms": round(latencies[count // 2] * 1000, 3),
        "p99_ms": round(latencies[int(count * 0.99)] * 1000, 3),
    }


def codec() -> Iterator[dict[str, Any]]:
    """Packing, compressing and back, 1,000 records at a time, as the clients of `bare_clients.py` do."""
    import msgpack
    import zstandard

    from deploy.bench.bare_clients import lines

    compress, decompress = zstandard.ZstdCompressor(level=1).compress, zstandard.ZstdDecompressor().decompress
    for size in (100, 1000):
        rows = [(0, None, line, None) for line in lines(size, 1000)]
        packed = msgpack.packb(rows)
        zipped = compress(packed)
        steps: dict[str, tuple[Callable[[Any], object], object]] = {
            "pack": (msgpack.packb, rows),
            "zstd-1": (compress, packed),
            "unzstd": (decompress, zipped),
            "unpack": (msgpack.unpackb, packed),
        }
        for name, (step, argument) in steps.items():
            step(argument)
            begun = time.perf_counter()
            for _ in range(200):
                step(argument)
            each_s = (time.perf_counter() - begun) / 200
            rates = {"records_per_s": round(1000 / each_s), "MB_per_s": round(len(packed) / each_s / 1e6)}
            yield {"record_bytes": size, "step": name, **rates, "ratio": round(len(packed) / len(zipped), 2)}


def _row(text: str) -> tuple[int, int, int]:
    size, window, connections = map(int, text.split("x"))
    return size, window, connections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=_row, nargs="+", default=ROWS, metavar="BYTESxWINDOWxCONNECTIONS")
    parser.add_argument("--directory", help="below which the files lie (the temporary directory)")
    parser.add_argument("--seconds", type=float, default=5, help="a row (5)")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--quorum", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one object a row")
    parser.add_argument("--codec", action="store_true", help="instead: packing and compressing")
    options = parser.parse_args()
    if options.serve is not None:

        async def serve() -> None:
            await Node(options.serve, options.port, options.replicas, options.quorum, Path(options.directory)).run()

        trio.run(serve)
        return

    def show(row: dict[str, Any]) -> None:
        print(json.dumps(row) if options.json else "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    if options.codec:
        for row in codec():
            show(row)
        return
    with pipeline(replicas=options.replicas, quorum=options.quorum, directory=options.directory) as port:
        for size, window, connections in options.rows:
            show(load(port, batch_bytes=size, window=window, connections=connections, seconds=options.seconds))


if __name__ == "__main__":
    main()
