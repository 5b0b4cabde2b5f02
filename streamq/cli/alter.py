"""`streamq topic alter`: retention, the window of ids, and quorums. What a topic has after it comes from its register; the output says from
when it holds."""

import argparse
from typing import Final

from streamq.cli.admin import Admin
from streamq.cli.output import json_line, note, size, span, survival
from streamq.cli.settings import find_bootstrap
from streamq.cli.topic import check_name, check_window, print_survival
from streamq.model.errors import RefusedError
from streamq.model.limits import RETENTION_BYTES_MIN, RETENTION_MS_MIN
from streamq.model.messages import AlterTopic, TopicAltered
from streamq.model.registers import TopicRegister

__all__ = ["run"]

QUORUMS: Final = ("write_quorum", "read_quorum")
WORDS: Final = {
    "write_quorum": "write quorum",
    "read_quorum": "read quorum",
    "retention_bytes": "retention bytes",
    "retention_ms": "retention time",
    "dedup_ms": "dedup window",
}


def run(options: argparse.Namespace) -> int:
    request = _request(options)
    with Admin(find_bootstrap(flag=options.bootstrap, profile=options.profile)) as admin:
        altered = admin.ask(request, TopicAltered, is_change=not options.dry_run)
    before, after = _settings(altered.before), _settings(altered.after)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    topic = altered.after
    survives = survival(replicas=topic.replicas, write=topic.write, read=topic.read)
    if options.output == "json":
        row = {name: {"before": was, "after": becomes} for name, (was, becomes) in changed.items()}
        print(
            json_line(
                {
                    "topic": topic.name,
                    "dry_run": options.dry_run,
                    "changed": row,
                    **after,
                    "pending_partitions": list(altered.pending),
                    "survives": survives,
                }
            )
        )
        return 0
    done = "would be altered" if options.dry_run else "altered"
    print(f"topic {topic.name} {done}:" if changed else f"topic {topic.name} has these settings already")
    for name, (was, becomes) in changed.items():
        holds = "from the next epoch of each partition on" if name in QUORUMS else "at once"
        print(f"  {WORDS[name]:<16} {_text(name, was)} -> {_text(name, becomes)}, {holds}")
    if any(name in QUORUMS for name in changed):
        print_survival(survives)
    if altered.pending and not options.dry_run:
        shown = ", ".join(map(str, altered.pending[:20])) + (", …" if len(altered.pending) > 20 else "")
        more = "a replica is down, or busy: they follow at its next takeover" if options.now else "`--now` begins one"
        note(f"still with the quorums of their open epoch: partition {shown}; {more}")
    return 0


def _request(options: argparse.Namespace) -> AlterTopic:
    """Raises RefusedError for what cannot be altered, or is not enough."""
    check_name(options.topic)
    copy = f"create a topic as it should be, and copy: streamq export {options.topic} | streamq import NEW"
    if options.partitions is not None:
        raise RefusedError(
            "the number of partitions is for good: with another one keys would go to other partitions, and lose their order",
            code="usage",
            hint=copy,
        )
    if options.replicas is not None:
        raise RefusedError("the number of replicas cannot be altered", code="usage", hint=copy)
    given = (options.retention_bytes, options.retention_time, options.dedup_window, options.write_quorum, options.read_quorum)
    if all(option is None for option in given) and not options.now:
        raise RefusedError(
            "there is nothing to alter", code="usage", hint=f"for example: streamq topic alter {options.topic} --retention-time 7d"
        )
    if options.retention_bytes and options.retention_bytes < RETENTION_BYTES_MIN:
        raise RefusedError(f"--retention-bytes is at least {size(RETENTION_BYTES_MIN)}", code="bad_request", hint="or none: for ever")
    if options.retention_time and options.retention_time < RETENTION_MS_MIN:
        raise RefusedError(f"--retention-time is at least {span(RETENTION_MS_MIN)}", code="bad_request", hint="or none: for ever")
    check_window(options.dedup_window)
    return AlterTopic(
        options.topic,
        write=options.write_quorum or 0,
        read=options.read_quorum or 0,
        retention_bytes=options.retention_bytes,
        retention_ms=options.retention_time,
        now=options.now,
        dry_run=options.dry_run,
        dedup_ms=options.dedup_window,
    )


def _settings(topic: TopicRegister) -> dict[str, int | None]:
    return {
        "write_quorum": topic.write,
        "read_quorum": topic.read,
        "retention_bytes": topic.retention_bytes,
        "retention_ms": topic.retention_ms,
        "dedup_ms": topic.dedup_ms,
    }


def _text(name: str, value: int | None) -> str:
    if value is None:
        return "for ever"
    if name == "dedup_ms":
        return span(value) if value else "none"
    return size(value) if name == "retention_bytes" else span(value) if name == "retention_ms" else str(value)
