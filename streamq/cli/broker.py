"""`streamq broker`: run one, give its directory its place in a new cluster, list them, bring one back."""

import argparse
import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streamq.broker.config import BrokerConfig, load_config
from streamq.cli.admin import Admin, ask_state
from streamq.cli.bounded_log import bound_log
from streamq.cli.cluster import local_broker
from streamq.cli.confirm import confirm
from streamq.cli.founding import found_directory, load_founding
from streamq.cli.local_cluster import LocalBroker, LocalCluster
from streamq.cli.output import EXIT_PARTLY, duration, json_line, note, print_rows
from streamq.cli.processes import find_process
from streamq.cli.settings import Bootstrap, bootstrap_of, find_bootstrap
from streamq.client.settings import Address
from streamq.model.errors import AlreadyExistsError, RefusedError, StreamqError, UnavailableError
from streamq.model.ids import short
from streamq.model.messages import (
    BrokerAddress,
    BrokerState,
    DescribePartition,
    ListTopics,
    Metadata,
    MetadataView,
    PartitionDescription,
    ReadVoters,
    Topics,
    VotersView,
)
from streamq.model.registers import PartitionRegister
from streamq.storage.identity import DirectoryLock, new_incarnation

__all__ = ["init", "ls", "rejoin", "run"]

ASKERS_MAX = 16
REFILL_POLL_S = 0.25
REFILL_TELL_S = 3.0
REFILL_TELL_AGAIN_S = 30.0
NAMED_MAX = 5


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    from streamq.broker.process import main  # trio; everything else in this module does without

    bound_log(sys.stderr)
    return main(config)


def init(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    found_directory(config, load_founding(Path(options.founding)))
    print(f"{config.data_directory} is now broker {config.broker} of the new cluster; start it with:")
    print(f"  streamq broker run --config {options.config}")
    return 0


def ls(options: argparse.Namespace) -> int:
    with Admin(find_bootstrap(flag=options.bootstrap, profile=options.profile)) as admin:
        view = admin.ask(Metadata(()), MetadataView)
    with ThreadPoolExecutor(max_workers=ASKERS_MAX) as pool:
        rows = list(pool.map(_broker_row, sorted(view.brokers)))
    columns = ("broker", "state", "address", "rack", "partitions", "sequencing", "limbo", "incarnation", "starts")
    print_rows(rows, columns=columns, as_json=options.output == "json")
    return 0


def _broker_row(broker: BrokerAddress) -> dict[str, object]:
    address = Address(broker.host, broker.port)
    row: dict[str, object] = {"broker": broker.broker, "state": "unreachable", "address": str(address), "rack": broker.rack}
    with contextlib.suppress(OSError, StreamqError):
        state = ask_state(address)
        row |= {
            "state": state.state,
            "partitions": state.partitions,
            "sequencing": state.sequencing,
            "limbo": state.limbo,
            "incarnation": short(state.register.incarnation),
            "starts": state.register.starts,
        }
    return row


# --- rejoin ----------------------------------------------------------------------------------------------------------------


def rejoin(options: argparse.Namespace) -> int:
    """Sets aside what is left of the directory, writes a new identity, and for a local broker starts it and waits until it holds all again.

    The cluster is asked for its id and voters first: a directory is only touched when a majority may admit the broker.
    """
    if (options.broker is None) == (options.config is None):
        raise RefusedError(
            "name a broker of the local cluster, or give --config FILE", code="usage", hint="streamq broker rejoin b2 --data DIR"
        )
    if options.config is not None:
        config = load_config(options.config)
        bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
        if not _renew(config, bootstrap, options):
            return 0
        print(f"start it with: streamq broker run --config {options.config}")
        print("its replicas are then copied from the others; `streamq topic describe TOPIC` shows how far that is")
        return 0
    cluster, broker = local_broker(options.broker, options.data)
    if find_process(broker.directory) is not None:
        raise AlreadyExistsError(
            f"{broker.name} is running", code="precondition_failed", hint=f"streamq cluster stop {broker.name} --data {cluster.directory}"
        )
    bootstrap = _others(cluster, broker, options.bootstrap)
    config = cluster.write_config(broker)
    if not _renew(config, bootstrap, options):
        return 0
    cluster.start([broker.name])
    note(f"{broker.name} is admitted again; copying what it has to hold")
    took, lost = _wait_whole(bootstrap, timeout_s=options.wait)
    if options.output == "json":
        print(json_line({"broker": broker.name, "rejoined": True, "copied_s": round(took, 3), "lost": lost}))
    else:
        rest = f"every segment {'with a copy left ' if lost else ''}has all its copies again (after {duration(took)})"
        print(f"{broker.name} is back under a new incarnation, and {rest}")
    if lost:
        note(f"no copy is left of what {', '.join(lost)} held: more replicas were lost than the topic survives")
    return EXIT_PARTLY if lost else 0


def _others(cluster: LocalCluster, broker: LocalBroker, flag: str | None) -> Bootstrap:
    if flag:
        return bootstrap_of(flag, origin="--bootstrap")
    others = tuple(other.address for other in cluster.brokers if other.name != broker.name)
    if not others:
        raise UnavailableError(
            f"{broker.name} is the only broker of its cluster: there is nobody to admit it again, and nothing to copy from",
            code="unavailable",
            hint="restore a backup, or make a new cluster in another directory",
        )
    return Bootstrap(others, f"the local cluster in {cluster.directory}")


def _renew(config: BrokerConfig, bootstrap: Bootstrap, options: argparse.Namespace) -> bool:
    """Gives the directory a new incarnation; False on a dry run."""
    with Admin(bootstrap) as admin:
        view = admin.ask(Metadata(()), MetadataView)
        voters = admin.ask(ReadVoters(), VotersView).voters
    if config.broker not in {broker.broker for broker in view.brokers}:
        known = ", ".join(sorted(broker.broker for broker in view.brokers))
        raise RefusedError(
            f"the cluster has no broker {config.broker!r}; it has {known}", code="bad_config", hint="check --bootstrap and the id"
        )
    _refuse_while_alive(config.broker, view)
    directory = Path(config.data_directory)
    rest = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    if options.dry_run:
        note(f"would set aside what is in {directory} ({', '.join(rest) or 'nothing'}) and give it a new incarnation")
        return False
    if any(name == "identity" for name in rest):
        confirm(f"set aside the data in {directory} and copy everything again from other brokers?", yes=options.yes)
    directory.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(directory)
    try:
        identity, aside = new_incarnation(directory, cluster=view.cluster, broker=config.broker, first_voters=voters)
    finally:
        lock.release()
    if aside:
        note(f"what was left of the old data is in {aside}; remove it when {config.broker} is whole again")
    note(f"{config.broker} has the new incarnation {short(identity.incarnation)}")
    return True


def _refuse_while_alive(name: str, view: MetadataView) -> None:
    """Two directories of one broker must not be up together: the older one would be asked to leave by the newer one's arrival."""
    for broker in view.brokers:
        if broker.broker == name and (state := _state_of(broker)) is not None and state.register.broker == name:
            raise AlreadyExistsError(
                f"{name} is up at {broker.host}:{broker.port}", code="precondition_failed", hint="stop it before it rejoins"
            )


def _wait_whole(bootstrap: Bootstrap, *, timeout_s: float) -> tuple[float, list[str]]:
    """Until every segment of every partition is held by as many brokers, in their present incarnations, as it wants, but for those of
    which no copy is left. How long that took, and the partitions of the latter. Says what it waits for when that changes, and now and then.
    """
    begun = told_at = time.monotonic()
    told: list[str] = []
    while True:
        lacking, lost = _lacking(bootstrap)
        now = time.monotonic()
        if not lacking:
            return now - begun, lost
        if now - begun > timeout_s:
            raise UnavailableError(
                f"after {timeout_s:g} s there are still segments without all their copies: {_some(lacking)}",
                code="timed_out",
                hint="copying goes on; `streamq topic describe TOPIC` shows how far it is",
            )
        if now - told_at > (REFILL_TELL_S if lacking != told else REFILL_TELL_AGAIN_S):
            note(f"waiting for copies: {_some(lacking)}")
            told_at, told = now, lacking
        time.sleep(REFILL_POLL_S)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")


def _lacking(bootstrap: Bootstrap) -> tuple[list[str], list[str]]:
    """Partitions of which some segment lacks a copy that can still be made, named for people; and those of which no copy is left."""
    try:
        with Admin(bootstrap) as admin:
            brokers = admin.ask(Metadata(()), MetadataView).brokers
            states = [state for broker in brokers if (state := _state_of(broker)) is not None]
            incarnations = {state.register.broker: state.register.incarnation for state in states}
            topics = [topic for topic in admin.ask(ListTopics(), Topics).topics if not topic.deleted]
            asked = [(topic.name, index) for topic in topics for index in range(len(topic.partitions))]
            registers = [admin.ask(DescribePartition(*one), PartitionDescription).register for one in asked]
    except UnavailableError as error:
        return [error.message], []
    lost = [register for register in registers if _is_lost(register, incarnations)]
    lacking = [
        f"{register.topic}/{register.index}" for register in registers if register not in lost and not _is_whole(register, incarnations)
    ]
    lacking += [f"{state.register.broker} in limbo" for state in states if state.limbo]
    return lacking, [f"{register.topic}/{register.index}" for register in lost]


def _is_lost(register: PartitionRegister, incarnations: dict[str, bytes]) -> bool:
    """Whether every copy of some segment was held by an earlier incarnation of a broker that is back under a later one."""
    return any(
        segment.end != segment.base
        and all(incarnations.get(member.broker, member.incarnation) != member.incarnation for member in segment.replicas)
        for segment in register.chain
    )


def _is_whole(register: PartitionRegister, incarnations: dict[str, bytes]) -> bool:
    wanted = min(len(register.replicas), len(incarnations))
    for segment in register.chain:
        if segment.end == segment.base:
            continue  # nothing was ever kept of it
        present = sum(incarnations.get(member.broker) == member.incarnation for member in segment.replicas)
        if present < wanted:
            return False
    return True


def _state_of(broker: BrokerAddress) -> BrokerState | None:
    try:
        return ask_state(Address(broker.host, broker.port))
    except (OSError, StreamqError):
        return None
