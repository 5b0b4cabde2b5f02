"""`streamq log`: what a stopped broker's directory holds, and whether every byte of it is as it was written. Nothing is changed."""

import argparse
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from streamq.broker.config import load_config
from streamq.cli.output import count, json_line, note, size
from streamq.model.errors import CorruptDataError, NotFoundError
from streamq.storage.verify import dump as dump_directory
from streamq.storage.verify import files as list_files
from streamq.storage.verify import verify as verify_directory

__all__ = ["data_directory", "dump", "verify"]


def data_directory(text: str) -> Path:
    """The data directory that is meant: this one, or the one that the broker.toml in it names. Raises NotFoundError."""
    directory = Path(text).absolute()
    if not directory.is_dir():
        raise NotFoundError(
            f"there is no directory {directory}", code="not_found", hint="`streamq cluster status` shows where brokers keep data"
        )
    config = directory / "broker.toml"
    if config.exists() and not (directory / "identity").exists():
        return Path(load_config(config).data_directory)
    return directory


def verify(options: argparse.Namespace) -> int:
    directory = data_directory(options.directory)
    report = verify_directory(directory)
    as_json = options.output == "json"
    for finding in report.findings:
        if as_json:
            print(
                json_line(
                    {"file": str(finding.file), "first_byte": finding.first_byte, "last_byte": finding.last_byte, "what": finding.what}
                )
            )
        else:
            print(f"damaged: {finding.file} bytes {finding.first_byte} to {finding.last_byte}: {finding.what}")
    found = len(report.findings)
    checked = f"{count(report.records)} records in {count(report.batches)} batches, {len(report.files)} files"
    if found:
        raise CorruptDataError(
            f"{directory}: {found} damaged range{'s' if found > 1 else ''} ({checked})",
            code="data_damaged",
            hint="start the broker: damaged log data is copied from other replicas when it is read, lost journal entries at once",
        )
    if as_json:
        row = {"directory": str(directory), "ok": True, "files": len(report.files), "batches": report.batches, "records": report.records}
        print(json_line(row))
    else:
        print(f"{directory}: all is well ({checked})")
    return 0


def dump(options: argparse.Namespace) -> int:
    directory = data_directory(options.directory)
    rows: Iterable[Mapping[str, object]]
    rows = list_files(directory, entries=options.entries) if options.files else dump_directory(directory)
    for row in itertools.islice(rows, options.count):
        if options.output == "json":
            print(json_line(row))
        else:
            print(
                "  ".join(f"{key}={_text(key, value)}" for key, value in row.items() if value is not None and not isinstance(value, list))
            )
            for entry in row.get("entries") or ():  # type: ignore[attr-defined]
                print("    " + "  ".join(f"{key}={value}" for key, value in entry.items()))
    if options.count == 0:
        note("-n 0: nothing to show")
    return 0


def _text(key: str, value: object) -> str:
    return size(value) if key == "bytes" and isinstance(value, int) else str(value)
