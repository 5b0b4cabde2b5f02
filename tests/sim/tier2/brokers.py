"""Brokers of the simulation: the real `run_broker` on a simulated disk, network and clock, and everything that can befall its process.

A `Broker` is a machine with its disk; a `Process` is one start of the real code on it. When a process dies nothing that its last steps
still do has an effect: its disk and its network are gone for it first.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from streamq.broker.app import Stopping, run_broker
from streamq.broker.config import BrokerConfig
from streamq.metadata.acceptor import Cell
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.ids import Ballot
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import StorageFailedError
from streamq.wire.codec import decode_value
from tests.sim.disk import HostCrashError, SimulatedDisk
from tests.sim.private_trio import PROCESS, Stoppable
from tests.sim.simulated_storage import open_storage
from tests.sim.tier2.network import HostNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.tier2.cluster import SimulatedCluster

__all__ = ["PORT", "Broker", "Process"]

PORT: Final = 7700
EPOCH_MS: Final = 1_700_000_000_000
ACCEPTOR_PREFIX: Final = "acceptor/"
EXPECTED: Final = (StorageFailedError, HostCrashError)
"""What may end a broker whose disk fails; before it has opened its directory, whatever the system says."""


class Clock:
    """The wall clock of one machine; it may jump."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self.jump_ms = 0

    def now_ms(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000) + self.jump_ms

    def random(self) -> float:
        return self._random.random()

    def token(self) -> bytes:
        return self._random.randbytes(16)


class Process(Stoppable):
    """One start of a broker. `ended` is set once nothing of it runs any more."""

    def __init__(self, network: HostNetwork) -> None:
        super().__init__()
        self.network = network
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.serving = trio.Event()
        self.stopping = Stopping()
        self.is_dead = False
        self.storage: DiskStorage | None = None


WATCHED: Final = tuple(ACCEPTOR_PREFIX + kind for kind in ("partition/", "group/", "producer/", "txn/"))
"""Registers whose every vote an observer sees."""


class Broker:
    """One machine. `process` is None while nothing runs there; `disk` outlives it."""

    def __init__(self, cluster: "SimulatedCluster", name: str, disk: SimulatedDisk, rng: random.Random) -> None:
        self.cluster = cluster
        self.name = name
        self.disk = disk
        self.clock = Clock(rng)
        self.process: Process | None = None
        self.starts = 0
        self.refused = ""
        """Why the last start was refused for good, by the broker itself."""
        self.is_gone = False
        """The machine never comes back, whatever fault was to end by a start."""

    @property
    def is_up(self) -> bool:
        return self.process is not None

    @property
    def is_serving(self) -> bool:
        return self.process is not None and self.process.serving.is_set()

    @property
    def storage(self) -> DiskStorage:
        assert self.process is not None
        assert self.process.storage is not None
        return self.process.storage

    # --- a process

    def start(self) -> None:
        if self.process is None and not self.is_gone:
            self.starts += 1
            self.refused = ""
            self.cluster.network.restore(self.name)
            self.process = Process(self.cluster.network.of(self.name))
            self.cluster.note(self.name, f"starts ({self.starts})")
            self.cluster.nursery.start_soon(self._run, self.process, name=self.name)

    async def _run(self, process: Process) -> None:
        PROCESS.set(process)
        cause = ""
        try:
            with process.scope:
                process.storage = storage = open_storage(self.disk)
                self._observe(storage)
                self._count_losses(storage)
                config = BrokerConfig(broker=self.name, data_directory=f"/{self.name}", host=self.name, port=PORT, **self.cluster.settings)
                await run_broker(
                    config,
                    storage,
                    process.network,
                    self.clock,
                    stop=process.stopping,
                    on_serving=process.serving.set,
                    metrics=self.cluster.metrics,
                )
            cause = "stopped"
            if not process.is_dead and not process.stopping.event.is_set():
                self.cluster.fail(f"{self.name} ended, and nobody had asked it to")
        except (Exception, BaseExceptionGroup) as error:
            cause = self._judge(process, error)
        finally:
            process.ended.set()
            if not process.is_dead:
                (self.disk.crash if self.disk.is_down else self.disk.kill)()
                self._bury(process, cause)

    def _judge(self, process: Process, error: BaseException) -> str:
        """A process may die of its disk, or refuse to serve; anything else is a bug."""
        leaves = list(_leaves(error))
        if any(isinstance(leaf, trio.Cancelled) for leaf in leaves):
            raise error
        if process.is_dead:
            return "died"
        if any(isinstance(leaf, HostCrashError) for leaf in leaves):
            return "power failed in the middle of a disk operation"
        if all(isinstance(leaf, EXPECTED) or (isinstance(leaf, OSError) and process.storage is None) for leaf in leaves):
            return f"stopped: {leaves[0]}"
        refusals = [leaf for leaf in leaves if isinstance(leaf, StreamqError)]
        if len(refusals) == len(leaves):
            self.refused = f"{refusals[0].code}: {refusals[0]}"
            if self.name not in self.cluster.damaged:
                self.cluster.fail(f"{self.name} lost nothing and refuses to serve: {self.refused}")
            return f"refused to serve: {self.refused}"
        self.cluster.fail(f"{self.name} ended with {leaves!r}", error)
        return f"crashed: {leaves!r}"

    def _bury(self, process: Process, cause: str) -> None:
        """The machine notices that its process is gone: connections are reset, unless the power is gone with it."""
        if process.is_dead:
            return
        process.is_dead = True
        process.network.is_dead = True
        self.process = None if self.process is process else self.process
        self.cluster.note(self.name, cause or "ended")
        self.cluster.network.close_listeners(self.name)
        self.cluster.network.reset(self.name)
        process.go_on()

    # --- what befalls it

    def kill(self) -> None:
        """SIGKILL: what was written stays, the operating system closes the connections."""
        self._end("killed", lambda: self.disk.kill())

    def cut_power(self) -> None:
        """What was not synced may be gone, torn, or there; nobody is told that the machine is away."""
        self.cluster.network.silence(self.name)
        self._end("loses power", lambda: self.disk.crash())

    def _end(self, why: str, to_disk: Callable[[], None]) -> None:
        process = self.process
        if process is not None:
            to_disk()
            self._bury(process, why)
            process.scope.cancel()

    async def stop(self) -> None:
        """Gracefully."""
        process = self.process
        if process is not None and not process.is_stopped:
            self.cluster.note(self.name, "is asked to stop")
            process.stopping()
            await process.ended.wait()

    # --- watching what it makes durable

    def _count_losses(self, storage: DiskStorage) -> None:
        for lost in storage.lost:
            self.cluster.counters[f"journal: {type(lost).__name__}"] += 1
            self.cluster.note(self.name, f"its journal has lost {lost}")
            if self.name not in self.cluster.damaged:
                self.cluster.fail(f"{self.name}: its disk lost nothing, and its journal says {lost}")

    def _observe(self, storage: DiskStorage) -> None:
        """Tells the cluster of each acceptance of a register once it is durable: what a majority accepted by one ballot was chosen."""
        append = storage.append
        voted = self.cluster.voted

        def watched(
            batches: "Sequence[Batch]", states: "Sequence[tuple[str, bytes | None]]", token: Callable[[], None], *, sync: bool = True
        ) -> None:
            votes: list[tuple[str, Ballot, bytes]] = []
            for key, value in states:
                if value is not None and key.startswith(WATCHED):
                    cell = decode_value(Cell, value)
                    if cell.accepted is not None and cell.value is not None:
                        votes.append((key.removeprefix(ACCEPTOR_PREFIX), cell.accepted, cell.value))

            def durable() -> None:
                for vote in votes:
                    voted(self.name, *vote)
                token()

            append(batches, states, durable if votes else token, sync=sync)

        storage.append = watched  # type: ignore[method-assign, assignment]


def _leaves(error: BaseException) -> "list[BaseException]":
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
