"""`streamq doctor`: looks at this machine, at the addresses, at the brokers behind them and at the topics, and explains what is wrong."""

import argparse
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

import google_crc32c

from streamq import __version__
from streamq.cli.admin import Admin, Connection
from streamq.cli.output import EXIT_FAILED, EXIT_UNAVAILABLE, Style, duration, json_line, size
from streamq.cli.settings import Bootstrap, find_bootstrap, local_data_directory
from streamq.client.settings import Address
from streamq.model.errors import StreamqError
from streamq.model.messages import (
    BrokerAddress,
    BrokerState,
    BrokerStatus,
    DescribePartition,
    ListTopics,
    Metadata,
    MetadataView,
    PartitionDescription,
    Topics,
)

__all__ = ["run"]

ASK_TIMEOUT_S: Final = 2.0
ASKERS_MAX: Final = 16
PARTITIONS_LOOKED_AT: Final = 200
PARTITIONS_NAMED: Final = 5
SYNCS_TRIED: Final = 20
SLOW_SYNC_S: Final = 0.02
FILES_WANTED: Final = 4096
FREE_BYTES_WANTED: Final = 1 << 30

Verdict = Literal["ok", "warning", "failed"]


class Finding(NamedTuple):
    verdict: Verdict
    check: str
    what: str
    hint: str = ""


class Answer(NamedTuple):
    """What came of talking to one address."""

    address: Address
    state: BrokerState | None
    cluster: bytes
    took_s: float
    error: str


def run(options: argparse.Namespace) -> int:
    style, as_json = Style(sys.stdout), options.output == "json"
    paint = {"ok": style.green, "warning": style.yellow, "failed": style.red}
    worst = EXIT_FAILED
    findings = []
    for finding in _look(find_bootstrap(flag=options.bootstrap, profile=options.profile)):
        findings.append(finding)
        if as_json:
            print(json_line(finding._asdict()), flush=True)
            continue
        print(f"{paint[finding.verdict](f'{finding.verdict:<8}')} {finding.check}: {finding.what}", flush=True)
        if finding.hint:
            print(f"{'':<8} {style.bold('try:')} {finding.hint}", flush=True)
    failed = [finding for finding in findings if finding.verdict == "failed"]
    if any(finding.check == "cluster" for finding in failed):
        worst = EXIT_UNAVAILABLE
    return worst if failed else 0


def _look(bootstrap: Bootstrap) -> Iterator[Finding]:
    yield from _this_machine()
    yield Finding("ok", "bootstrap", f"{bootstrap} (from {bootstrap.origin})")
    answers = _ask_all(bootstrap.addresses)
    yield from (_of_address(answer) for answer in answers)
    clusters = {answer.cluster for answer in answers if answer.state is not None}
    if not clusters:
        yield Finding("failed", "cluster", "no broker answers", "`streamq cluster start` starts a local one; --bootstrap names another")
        return
    if len(clusters) > 1:
        yield Finding("failed", "cluster", "the addresses belong to different clusters", "name brokers of one cluster only")
    try:
        yield from _the_cluster(bootstrap)
    except StreamqError as error:
        yield Finding("failed", "cluster", error.message, error.hint)


def _this_machine() -> Iterator[Finding]:
    yield Finding("ok", "version", f"streamq {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    if google_crc32c.implementation != "c":
        yield Finding(
            "warning", "checksums", "google-crc32c runs without its C part, which is far too slow", "install a wheel of it for this machine"
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_WANTED:
        yield Finding("warning", "open files", f"a process may open {soft} files", f"raise the limit: ulimit -n {FILES_WANTED}")
    directory = local_data_directory(None)
    place = next(parent for parent in (directory, *directory.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES_WANTED:
        yield Finding("warning", "disk", f"{size(free)} free at {place}", "brokers refuse records when their reserve is reached; make room")
    try:
        median = _median_sync_s(place)
    except OSError as error:
        yield Finding(
            "warning", "disk", f"{place} cannot be written to: {error.strerror}", "--data or STREAMQ_DATA names another directory"
        )
        return
    verdict: Verdict = "warning" if median > SLOW_SYNC_S else "ok"
    hint = "every ack waits for a sync; use a faster disk for the data, or topics with --durability memory" if verdict != "ok" else ""
    yield Finding(verdict, "disk", f"a sync at {place} takes {duration(median)}, {size(free)} free", hint)


def _median_sync_s(directory: Path) -> float:
    """A write of 4 KiB with its fdatasync, on a file that has its blocks already, as the journal does it."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        took = []
        for number in range(SYNCS_TRIED):
            begun = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, number * 4096)
            os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
            took.append(time.perf_counter() - begun)
    return sorted(took)[SYNCS_TRIED // 2]


def _ask_all(addresses: tuple[Address, ...]) -> list[Answer]:
    with ThreadPoolExecutor(max_workers=ASKERS_MAX) as pool:
        return list(pool.map(_ask, addresses))


def _ask(address: Address) -> Answer:
    begun = time.monotonic()
    try:
        connection = Connection(address, timeout_s=ASK_TIMEOUT_S)
        try:
            state = connection.request(BrokerStatus(), BrokerState, timeout_s=ASK_TIMEOUT_S)
            return Answer(address, state, connection.welcome.cluster, time.monotonic() - begun, "")
        finally:
            connection.close()
    except TimeoutError:
        return Answer(address, None, b"", time.monotonic() - begun, "does not answer (paused, overloaded or cut off?)")
    except ConnectionRefusedError:
        return Answer(address, None, b"", time.monotonic() - begun, "refuses connections: no broker runs there")
    except socket.gaierror:
        return Answer(address, None, b"", time.monotonic() - begun, "no such host name")
    except (OSError, StreamqError) as error:
        return Answer(address, None, b"", time.monotonic() - begun, str(error))


def _of_address(answer: Answer) -> Finding:
    if answer.state is None:
        return Finding("warning", f"address {answer.address}", answer.error, "start the broker, or leave the address out")
    text = f"broker {answer.state.register.broker}, {answer.state.state}, answered in {duration(answer.took_s)}"
    if answer.state.state == "serving":
        return Finding("ok", f"address {answer.address}", text)
    return Finding("warning", f"address {answer.address}", text, "a majority of the brokers has to be up before it serves")


def _the_cluster(bootstrap: Bootstrap) -> Iterator[Finding]:
    with Admin(bootstrap) as admin:
        view = admin.ask(Metadata(()), MetadataView)
        answers = {answer.address: answer for answer in _ask_all(tuple(Address(b.host, b.port) for b in view.brokers))}
        yield from (_of_broker(broker, answers[Address(broker.host, broker.port)]) for broker in view.brokers)
        topics = [topic for topic in admin.ask(ListTopics(), Topics).topics if not topic.deleted]
        asked = [(topic.name, index) for topic in topics for index in range(len(topic.partitions))]
        lacking: dict[str, list[str]] = {}
        is_well = True
        for name, index in asked[:PARTITIONS_LOOKED_AT]:
            description = admin.ask(DescribePartition(name, index), PartitionDescription)
            if description.tip_error:
                is_well = False
                yield Finding("failed", f"partition {name}/{index}", description.tip_error, f"streamq topic describe {name}")
                continue
            for replica in description.replicas:
                if replica.state in ("limbo", "unreachable"):
                    lacking.setdefault(f"{replica.broker} {replica.state}", []).append(f"{name}/{index}")
    for what, partitions in lacking.items():  # one finding a broker, however many partitions it has
        yield Finding("warning", "replicas", f"{what}: {_some(partitions)}", f"streamq topic describe {partitions[0].split('/')[0]}")
    looked_at = min(len(asked), PARTITIONS_LOOKED_AT)
    if is_well and not lacking:
        yield Finding("ok", "topics", f"{len(topics)} topic(s), {looked_at} partition(s) looked at, every replica answers")


def _some(partitions: list[str]) -> str:
    more = len(partitions) - PARTITIONS_NAMED
    return ", ".join(partitions[:PARTITIONS_NAMED]) + (f" and {more} more partition(s)" if more > 0 else "")


def _of_broker(broker: BrokerAddress, answer: Answer) -> Finding:
    where = f"{broker.host}:{broker.port}"
    if answer.state is None:
        hint = "if it is up, it announces an address that cannot be reached from here: set advertised_host in its configuration"
        return Finding("warning", f"broker {broker.broker}", f"announced at {where}, which {answer.error}", hint)
    if answer.state.register.broker != broker.broker:
        what = f"announced at {where}, where {answer.state.register.broker} answers"
        return Finding("failed", f"broker {broker.broker}", what, "two brokers announce one address: set advertised_host and port apart")
    state = answer.state
    if state.limbo:
        what = f"{state.limbo} partition(s) in limbo: what was lost is being copied from other replicas"
        return Finding("warning", f"broker {broker.broker}", what, "wait; `streamq topic describe` shows how far it is")
    return Finding("ok", f"broker {broker.broker}", f"{where}, {state.partitions} partition(s), sequences {state.sequencing}")
