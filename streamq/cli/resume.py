"""`streamq produce --resume NAME FILE`: each line of a file once, in order per partition, wherever the command is killed and started again.

A named producer stores with each line its position, the byte in the file at which the next line begins, be there one or not. After a
start it asks each partition how far that came, begins to read at the least of these, and leaves out, of what goes to a partition,
whatever is at or below its position.

That is right only if a line goes to the same partition each time: to the one that is named, or that of its key, or, without a key, the
one whose turn it is at the byte where the line begins: partition (byte / BLOCK_BYTES) mod partitions.
"""

import argparse
import os
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Final, NamedTuple

import anyio
import anyio.to_thread

from streamq.cli.lines import LineSplitter
from streamq.cli.outcomes import Outcomes, RejectedRecord
from streamq.cli.pace import Pace
from streamq.model.errors import AlreadyExistsError, RefusedError
from streamq.model.limits import RECORD_BYTES_MAX, KiB
from streamq_producer import Producer, partition_of

__all__ = ["Resume", "Routing", "check_resume"]

BLOCK_BYTES: Final = 64 * KiB
"""Of the file, that go to one partition. It must not change: a file that is half stored would go on elsewhere."""
READ_BYTES: Final = 1 << 20
POSITIONS_AT_ONCE: Final = 32


class Routing(NamedTuple):
    """Where lines go, and what each gets."""

    topic: str
    key: bytes | None
    separator: bytes | None
    headers: dict[str, bytes]
    partition: int | None


class _Line(NamedTuple):
    """`[begin, end)` are its bytes in the file, its newline included, which the last line may lack."""

    text: bytes
    begin: int
    end: int


class _Part:
    """Lines for one partition that are sent together."""

    def __init__(self) -> None:
        self.keys: list[bytes | None] = []
        self.values: list[bytes] = []
        self.positions: list[int] = []


def check_resume(options: argparse.Namespace) -> None:
    """Raises RefusedError for what does not go together with --resume."""
    if len(options.file) != 1 or options.file[0] == "-":
        raise RefusedError(
            "--resume goes on in one file, and stdin cannot be read again",
            code="usage",
            hint="for example: streamq produce orders --resume ingest FILE",
        )
    if not stat.S_ISREG(os.stat(options.file[0]).st_mode):
        raise RefusedError(f"--resume takes a file that can be read again, and {options.file[0]} is none", code="usage")
    if options.format == "json":
        raise RefusedError("--resume takes lines, no objects", code="usage", hint="leave --format json out")
    if options.id_from is not None:
        raise RefusedError(
            "--resume stores each line once by its place in the file, not by an id", code="usage", hint="leave --id-from out"
        )
    if options.receipts or options.rejects:
        raise RefusedError("--receipts and --rejects tell of one run, and --resume is one of several", code="usage", hint="leave them out")


class Resume:
    """Sends what of `path` is not stored yet. Invariant: `begin` and `skipped` say what was left out."""

    def __init__(self, path: str, routing: Routing, *, line_bytes_max: int) -> None:
        self.begin = 0
        """The byte at which this run began to read."""
        self.skipped = 0
        """Lines behind it that were stored already."""
        self._path = path
        self._routing = routing
        self._splitter = LineSplitter(line_bytes_max=line_bytes_max)
        self._partitions = 0
        self._marks: dict[int, int] = {}
        self._number = 0
        self._offset = 0

    async def open(self, producer: Producer) -> None:
        """Takes the name over in each partition, and finds out where to go on. Raises AlreadyExistsError for a file that is too short."""
        routing = self._routing
        self._partitions = await producer.partitions(routing.topic)
        limiter = anyio.CapacityLimiter(POSITIONS_AT_ONCE)

        async def ask(partition: int) -> None:
            async with limiter:
                self._marks[partition] = await producer.position(routing.topic, partition)

        wanted = self._targets()
        async with anyio.create_task_group() as tasks:
            for partition in wanted:
                tasks.start_soon(ask, partition)
        fault = self._fault()
        if fault:
            raise AlreadyExistsError(
                f"{self._path} is not the file that producer {producer.name!r} has stored: {fault}",
                code="precondition_failed",
                hint="give the file that this name began with, or another name to another file",
            )
        self.begin = self._offset = min(self._marks.values())

    def _fault(self) -> str:
        """A file may have grown by whole lines since, and otherwise be as it was."""
        with open(self._path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for mark in self._marks.values():
                if mark > size + 1:
                    return f"it has {size} bytes, and was stored up to byte {mark}"
                if mark and os.pread(file.fileno(), 1, mark - 1) not in (b"\n", b""):
                    return f"a line that was stored ended at byte {mark}, and none does now"
        return ""

    def _targets(self) -> list[int]:
        routing = self._routing
        if routing.partition is not None:
            return [routing.partition]
        return list(range(self._partitions)) if routing.key is None else [partition_of(routing.key, partitions=self._partitions)]

    async def send(self, producer: Producer, outcomes: Outcomes, pace: Pace) -> AsyncIterator[int]:
        """Sends all lines, and yields how many bytes of the file were taken each time."""
        async for piece in self._pieces():
            runs = self._splitter.feed(piece)
            lines = [line for run in runs for line in self._placed(run.first, run.lines)]
            await self._send(producer, lines, outcomes, pace)
            self._refuse_too_long(outcomes)
            yield len(piece)
        for run in self._splitter.end():
            await self._send(producer, list(self._placed(run.first, run.lines)), outcomes, pace)
        self._refuse_too_long(outcomes)

    async def _pieces(self) -> AsyncIterator[bytes]:
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.lseek(descriptor, self.begin, os.SEEK_SET)
            while piece := await anyio.to_thread.run_sync(os.read, descriptor, READ_BYTES, abandon_on_cancel=True):
                yield piece
        finally:
            os.close(descriptor)

    def _placed(self, first: int, texts: list[bytes]) -> Iterator[_Line]:
        """With their places; the lines before that were too long have theirs, too."""
        lengths = {line.number: line.length for line in self._splitter.too_long}
        while self._number < first:
            self._offset += lengths[self._number] + 1
            self._number += 1
        self._number += len(texts)
        for text in texts:
            begin = self._offset
            self._offset = end = begin + len(text) + 1
            yield _Line(text, begin, end)

    def _refuse_too_long(self, outcomes: Outcomes) -> None:
        for line in self._splitter.too_long:
            if line.number >= self._number:
                self._offset += line.length + 1
                self._number = line.number + 1
            message = f"a line before byte {self._offset} has {line.length} bytes, a record at most {RECORD_BYTES_MAX}"
            error = RefusedError(message, code="record_too_large", hint="split it, or store it elsewhere and send a reference")
            outcomes.refuse(RejectedRecord(line.number, None, None, line=line.begin), error)
        self._splitter.too_long.clear()

    async def _send(self, producer: Producer, lines: list[_Line], outcomes: Outcomes, pace: Pace) -> None:
        step = pace.slice()
        for begin in range(0, len(lines), step):
            some = lines[begin : begin + step]
            await pace.wait(len(some))
            for partition, part in self._routed(some).items():
                keys = part.keys if any(key is not None for key in part.keys) else None
                deliveries = await producer.enqueue_many(
                    self._routing.topic,
                    part.values,
                    keys=keys,
                    headers=self._routing.headers or None,
                    partition=partition,
                    positions=part.positions,
                )
                for delivery in deliveries:
                    outcomes.expect(delivery, 0, part.values, keys)

    def _routed(self, lines: list[_Line]) -> dict[int, _Part]:
        parts: dict[int, _Part] = {}
        routing = self._routing
        for line in lines:
            key, value = routing.key, line.text
            if routing.separator is not None:
                before, found, after = line.text.partition(routing.separator)
                if found:
                    key, value = before, after
            if routing.partition is not None:
                partition = routing.partition
            elif key is not None:
                partition = partition_of(key, partitions=self._partitions)
            else:
                partition = line.begin // BLOCK_BYTES % self._partitions
            if line.end <= self._marks[partition]:
                self.skipped += 1
                continue
            part = parts.setdefault(partition, _Part())
            part.keys.append(key)
            part.values.append(value)
            part.positions.append(line.end)
        return parts
