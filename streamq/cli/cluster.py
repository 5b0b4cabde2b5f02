"""`streamq cluster`: a cluster on this machine, and the founding of one on several."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from streamq.broker.config import NAME_PATTERN, parse_config
from streamq.cli.founding import config_text, draw_founding
from streamq.cli.local_cluster import LocalBroker, LocalCluster
from streamq.cli.output import EXIT_PARTLY, json_line, note, print_rows
from streamq.cli.settings import bootstrap_of, find_bootstrap, local_data_directory
from streamq.model.errors import AlreadyExistsError, RefusedError, StreamqError

__all__ = ["init", "is_found_by_itself", "kill", "pause", "resume", "start", "status", "stop"]

LOOPBACK = ("127.0.0.1", "localhost")
STATUS_COLUMNS = ("id", "state", "pid", "port", "partitions", "sequencing", "directory")


def settings_lines(pairs: list[str]) -> list[str]:
    """`--set key=value` as lines of TOML; a value that is no TOML by itself is taken for text."""
    lines = []
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not re.fullmatch(r"[a-z_]+", key.strip()):
            raise RefusedError(f"--set takes key=value, not {pair!r}", code="usage", hint="for example --set silence_timeout_s=1.0")
        is_plain = re.fullmatch(r'[0-9][0-9_.]*|true|false|".*"', value.strip())
        lines.append(f"{key.strip()} = {value.strip() if is_plain else repr(value.strip())}")
    return lines


def start(options: argparse.Namespace) -> int:
    directory = local_data_directory(options.data)
    cluster = LocalCluster.open_or_found(directory, brokers=options.brokers, port=options.port, settings=settings_lines(options.set))
    started = cluster.start(options.broker)
    if options.output == "json":
        for row in cluster.status(options.broker):
            print(json_line(row._asdict()))
        return 0
    print(f"started {', '.join(started)}" if started else "everything was running already")
    print(f"  data       {cluster.directory}")
    print(f"  bootstrap  {cluster.bootstrap}")
    if not is_found_by_itself(cluster):
        print(f"  export STREAMQ_BOOTSTRAP={cluster.bootstrap}")
    return 0


def is_found_by_itself(cluster: LocalCluster) -> bool:
    """Whether a command that names no cluster asks this one: it must never be some other cluster that a reader's next command reaches."""
    try:
        addresses = find_bootstrap(flag=None, profile=None).addresses
    except StreamqError:
        return False
    own = {broker.address.port for broker in cluster.brokers}
    return all(address.host in LOOPBACK and address.port in own for address in addresses)


def stop(options: argparse.Namespace) -> int:
    stopped, killed = LocalCluster.open(local_data_directory(options.data)).stop(options.broker)
    for name in killed:
        note(f"{name} did not stop in time and was killed; nothing acked is lost by that")
    _report("stopped", stopped + killed, options)
    return EXIT_PARTLY if killed else 0


def status(options: argparse.Namespace) -> int:
    cluster = LocalCluster.open(local_data_directory(options.data))
    rows = [row._asdict() for row in cluster.status(options.broker)]
    print_rows(rows, columns=STATUS_COLUMNS, as_json=options.output == "json")
    return 0


def kill(options: argparse.Namespace) -> int:
    return _signal("killed", options, LocalCluster.kill)


def pause(options: argparse.Namespace) -> int:
    return _signal("paused", options, LocalCluster.pause)


def resume(options: argparse.Namespace) -> int:
    return _signal("resumed", options, LocalCluster.resume)


def _signal(done: str, options: argparse.Namespace, act: Callable[[LocalCluster, list[str]], list[str]]) -> int:
    if not options.broker and not options.all:
        raise RefusedError("name the brokers, or say --all", code="usage", hint="for example: streamq cluster kill b2")
    cluster = LocalCluster.open(local_data_directory(options.data))
    meant = [broker.name for broker in cluster.pick(options.broker)]
    reached = act(cluster, meant)
    if not reached:
        raise AlreadyExistsError(f"not running: {', '.join(meant)}", code="precondition_failed", hint="streamq cluster status")
    _report(done, reached, options)
    for name in meant:
        if name not in reached:
            note(f"{name} was not running")
    return 0


def _report(done: str, names: list[str], options: argparse.Namespace) -> None:
    if options.output == "json":
        for name in names:
            print(json_line({"id": name, "done": done}))
    else:
        print(f"{done} {', '.join(names)}" if names else "nothing was running")


def init(options: argparse.Namespace) -> int:
    """Founds a cluster on several machines: a configuration for each broker, and the founding, given once to each with `broker init`."""
    directory = Path(options.directory)
    if (directory / "founding.json").exists():
        raise AlreadyExistsError(
            f"{directory} holds the founding of a cluster already", code="precondition_failed", hint="use it, or choose another --directory"
        )
    founding = draw_founding([_parse_broker(text) for text in options.broker])
    texts = {}
    for broker in founding.brokers:
        data = options.data_directory.replace("{broker}", broker.broker)
        texts[broker.broker] = config_text(broker, data_directory=data, listen=options.listen)
        parse_config(texts[broker.broker], source=f"the configuration of {broker.broker}")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (directory / f"{name}.toml").write_text(text)
    founding.write(directory / "founding.json")
    voters = ", ".join(voter.broker for voter in founding.voters.voters)
    if options.output == "json":
        print(json_line({"cluster": founding.cluster, "brokers": list(texts), "voters": voters.split(", "), "directory": str(directory)}))
        return 0
    print(f"cluster {founding.cluster}: brokers {', '.join(texts)}; metadata voters {voters}")
    print(f"copy {directory}/founding.json and each broker's ID.toml to its machine, and there, once:")
    print("  streamq broker init --config ID.toml --founding founding.json")
    print("  streamq broker run --config ID.toml")
    return 0


def _parse_broker(text: str) -> tuple[str, str, int, str]:
    name, sign, place = text.partition("=")
    address, _, rack = place.partition("/")
    if not sign or not re.fullmatch(NAME_PATTERN, name):
        raise RefusedError(f"--broker takes ID=HOST:PORT, not {text!r}", code="usage", hint="for example --broker b1=10.0.0.1:7700/rack-1")
    [(host, port)] = bootstrap_of(address, origin=f"--broker {name}").addresses
    return name, host, port, rack


def local_broker(name: str, data: str | None) -> tuple[LocalCluster, LocalBroker]:
    cluster = LocalCluster.open(local_data_directory(data))
    return cluster, cluster.pick([name])[0]
