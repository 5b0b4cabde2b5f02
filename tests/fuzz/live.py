"""A live cluster inside the process to be fuzzed: real brokers on a virtual clock, over a network and disks in memory.

Time costs nothing, so timeouts, retries and what they log all happen; a broker that ends, logs without bound or stands still is an error.
"""

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import Final

import pytest
import trio

from streamq.model.batches import Batch
from streamq.model.messages import CreateTopic, Metadata, MetadataView, ReadVoters, VotersView
from streamq.model.registers import broker_key, partition_key, topic_key
from streamq.net.memory_network import MemoryNetwork
from streamq.storage.interface import Identity
from streamq.storage.journal_format import ENTRY_BODY_BYTES_MAX, KEY_BYTES_MAX, StateEntry, encode_row
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.in_process import ClusterInProcess, cluster
from tests.broker.wire_client import make_batch, wire_client
from tests.fuzz.watchdog import ends_within
from tests.fuzz.wild import Pool
from tests.sim.private_trio import run_seeded

__all__ = ["PORT", "TOPIC", "Live", "LogMeter", "live_cluster", "run_virtual"]

PORT: Final = 7700
TOPIC: Final = "t"
PARTITIONS: Final = 2
RECORDS: Final = 6
ALIVE_S: Final = 5.0
LINE_CHARS_MAX: Final = 8_192


class StrictStorage(MemoryStorage):
    """Refuses what the journal of a real disk would refuse, which ends a real broker."""

    def append(self, batches: "list[Batch]", states: "list[tuple[str, bytes | None]]", token: object, *, sync: bool = True) -> None:  # type: ignore[override]
        for key, value in states:
            row, _, length = encode_row(StateEntry(key, value))
            assert len(row) <= KEY_BYTES_MAX, f"a state's key of {len(row)} bytes does not fit into the journal"
            assert length <= ENTRY_BODY_BYTES_MAX, f"a state of {length} bytes does not fit into the journal"
        super().append(batches, states, token, sync=sync)


class SeededClock:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1000)

    def random(self) -> float:
        return self._rng.random()

    def token(self) -> bytes:
        return self._rng.randbytes(16)


class LogMeter(logging.Handler):
    """Counts what brokers log, as the process of a real broker would."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines = 0
        self.longest = ""
        self.most: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.lines += 1
        self.most[str(record.msg)] = self.most.get(str(record.msg), 0) + 1
        if len(text) > len(self.longest):
            self.longest = text

    def check(self, lines_max: float) -> None:
        assert self.lines <= lines_max, f"{self.lines} lines were logged, more than {lines_max:g}: {self.most}"
        assert len(self.longest) <= LINE_CHARS_MAX, f"a line of {len(self.longest)} characters was logged: {self.longest[:300]}"


@contextmanager
def log_meter() -> Iterator[LogMeter]:
    logger, meter = logging.getLogger("streamq"), LogMeter()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(meter)
    try:
        yield meter
    finally:
        logger.removeHandler(meter)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class Live:
    """The cluster, and what a wild sender should know of it."""

    def __init__(self, running: ClusterInProcess, network: MemoryNetwork, meter: LogMeter) -> None:
        self.running = running
        self.network = network
        self.meter = meter
        self.partitions: list[bytes] = []
        self.pool = Pool()
        self.began = trio.current_time()

    def identity(self, broker: str) -> Identity:
        return self.running.brokers[broker].storage.identity

    async def populate(self) -> None:
        """A topic with some records, so that there is something to be wrong about."""
        async with wire_client(("b1", PORT), self.network.of("honest")) as client:
            await client.ask(CreateTopic(TOPIC, PARTITIONS, 0, 0, 0, "fsync"))
            view = await client.ask(Metadata((TOPIC,)))
            assert isinstance(view, MetadataView)
        for found in view.topics[0].partitions:
            self.partitions.append(found.id)
            async with wire_client((found.sequencer, PORT), self.network.of("honest")) as client:
                await client.produce(*(make_batch(found.id, [b"v"] * 2) for _ in range(RECORDS // 2)))
        brokers = list(self.running.brokers)
        keys = [partition_key(TOPIC, i) for i in range(PARTITIONS)] + [broker_key(b) for b in brokers]
        self.pool = Pool(
            numbers=[0, 1, 2, 3, RECORDS, PORT],
            texts=[*brokers, TOPIC, *keys, topic_key(TOPIC), "voters/2", "cluster"],
            identities=[*self.partitions, *(self.identity(b).incarnation for b in brokers), self.identity("b1").cluster],
        )

    async def check_alive(self) -> None:
        """Every broker that should run does, and other connections to it work."""
        for name, broker in self.running.brokers.items():
            if broker.is_running:
                with trio.fail_after(ALIVE_S):
                    async with wire_client((name, PORT), self.network.of("honest"), timeout_s=ALIVE_S) as client:
                        assert isinstance(await client.ask(ReadVoters(), ALIVE_S), VotersView)


@asynccontextmanager
async def live_cluster(rng: random.Random, *, brokers: int = 3) -> AsyncIterator[Live]:
    """A populated cluster; ends with an error when a broker ended by itself."""
    network = MemoryNetwork()
    networks = [network.of(f"b{i + 1}") for i in range(brokers)]
    with pytest.MonkeyPatch.context() as patch, log_meter() as meter:
        patch.setattr(import_module("streamq.testing.in_process"), "MemoryStorage", StrictStorage)
        async with cluster(brokers, networks=networks, clock=SeededClock(random.Random(rng.random()))) as running:
            live = Live(running, network, meter)
            await live.populate()
            yield live


def run_virtual(main: Callable[[], Awaitable[None]], *, seed: int, limit_s: float = 60.0) -> None:
    """Runs `main` under trio on a virtual clock; raises Hung when it takes more real time than that."""
    with ends_within(limit_s):
        run_seeded(main, seed=seed)
