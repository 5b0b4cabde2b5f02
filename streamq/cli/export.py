"""`streamq export`: records whole, into a file that says when it is complete (`wire/export_format.py`)."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

import anyio
import anyio.to_thread

from streamq.cli.output import EXIT_INTERRUPTED, Style, count, duration, json_line, note, size
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import find_bootstrap
from streamq.cli.tail import Range, Tail, open_consumer, write_out
from streamq.cli.topic import check_name
from streamq.client.cluster import Cluster
from streamq.model.errors import RefusedError
from streamq.wire.export_format import ExportHead, ExportWriter
from streamq_consumer import Consumer, Record

__all__ = ["export", "run"]

PROGRESS_INTERVAL_S: Final = 0.25


def run(options: argparse.Namespace) -> int:
    check_name(options.topic)
    if sys.stdout.isatty():
        raise RefusedError(
            "an export is not for terminals", code="usage", hint=f"streamq export {options.topic} > {options.topic}.sqexport"
        )
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
    exported = Exported(options)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exported.show)
            await export(options, str(bootstrap), exported)
            tasks.cancel_scope.cancel()

    was_interrupted = run_until_interrupted(work)
    exported.finish(was_interrupted=was_interrupted)
    return EXIT_INTERRUPTED if was_interrupted else 0


async def export(options: argparse.Namespace, bootstrap: str, exported: "Exported") -> None:
    """Writes the whole range to stdout, as the tips are when it begins; its end only when all of it was written."""
    wanted = _range(options)
    writer = ExportWriter()
    async with Cluster(bootstrap) as cluster:
        partitions = len((await cluster.topic(options.topic)).partitions)

    def to_bytes(records: Sequence[Record]) -> bytes:
        written = writer.add(records)
        exported.add(len(records), len(written))
        return written

    reading = argparse.Namespace(topic=[options.topic], partition=options.partition, broker=options.broker, uncommitted=False)
    async with open_consumer(reading, wanted, bootstrap) as consumer:
        tail = Tail(wanted, printer=to_bytes, keep=None)
        exported.watch(consumer, tail)
        begin = writer.begin(ExportHead(options.topic, partitions))
        await anyio.to_thread.run_sync(write_out, begin, abandon_on_cancel=True)
        await tail.print_range(consumer)
        end = writer.end()
        exported.add(0, len(begin) + len(end))
        await anyio.to_thread.run_sync(write_out, end, abandon_on_cancel=True)


def _range(options: argparse.Namespace) -> Range:
    start = options.start if options.start is not None or options.since is not None else "start"
    asked = argparse.Namespace(start=start, since=options.since, until=options.until, follow=False, exit_at_end=False, count=None)
    return Range.of(asked, now_ms=time.time_ns() // 1_000_000)


class Exported:
    """What was written so far: a line on a terminal's stderr while it goes on, and the summary at the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.records = 0
        self.bytes = 0
        self._options = options
        self._begun = time.monotonic()
        self._consumer: Consumer | None = None
        self._tail: Tail | None = None

    def watch(self, consumer: Consumer, tail: Tail) -> None:
        self._consumer, self._tail = consumer, tail

    def add(self, records: int, written_bytes: int) -> None:
        self.records += records
        self.bytes += written_bytes

    async def show(self) -> None:
        is_shown = sys.stderr.isatty() and not self._options.quiet and self._options.output != "json"
        style = Style(sys.stderr)
        while is_shown:
            await anyio.sleep(PROGRESS_INTERVAL_S)
            print(f"\r\x1b[K{style.dim(self._line())}", end="", file=sys.stderr, flush=True)

    def _line(self) -> str:
        took = time.monotonic() - self._begun
        text = f"{count(self.records)} records, {size(self.bytes)}, {count(self.records / took)}/s"
        if self._consumer is not None and self._tail is not None:
            if self.records:
                text += f", {duration(took * self._tail.left(self._consumer) / self.records)} left"
            if (trouble := self._consumer.trouble) is not None:
                text += f"; waits: {trouble.message}"
        return text

    def finish(self, *, was_interrupted: bool) -> None:
        took = time.monotonic() - self._begun
        if self._options.output == "json":
            row = {"records": self.records, "bytes": self.bytes, "seconds": round(took, 6), "complete": not was_interrupted}
            print(json_line(row), file=sys.stderr)
            return
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        if was_interrupted:
            note(f"interrupted after {count(self.records)} record(s): what was written is not complete, and import says so")
        elif not self._options.quiet:
            note(f"exported {count(self.records)} record(s) of {self._options.topic}, {size(self.bytes)} in {duration(took)}")
