"""`streamq demo`: made-up log lines at a steady rate, so that there is something to look at. Without a cluster it brings one of its own."""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio

from streamq.cli.admin import Admin, connect_first
from streamq.cli.local_cluster import LocalCluster, free_ports
from streamq.cli.output import EXIT_INTERRUPTED, count, duration, json_line, note
from streamq.cli.running import run_until_interrupted
from streamq.cli.settings import Bootstrap, bootstrap_of, find_bootstrap
from streamq.cli.topic import topic_request
from streamq.model.errors import AlreadyExistsError, UnavailableError
from streamq.model.messages import TopicCreated
from streamq_producer import Delivery, Producer, Receipt

__all__ = ["made_up_lines", "run"]

PARTITIONS: Final = 3
BROKERS: Final = 3
OWN: Final = "the demo's own cluster"
SHOW_INTERVAL_S: Final = 1.0
METHODS: Final = ("GET", "GET", "GET", "POST", "PUT", "DELETE")
PATHS: Final = ("/", "/cart", "/cart/items", "/orders", "/orders/{}", "/users/{}", "/search?q={}", "/healthz")
STATUSES: Final = (200, 200, 200, 200, 201, 204, 301, 404, 500)


def made_up_lines(seed: int) -> Iterator[tuple[bytes, bytes]]:
    """User and line, for ever; the same seed makes the same."""
    draw = random.Random(seed)
    while True:
        user = f"u{draw.randrange(1000)}"
        row = {
            "user": user,
            "method": draw.choice(METHODS),
            "path": draw.choice(PATHS).format(draw.randrange(10_000)),
            "status": draw.choice(STATUSES),
            "ms": round(draw.expovariate(0.05), 1),
        }
        yield user.encode(), json.dumps(row, separators=(",", ":")).encode()


def run(options: argparse.Namespace) -> int:
    with _some_cluster(options) as bootstrap:
        with contextlib.suppress(AlreadyExistsError), Admin(bootstrap) as admin:
            request = topic_request(options.topic, partitions=PARTITIONS, replicas=None, write=None, read=None)
            admin.ask(request, TopicCreated, is_change=True)
        demo = _Demo(str(bootstrap), options)
        was_interrupted = run_until_interrupted(demo.run)
        demo.finish()
        if bootstrap.origin != OWN and options.output != "json":
            print(f"look at them: streamq tail {options.topic}")
    return EXIT_INTERRUPTED if was_interrupted else 0


@contextlib.contextmanager
def _some_cluster(options: argparse.Namespace) -> Iterator[Bootstrap]:
    """The cluster that is there; if none was named and none answers, one in a temporary directory."""
    bootstrap = find_bootstrap(flag=options.bootstrap, profile=options.profile)
    try:
        connect_first(bootstrap, timeout_s=2.0).close()
    except UnavailableError:
        if options.bootstrap or options.profile or bootstrap.origin == "STREAMQ_BOOTSTRAP":
            raise
    else:
        yield bootstrap
        return
    directory = Path(tempfile.mkdtemp(prefix="streamq-demo-"))
    note(f"no cluster answers at {bootstrap}; starting {BROKERS} brokers in {directory}")
    cluster = LocalCluster.open_or_found(directory / "cluster", brokers=BROKERS, port=free_ports(BROKERS))
    try:
        cluster.start()
        yield bootstrap_of(cluster.bootstrap, origin=OWN)
    finally:
        cluster.kill([])  # its data goes away with it
        shutil.rmtree(directory, ignore_errors=True)


class _Demo:
    def __init__(self, bootstrap: str, options: argparse.Namespace) -> None:
        self._bootstrap = bootstrap
        self._topic: str = options.topic
        self._rate: float = options.rate
        self._left: int | None = options.count or None
        self._lines = made_up_lines(options.seed)
        self._is_json = options.output == "json"
        self._latencies: list[float] = []
        self._acked = 0
        self._gap_s = 0.0
        self._begun = time.monotonic()

    async def run(self) -> None:
        async with Producer(self._bootstrap) as producer, anyio.create_task_group() as tasks:
            tasks.start_soon(self._show)
            await self._produce(producer)
            await producer.flush()
            self._gap_s = producer.stats.longest_gap_s
            tasks.cancel_scope.cancel()

    async def _produce(self, producer: Producer) -> None:
        sent = 0
        async with anyio.create_task_group() as tasks:
            while self._left is None or sent < self._left:
                due = self._begun + sent / self._rate
                if (wait := due - time.monotonic()) > 0:
                    await anyio.sleep(wait)
                key, line = next(self._lines)
                delivery = await producer.enqueue(self._topic, line, key=key)
                tasks.start_soon(self._watch, delivery, time.monotonic())
                sent += 1

    async def _watch(self, delivery: Delivery, sent_at: float) -> None:
        if isinstance(await delivery.outcome(), Receipt):
            self._acked += 1
            self._latencies.append(time.monotonic() - sent_at)
            del self._latencies[:-10_000]

    async def _show(self) -> None:
        while not self._is_json:
            await anyio.sleep(SHOW_INTERVAL_S)
            note(self._line())

    def _line(self) -> str:
        if not self._latencies:
            return "no acks yet"
        ordered = sorted(self._latencies)
        middle, worst = ordered[len(ordered) // 2], ordered[-1]
        return f"{count(self._acked)} records acked, median {middle * 1000:.1f} ms, slowest {duration(worst)}"

    def finish(self) -> None:
        took = time.monotonic() - self._begun
        if self._is_json:
            print(json_line({"acked": self._acked, "seconds": round(took, 3), "longest_gap_s": round(self._gap_s, 6)}))
            return
        print(self._line(), file=sys.stdout)
