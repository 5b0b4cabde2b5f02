"""What the parts of one broker share: who it is, its storage, registers and peers, its partitions, and what waits for the next flush."""

import logging
import random
import secrets
import time
from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, Final, Protocol

import trio

from streamq.broker.complaints import Complaints
from streamq.broker.config import BrokerConfig
from streamq.broker.metrics import BrokerMetrics
from streamq.broker.peers import Peer, Peers
from streamq.broker.registers import Registers
from streamq.broker.session import Session
from streamq.log.table_copy import TablesGiven
from streamq.model.ids import Member, PartitionId
from streamq.model.limits import IN_FLIGHT_BYTES_MAX
from streamq.model.registers import PartitionRegister
from streamq.storage.interface import Identity, Storage

if TYPE_CHECKING:
    from streamq.broker.lookout import Lookout
    from streamq.broker.partition import Partition
    from streamq.broker.sequencing import Sequencing

__all__ = ["FORGOTTEN_KEY", "Clock", "Node", "SystemClock"]

log = logging.getLogger(__name__)

US_PER_S: Final = 1_000_000
FORGOTTEN_KEY: Final = "forgotten"
"""There while this broker may have lost partitions whose very ids it does not know any more."""


class Clock(Protocol):
    """Wall time and randomness, behind an interface so that a simulation owns both."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""

    def random(self) -> float:
        """In [0, 1)."""

    def token(self) -> bytes:
        """16 random bytes, never the same twice."""


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def random(self) -> float:
        return random.random()

    def token(self) -> bytes:
        return secrets.token_bytes(16)


class TakeOverHere(Protocol):
    def __call__(self, topic: str, index: int, epoch: int, why: str) -> Awaitable[PartitionRegister]:
        """Takes the partition over on this broker if `epoch` is still open; the register afterwards, whoever won. Raises StreamqError."""


class Node:
    """One broker. Everything here belongs to its event loop; `registers`, `peers` and `sessions` are set by `app` before anything runs."""

    registers: Registers
    peers: Peers
    sessions: Collection[Session]
    """Of connections that others have dialled."""
    take_over_here: "TakeOverHere"

    def __init__(
        self, config: BrokerConfig, storage: Storage, clock: Clock, nursery: trio.Nursery, metrics: BrokerMetrics | None = None
    ) -> None:
        self.config = config
        self.storage = storage
        self.clock = clock
        self.nursery = nursery
        self.partitions: dict[PartitionId, Partition] = {}
        self.dropped: set[PartitionId] = set()
        """Deleted since this start (ids never come again): whoever missed it must not bring them back."""
        self.changed: dict[PartitionId, None] = {}
        """Of which something changed that who looks after partitions may have to act on; stores that go as they should change nothing."""
        self.loaded: dict[PartitionId, None] = {}
        """To which batches were assigned here since `Stalls` looked last."""
        self.lookouts: list[Lookout] = []
        self.metrics = metrics or BrokerMetrics()
        self.began = trio.current_time()
        self.now_us = 0
        """When the step under way began, as far as metrics care: see `tick`."""
        self.alarms = Complaints(log, logging.ERROR)
        self.state = "starting"
        self.has_forgotten = False
        """P-29: in limbo for every partition that is not known here, until the registers were read."""
        self.tables = TablesGiven()
        self.restoring = trio.Lock()
        """Held by whoever keeps a whole damaged range in memory: up to one log file."""
        self.in_flight_bytes = 0
        self._room = trio.Event()
        # Ordered, as sets of objects are not: the same run, made again, does the same in the same order.
        self._sessions: dict[Session, None] = {}
        self._peers_touched: dict[Peer, None] = {}
        self._sequencings: dict[Sequencing, None] = {}
        self._untold: dict[Partition, None] = {}
        self._tell = trio.Event()

    @property
    def identity(self) -> Identity:
        return self.storage.identity

    @property
    def broker(self) -> str:
        return self.storage.identity.broker

    @property
    def me(self) -> Member:
        identity = self.storage.identity
        return Member(identity.broker, identity.incarnation)

    def by_place(self, topic: str, index: int) -> "Partition | None":
        """The partition of that name that lives here and was not deleted."""
        return next((p for p in self.partitions.values() if p.replica.state.topic == topic and p.replica.state.index == index), None)

    def tick(self) -> None:
        """At the beginning of a step that takes batches or acks them: one reading of the clock for all of them."""
        self.now_us = int(trio.current_time() * US_PER_S)

    # --- gathering and flushing

    def touch(self, session: Session) -> None:
        """This session has outcomes to send at the next flush."""
        self._sessions[session] = None

    def touch_peer(self, peer: Peer) -> None:
        self._peers_touched[peer] = None

    def touch_sequencing(self, sequencing: "Sequencing") -> None:
        """It has assigned batches, to be stored at the next flush."""
        self._sequencings[sequencing] = None

    def flush(self) -> None:
        """Ends every synchronous step that may have gathered something: after a receive, after a group commit."""
        while self._sequencings:
            self._sequencings.popitem()[0].store_assigned()
        while self._peers_touched:
            self._peers_touched.popitem()[0].flush()
        while self._sessions:
            session = self._sessions.popitem()[0]
            self.metrics.answered(session.acks, session.nacks)
            session.flush()

    def watermark_moved(self, partition: "Partition") -> None:
        """To be told to the other replicas, unless a store carries it first (4.5)."""
        if not self._untold:
            self._tell.set()
        self._untold[partition] = None

    async def tell_watermarks(self, interval_s: float) -> None:
        """Tells watermarks that nothing else has carried for `interval_s`, until cancelled."""
        while True:
            await self._tell.wait()
            await trio.sleep(interval_s)
            self._tell = trio.Event()
            untold, self._untold = self._untold, {}
            for partition in untold:
                if partition.sequencing is not None:
                    partition.sequencing.tell_watermark()
            self.flush()

    # --- back-pressure

    def took(self, size: int) -> None:
        """Bytes of a batch that were taken from a producer and are not answered yet."""
        self.in_flight_bytes += size

    def answered(self, size: int) -> None:
        self.in_flight_bytes -= size
        if self.in_flight_bytes < IN_FLIGHT_BYTES_MAX:
            self._room.set()

    def gate(self) -> trio.Event | None:
        """What a client's reader waits for while too much is in flight, or waits for the disk: acks need W copies, and not this one."""
        if self.in_flight_bytes < IN_FLIGHT_BYTES_MAX:
            return self.storage.backlog()
        if self._room.is_set():
            self._room = trio.Event()
        return self._room

    # --- durable

    def on_durable(self, tokens: list[object]) -> None:
        """One call for each group commit; every token is a callable."""
        self.tick()
        for token in tokens:
            assert callable(token)
            token()
        self.flush()
