"""`streamq tail`: the last records of topics, a range of them, or all that comes. Every stop is at a tip that a quorum told."""

import argparse
import datetime
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import anyio
import anyio.to_thread
import msgspec

from streamq.cli.output import EXIT_INTERRUPTED, Style, note
from streamq.cli.places import AtOffset, AtTime, End, FromEnd, Place, Start, parse_place, parse_time
from streamq.cli.record_format import compile_format, for_people, to_json
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import find_bootstrap
from streamq.cli.topic import check_name
from streamq.model.errors import RefusedError
from streamq.model.limits import OFFSET_MAX
from streamq_consumer import Consumer, Record, Tip

__all__ = ["Printer", "Range", "in_time_order", "printer_of", "run", "write_out"]

DEFAULT_RECORDS: Final = 10
FETCH_RECORDS: Final = 20_000
FETCH_TIMEOUT_S: Final = 1.0
LAST_TIMEOUT_S: Final = 0.1
"""When there is an end: what lies before it may be a control batch, of which nothing is handed out."""
PATIENCE_S: Final = 30.0
"""Without -f: how long nothing at all can be read before that is an error."""
MERGED_RECORDS_MAX: Final = 1_000_000
"""Records that are held to be put in order of time, when the last ones over several partitions are asked for."""
TIPS_AT_ONCE: Final = 32

Where = tuple[str, int]
Printer = Callable[[Sequence[Record]], bytes]


class Range(msgspec.Struct, frozen=True):
    """What is to be printed. `until_ms` is a time that printed records lie before."""

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
            elif not isinstance(end, End):
                raise RefusedError(f"--until={options.until} is no end", code="usage", hint="give an offset, a time, or end")
        return cls(start, until, until_ms, bool(options.follow), options.count)


def run(options: argparse.Namespace) -> int:
    for name in options.topic:
        check_name(name)
    wanted = Range.of(options, now_ms=time.time_ns() // 1_000_000)
    tail = _Tail(wanted, printer=printer_of(options), keep=_filter(options))
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)

    async def work() -> None:
        consumer = Consumer(
            str(bootstrap),
            topics=options.topic,
            start=_consumer_start(wanted.start),
            partitions=options.partition,
            broker=options.broker,
            patience_s=None if wanted.follows else PATIENCE_S,
        )
        async with consumer:
            await tail.print_range(consumer)

    if run_until_interrupted(work):
        note(f"interrupted after {tail.printed} record(s)")
        return EXIT_INTERRUPTED
    return 0


def _consumer_start(start: Place) -> int | datetime.datetime | Literal["earliest", "latest"]:
    if isinstance(start, AtOffset):
        return start.offset
    if isinstance(start, AtTime):
        return datetime.datetime.fromtimestamp(start.timestamp_ms / 1000, tz=datetime.UTC)
    return "earliest" if isinstance(start, Start) else "latest"


class _Tail:
    """Prints a range of a consumer's records. `printed` counts them."""

    def __init__(self, wanted: Range, *, printer: Printer, keep: Callable[[Record], bool] | None) -> None:
        self.printed = 0
        self._wanted = wanted
        self._printer = printer
        self._keep = keep

    async def print_range(self, consumer: Consumer) -> None:
        wanted = self._wanted
        if wanted.count == 0:
            return
        ends = await _ends(consumer, wanted)
        if isinstance(wanted.start, FromEnd):
            await self._print_last(consumer, wanted.start.records)
        await self._print_until(consumer, ends)

    async def _print_last(self, consumer: Consumer, records: int) -> None:
        """Goes back so many records from where the consumer stands; those of several partitions are printed here, in order of time."""
        ends = dict(consumer.positions())
        if records * len(ends) > MERGED_RECORDS_MAX and len(ends) > 1:
            raise RefusedError(
                f"the last {records} records over {len(ends)} partitions are too many to be put in order",
                code="usage",
                hint=f"ask for at most {MERGED_RECORDS_MAX // len(ends)}, for one partition with -p, or begin at a time with --since",
            )
        starts = {place: tip.start_offset for place, tip in (await _tips(consumer)).items()}
        for place, end in ends.items():
            consumer.seek(*place, max(starts[place], end - records))
        if len(ends) == 1:
            return  # in order as it comes
        held: dict[Where, list[Record]] = {place: [] for place in ends}
        while any(consumer.position(*place) < end for place, end in ends.items()):
            for record in await consumer.fetch(FETCH_RECORDS, timeout=LAST_TIMEOUT_S):
                if record.offset < ends[record.topic, record.partition]:
                    held[record.topic, record.partition].append(record)
        await self._print(in_time_order(held)[-records:])
        for place, end in ends.items():
            consumer.seek(*place, end)

    async def _print_until(self, consumer: Consumer, ends: Mapping[Where, int]) -> None:
        """Everything below the ends, or for ever for partitions whose end is none."""
        done = {place for place, end in ends.items() if consumer.position(*place) >= end}
        while len(done) < len(ends) and not self._has_enough:
            records = await consumer.fetch(FETCH_RECORDS, timeout=FETCH_TIMEOUT_S if self._wanted.follows else LAST_TIMEOUT_S)
            if any(consumer.position(*place) > end for place, end in ends.items()):
                records = [record for record in records if record.offset < ends[record.topic, record.partition]]
            until_ms = self._wanted.until_ms
            if until_ms is not None:
                if self._wanted.follows:
                    done |= {(record.topic, record.partition) for record in records if record.timestamp >= until_ms}
                records = [record for record in records if record.timestamp < until_ms]
            await self._print(records)
            done |= {place for place, end in ends.items() if consumer.position(*place) >= end}

    @property
    def _has_enough(self) -> bool:
        return self._wanted.count is not None and self.printed >= self._wanted.count

    async def _print(self, records: Sequence[Record]) -> None:
        if self._keep is not None:
            records = list(filter(self._keep, records))
        if self._wanted.count is not None:
            records = records[: self._wanted.count - self.printed]
        if records:
            # In a thread: whoever reads the pipe may take its time, and the broker must go on hearing from us.
            await anyio.to_thread.run_sync(write_out, self._printer(records), abandon_on_cancel=True)
            self.printed += len(records)


def write_out(output: bytes) -> None:
    """Returns when whoever reads stdout, or the system for it, has taken all of it."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


async def _ends(consumer: Consumer, wanted: Range) -> dict[Where, int]:
    """Where each partition stops: without -f at the tip as a quorum tells it now; no end is OFFSET_MAX."""
    if wanted.follows:
        return dict.fromkeys(consumer.partitions, wanted.until)
    if isinstance(wanted.start, (End, FromEnd)):
        return {place: min(position, wanted.until) for place, position in consumer.positions().items()}
    return {place: min(tip.high_watermark, wanted.until) for place, tip in (await _tips(consumer)).items()}


async def _tips(consumer: Consumer) -> dict[Where, Tip]:
    tips: dict[Where, Tip] = {}
    limiter = anyio.CapacityLimiter(TIPS_AT_ONCE)

    async def read(place: Where) -> None:
        async with limiter:
            tips[place] = await consumer.tip(*place)

    async with anyio.create_task_group() as tasks:
        for place in consumer.partitions:
            tasks.start_soon(read, place)
    return tips


def in_time_order(held: Mapping[Where, Sequence[Record]]) -> list[Record]:
    """All records by time, each partition's in its own order, whatever times its producers gave them."""
    keyed = []
    for place, records in held.items():
        latest = 0
        for record in records:
            latest = max(latest, record.timestamp)
            keyed.append((latest, *place, record.offset, record))
    return [row[-1] for row in sorted(keyed, key=lambda row: row[:-1])]


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


def _filter(options: argparse.Namespace) -> Callable[[Record], bool] | None:
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
