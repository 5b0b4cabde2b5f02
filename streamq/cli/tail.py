"""`streamq tail`: the last records of topics, a range of them, or all that comes. Every stop is at a tip that a quorum told."""

import argparse
import datetime
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import anyio.to_thread
import msgspec

from streamq.cli.output import EXIT_INTERRUPTED, Style, note
from streamq.cli.places import AtOffset, AtTime, End, FromEnd, Place, Start, parse_place, parse_time
from streamq.cli.record_format import compile_format, for_people, to_json
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import find_bootstrap
from streamq.cli.topic import check_name
from streamq.model.errors import OffsetError, RefusedError
from streamq.model.limits import OFFSET_MAX
from streamq_consumer import Consumer, Record

__all__ = ["Printer", "Range", "Tail", "filter_of", "open_consumer", "printer_of", "run", "write_out"]

DEFAULT_RECORDS: Final = 10
FETCH_RECORDS: Final = 20_000
HELD_MAX: Final = 10_000
"""So many last records of one partition are held to be printed together."""
FETCH_RECORDS_FIRST: Final = 200
FETCH_BYTES: Final = 16 << 20
"""So many records are fetched at a time as have about so many bytes, going by those before them."""
FETCH_TIMEOUT_S: Final = 1.0
LAST_TIMEOUT_S: Final = 0.1
"""When there is an end: what lies before it may be a control batch, of which nothing is handed out."""
PATIENCE_S: Final = 30.0
"""Without -f: how long nothing at all can be read before that is an error."""

Where = tuple[str, int]
Printer = Callable[[Sequence[Record]], bytes]


class Range(msgspec.Struct, frozen=True):
    """What is to be printed: below the offset `until`, before the time `until_ms`.

    Times of producers need not rise with the offsets, so without -f all up to the tip is looked at. With -f the time `until_ms` is waited
    for: what was appended by then, and is of before, is printed.
    """

    start: Place
    until: int
    until_ms: int | None
    follows: bool
    count: int | None

    @classmethod
    def of(cls, options: argparse.Namespace, *, now_ms: int) -> "Range":
        """Raises RefusedError (`usage`) for options that do not go together."""
        if options.follow and options.exit_at_end:
            raise RefusedError("-f goes on, --exit-at-end stops", code="usage", hint="use one of them")
        if options.start is not None and options.since is not None:
            raise RefusedError("--from and --since both say where to begin", code="usage", hint="use one of them")
        start: Place = FromEnd(DEFAULT_RECORDS if options.count is None else options.count)
        if options.start is not None:
            start = parse_place(options.start, option="--from", now_ms=now_ms)
        elif options.since is not None:
            start = AtTime(parse_time(options.since, option="--since", now_ms=now_ms))
        until, until_ms = OFFSET_MAX, None
        if options.until is not None:
            end = parse_place(options.until, option="--until", now_ms=now_ms)
            if isinstance(end, AtOffset):
                until = end.offset
            elif isinstance(end, AtTime):
                until_ms = end.timestamp_ms
            elif isinstance(end, End) and options.follow:
                raise RefusedError("-f goes on, --until=end stops", code="usage", hint="use one of them")
            elif not isinstance(end, End):
                raise RefusedError(f"--until={options.until} is no end", code="usage", hint="give an offset, a time, or end")
        return cls(start, until, until_ms, bool(options.follow), options.count)


def run(options: argparse.Namespace) -> int:
    for name in options.topic:
        check_name(name)
    tail = Tail(Range.of(options, now_ms=_now_ms()), printer=printer_of(options), keep=filter_of(options))
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)

    async def work() -> None:
        async with open_consumer(options, tail.wanted, str(bootstrap)) as consumer:
            await tail.print_range(consumer)

    if run_until_interrupted(work):
        note(f"interrupted after {tail.printed} record(s)")
        return EXIT_INTERRUPTED
    return 0


def open_consumer(options: argparse.Namespace, wanted: Range, bootstrap: str) -> Consumer:
    return Consumer(
        bootstrap,
        topics=options.topic,
        start=_consumer_start(wanted.start),
        partitions=options.partition,
        broker=options.broker,
        patience_s=None if wanted.follows else PATIENCE_S,
        isolation="read_uncommitted" if options.uncommitted else "read_committed",
    )


def _consumer_start(start: Place) -> datetime.datetime | Literal["earliest", "latest"]:
    if isinstance(start, AtTime):
        return datetime.datetime.fromtimestamp(start.timestamp_ms / 1000, tz=datetime.UTC)
    return "earliest" if isinstance(start, Start) else "latest"


class Tail:
    """Prints a range of a consumer's records. `printed` counts them."""

    def __init__(self, wanted: Range, *, printer: Printer, keep: Callable[[Record], bool] | None) -> None:
        self.printed = 0
        self.wanted = wanted
        self._printer = printer
        self._keep = keep
        self._from = 0
        """No record below this offset is printed."""
        self._ends_told: dict[Where, int] = {}
        self._fetches = FETCH_RECORDS_FIRST

    async def print_range(self, consumer: Consumer) -> None:
        wanted = self.wanted
        if wanted.count == 0:
            return
        ends = await self._ends(consumer)
        if isinstance(wanted.start, FromEnd):
            await self._print_last(consumer, wanted.start.records, ends)
        elif isinstance(wanted.start, AtOffset):
            self._go_to(consumer, wanted.start.offset)
        await self._print_until(consumer, ends)

    def left(self, consumer: Consumer) -> int:
        """Records between where the consumer stands and the ends, as far as these are told by now."""
        return sum(max(0, end - consumer.position(*place)) for place, end in self._ends_told.items())

    async def _ends(self, consumer: Consumer) -> dict[Where, int]:
        """Where each partition stops: without -f at the end of what can be read now, as a quorum tells it; no end is OFFSET_MAX."""
        wanted = self.wanted
        if wanted.follows:
            return dict.fromkeys(consumer.partitions, wanted.until)
        return {place: min(end, wanted.until) for place, (_, end) in (await consumer.ranges()).items()}

    async def _print_last(self, consumer: Consumer, records: int, ends: dict[Where, int]) -> None:
        """Goes back so many records from the end of the range; those of several partitions are printed here, in order of time."""
        until_ms = self.wanted.until_ms
        stops = dict(ends) if until_ms is None else await consumer.offsets_for_times(until_ms)
        if not self.wanted.follows:
            ends.update(stops)
        if len(stops) > 1 or records <= HELD_MAX:
            await self._print(await consumer.last(records, ends=stops))
            return
        [(place, (start, end))] = (await consumer.ranges()).items()  # in order as it comes, so nothing need be held
        consumer.seek(*place, max(start, min(stops[place], end) - records))

    def _go_to(self, consumer: Consumer, offset: int) -> None:
        """The consumer stands at the tips. A partition that has not come so far has nothing of the range yet."""
        tips = consumer.positions()
        if offset > max(tips.values()):
            message = f"offset {offset} is past the tip of every partition; the furthest is {max(tips.values())}"
            raise OffsetError(message, code="offset_ahead", hint="begin with --from=end, or at a time with --since")
        self._from = offset
        for place, tip in tips.items():
            consumer.seek(*place, min(offset, tip))

    async def _print_until(self, consumer: Consumer, ends: dict[Where, int]) -> None:
        """Everything below the ends, or for ever for partitions whose end is none."""
        self._ends_told = ends
        until_ms = self.wanted.until_ms
        is_open = self.wanted.follows and until_ms is not None
        while not self._has_enough:
            if is_open and until_ms is not None and _now_ms() >= until_ms:
                is_open = False  # what is appended from now on is too late, whatever times producers give
                ends = {place: end for place, (_, end) in (await consumer.ranges()).items()}
            if all(consumer.position(*place) >= end for place, end in ends.items()):
                return
            records = await self._fetch(consumer)
            if any(consumer.position(*place) > end for place, end in ends.items()):
                records = [record for record in records if record.offset < ends[record.topic, record.partition]]
            if until_ms is not None:
                records = [record for record in records if record.timestamp < until_ms]
            if self._from and self.wanted.follows:
                records = [record for record in records if record.offset >= self._from]
            await self._print(records)

    async def _fetch(self, consumer: Consumer) -> list[Record]:
        """As many as fit into memory, whatever their size."""
        records = await consumer.fetch(self._fetches, timeout=FETCH_TIMEOUT_S if self.wanted.follows else LAST_TIMEOUT_S)
        if records:
            size = sum([len(record.value or b"") + len(record.key or b"") for record in records])
            self._fetches = max(1, min(FETCH_RECORDS, 4 * self._fetches, FETCH_BYTES * len(records) // (size + 1)))
        return records

    @property
    def _has_enough(self) -> bool:
        return self.wanted.count is not None and self.printed >= self.wanted.count

    async def _print(self, records: Sequence[Record]) -> None:
        if self._keep is not None:
            records = list(filter(self._keep, records))
        if self.wanted.count is not None:
            records = records[: self.wanted.count - self.printed]
        if records:
            # In a thread: whoever reads the pipe may take its time, and the broker must go on hearing from us.
            await anyio.to_thread.run_sync(write_out, self._printer(records), abandon_on_cancel=True)
            self.printed += len(records)


def write_out(output: bytes) -> None:
    """Returns when whoever reads stdout, or the system for it, has taken all of it."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- printing --------------------------------------------------------------------------------------------------------------


def printer_of(options: argparse.Namespace) -> Printer:
    """How `-F`, `-o` and where stdout goes say that records are printed. Raises RefusedError."""
    if options.format is not None:
        if options.output == "json":
            raise RefusedError("-F and -o json are two formats", code="usage", hint="use one of them")
        form = compile_format(options.format)
        return lambda records: b"".join([form(record) for record in records])
    if options.output == "json":
        return lambda records: b"".join([to_json(record) for record in records])
    if sys.stdout.isatty():
        colours, width = Style(sys.stdout).is_on, max(map(len, options.topic))
        return lambda records: "".join([for_people(r, colours=colours, topic_width=width) + "\n" for r in records]).encode(
            "utf-8", "replace"
        )
    return lambda records: b"\n".join([record.value or b"" for record in records]) + b"\n"


def filter_of(options: argparse.Namespace) -> Callable[[Record], bool] | None:
    tests: list[Callable[[Record], bool]] = []
    if options.key is not None:
        key = options.key.encode("utf-8", "surrogateescape")
        tests.append(lambda record: record.key == key)
    if options.grep is not None:
        try:
            pattern = re.compile(options.grep.encode("utf-8", "surrogateescape"))
        except re.error as error:
            raise RefusedError(f"--grep: {error}", code="usage", hint="it is a regular expression as Python knows them") from None
        tests.append(lambda record: pattern.search(record.value or b"") is not None)
    if not tests:
        return None
    return lambda record: all(test(record) for test in tests)
