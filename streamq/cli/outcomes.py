"""What became of each record of a `produce`: counted, and written to the files that were asked for.

Within a partition outcomes come in order, so one task a partition waits for them and sees each as soon as it is there.
"""

import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import IO, NamedTuple

import anyio
from anyio.abc import TaskGroup

from streamq.cli.output import json_line
from streamq.cli.record_format import ParsedRecord, record_fields, rejected_line
from streamq.model.errors import StreamqError, UnknownOutcomeError
from streamq_producer import Delivery, Receipt

__all__ = ["Outcomes", "RejectedRecord"]


class RejectedRecord(NamedTuple):
    """`number` counts the records of the input from 0. `line` is one that is no record, or how it begins; then there is nothing else."""

    number: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] | None = None
    timestamp: int | None = None
    line: bytes | None = None


class _Expected(NamedTuple):
    """A delivery and what it stands for: of `values`, numbered from `first` on, those that it names; or the one record."""

    delivery: Delivery
    first: int
    values: Sequence[bytes]
    keys: Sequence[bytes | None] | None
    record: ParsedRecord | None


class Outcomes:
    """Invariant: everything that was expected is counted once, in `acked`, `refused`, `unknown` or `waiting`."""

    def __init__(self, *, receipts: str | None, rejects: str | None) -> None:
        self.acked = 0
        self.duplicates = 0
        """Of these: records with an id, of which one was there already."""
        self.refused = 0
        self.unknown = 0
        self.waiting = 0
        self.first_error: StreamqError | None = None
        self._receipts: IO[str] | None = None
        self._rejects: IO[str] | None = None
        self._receipts = open(receipts, "w", encoding="utf-8") if receipts else None  # noqa: SIM115 (closed by __exit__)
        self._rejects = open(rejects, "w", encoding="utf-8") if rejects else None  # noqa: SIM115
        self._queues: dict[int, deque[_Expected]] = {}
        self._news: dict[int, anyio.Event] = {}
        self._tasks: TaskGroup | None = None
        self._headers: dict[str, bytes] = {}
        self._idle: anyio.Event | None = None

    def __enter__(self) -> "Outcomes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in (self._receipts, self._rejects):
            if file is not None:
                file.close()

    def start(self, tasks: TaskGroup, headers: dict[str, bytes]) -> None:
        """`tasks` is where outcomes are waited for; `headers` are those of every record that comes as one of many."""
        self._tasks = tasks
        self._headers = headers

    def expect(self, delivery: Delivery, first: int, values: Sequence[bytes], keys: Sequence[bytes | None] | None) -> None:
        """A delivery of `enqueue_many` over these values, the first of which is record number `first`."""
        keeps_values = self._rejects is not None
        self._expect(_Expected(delivery, first, values if keeps_values else (), keys if keeps_values else None, None))

    def expect_one(self, delivery: Delivery, number: int, record: ParsedRecord) -> None:
        self._expect(_Expected(delivery, number, (), None, record))

    def _expect(self, expected: _Expected) -> None:
        assert self._tasks is not None
        partition = expected.delivery.batch.partition
        self.waiting += expected.delivery.records
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
            self._news[partition] = anyio.Event()
            self._tasks.start_soon(self._settle, partition, queue)
        queue.append(expected)
        self._news[partition].set()

    async def all_settled(self) -> None:
        while self.waiting:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def _settle(self, partition: int, queue: deque[_Expected]) -> None:
        while True:
            while queue:
                expected = queue.popleft()
                self._count(expected, await expected.delivery.outcome())
            if self._receipts is not None:
                self._receipts.flush()
            if not self.waiting and self._idle is not None:
                self._idle.set()
            self._news[partition] = anyio.Event()
            if not queue:
                await self._news[partition].wait()

    def _count(self, expected: _Expected, outcome: Receipt | StreamqError) -> None:
        delivery = expected.delivery
        self.waiting -= delivery.records
        if isinstance(outcome, Receipt):
            self.acked += delivery.records
            self.duplicates += outcome.is_duplicate
            if self._receipts is not None:
                self._write_receipts(expected, outcome)
            return
        if isinstance(outcome, UnknownOutcomeError):
            self.unknown += delivery.records
        else:
            self.refused += delivery.records
        self.first_error = self.first_error or outcome
        if self._rejects is not None:
            for record in self._records_of(expected):
                self._write_reject(record, outcome)

    def refuse(self, record: RejectedRecord, error: StreamqError) -> None:
        """A record that was never sent."""
        self.refused += 1
        self.first_error = self.first_error or error
        self._write_reject(record, error)

    def _write_receipts(self, expected: _Expected, receipt: Receipt) -> None:
        assert self._receipts is not None
        duplicate = ',"duplicate":true' if receipt.is_duplicate else ""
        end = f'{duplicate},"acked_at":{time.time():.6f}}}\n'
        indexes: Sequence[int] = expected.delivery.indexes or (0,)
        self._receipts.write(
            "".join(
                [
                    f'{{"record":{expected.first + index},"partition":{receipt.partition},"offset":{offset}{end}'
                    for offset, index in enumerate(indexes, receipt.offset)
                ]
            )
        )

    def _records_of(self, expected: _Expected) -> list[RejectedRecord]:
        if expected.record is not None:
            value, key, headers, timestamp = expected.record
            return [RejectedRecord(expected.first, key, value, headers, timestamp)]
        keys = expected.keys
        return [
            RejectedRecord(expected.first + index, None if keys is None else keys[index], expected.values[index], self._headers)
            for index in expected.delivery.indexes
        ]

    def _write_reject(self, record: RejectedRecord, error: StreamqError) -> None:
        """As `produce --format json` reads it, with the outcome in front. A line that was no record is refused there once more."""
        if self._rejects is None:
            return
        outcome = "unknown" if isinstance(error, UnknownOutcomeError) else "refused"
        row: dict[str, object] = {"record": record.number, "outcome": outcome, "code": error.code, "message": error.message}
        if record.timestamp is not None:
            row["timestamp"] = record.timestamp
        fields = record_fields(record.value, record.key, record.headers) if record.line is None else rejected_line(record.line)
        self._rejects.write(json_line(row | fields) + "\n")
