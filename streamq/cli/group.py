"""`streamq group`: consumer groups, their members and positions, and how far behind they are. By quorum reads, not from hints."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from streamq.cli.admin import Admin
from streamq.cli.confirm import confirm
from streamq.cli.output import Style, json_line, note, print_rows
from streamq.cli.places import AtOffset, AtTime, End, FromEnd, Place, Start, parse_place
from streamq.cli.settings import Bootstrap, find_bootstrap
from streamq.cli.topic import check_name
from streamq.model.errors import AlreadyExistsError, NotFoundError, RefusedError, StreamqError
from streamq.model.groups import GroupRegister
from streamq.model.limits import OFFSET_MAX
from streamq.model.messages import (
    DeleteGroup,
    GroupPosition,
    GroupRead,
    Groups,
    ListGroups,
    Ok,
    PlaceGroup,
    ReadGroup,
    ReadTip,
    TipRead,
)

__all__ = ["check_group", "describe", "lag", "ls", "rm", "seek"]

TIP_READERS: Final = 8
"""Connections over which tips are read side by side."""
WATCH_S: Final = 2.0
FILE_BYTES_MAX: Final = 16 << 20
CLEAR: Final = "\x1b[H\x1b[2J"

Where = tuple[str, int]
Row = dict[str, object]


def check_group(name: str) -> None:
    try:
        check_name(name)
    except RefusedError as error:
        message = error.message.replace("topic name", "name of a group")
        raise RefusedError(message, code=error.code, hint="for example: streamq consume orders -g billing") from None


def ls(options: argparse.Namespace) -> int:
    with Admin(_bootstrap(options)) as admin:
        rows = []
        for name in admin.ask(ListGroups(), Groups).names:
            with suppress(NotFoundError):  # removed meanwhile
                group = _read(admin, name)
                partitions = sum(len(topic.partitions) for topic in group.topics)
                topics = [topic.name for topic in group.topics]
                rows.append({"group": name, "members": len(group.members), "topics": topics, "partitions": partitions})
    columns = ("group", "members", "topics", "partitions")
    print_rows(rows, columns=columns, as_json=options.output == "json", empty="no groups yet: streamq consume TOPIC -g GROUP")
    return 0


def describe(options: argparse.Namespace) -> int:
    check_group(options.group)
    bootstrap = _bootstrap(options)
    with Admin(bootstrap) as admin:
        group = _read(admin, options.group)
    rows = _partition_rows(bootstrap, group)
    members = [
        {
            "member": member.number,
            "name": member.name,
            "topics": list(member.topics),
            "session_s": member.session_ms / 1000,
            "partitions": sum(row["member"] == member.number for row in rows),
        }
        for member in group.members
    ]
    if options.output == "json":
        head = {"group": group.name, "id": group.id.hex(), "generation": group.generation, "coordinator": group.coordinator}
        print(json_line({**head, "members": members, "partitions": rows}))
        return 0
    print(f"group {group.name}: generation {group.generation}, coordinator {group.coordinator or '-'}, {len(members)} member(s)")
    if members:
        print()
        print_rows(members, columns=("member", "name", "topics", "session_s", "partitions"), as_json=False)
    if rows:
        print()
        columns = ("topic", "partition", "member", "moving_to", "position", "high_watermark", "lag")
        print_rows(rows, columns=columns, as_json=False)
    return 0


def lag(options: argparse.Namespace) -> int:
    check_group(options.group)
    bootstrap = _bootstrap(options)
    as_json = options.output == "json"
    while True:
        with Admin(bootstrap) as admin:
            group = _read(admin, options.group)
        rows = _partition_rows(bootstrap, group)
        total = sum(row["lag"] for row in rows if isinstance(row["lag"], int))
        if as_json:
            shown: Row = {"group": group.name, "members": len(group.members), "lag": total, "partitions": rows}
            print(json_line(shown), flush=True)
        else:
            if options.watch and sys.stdout.isatty():
                print(CLEAR, end="")
            print(f"group {group.name}: {total} record(s) behind, {len(group.members)} member(s)")
            print_rows(rows, columns=("topic", "partition", "member", "position", "high_watermark", "lag"), as_json=False)
            sys.stdout.flush()
        if not options.watch:
            return 0
        time.sleep(WATCH_S)


def seek(options: argparse.Namespace) -> int:
    check_group(options.group)
    bootstrap = _bootstrap(options)
    with Admin(bootstrap) as admin:
        try:
            group: GroupRegister | None = _read(admin, options.group)
        except NotFoundError:
            group = None
        if group is not None and group.members:
            raise AlreadyExistsError(
                f"group {group.name!r} has {len(group.members)} members, and their positions are theirs",
                code="group_in_use",
                hint="stop its consumers first; a member that was killed is gone after its session",
            )
        topics = options.topic or ([topic.name for topic in group.topics] if group is not None else [])
        for topic in topics:
            check_name(topic)
        wanted = _wanted(options, bootstrap, topics)
        if not wanted:
            raise NotFoundError(
                f"group {options.group!r} has no positions to set",
                code="unknown_group",
                hint=f"name topics: streamq group seek {options.group} --to {options.to} --topic orders",
            )
        rows = [
            {"topic": topic, "partition": index, "from": _position(group, topic, index), "to": position}
            for (topic, index), position in sorted(wanted.items())
        ]
        as_json = options.output == "json"
        if options.dry_run:
            print_rows(rows, columns=("topic", "partition", "from", "to"), as_json=as_json)
            note("nothing was changed")
            return 0
        confirm(f"set {len(rows)} position(s) of group {options.group}?", yes=options.yes)
        positions = tuple(GroupPosition(topic, index, position) for (topic, index), position in sorted(wanted.items()))
        admin.ask(PlaceGroup(options.group, positions), GroupRead)
    print_rows(rows, columns=("topic", "partition", "from", "to"), as_json=as_json)
    return 0


def rm(options: argparse.Namespace) -> int:
    for name in options.group:
        check_group(name)
    with Admin(_bootstrap(options)) as admin:
        for name in options.group:
            _read(admin, name)
        if options.dry_run:
            note(f"would remove with all their positions: {', '.join(options.group)}")
            return 0
        confirm(f"remove {', '.join(options.group)} with all their positions?", yes=options.yes)
        for name in options.group:
            admin.ask(DeleteGroup(name), Ok)
            print(json_line({"group": name, "removed": True}) if options.output == "json" else f"removed group {name}")
    return 0


# --- inside -----------------------------------------------------------------------------------------------------------------


def _bootstrap(options: argparse.Namespace) -> Bootstrap:
    return find_bootstrap(flag=options.bootstrap, profile=options.profile)


def _read(admin: Admin, name: str) -> GroupRegister:
    return admin.ask(ReadGroup(name), GroupRead).register


def _position(group: GroupRegister | None, topic: str, index: int) -> int | None:
    partition = group.partition(topic, index) if group is not None else None
    return partition.position if partition is not None else None


def _partition_rows(bootstrap: Bootstrap, group: GroupRegister) -> list[Row]:
    """`lag` counts the records from the position (or the start, where none was committed) to the tip; None where that is not known."""
    places = [(topic.name, index) for topic in group.topics for index in range(len(topic.partitions))]
    tips = _tips(bootstrap, places)
    rows: list[Row] = []
    for place in places:
        partition, tip = group.partition(*place), tips.get(place)
        assert partition is not None
        behind = None if tip is None else max(0, tip.high_watermark - max(partition.position or 0, tip.start_offset))
        rows.append(
            {
                "topic": place[0],
                "partition": place[1],
                "member": partition.holder or None,
                "moving_to": partition.target or None if partition.target != partition.holder else None,
                "position": partition.position,
                "high_watermark": None if tip is None else tip.high_watermark,
                "lag": behind,
            }
        )
    return rows


def _tips(bootstrap: Bootstrap, places: Sequence[Where]) -> dict[Where, TipRead]:
    """By quorum reads; what cannot be read is left out and told."""
    failures: list[StreamqError] = []

    def read(mine: Iterable[Where]) -> dict[Where, TipRead]:
        found = {}
        with Admin(bootstrap) as admin:
            for place in mine:
                try:
                    found[place] = admin.ask(ReadTip(*place), TipRead)
                except StreamqError as error:
                    failures.append(error)
        return found

    shares = [share for start in range(TIP_READERS) if (share := places[start::TIP_READERS])]
    found: dict[Where, TipRead] = {}
    if shares:
        with ThreadPoolExecutor(max_workers=len(shares)) as pool:
            for part in pool.map(read, shares):
                found |= part
    if failures:
        note(Style(sys.stderr).yellow(f"{len(failures)} tip(s) could not be read: {failures[0].message}"))
    return found


def _wanted(options: argparse.Namespace, bootstrap: Bootstrap, topics: Sequence[str]) -> dict[Where, int]:
    path = Path(options.to)
    now_ms = time.time_ns() // 1_000_000
    try:
        place = parse_place(options.to, option="--to", now_ms=now_ms)
    except RefusedError:
        if not path.is_file():
            raise
        return {where: at for where, at in _from_file(path).items() if _is_meant(options, where)}
    if not topics:
        return {}
    return {where: at for where, at in _find(bootstrap, topics, place).items() if _is_meant(options, where)}


def _is_meant(options: argparse.Namespace, where: Where) -> bool:
    return (not options.topic or where[0] in options.topic) and (not options.partition or where[1] in options.partition)


def _find(bootstrap: Bootstrap, topics: Sequence[str], place: Place) -> Mapping[Where, int]:
    """The place in each partition, within what can be read there."""
    import datetime

    import anyio

    from streamq_consumer import Consumer

    async def find() -> dict[Where, int]:
        at = datetime.datetime.fromtimestamp(place.timestamp_ms / 1000, tz=datetime.UTC) if isinstance(place, AtTime) else None
        async with Consumer(str(bootstrap), topics=topics, start=at or "latest") as consumer:
            found = dict(consumer.positions())
            if at is not None:
                return found
            for where in found:
                tip = await consumer.tip(*where)
                wanted = tip.high_watermark
                if isinstance(place, Start):
                    wanted = tip.start_offset
                elif isinstance(place, AtOffset):
                    wanted = place.offset
                elif isinstance(place, FromEnd):
                    wanted = tip.high_watermark - place.records
                else:
                    assert isinstance(place, End)
                found[where] = min(max(wanted, tip.start_offset), tip.high_watermark)
            return found

    return anyio.run(find, backend="trio")


def _from_file(path: Path) -> dict[Where, int]:
    """Lines as `group describe -o json` or `group lag -o json` print them, or one object a line with topic, partition and position."""
    if path.stat().st_size > FILE_BYTES_MAX:
        raise RefusedError(f"{path} has over {FILE_BYTES_MAX} bytes", code="usage", hint="is it a file of positions?")
    found: dict[Where, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            for part in row["partitions"] if isinstance(row.get("partitions"), list) else [row]:
                position = part.get("position", part.get("to"))
                if position is not None:
                    if type(position) is not int or type(part["partition"]) is not int or not 0 <= position <= OFFSET_MAX:
                        raise ValueError("a number is wanted")
                    found[str(part["topic"]), part["partition"]] = position
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(
                f"{path}, line {number}: no position ({error})",
                code="usage",
                hint='a line is {"topic": "orders", "partition": 0, "position": 17}, or what `streamq group describe -o json` prints',
            ) from None
    return found
