"""`streamq produce`: lines in, records acked. Reads in large pieces, sends whole lists, and holds no more than the producer's buffer."""

import argparse
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Literal

import anyio
import anyio.to_thread
import msgspec

from streamq.cli.admin import Admin
from streamq.cli.lines import LineSplitter, Run
from streamq.cli.outcomes import Outcomes, RejectedRecord
from streamq.cli.output import EXIT_INTERRUPTED, EXIT_PARTLY, Style, count, duration, json_line, note, size
from streamq.cli.pace import Pace
from streamq.cli.record_format import ParsedRecord, parse_record
from streamq.cli.resume import Resume, Routing, check_resume
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import Bootstrap, find_bootstrap
from streamq.cli.topic import check_name
from streamq.model.errors import NotFoundError, RefusedError, StreamqError
from streamq.model.limits import RECORD_BYTES_MAX
from streamq.model.messages import ListTopics, Topics
from streamq.wire.compression import ZSTD_LEVELS
from streamq_producer import Producer

__all__ = ["Progress", "parse_compression", "pieces", "run"]

READ_BYTES: Final = 1 << 20
JSON_LINE_BYTES_MAX: Final = 8 * RECORD_BYTES_MAX
"""An object may spell one byte of a record with up to six of its own."""
PROGRESS_INTERVAL_S: Final = 0.25
EXAMPLE: Final = "streamq produce orders -H source=web"


class _Plan(msgspec.Struct, frozen=True):
    """What every record of this run gets."""

    topic: str
    key: bytes | None
    separator: bytes | None
    headers: dict[str, bytes]
    partition: int | None
    rate: float | None
    is_json: bool
    id_of: Callable[[ParsedRecord], bytes | None] | None
    """The id of a record, if each is to have one."""


def run(options: argparse.Namespace) -> int:
    plan = _plan(options)
    compression, level = parse_compression(options.compression)
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
    for path in options.file:
        if path != "-":
            with open(path, "rb"):  # a file that cannot be read is told before anything is sent
                pass
    _refuse_overwriting(options)
    if options.resume is not None:
        check_resume(options)
    with Outcomes(receipts=options.receipts, rejects=options.rejects) as outcomes:
        shown = Progress(outcomes, options)

        async def work() -> None:
            producer = Producer(
                str(bootstrap),
                name=options.resume,
                compression=compression,
                level=level,
                delivery_timeout_s=options.timeout,
                close_timeout_s=options.timeout + 1.0,
            )
            async with producer, anyio.create_task_group() as tasks:
                shown.watch(producer)
                outcomes.start(tasks, plan.headers)
                tasks.start_soon(shown.run)
                if options.resume is not None:
                    await _send_rest(producer, plan, options.file[0], outcomes, shown)
                elif not await _send_all(producer, plan, options.file or ["-"], outcomes, shown):
                    await _check_topic(bootstrap, plan)
                await outcomes.all_settled()
                tasks.cancel_scope.cancel()

        was_interrupted = run_until_interrupted(work)
        shown.finish(was_interrupted=was_interrupted)
    if was_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTLY if outcomes.refused or outcomes.unknown else 0


def _refuse_overwriting(options: argparse.Namespace) -> None:
    """Sending rejects again and writing the rest to the same file is tempting, and would empty it before it is read."""
    read = [os.fstat(sys.stdin.fileno()) if path == "-" else os.stat(path) for path in options.file or ["-"]]
    taken = {(status.st_dev, status.st_ino) for status in read if stat.S_ISREG(status.st_mode)}
    for flag, path in (("--receipts", options.receipts), ("--rejects", options.rejects)):
        if path is None or not os.path.isfile(path):
            continue
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in taken:
            raise RefusedError(f"{flag} {path} would overwrite what is read", code="usage", hint="name another file")
    if options.receipts and options.rejects and os.path.realpath(options.receipts) == os.path.realpath(options.rejects):
        raise RefusedError("--receipts and --rejects name one file", code="usage", hint="name two")


def _plan(options: argparse.Namespace) -> _Plan:
    check_name(options.topic)
    if options.key is not None and options.key_sep is not None:
        raise RefusedError("-k gives every record the same key, --key-sep each its own", code="usage", hint="use one of them")
    if options.key_sep == "":
        raise RefusedError("--key-sep is empty", code="usage", hint="for example --key-sep $'\\t' or --key-sep :")
    if options.format == "json" and (options.key_sep is not None or options.key is not None or options.header):
        raise RefusedError(
            "objects bring their own keys and headers", code="usage", hint="leave -k, --key-sep and -H out with --format json"
        )
    headers = {}
    for text in options.header:
        name, sign, value = text.partition("=")
        is_text = name == name.encode("utf-8", "replace").decode("utf-8")
        if not sign or not name or not is_text:
            raise RefusedError(f"-H takes name=value, not {text!r}", code="usage", hint=f"for example: {EXAMPLE}")
        headers[name] = os.fsencode(value)
    return _Plan(
        topic=options.topic,
        key=None if options.key is None else os.fsencode(options.key),
        separator=None if options.key_sep is None else os.fsencode(options.key_sep),
        headers=headers,
        partition=options.partition,
        rate=options.rate,
        is_json=options.format == "json",
        id_of=None if options.id_from is None else _id_from(options.id_from),
    )


def _id_from(text: str) -> Callable[[ParsedRecord], bytes | None]:
    """Raises RefusedError."""
    what, _, name = text.partition(":")
    if what == "header" and name:
        return lambda record: (record.headers or {}).get(name)
    if text == "key":
        return lambda record: record.key
    if text == "value":
        return lambda record: record.value
    raise RefusedError(f"--id-from takes key, value or header:NAME, not {text!r}", code="usage", hint="for example: --id-from header:id")


def parse_compression(text: str) -> tuple[Literal["zstd", "none"], int]:
    """`none`, `zstd` or `zstd:LEVEL`. Raises RefusedError."""
    name, _, level = text.partition(":")
    if name == "none" and not level:
        return "none", ZSTD_LEVELS[0]
    if name == "zstd" and (not level or (level.isascii() and level.isdigit() and int(level) in ZSTD_LEVELS)):
        return "zstd", int(level or ZSTD_LEVELS[0])
    raise RefusedError(
        f"--compression takes none, zstd or zstd:LEVEL, not {text!r}",
        code="usage",
        hint=f"levels are {ZSTD_LEVELS[0]} to {ZSTD_LEVELS[-1]}",
    )


# --- reading ---------------------------------------------------------------------------------------------------------------


async def _send_all(producer: Producer, plan: _Plan, paths: Sequence[str], outcomes: Outcomes, shown: "Progress") -> int:
    """How many lines there were."""
    line_bytes_max = JSON_LINE_BYTES_MAX if plan.is_json else _line_bytes_max(plan)
    pace = Pace(plan.rate)
    numbered = 0
    for path in paths:
        splitter = LineSplitter(line_bytes_max=line_bytes_max)
        splitter.count = numbered
        async for piece in pieces(path):
            shown.read_bytes += len(piece)
            await _send_runs(producer, plan, splitter.feed(piece), outcomes, pace, shown)
            shown.sent_bytes = shown.read_bytes
            _refuse_too_long(splitter, outcomes)
        await _send_runs(producer, plan, splitter.end(), outcomes, pace, shown)
        _refuse_too_long(splitter, outcomes)
        numbered = splitter.count
    return numbered


async def _send_rest(producer: Producer, plan: _Plan, path: str, outcomes: Outcomes, shown: "Progress") -> None:
    """What is not stored yet of a file that earlier runs have begun with."""
    routing = Routing(plan.topic, plan.key, plan.separator, plan.headers, plan.partition)
    resume = Resume(path, routing, line_bytes_max=_line_bytes_max(plan))
    await resume.open(producer)
    shown.goes_on(resume)
    async for taken in resume.send(producer, outcomes, Pace(plan.rate)):
        shown.read_bytes += taken
        shown.sent_bytes = shown.read_bytes


async def pieces(path: str) -> AsyncIterator[bytes]:
    """What is there, as soon as it is there. The read waits in a thread; a cancelled one is left behind."""
    descriptor = sys.stdin.fileno() if path == "-" else os.open(path, os.O_RDONLY)
    try:
        while piece := await anyio.to_thread.run_sync(os.read, descriptor, READ_BYTES, abandon_on_cancel=True):
            yield piece
    finally:
        if path != "-":
            os.close(descriptor)


def _line_bytes_max(plan: _Plan) -> int:
    headers = sum(len(name.encode()) + len(value) + 16 for name, value in plan.headers.items())
    room = RECORD_BYTES_MAX - headers - len(plan.key or b"") + len(plan.separator or b"")
    if room < 1024:
        raise RefusedError(
            "key and headers leave no room for a value", code="record_too_large", hint=f"a record has {RECORD_BYTES_MAX} bytes"
        )
    return room


def _refuse_too_long(splitter: LineSplitter, outcomes: Outcomes) -> None:
    for line in splitter.too_long:
        error = RefusedError(
            f"line {line.number + 1} has {line.length} bytes, a record at most {RECORD_BYTES_MAX}",
            code="record_too_large",
            hint="split it, or store it elsewhere and send a reference",
        )
        outcomes.refuse(RejectedRecord(line.number, None, None, line=line.begin), error)
    splitter.too_long.clear()


# --- sending ---------------------------------------------------------------------------------------------------------------


async def _send_runs(producer: Producer, plan: _Plan, runs: list[Run], outcomes: Outcomes, pace: Pace, shown: "Progress") -> None:
    for run_first, lines in runs:
        step = pace.slice()
        for begin in range(0, len(lines), step):
            part = lines[begin : begin + step] if step < len(lines) else lines
            await pace.wait(len(part))
            if plan.is_json or plan.id_of is not None:
                await _send_objects(producer, plan, run_first + begin, part, outcomes)
            else:
                await _send_lines(producer, plan, run_first + begin, part, outcomes)
            if plan.rate is not None:
                shown.sent_bytes += sum(map(len, part)) + len(part)


async def _send_lines(producer: Producer, plan: _Plan, first: int, values: list[bytes], outcomes: Outcomes) -> None:
    keys: list[bytes | None] | None = None
    if plan.separator is not None:
        keys, values = _split_keys(values, plan.separator)
    elif plan.key is not None:
        keys = [plan.key] * len(values)
    deliveries = await producer.enqueue_many(plan.topic, values, keys=keys, headers=plan.headers or None, partition=plan.partition)
    for delivery in deliveries:
        outcomes.expect(delivery, first, values, keys)


def _split_keys(lines: list[bytes], separator: bytes) -> tuple[list[bytes | None], list[bytes]]:
    keys: list[bytes | None] = []
    values: list[bytes] = []
    for line in lines:
        key, found, value = line.partition(separator)
        keys.append(key if found else None)
        values.append(value if found else line)
    return keys, values


async def _send_objects(producer: Producer, plan: _Plan, first: int, lines: list[bytes], outcomes: Outcomes) -> None:
    for number, line in enumerate(lines, first):
        record = None
        try:
            record = parse_record(line) if plan.is_json else _record_of(plan, line)
            delivery = await producer.enqueue(
                plan.topic,
                record.value,
                key=record.key,
                headers=record.headers,
                timestamp=record.timestamp,
                partition=plan.partition,
                id=None if plan.id_of is None else _id_of(plan.id_of, record),
            )
        except RefusedError as error:
            refused = RefusedError(f"line {number + 1}: {error.message}", code=error.code, hint=error.hint)
            outcomes.refuse(_rejected(number, line, record), refused)
            continue
        outcomes.expect_one(delivery, number, record)


def _record_of(plan: _Plan, line: bytes) -> ParsedRecord:
    keys, values = ([plan.key], [line]) if plan.separator is None else _split_keys([line], plan.separator)
    return ParsedRecord(values[0], keys[0], plan.headers or None, None)


def _id_of(id_of: Callable[[ParsedRecord], bytes | None], record: ParsedRecord) -> bytes:
    id = id_of(record)
    if not id:
        raise RefusedError("the record has no id", code="bad_request", hint="leave --id-from out for records without")
    return id


def _rejected(number: int, line: bytes, record: ParsedRecord | None) -> RejectedRecord:
    if record is None:
        return RejectedRecord(number, None, None, line=line)
    return RejectedRecord(number, record.key, record.value, record.headers, record.timestamp)


async def _check_topic(bootstrap: Bootstrap, plan: _Plan) -> None:
    """When there was no record to send: an unknown topic or partition is told all the same. Raises NotFoundError."""

    def ask() -> int | None:
        with Admin(bootstrap) as admin:
            return next((len(t.partitions) for t in admin.ask(ListTopics(), Topics).topics if t.name == plan.topic and not t.deleted), None)

    partitions = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
    if partitions is None:
        raise NotFoundError(
            f"there is no topic {plan.topic!r}", code="unknown_topic", hint=f"create it with: streamq topic create {plan.topic}"
        )
    if plan.partition is not None and plan.partition >= partitions:
        raise NotFoundError(
            f"topic {plan.topic!r} has partitions 0 to {partitions - 1}, not {plan.partition}",
            code="unknown_partition",
            hint=f"streamq topic describe {plan.topic}",
        )


# --- telling ---------------------------------------------------------------------------------------------------------------


class Progress:
    """A line on a terminal's stderr while it goes on, and the summary at the end."""

    def __init__(self, outcomes: Outcomes, options: argparse.Namespace) -> None:
        self.read_bytes = 0
        self.sent_bytes = 0
        """Less than what was read while --rate holds lines back."""
        self._outcomes = outcomes
        self._is_json = options.output == "json"
        self._is_quiet = options.quiet
        self._begun = time.monotonic()
        self._total_bytes = _total_bytes(options.file)
        self._producer: Producer | None = None
        self._resume: Resume | None = None

    def goes_on(self, resume: Resume) -> None:
        self._resume = resume
        self._total_bytes = max(0, self._total_bytes - resume.begin)

    def watch(self, producer: Producer) -> None:
        self._producer = producer

    async def run(self) -> None:
        is_shown = sys.stderr.isatty() and not self._is_quiet and not self._is_json
        style = Style(sys.stderr)
        while is_shown:
            await anyio.sleep(PROGRESS_INTERVAL_S)
            print(f"\r\x1b[K{style.dim(self._line())}", end="", file=sys.stderr, flush=True)

    def _line(self) -> str:
        took = time.monotonic() - self._begun
        acked = self._outcomes.acked
        text = f"{size(self.sent_bytes)} sent, {count(acked)} acked, {count(acked / took)}/s"
        if self._total_bytes and self.sent_bytes:
            left = took * (self._total_bytes - self.sent_bytes) / self.sent_bytes
            text += f", {duration(max(0.0, left))} left"
        return text

    def finish(self, *, was_interrupted: bool) -> None:
        outcomes, took = self._outcomes, time.monotonic() - self._begun
        gap_s = self._producer.stats.longest_gap_s if self._producer else 0.0
        if self._is_json:
            row: dict[str, object] = {
                "acked": outcomes.acked,
                "refused": outcomes.refused,
                "unknown": outcomes.unknown + outcomes.waiting,
                "bytes": self.read_bytes,
                "seconds": round(took, 6),
                "records_per_second": round(outcomes.acked / took, 1),
                "longest_gap_s": round(gap_s, 6),
                "interrupted": was_interrupted,
            }
            if outcomes.duplicates:
                row["duplicates"] = outcomes.duplicates
            if self._resume is not None:
                row |= {"resumed_at": self._resume.begin, "skipped": self._resume.skipped}
            if outcomes.first_error is not None:
                row["first_error"] = {"code": outcomes.first_error.code, "message": outcomes.first_error.message}
            print(json_line(row), file=sys.stderr)
            return
        if self._is_quiet and not outcomes.first_error:
            return
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        unknown = outcomes.unknown + outcomes.waiting
        if self._resume is not None:
            begin, skipped = self._resume.begin, self._resume.skipped
            note(f"resumed at byte {begin}" + (f" ({count(skipped)} lines behind it were stored already)" if skipped else ""))
        twice = f" (of which {count(outcomes.duplicates)} were there already)" if outcomes.duplicates else ""
        note(
            f"{'interrupted: ' if was_interrupted else ''}acked {count(outcomes.acked)}{twice}, refused {count(outcomes.refused)}, "
            f"unknown {count(unknown)}; {size(self.read_bytes)} in {duration(took)} ({count(outcomes.acked / took)} records/s); "
            f"longest gap between acks {duration(gap_s)}"
        )
        if outcomes.first_error is not None:
            _explain(outcomes.first_error)


def _explain(error: StreamqError) -> None:
    style = Style(sys.stderr)
    note(f"{style.red(f'first failure[{error.code}]:')} {error.message}")
    if error.hint:
        note(f"  {style.bold('try:')} {error.hint}")


def _total_bytes(paths: Sequence[str]) -> int:
    """How much there is to read, 0 when that cannot be known."""
    total = 0
    for path in paths or ["-"]:
        status = os.fstat(sys.stdin.fileno()) if path == "-" else os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return 0
        total += status.st_size
    return total
