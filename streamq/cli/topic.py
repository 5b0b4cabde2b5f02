"""`streamq topic`: create, list, describe and remove topics. What is shown comes from registers and quorum reads, not from hints."""

import argparse
import datetime
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from streamq.broker.config import NAME_PATTERN
from streamq.cli.admin import Admin
from streamq.cli.confirm import confirm
from streamq.cli.output import EXIT_PARTLY, Style, json_line, note, print_error, print_rows, size, span, survival
from streamq.cli.settings import find_bootstrap
from streamq.model.errors import RefusedError, StreamqError
from streamq.model.limits import DEDUP_MS_MAX, DEDUP_MS_MIN, PARTITIONS_PER_TOPIC_MAX, RETENTION_BYTES_MIN, RETENTION_MS_MIN
from streamq.model.messages import (
    CreateTopic,
    DeleteTopic,
    DescribePartition,
    ListTopics,
    Ok,
    PartitionDescription,
    ReadStable,
    StableRead,
    TopicCreated,
    Topics,
)
from streamq.model.quorum import Quorum, majority
from streamq.model.registers import TopicRegister

__all__ = ["check_name", "check_window", "create", "describe", "ls", "print_survival", "retention_text", "rm", "topic_request"]

DESCRIBERS_MAX = 8
"""Partitions of one topic that are asked about at a time, each over a connection of its own."""


def check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise RefusedError(
            f"{name[:80]!r} is no topic name: a name has 1 to 200 of the characters A-Z a-z 0-9 . _ -",
            code="bad_name",
            hint="for example: streamq topic create orders-2026",
        )


def topic_request(
    name: str,
    *,
    partitions: int,
    replicas: int | None,
    write: int | None,
    read: int | None,
    durability: str = "fsync",
    retention_bytes: int | None = None,
    retention_ms: int | None = None,
    dedup_ms: int | None = None,
) -> CreateTopic:
    """The request, checked as far as it can be without the cluster. Raises RefusedError with a valid example."""
    check_name(name)
    if not 1 <= partitions <= PARTITIONS_PER_TOPIC_MAX:
        raise RefusedError(
            f"partitions must be between 1 and {PARTITIONS_PER_TOPIC_MAX}, not {partitions}",
            code="bad_request",
            hint=f"for example: streamq topic create {name} --partitions 6",
        )
    for what, number in (("replicas", replicas), ("write quorum", write), ("read quorum", read)):
        if number is not None and number < 1:
            raise RefusedError(f"{what} must be at least 1, not {number}", code="bad_quorum", hint=_valid_example(name, 3))
    if replicas is not None:
        w = majority(replicas) if write is None else write
        r = max(majority(replicas), replicas - w + 1) if read is None else read  # what the broker takes, too
        if fault := Quorum(replicas, w, r).fault():
            raise RefusedError(fault, code="bad_quorum", hint=_valid_example(name, min(max(replicas, 1), 9)))
    for option, given, least in (
        ("--retention-bytes", retention_bytes, RETENTION_BYTES_MIN),
        ("--retention-time", retention_ms, RETENTION_MS_MIN),
    ):
        if given is not None and given < least:
            text = size(least) if least == RETENTION_BYTES_MIN else span(least)
            raise RefusedError(f"{option} is at least {text}", code="bad_request", hint="leave it out to keep records for ever")
    check_window(dedup_ms)
    return CreateTopic(
        name=name,
        partitions=partitions,
        replicas=replicas or 0,
        write=write or 0,
        read=read or 0,
        durability="memory" if durability == "memory" else "fsync",
        retention_bytes=retention_bytes,
        retention_ms=retention_ms,
        dedup_ms=dedup_ms,
    )


def check_window(dedup_ms: int | None) -> None:
    """Raises RefusedError for a window that the broker would not take."""
    if dedup_ms and not DEDUP_MS_MIN <= dedup_ms <= DEDUP_MS_MAX:
        limits = f"{span(DEDUP_MS_MIN)} to {span(DEDUP_MS_MAX)}"
        raise RefusedError(f"--dedup-window is {limits}", code="bad_request", hint="or none: records with ids are refused")


def _valid_example(name: str, replicas: int) -> str:
    quorum = majority(replicas)
    return f"streamq topic create {name} --replicas {replicas} --write-quorum {quorum} --read-quorum {quorum}"


def create(options: argparse.Namespace) -> int:
    request = topic_request(
        options.topic,
        partitions=options.partitions,
        replicas=options.replicas,
        write=options.write_quorum,
        read=options.read_quorum,
        durability=options.durability,
        retention_bytes=options.retention_bytes,
        retention_ms=options.retention_time,
        dedup_ms=options.dedup_window,
    )
    with Admin(find_bootstrap(flag=options.bootstrap, profile=options.profile)) as admin:
        topic = admin.ask(request, TopicCreated, is_change=True).topic
    row = _topic_row(topic)
    survives = survival(replicas=topic.replicas, write=topic.write, read=topic.read)
    if options.output == "json":
        print(json_line({**row, "survives": survives}))
        return 0
    print(f"created topic {topic.name}: {row['partitions']} partition(s), {_settings_text(topic)}")
    print_survival(survives)
    return 0


def ls(options: argparse.Namespace) -> int:
    with Admin(find_bootstrap(flag=options.bootstrap, profile=options.profile)) as admin:
        topics = admin.ask(ListTopics(), Topics).topics
    rows = [_topic_row(topic) for topic in sorted(topics, key=lambda topic: topic.name) if not topic.deleted]
    columns = ("topic", "partitions", "replicas", "write_quorum", "read_quorum", "durability", "created")
    print_rows(rows, columns=columns, as_json=options.output == "json", empty="no topics yet: streamq topic create NAME")
    return 0


def describe(options: argparse.Namespace) -> int:
    check_name(options.topic)
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
    with Admin(bootstrap) as admin:
        first = admin.ask(DescribePartition(options.topic, 0), PartitionDescription)
        topics = {topic.name: topic for topic in admin.ask(ListTopics(), Topics).topics}
    topic = topics.get(options.topic)
    partitions = len(topic.partitions) if topic else 1

    def ask(index: int) -> tuple[PartitionDescription, StableRead | None]:
        with Admin(bootstrap) as other:
            description = first if index == 0 else other.ask(DescribePartition(options.topic, index), PartitionDescription)
            try:
                return description, other.ask(ReadStable(options.topic, index), StableRead) if not description.tip_error else None
            except StreamqError:
                return description, None

    with ThreadPoolExecutor(max_workers=DESCRIBERS_MAX) as pool:
        rows = [_partition_row(description, stable) for description, stable in pool.map(ask, range(partitions))]
    register = first.register
    survives = survival(replicas=len(register.replicas), write=register.write, read=register.read)
    if options.output == "json":
        settings = _topic_row(topic) if topic else {"topic": options.topic, "partitions": partitions}
        print(json_line({**settings, "survives": survives, "partition_list": rows}))
        return 0
    if topic:
        print(f"topic {topic.name}: {partitions} partition(s), {_settings_text(topic)}")
    print_survival(survives)
    print()
    shown = [{**row, "replicas": "  ".join(_replica_text(replica) for replica in row["replicas"])} for row in rows]  # type: ignore[attr-defined]
    columns = ("partition", "epoch", "sequencer", "high_watermark", "stable_offset", "start_offset", "replicas")
    print_rows(shown, columns=columns, as_json=False)
    for row in rows:
        if trouble := row["tip_error"] or _held_back(row):
            note(Style(sys.stderr).yellow(f"partition {row['partition']}: {trouble}"))
    return 0


def _held_back(row: dict[str, object]) -> str:
    transaction = row["open_transaction"]
    if not isinstance(transaction, dict):
        return ""
    name, number, age_s = transaction["producer"], transaction["number"], transaction["age_s"]
    return f"transaction {number} of producer {name!r}, open for {age_s:.1f} s, holds back what lies at {row['stable_offset']} and behind"


def rm(options: argparse.Namespace) -> int:
    for name in options.topic:
        check_name(name)
    with Admin(find_bootstrap(flag=options.bootstrap, profile=options.profile)) as admin:
        for name in options.topic:
            admin.ask(DescribePartition(name, 0), PartitionDescription)  # an unknown topic is told before anything is removed
        if options.dry_run:
            note(f"would remove with all their records: {', '.join(options.topic)}")
            return 0
        confirm(f"remove {', '.join(options.topic)} with all their records?", yes=options.yes)
        removed: list[str] = []
        for name in options.topic:
            try:
                admin.ask(DeleteTopic(name), Ok, is_change=True)
            except StreamqError as error:
                if not removed:
                    raise
                print_error(error, as_json=options.output == "json")
                return EXIT_PARTLY
            removed.append(name)
            print(json_line({"topic": name, "removed": True}) if options.output == "json" else f"removed topic {name}")
    return 0


def _topic_row(topic: TopicRegister) -> dict[str, object]:
    created = datetime.datetime.fromtimestamp(topic.created_ms / 1000, tz=datetime.UTC)
    return {
        "topic": topic.name,
        "id": topic.id.hex(),
        "partitions": len(topic.partitions),
        "replicas": topic.replicas,
        "write_quorum": topic.write,
        "read_quorum": topic.read,
        "durability": topic.durability,
        "retention_bytes": topic.retention_bytes,
        "retention_ms": topic.retention_ms,
        "dedup_ms": topic.dedup_ms,
        "created": created.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def _partition_row(description: PartitionDescription, stable: StableRead | None) -> dict[str, object]:
    register = description.register
    transaction: dict[str, object] | None = None
    if stable is not None and stable.transaction is not None:
        age_s = max(0.0, time.time() - stable.began_ms / 1000)
        transaction = {"producer": stable.name, "number": stable.transaction.number, "age_s": round(age_s, 3)}
    is_open = bool(register.chain) and register.last.is_open
    return {
        "partition": register.index,
        "id": register.id.hex(),
        "epoch": register.last.epoch if register.chain else 0,
        "sequencer": register.last.sequencer if is_open else "",
        "high_watermark": description.high_watermark,
        "stable_offset": stable.offset if stable is not None else None,
        "open_transaction": transaction,
        "start_offset": register.start_offset,
        "tip_error": description.tip_error,
        "replicas": [
            {"broker": view.broker, "state": view.state, "local_tail": view.local_tail, "high_watermark": view.high_watermark}
            for view in description.replicas
        ],
        "write_quorum": register.last.write if is_open else None,
        "read_quorum": register.last.read if is_open else None,
        "segments": [{"epoch": s.epoch, "base": s.base, "end": s.end, "sequencer": s.sequencer} for s in register.chain],
    }


def _replica_text(replica: dict[str, object]) -> str:
    tail = "?" if replica["local_tail"] is None else replica["local_tail"]
    return f"{replica['broker']}:{tail}" if replica["state"] == "serving" else f"{replica['broker']}:{tail} ({replica['state']})"


def _settings_text(topic: TopicRegister) -> str:
    quorums = f"{topic.replicas} replica(s), write quorum {topic.write}, read quorum {topic.read}, durability {topic.durability}"
    return f"{quorums}, {retention_text(topic)}, ids of records {f'count for {span(topic.dedup_ms)}' if topic.dedup_ms else 'are refused'}"


def retention_text(topic: TopicRegister) -> str:
    limits = [] if topic.retention_bytes is None else [size(topic.retention_bytes)]
    limits += [] if topic.retention_ms is None else [span(topic.retention_ms)]
    return f"retention {' or '.join(limits) or 'for ever'}"


def print_survival(survives: dict[str, str]) -> None:
    words = {
        "acked_records": "no acked record is lost with",
        "append": "appends go on with",
        "takeover": "another sequencer takes over with",
        "tip_reads": "the committed offset can be read with",
    }
    for key, losses in survives.items():
        print(f"  {words[key]:<38} {losses}")
