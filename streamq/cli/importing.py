"""`streamq import`: reads what `streamq export` wrote. Each record keeps key, value, headers and time, and its partition where it can."""

import argparse
import sys
from typing import Final

import anyio

from streamq.cli.outcomes import Outcomes, RejectedRecord
from streamq.cli.output import EXIT_INTERRUPTED, EXIT_PARTLY, note
from streamq.cli.produce import Progress, pieces
from streamq.cli.record_format import ParsedRecord
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import find_bootstrap
from streamq.cli.topic import check_name
from streamq.client.cluster import Cluster
from streamq.model.errors import AlreadyExistsError, CorruptDataError, RefusedError
from streamq.wire.export_format import DataBlock, ExportHead, ExportReader
from streamq_producer import Producer

__all__ = ["run"]

HINT: Final = "what came before is in the topic now: begin with a new topic when you import again"


def run(options: argparse.Namespace) -> int:
    check_name(options.topic)
    if options.file == "-" and sys.stdin.isatty():
        raise RefusedError("there is no export on stdin", code="usage", hint=f"streamq import {options.topic} FILE")
    if options.file != "-":
        with open(options.file, "rb"):  # a file that cannot be read is told before anything is asked
            pass
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
    with Outcomes(receipts=None, rejects=None) as outcomes:
        shown = Progress(outcomes, argparse.Namespace(output=options.output, quiet=options.quiet, file=[options.file]))
        command = _Import(options, outcomes, shown)
        was_interrupted = run_until_interrupted(lambda: command.carry_out(str(bootstrap)))
        shown.finish(was_interrupted=was_interrupted)
    if command.damage is not None:
        raise command.damage
    if was_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTLY if outcomes.refused or outcomes.unknown else 0


class _Import:
    """`damage` is what is wrong with the file, told when everything before it has an outcome."""

    def __init__(self, options: argparse.Namespace, outcomes: Outcomes, shown: Progress) -> None:
        self.damage: CorruptDataError | None = None
        self._options = options
        self._outcomes = outcomes
        self._shown = shown
        self._number = 0
        self._keeps_partitions = True

    async def carry_out(self, bootstrap: str) -> None:
        options = self._options
        async with Cluster(bootstrap) as cluster:
            partitions = len((await cluster.topic(options.topic)).partitions)
        producer = Producer(bootstrap, delivery_timeout_s=options.timeout, close_timeout_s=options.timeout + 1.0)
        async with producer, anyio.create_task_group() as tasks:
            self._shown.watch(producer)
            self._outcomes.start(tasks, {})
            tasks.start_soon(self._shown.run)
            try:
                await self._send_all(producer, partitions)
            except CorruptDataError as error:
                self.damage = error
            await self._outcomes.all_settled()
            tasks.cancel_scope.cancel()
        if self.damage is not None and self._outcomes.acked:
            self.damage = CorruptDataError(self.damage.message, code=self.damage.code, hint=HINT)

    async def _send_all(self, producer: Producer, partitions: int) -> None:
        reader = ExportReader()
        is_chosen = False
        async for piece in pieces(self._options.file):
            self._shown.read_bytes += len(piece)
            for block in reader.feed(piece):
                if not is_chosen and reader.head is not None:
                    self._choose_partitions(reader.head, partitions)
                    is_chosen = True
                await self._send(producer, block)
            self._shown.sent_bytes = self._shown.read_bytes
        reader.end()

    def _choose_partitions(self, head: ExportHead, partitions: int) -> None:
        """The same where the topic has as many; with another number keys decide, as for everybody who produces."""
        name = self._options.topic
        self._keeps_partitions = self._options.keep_partitions or head.partitions == partitions
        if self._options.keep_partitions and head.partitions > partitions:
            raise AlreadyExistsError(
                f"topic {name} has {partitions} partition(s), and the export is of {head.partitions}",
                code="precondition_failed",
                hint=f"streamq topic create NAME --partitions {head.partitions}, or leave --keep-partitions out: keys decide then",
            )
        if not self._keeps_partitions and not self._options.quiet:
            note(f"topic {name} has {partitions} partition(s), the export is of {head.partitions}: keys decide where records go")

    async def _send(self, producer: Producer, block: DataBlock) -> None:
        partition = block.partition if self._keeps_partitions else None
        for record in block.records:
            number, self._number = self._number, self._number + 1
            parsed = ParsedRecord(record.value, record.key, record.headers, record.timestamp)
            try:
                delivery = await producer.enqueue(
                    self._options.topic,
                    record.value,
                    key=record.key,
                    headers=record.headers,
                    timestamp=record.timestamp,
                    partition=partition,
                )
            except RefusedError as error:
                where = f"offset {record.offset} of partition {block.partition}: {error.message}"
                refused = RefusedError(where, code=error.code, hint=error.hint)
                self._outcomes.refuse(RejectedRecord(number, record.key, record.value, record.headers, record.timestamp), refused)
                continue
            self._outcomes.expect_one(delivery, number, parsed)
