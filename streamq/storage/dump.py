"""What lies in a stopped broker's directory, as rows ready for JSON: `dump` shows the contents, `files` the files."""

from collections.abc import Iterator
from pathlib import Path

from streamq.model.batches import COMPRESSION_ZSTD
from streamq.storage.checkpoint import RunRow
from streamq.storage.interface import DamagedRangeError
from streamq.storage.journal_files import FileReader, JournalFile
from streamq.storage.journal_format import BLOCK_BYTES, BatchRow, Group, JournalPosition
from streamq.storage.journal_recovery import Recovered
from streamq.storage.log_file import LogFile, log_path
from streamq.storage.log_index import INDEX_SUFFIX, index_path
from streamq.storage.offline import Directory, batches_in, opened_offline
from streamq.storage.restart import is_reserved

__all__ = ["Row", "dump", "files"]

Row = dict[str, object]


def dump(directory: Path) -> Iterator[Row]:
    """Everything that is whole, and where something is damaged: identity, states, batches in log files, entries of the journal."""
    with opened_offline(directory) as opened:
        yield from _dump(opened)


def files(directory: Path, *, entries: bool = False) -> Iterator[Row]:
    """Every file with its kind, range, state and size; with `entries`, journal files list what lies where in them, as far as it counts.

    A log file is `active` (the newest of its partition; it may still grow), `closed`, `missing`, or `unnamed` (no checkpoint names it: it
    holds nothing). A journal file is `active` (written to), `closed`, `spare`, or what is wrong with it.
    """
    with opened_offline(directory) as opened:
        yield from _small_files(opened)
        yield from _journal_files(opened, entries=entries)
        yield from _log_files(opened)


def _dump(directory: Directory) -> Iterator[Row]:
    identity, checkpoint = directory.identity, directory.checkpoint
    if identity is not None:
        yield {
            "kind": "identity",
            "cluster": identity.cluster.hex(),
            "broker": identity.broker,
            "incarnation": identity.incarnation.hex(),
            "starts": identity.starts,
        }
    if checkpoint is not None:
        yield {"kind": "checkpoint", "number": checkpoint.number, "start": checkpoint.start, "stopped": checkpoint.stopped}
        for key, value in sorted({**checkpoint.states, **checkpoint.derived}.items()):
            yield {"kind": "state", "file": "checkpoint", "key": key, "bytes": len(value)}
    for run in directory.runs:
        for file in run.files:
            yield from _dump_log_file(directory, run, file)
    if directory.recovered is not None:
        for journal_file in directory.recovered.files:
            for entry in _entries(directory, journal_file):
                yield {**entry, "file": journal_file.name}


def _dump_log_file(directory: Directory, run: RunRow, file: LogFile) -> Iterator[Row]:
    source = directory.source(run, file)
    name = directory.name(source.path)
    if not directory.ops.exists(source.path):
        yield {"kind": "damage", "file": name, "base": file.base, "end": file.end, "what": "the file is missing"}
        return
    fd = directory.ops.open_to_read(source.path)
    try:
        for found in batches_in(source, fd):
            if isinstance(found, DamagedRangeError):
                yield {"kind": "damage", "file": name, **_place(run.partition, run.epoch, found.base, found.end),
                       "first_byte": found.first_byte, "last_byte": found.last_byte}  # fmt: skip
            else:
                header = found.header
                yield {"kind": "batch", "file": name, **_place(run.partition, run.epoch, header.base, header.end),
                       "first_byte": found.position, "last_byte": found.end_position - 1, "records": header.records,
                       "bytes": header.size, "raw_bytes": header.raw_bytes,
                       "compression": "zstd" if header.compression == COMPRESSION_ZSTD else "none",
                       "first_time": header.first_timestamp, "max_time": header.max_timestamp, "append_time": header.append_time,
                       "control": header.is_control or None, "identified": header.is_identified or None,
                       "fenced": header.is_fenced or None, "mark": header.mark or None,
                       "producer": header.producer.hex(), "producer_epoch": header.producer_epoch, "sequence": header.sequence}  # fmt: skip
    finally:
        directory.ops.close(fd)


def _place(partition: bytes, epoch: int, base: int, end: int) -> Row:
    return {"partition": partition.hex(), "epoch": epoch, "base": base, "end": end}


def _small_files(directory: Directory) -> Iterator[Row]:
    for name in ("identity", "starts"):
        state = "damaged" if directory.fault and directory.faulty == name else "whole"
        yield {"kind": name, "path": name, "state": state, "bytes": directory.size(directory.path / name)}
    yield {"kind": "lock", "path": "lock", "state": "free", "bytes": directory.size(directory.path / "lock")}
    for copy in directory.copies:
        number = copy.checkpoint.number if copy.checkpoint is not None else None
        state = "damaged" if number is None else "newest" if copy.checkpoint == directory.checkpoint else "older"
        row = {"kind": "checkpoint", "path": copy.name, "state": state, "number": number}
        yield {**row, "bytes": directory.size(directory.path / copy.name)}


def _journal_files(directory: Directory, *, entries: bool) -> Iterator[Row]:
    if directory.recovered is None:
        return
    newest_sequence = max((file.sequence for file in directory.recovered.files if file.state == "in use"), default=0)
    for file in directory.recovered.files:
        state = file.state if file.state != "in use" else "active" if file.sequence == newest_sequence else "closed"
        row: Row = {"kind": "journal", "path": file.name, "state": state, "sequence": file.sequence, "bytes": file.file_bytes}
        if entries:
            row["entries"] = list(_entries(directory, file))
        yield row


def _entries(directory: Directory, file: JournalFile) -> Iterator[Row]:
    """What lies in a journal file that is in use, as its tables say; not what lies behind the journal's end."""
    recovered, checkpoint = directory.recovered, directory.checkpoint
    if file.state != "in use" or recovered is None:
        return
    replay_from = checkpoint.replay_from if checkpoint is not None and checkpoint.replay_from is not None else JournalPosition(0, 0)
    groups = list(_groups(directory, file, recovered))
    synced = max((group.synced for group in groups), default=JournalPosition(0, 0))
    if recovered.end.file > file.sequence:
        synced = recovered.end
    for group in groups:
        for row in group.rows:
            length = row.length or 0
            first = group.position.offset + row.at
            if isinstance(row, BatchRow):
                what: Row = {"kind": "batch", **_place(row.partition, row.epoch, row.base, row.end)}
            else:
                what = {"kind": "cut" if is_reserved(row.key) else "state", "key": row.key, "forgotten": row.length is None}
            yield {
                **what,
                "first_byte": first,
                "last_byte": first + max(length, 1) - 1,
                "bytes": length,
                "synced": group.end <= synced,
                "checkpointed": group.end <= replay_from,
            }


def _groups(directory: Directory, file: JournalFile, recovered: Recovered) -> Iterator[Group]:
    reader = FileReader(directory.ops, directory.path / file.name, file.file_bytes)
    try:
        offset, start = BLOCK_BYTES, 0
        while offset < file.file_bytes and (file.sequence, offset) < recovered.end:
            group = reader.group_at(offset, key=recovered.key, sequence=file.sequence)
            if group is None or group.start < start:
                offset += BLOCK_BYTES
            else:
                yield group
                offset, start = group.end.offset, group.start
    finally:
        reader.close()


def _log_files(directory: Directory) -> Iterator[Row]:
    named: set[str] = set()
    for run in directory.runs:
        for file in run.files:
            path = log_path(directory.path, run.partition, file.name)
            named.add(directory.name(path))
            is_last = file is run.files[-1] and run.epoch == max(r.epoch for r in directory.runs if r.partition == run.partition)
            state = "missing" if not directory.ops.exists(path) else "active" if is_last else "closed"
            row = {"kind": "log", "path": directory.name(path), "state": state}
            yield {**row, **_place(run.partition, run.epoch, file.base, file.end), "size": file.size, "bytes": directory.size(path)}
            if directory.ops.exists(index_path(path)):
                named.add(directory.name(index_path(path)))
                row = {"kind": "index", "path": directory.name(index_path(path)), "state": state}
                yield {**row, "bytes": directory.size(index_path(path))}
    folders = [directory.path / "logs" / name for name in directory.ops.names(directory.path / "logs")]
    for path in [folder / name for folder in folders for name in directory.ops.names(folder)]:
        if directory.name(path) not in named:
            kind = "index" if path.name.removesuffix(".new").endswith(INDEX_SUFFIX) else "log"
            yield {"kind": kind, "path": directory.name(path), "state": "unnamed", "bytes": directory.size(path)}
