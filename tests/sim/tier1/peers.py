"""The other brokers as one simulated broker sees them: a connection to each, kept up, and who is alive, as `broker.peers`.

Nobody sends heartbeats here: whether a broker is heard follows from links, pauses and connections, and only changes of that are events.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from streamq.metadata.failure_detector import FailureDetector
from streamq.model.batches import Batch
from streamq.model.errors import UnavailableError
from streamq.model.ids import Member, PartitionId
from streamq.model.messages import Failure, Message, Store, StoreRun
from tests.sim.tier1.endpoint import Wait
from tests.sim.tier1.network import Connection

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["Peer", "Peers"]

RECONNECT_FIRST_S = 0.02
RECONNECT_MAX_S = 0.5
HANDSHAKE_TIMEOUT_S = 1.0
LEAVE_SILENT_S = 1.0
"""A connection to a broker that has been silent for so long is given up."""

Answered = Callable[[Message, Sequence[Batch]], None]


class Peer:
    def __init__(self, broker: str, now: float) -> None:
        self.broker = broker
        self.connection: Connection | None = None
        self.detector = FailureDetector(now=now)
        self.is_heard = False
        self.is_dead = False
        self.delay_s = RECONNECT_FIRST_S
        self.dials = 0
        self._runs: dict[PartitionId, tuple[int, int, list[Batch]]] = {}

    @property
    def member(self) -> Member | None:
        """Who answers on the present connection (P-10)."""
        return self.connection.member if self.connection is not None else None

    def store(self, partition: PartitionId, epoch: int, high_watermark: int, batches: Sequence[Batch]) -> None:
        """Adds to the next `Store`; batches of one partition keep their order."""
        run = self._runs.get(partition)
        if run is not None and run[0] != epoch:
            self.flush()
            run = None
        if run is None:
            self._runs[partition] = (epoch, high_watermark, list(batches))
        else:
            run[2].extend(batches)
            self._runs[partition] = (epoch, max(high_watermark, run[1]), run[2])
        assert self.connection is not None
        process = self.connection.here
        process.stores_to.append(self)  # type: ignore[attr-defined]
        process.wants_flush = True

    def flush(self) -> None:
        runs, self._runs = self._runs, {}
        if self.connection is None or not runs:
            return
        frame = tuple(StoreRun(partition, epoch, mark, len(batches)) for partition, (epoch, mark, batches) in runs.items())
        self.connection.send(Store(frame), [batch for _, _, batches in runs.values() for batch in batches])


class Peers:
    def __init__(self, process: "Process", brokers: Sequence[str]) -> None:
        self.process = process
        self.world = process.world
        self._peers = {broker: Peer(broker, self.world.now) for broker in brokers if broker != process.name}

    def __iter__(self) -> Any:
        return iter(self._peers.values())

    def get(self, broker: str) -> Peer | None:
        return self._peers.get(broker)

    def start(self) -> None:
        for peer in self._peers.values():
            self.process.after(0.0, self._dial, peer, peer.dials)
            self._await_silence(peer)

    # --- requests

    def request(self, broker: str, message: Message, batches: Sequence[Batch], timeout_s: float, answered: Answered) -> None:
        peer = self._peers.get(broker)
        if peer is None or peer.connection is None:
            self.process.after(0.0, answered, _NOT_CONNECTED, ())
        else:
            peer.connection.request(message, batches, timeout_s, answered)

    def ask(self, broker: str, message: Message, timeout_s: float = 1.0, batches: Sequence[Batch] = ()) -> Wait:
        """Resumes with (answer or `Failure`, batches)."""
        return lambda resume: self.request(broker, message, batches, timeout_s, lambda answer, given: resume((answer, given)))

    def ask_whole(self, broker: str, message: Message, timeout_s: float) -> Generator[Wait, Any, Message]:
        """The answer; raises UnavailableError for a `Failure`."""
        answer, _ = yield self.ask(broker, message, timeout_s)
        if isinstance(answer, Failure):
            raise UnavailableError(f"{broker}: {answer.message}", code=answer.code)
        return answer

    # --- connections

    def _dial(self, peer: Peer, dial: int) -> None:
        if peer.connection is not None or dial != peer.dials:
            return
        world, name = self.world, self.process.name
        out, back = world.network.link(name, peer.broker), world.network.link(peer.broker, name)
        there = world.processes.get(peer.broker)
        if not out.is_up or not back.is_up or (there is not None and there.is_paused):
            self._dial_again(peer, HANDSHAKE_TIMEOUT_S)
        elif there is None:
            if world.refuses(peer.broker):
                peer.detector.on_probe_refused(world.now)
                self._check(peer)
                self._dial_again(peer, 0.0)
            else:
                self._dial_again(peer, HANDSHAKE_TIMEOUT_S)
        else:
            self.process.after(world.network.delay(out) + world.network.delay(back), self._connected, peer, dial, there)

    def _dial_again(self, peer: Peer, after_s: float) -> None:
        peer.dials += 1
        self.process.after(after_s + peer.delay_s, self._dial, peer, peer.dials)
        peer.delay_s = min(2 * peer.delay_s, RECONNECT_MAX_S)

    def _connected(self, peer: Peer, dial: int, there: "Process") -> None:
        if peer.connection is not None or dial != peer.dials:
            return
        if not there.is_alive or there.is_paused:
            self._dial_again(peer, 0.0)
            return
        peer.delay_s = RECONNECT_FIRST_S
        peer.connection = connection = Connection(self.world, self.process, there, there.me)
        there.accepted(connection)
        self.hearing(peer.broker)
        there.peers.hearing(self.process.name)
        self.process.peer_connected(peer)

    def lost(self, connection: Connection) -> None:
        """A connection dialled here has ended: probe."""
        peer = self._peers.get(connection.there.name)
        if peer is None or peer.connection is not connection:
            return
        peer.connection = None
        peer.detector.on_reset(self.world.now)
        peer.dials += 1
        self.process.after(0.0, self._dial, peer, peer.dials)
        self.hearing(peer.broker)

    def incoming_lost(self, broker: str) -> None:
        """A connection that it had dialled broke: probe."""
        peer = self._peers.get(broker)
        if peer is not None and peer.connection is None:
            peer.dials += 1
            self.process.after(0.0, self._dial, peer, peer.dials)
        self.hearing(broker)

    # --- who is alive

    def is_alive(self, broker: str) -> bool:
        """As far as this broker can tell; itself always."""
        peer = self._peers.get(broker)
        return broker == self.process.name or (peer is not None and not peer.is_dead)

    def is_connected(self, broker: str) -> bool:
        peer = self._peers.get(broker)
        return peer is not None and peer.connection is not None and peer.connection.is_open

    def hearing(self, broker: str) -> None:
        """Whether that broker is heard may have changed."""
        peer = self._peers.get(broker)
        if peer is None:
            return
        now = self.world.now
        is_heard = self.world.hears(self.process, broker)
        if is_heard:
            peer.detector.on_heard(now)
            peer.is_dead = False
        elif peer.is_heard:
            peer.detector.on_heard(now)
            peer.detector.on_tick(now)
            self._await_silence(peer)
        peer.is_heard = is_heard

    def _await_silence(self, peer: Peer) -> None:
        self.process.after(max(0.001, peer.detector.next_deadline - self.world.now), self._tick, peer)

    def _tick(self, peer: Peer) -> None:
        if peer.is_heard or peer.is_dead:
            return
        self._check(peer)
        if not peer.is_dead:
            self._await_silence(peer)

    def _check(self, peer: Peer) -> None:
        if not peer.is_dead and peer.detector.suspect(self.world.now):
            peer.is_dead = True
            self.world.counters["suspicions"] += 1
            if peer.connection is not None:
                self.process.after(LEAVE_SILENT_S - 0.5, self._leave_silent, peer, peer.connection)
            self.process.suspected(peer.broker)

    def _leave_silent(self, peer: Peer, connection: Connection) -> None:
        """After a partition TCP may wait for minutes before it tries again; a new connection is there as soon as there can be one."""
        if peer.is_dead and peer.connection is connection:
            connection.close()


_NOT_CONNECTED = Failure(code="unavailable", message="not connected")
