"""The other brokers: one connection to each, kept up; who is alive; and what waits to be sent to them.

Each broker dials each other one. Requests and stores go over the connection that the sender dialled, answers come back on it. Any frame
from a broker, on either connection, says that it is alive. A connection that breaks is probed at once by dialling again: a refusal means
that the process is gone (P-20); silence means so after `silence_timeout_s`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from streamq.broker.config import BrokerConfig
from streamq.metadata.failure_detector import FailureDetector
from streamq.model.batches import Batch
from streamq.model.errors import ProtocolError, StreamqError, UnavailableError
from streamq.model.ids import Incarnation, Member, PartitionId
from streamq.model.limits import PEER_QUEUE_BYTES_MAX
from streamq.model.messages import AnyMessage, Heartbeat, Hello, Message, Store, StoreRun
from streamq.net.channel import Channel
from streamq.net.handshake import FEATURES, greet
from streamq.net.network import Network, RefusedConnectionError
from streamq.net.poller import Poller
from streamq.storage.interface import Identity
from streamq.wire.framing import PROTOCOL_VERSIONS, Frame

__all__ = ["Peer", "Peers"]

log = logging.getLogger(__name__)

RECONNECT_FIRST_S: Final = 0.02
RECONNECT_MAX_S: Final = 0.5
SILENCES_BEFORE_REDIAL: Final = 2


class Peer:
    """One other broker. `channel` is None while there is no connection; `incarnation` is what it said on the last one."""

    def __init__(self, broker: str, host: str, port: int) -> None:
        self.broker = broker
        self.host = host
        self.port = port
        self.channel: Channel | None = None
        self.incarnation: Incarnation | None = None
        self.heard_at = 0.0
        self.dial_now = trio.Event()
        self._runs: dict[PartitionId, tuple[int, int, list[Batch]]] = {}

    @property
    def member(self) -> Member | None:
        """Who answers on the present connection (P-10)."""
        return Member(self.broker, self.incarnation) if self.channel is not None and self.incarnation is not None else None

    @property
    def has_room(self) -> bool:
        """Whether stores may be queued; past the bound the replicas there are fed from storage, at their own pace."""
        return self.channel is not None and self.channel.queued_bytes < PEER_QUEUE_BYTES_MAX

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
            if high_watermark > run[1]:
                self._runs[partition] = (epoch, high_watermark, run[2])

    def flush(self) -> None:
        """One frame (or a few, by size) for everything that `store` gathered."""
        runs, self._runs = self._runs, {}
        if self.channel is None:
            return
        frame_runs: list[StoreRun] = []
        payload: list[bytes] = []
        size = 0
        for partition, (epoch, high_watermark, batches) in runs.items():
            count = 0
            for batch in batches:
                if size + batch.size > STORE_BYTES_MAX and size:
                    if count:
                        frame_runs.append(StoreRun(partition, epoch, high_watermark, count))
                    self.channel.gather(Store(tuple(frame_runs)), payload=payload)
                    frame_runs, payload, size, count = [], [], 0, 0
                payload += (batch.head, batch.payload)
                size += batch.size
                count += 1
            if count or not batches:
                frame_runs.append(StoreRun(partition, epoch, high_watermark, count))
        if frame_runs:
            self.channel.gather(Store(tuple(frame_runs)), payload=payload)
        self.channel.push()


STORE_BYTES_MAX: Final = 2 * 1024 * 1024


class Peers:
    """All other brokers. Callbacks: `deliver(peer, frame)` for one-way frames, `connected(peer)`, `lost(peer)`, `suspected(broker)`."""

    def __init__(
        self,
        config: BrokerConfig,
        identity: Identity,
        network: Network,
        *,
        software: str,
        deliver: Callable[[Peer, Frame], None],
        after_chunk: Callable[[], None],
        connected: Callable[[Peer], None],
        suspected: Callable[[str], None],
        poller: Poller,
    ) -> None:
        self._config = config
        self._identity = identity
        self._network = network
        self._software = software
        self._deliver = deliver
        self._after_chunk = after_chunk
        self._connected = connected
        self._suspected = suspected
        self._poller = poller
        self._peers: dict[str, Peer] = {}
        self._detectors: dict[str, FailureDetector] = {}
        self._dead: dict[str, float] = {}
        """Since when each of those that do not answer has not been heard."""
        self._nursery: trio.Nursery | None = None

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, broker: str) -> Peer | None:
        return self._peers.get(broker)

    def learn(self, broker: str, host: str, port: int) -> None:
        """Where a broker is now; a new one is dialled from now on, a moved one at its new address."""
        if broker == self._identity.broker:
            return
        peer = self._peers.get(broker)
        if peer is None:
            peer = self._peers[broker] = Peer(broker, host, port)
            self._detectors[broker] = FailureDetector(timeout_s=self._config.silence_timeout_s, now=trio.current_time())
            if self._nursery is not None:
                self._start(self._nursery, peer)
        elif (peer.host, peer.port) != (host, port):
            peer.host, peer.port = host, port
            if peer.channel is not None:
                peer.channel.close(f"{broker} moved to {host}:{port}")

    def is_alive(self, broker: str) -> bool:
        """As far as this broker can tell; itself always."""
        return broker == self._identity.broker or (broker in self._peers and broker not in self._dead)

    def dead_since(self, broker: str) -> float | None:
        """None while it is alive."""
        return self._dead.get(broker)

    def heard(self, broker: str) -> None:
        """A frame came from it, on whichever connection."""
        detector = self._detectors.get(broker)
        if detector is not None:
            self._peers[broker].heard_at = trio.current_time()
            detector.on_heard(trio.current_time())
            self._dead.pop(broker, None)

    def heard_incoming(self, broker: str) -> None:
        """A frame came on the connection that it dialled. If it was taken for dead, the own connection to it is older than that silence,
        and may be stuck: what TCP sends again after a cut may be minutes away, and until then nothing of ours would reach it."""
        peer = self._peers.get(broker)
        if peer is not None and peer.channel is not None and broker in self._dead:
            peer.channel.close(f"{broker} is back after a silence")
        self.heard(broker)

    def unread(self, broker: str) -> None:
        """What it says lies unread here, which is no sign against it; that it cannot be dialled is one."""
        peer = self._peers.get(broker)
        if peer is not None and peer.channel is not None:
            self.heard(broker)

    def incoming_lost(self, broker: str) -> None:
        """The connection that it had dialled broke: probe."""
        peer = self._peers.get(broker)
        if peer is not None:
            peer.dial_now.set()

    async def request(self, broker: str, message: Message, timeout_s: float, payload: Sequence[bytes] = ()) -> AnyMessage:
        """The answer's message. Raises UnavailableError when the broker is not connected or does not answer in time."""
        return (await self.request_frame(broker, message, timeout_s, payload)).message

    async def request_frame(self, broker: str, message: Message, timeout_s: float, payload: Sequence[bytes] = ()) -> Frame:
        peer = self._peers.get(broker)
        if peer is None or peer.channel is None:
            raise UnavailableError(
                f"broker {broker} is not connected", code="unavailable", hint="it is down or cannot be reached from here"
            )
        return await peer.channel.request(message, payload=payload, timeout_s=timeout_s)

    async def run(self) -> None:
        """Dials, beats and watches until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for peer in self._peers.values():
                self._start(nursery, peer)
            nursery.start_soon(self._watch)
            nursery.start_soon(self._beat)

    def _start(self, nursery: trio.Nursery, peer: Peer) -> None:
        nursery.start_soon(self._keep_connected, peer, name=f"peer {peer.broker}")

    async def _keep_connected(self, peer: Peer) -> None:
        delay = RECONNECT_FIRST_S
        while True:
            peer.dial_now = trio.Event()
            try:
                if await self._connection(peer):
                    delay = RECONNECT_FIRST_S
                    continue  # it worked until now: probe at once
            except RefusedConnectionError:
                self._detectors[peer.broker].on_probe_refused(trio.current_time())
                self._check(peer.broker)
            except StreamqError as error:
                log.info("broker %s at %s:%d: %s", peer.broker, peer.host, peer.port, error)
            with trio.move_on_after(delay):
                await peer.dial_now.wait()
            delay = min(delay * 2, RECONNECT_MAX_S)

    async def _connection(self, peer: Peer) -> bool:
        """One connection from dialling to its end; whether it ever worked."""
        hello = Hello(
            PROTOCOL_VERSIONS, FEATURES, self._software, self._identity.cluster, self._identity.broker, self._identity.incarnation
        )
        stream: trio.abc.Stream | None = None
        try:
            with trio.fail_after(self._config.request_timeout_s):
                stream = await self._network.connect(peer.host, peer.port)
                welcome, reader = await greet(stream, hello)
        except trio.TooSlowError:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise UnavailableError(f"no answer within {self._config.request_timeout_s:g} s", code="timed_out") from None
        except (trio.BrokenResourceError, StreamqError) as error:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            if isinstance(error, StreamqError):
                raise
            raise UnavailableError("the connection broke during the handshake", code="unavailable") from None
        if welcome.broker != peer.broker or welcome.cluster != self._identity.cluster:
            await trio.aclose_forcefully(stream)
            raise ProtocolError(f"another broker ({welcome.broker!r}) of another cluster or name answers there", code="wrong_cluster")
        channel = Channel(stream, name=f"broker {peer.broker}", reader=reader)
        peer.channel, peer.incarnation = channel, welcome.incarnation
        self.heard(peer.broker)
        try:
            self._connected(peer)
            await channel.run(lambda frame: self._take(peer, frame), after_chunk=self._after_chunk, gate=lambda: None, poller=self._poller)
        except ProtocolError as error:
            log.warning("broker %s broke the protocol: %s", peer.broker, error)
        finally:
            peer.channel = None
            self._detectors[peer.broker].on_reset(trio.current_time())
        return True

    def _take(self, peer: Peer, frame: Frame) -> None:
        self.heard(peer.broker)
        self._deliver(peer, frame)

    async def _beat(self) -> None:
        """Says something to every peer, so that silence means something."""
        while True:
            for peer in self._peers.values():
                if peer.channel is not None:
                    peer.channel.close_if_stalled()
                if peer.channel is not None:
                    peer.channel.gather(Heartbeat())
                    peer.channel.push()
            await trio.sleep(self._config.heartbeat_interval_s)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(self._config.heartbeat_interval_s / 2)
            for broker in list(self._detectors):
                self._check(broker)
                self._leave_if_silent(self._peers[broker])

    def _leave_if_silent(self, peer: Peer) -> None:
        """After a partition TCP may wait for minutes before it tries again; a new connection is there as soon as there can be one."""
        silence_s = trio.current_time() - peer.heard_at
        if peer.channel is not None and peer.broker in self._dead and silence_s > SILENCES_BEFORE_REDIAL * self._config.silence_timeout_s:
            peer.channel.close(f"{peer.broker} says nothing any more")

    def _check(self, broker: str) -> None:
        if broker not in self._dead and self._detectors[broker].suspect(trio.current_time()):
            self._dead[broker] = trio.current_time()
            log.warning("broker %s does not answer", broker)
            self._suspected(broker)
