"""`streamq dev`: a local cluster for as long as the command runs."""

import argparse
import signal
import sys
import threading

from streamq.cli.cluster import is_found_by_itself, settings_lines
from streamq.cli.local_cluster import LocalCluster
from streamq.cli.output import EXIT_FAILED, Style, json_line, note
from streamq.cli.processes import find_process
from streamq.cli.settings import Profiles, local_data_directory

__all__ = ["run"]

PROFILE = "dev"
WATCH_INTERVAL_S = 0.5


def run(options: argparse.Namespace) -> int:
    """Returns after Ctrl-C or SIGTERM, when the brokers have stopped. Ctrl-C does not reach them: they are told to stop."""
    directory = local_data_directory(options.data)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    cluster = LocalCluster.open_or_found(directory, brokers=options.brokers, port=options.port, settings=settings_lines(options.set))
    try:
        cluster.start()
        _write_profile(cluster)
        _print_ready(cluster, as_json=options.output == "json")
        down: set[str] = set()
        while not stop.wait(WATCH_INTERVAL_S):
            for broker in cluster.brokers:
                if find_process(broker.directory) is None and broker.name not in down:
                    note(f"{broker.name} has ended; `streamq cluster start --data {directory}` starts it again")
                elif find_process(broker.directory) is not None:
                    down.discard(broker.name)
                    continue
                down.add(broker.name)
            if len(down) == len(cluster.brokers):
                note("no broker is left")
                return EXIT_FAILED
        return 0
    finally:
        note("stopping")
        cluster.stop()


def _write_profile(cluster: LocalCluster) -> None:
    profiles = Profiles.load()
    profiles.bootstraps[PROFILE] = cluster.bootstrap
    profiles.current = profiles.current or PROFILE
    profiles.save()


def _print_ready(cluster: LocalCluster, *, as_json: bool) -> None:
    if as_json:
        print(json_line({"ready": True, "bootstrap": cluster.bootstrap, "data": str(cluster.directory), "profile": PROFILE}), flush=True)
        return
    style = Style(sys.stdout)
    print(style.green(f"{len(cluster.brokers)} brokers serve"))
    print(f"  bootstrap  {cluster.bootstrap}")
    print(f"  data       {cluster.directory}")
    print(f"  profile    {PROFILE}")
    print("in another terminal:")
    if not is_found_by_itself(cluster):
        print(f"  export STREAMQ_BOOTSTRAP={cluster.bootstrap}")
    print("  streamq topic create orders --partitions 6")
    print("  echo hello | streamq produce orders")
    print("  streamq tail orders -f")
    print("Ctrl-C stops the brokers; the data stays", flush=True)
