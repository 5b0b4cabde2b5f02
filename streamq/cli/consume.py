"""`streamq consume`: records as a member of a group; a record counts as handled once it is written to stdout."""

import argparse
import datetime
import time
from typing import Final, Literal

import anyio
import anyio.to_thread

from streamq.cli.group import check_group
from streamq.cli.output import EXIT_INTERRUPTED, note
from streamq.cli.places import AtTime, End, Start, parse_place
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import find_bootstrap
from streamq.cli.tail import Printer, printer_of, write_out
from streamq.cli.topic import check_name
from streamq.model.errors import RefusedError
from streamq_consumer import Consumer

__all__ = ["run"]

FETCH_RECORDS: Final = 1_000
"""As many may come again after a crash, and no more: they are committed when they are written."""
FETCH_TIMEOUT_S: Final = 1.0


def run(options: argparse.Namespace) -> int:
    for name in options.topic:
        check_name(name)
    check_group(options.group)
    start = _start(options)
    reader = _Reader(options.count, printer_of(options))
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)

    async def work() -> None:
        consumer = Consumer(
            str(bootstrap),
            topics=options.topic,
            group=options.group,
            start=start,
            member_name=options.member or "",
            session_s=options.session,
        )
        async with consumer:
            await reader.print_from(consumer)

    if run_until_interrupted(work):
        note(f"interrupted after {reader.printed} record(s)")
        return EXIT_INTERRUPTED
    return 0


def _start(options: argparse.Namespace) -> Literal["earliest", "latest"] | datetime.datetime:
    place = parse_place(options.start, option="--from", now_ms=time.time_ns() // 1_000_000)
    if isinstance(place, AtTime):
        return datetime.datetime.fromtimestamp(place.timestamp_ms / 1000, tz=datetime.UTC)
    if not isinstance(place, Start | End):
        hint = "give start, end or a time; `streamq group seek` sets positions"
        raise RefusedError(f"--from={options.start} is no place where a group begins", code="usage", hint=hint)
    return "earliest" if isinstance(place, Start) else "latest"


class _Reader:
    def __init__(self, count: int | None, printer: Printer) -> None:
        self.printed = 0
        self._count = count
        self._printer = printer

    async def print_from(self, consumer: Consumer) -> None:
        while self._count is None or self.printed < self._count:
            most = FETCH_RECORDS if self._count is None else min(FETCH_RECORDS, self._count - self.printed)
            records = await consumer.fetch(most, timeout=FETCH_TIMEOUT_S)
            if records:
                # What is being written when somebody interrupts is not committed: it comes again.
                await anyio.to_thread.run_sync(write_out, self._printer(records), abandon_on_cancel=True)
                self.printed += len(records)
