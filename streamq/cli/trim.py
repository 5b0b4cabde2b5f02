"""`streamq topic trim`: moves the start of a topic's partitions up. What lies below is gone for good, and its files follow."""

import argparse
import time
from collections.abc import Mapping
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from streamq.cli.confirm import confirm
from streamq.cli.output import EXIT_INTERRUPTED, EXIT_PARTLY, count, json_line, note, print_error
from streamq.cli.places import AtOffset, AtTime, End, Place, parse_place
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import find_bootstrap
from streamq.cli.topic import check_name
from streamq.client.cluster import Cluster
from streamq.client.each import each
from streamq.client.times import read_tips
from streamq.model.errors import NotFoundError, OffsetError, RefusedError, StreamqError, UnavailableError
from streamq.model.messages import PartitionTrimmed, TipRead, TrimPartition
from streamq_consumer.times import offsets_for_times

__all__ = ["run"]

AT_ONCE: Final = 8
TRIM_S: Final = 40.0
"""For one partition: replicas make a checkpoint first, at the latest every 10 s."""
PAUSE_S: Final = 0.2


class _Step(msgspec.Struct, frozen=True):
    """What is to become of one partition."""

    partition: int
    start: int
    before: int
    tip: int

    @property
    def row(self) -> dict[str, object]:
        return {
            "partition": self.partition,
            "start_offset": self.start,
            "new_start_offset": self.before,
            "records": self.before - self.start,
        }


def run(options: argparse.Namespace) -> int:
    check_name(options.topic)
    before = parse_place(options.before, option="--before", now_ms=time.time_ns() // 1_000_000)
    if not isinstance(before, (AtOffset, AtTime, End)):
        raise RefusedError(f"--before={options.before} is no place to trim to", code="usage", hint="give an offset, a time, or end")
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
    command = _Trim(options, before)

    async def work() -> None:
        async with Cluster(str(bootstrap)) as cluster:
            await command.carry_out(cluster)

    if run_until_interrupted(work):
        note(f"interrupted after {command.trimmed} partition(s)")
        return EXIT_INTERRUPTED
    return command.exit_code


class _Trim:
    def __init__(self, options: argparse.Namespace, before: Place) -> None:
        self.trimmed = 0
        self.exit_code = 0
        self._options = options
        self._before = before

    async def carry_out(self, cluster: Cluster) -> None:
        options, topic = self._options, self._options.topic
        steps = await self._plan(cluster)
        records = sum(step.before - step.start for step in steps)
        is_json = options.output == "json"
        if not steps:
            note(f"nothing of topic {topic} lies before that")
            return
        what = f"{count(records)} record(s) of topic {topic} in {len(steps)} partition(s)"
        for step in steps if options.dry_run or not is_json else ():
            if is_json:
                print(json_line({"topic": topic, "dry_run": True, **step.row}))
            else:
                left = "none" if step.before == step.tip else count(step.tip - step.before)
                note(f"  partition {step.partition}: begins at {step.before} instead of {step.start}; {left} left")
        if options.dry_run:
            note(f"would remove {what}")
            return
        await anyio.to_thread.run_sync(lambda: confirm(f"remove {what} for good?", yes=options.yes), abandon_on_cancel=True)
        await self._trim_all(cluster, steps)

    async def _plan(self, cluster: Cluster) -> list[_Step]:
        """What would go, nothing of it past a tip that a quorum told (P-41). Raises what is wrong with it."""
        topic, partition = self._options.topic, self._options.partition
        view = await cluster.topic(topic)
        if partition is not None and partition >= len(view.partitions):
            raise NotFoundError(
                f"topic {topic!r} has partitions 0 to {len(view.partitions) - 1}, not {partition}",
                code="unknown_partition",
                hint=f"streamq topic describe {topic}",
            )
        chosen = range(len(view.partitions)) if partition is None else [partition]
        if isinstance(self._before, AtOffset) and len(chosen) > 1:
            raise RefusedError(
                f"each of the {len(chosen)} partitions has offsets of its own",
                code="usage",
                hint="name one with --partition, or give a time",
            )
        tips = {index: tip for (_, index), tip in (await read_tips(cluster, [(topic, index) for index in chosen])).items()}
        befores = await self._offsets(cluster, tips)
        steps = [_Step(index, tips[index].start_offset, befores[index], tips[index].high_watermark) for index in chosen]
        return [step for step in steps if step.before > step.start]

    async def _offsets(self, cluster: Cluster, tips: Mapping[int, TipRead]) -> dict[int, int]:
        topic, before = self._options.topic, self._before
        if isinstance(before, AtTime):
            found = await offsets_for_times(cluster, {(topic, index): before.timestamp_ms for index in tips})
            return {index: min(found[topic, index], tip.high_watermark) for index, tip in tips.items()}
        if isinstance(before, AtOffset):
            [(index, tip)] = tips.items()
            if before.offset > tip.high_watermark:
                message = f"offset {before.offset} is past the tip of {topic}/{index}, {tip.high_watermark}"
                raise OffsetError(message, code="offset_ahead", hint="--before=end trims all there is")
            return {index: before.offset}
        return {index: tip.high_watermark for index, tip in tips.items()}

    async def _trim_all(self, cluster: Cluster, steps: list[_Step]) -> None:
        topic, is_json = self._options.topic, self._options.output == "json"
        failed: list[StreamqError] = []

        async def trim(step: _Step) -> None:
            try:
                start = await trim_partition(cluster, topic, step.partition, step.before)
            except StreamqError as error:
                failed.append(error)
                print_error(error, as_json=is_json)
                return
            self.trimmed += 1
            if is_json:
                print(json_line({"topic": topic, "dry_run": False, **step.row, "new_start_offset": start}), flush=True)
            else:
                print(f"trimmed {topic}/{step.partition}: begins at {start}", flush=True)

        await each(steps, trim, at_once=AT_ONCE)
        if failed:
            self.exit_code = EXIT_PARTLY if self.trimmed else failed[0].exit_code


async def trim_partition(cluster: Cluster, topic: str, index: int, before: int) -> int:
    """Asks whoever is the sequencer, again and again: a trim that was made is made. Returns where the log begins now."""
    reason = "no sequencer was found"
    with anyio.move_on_after(TRIM_S):
        while True:
            view = await cluster.topic(topic)
            partition = view.partitions[index]
            try:
                connection = await cluster.connection(partition.sequencer)
                answer = await connection.request(TrimPartition(partition.id, before), PartitionTrimmed, timeout_s=TRIM_S)
                return answer.start_offset
            except (UnavailableError, NotFoundError) as error:
                reason = error.message
                if error.code == "timed_out":
                    break
            await anyio.sleep(PAUSE_S)
    raise UnavailableError(f"{topic}/{index} was not trimmed: {reason}", code="timed_out", hint=f"streamq topic describe {topic}")
