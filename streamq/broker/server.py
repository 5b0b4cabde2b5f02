"""Accepts connections, shakes hands, gives each frame to the router. A remote side can end no more than its own connection."""

import ipaddress
import logging
from collections.abc import Callable, Collection
from typing import Final, Protocol

import trio

from streamq.broker.complaints import Complaints
from streamq.broker.config import BrokerConfig
from streamq.broker.metrics import BrokerMetrics
from streamq.broker.session import Session
from streamq.model.errors import ProtocolError
from streamq.model.ids import Member
from streamq.model.limits import MiB
from streamq.model.messages import Failure, Heartbeat, Hello, Welcome
from streamq.net.budget import ByteBudget
from streamq.net.channel import Channel
from streamq.net.handshake import FEATURES, Greeting, agree_version, answer, receive_hello
from streamq.net.poller import Poller
from streamq.storage.interface import Identity
from streamq.wire.framing import PROTOCOL_VERSIONS, Frame

__all__ = ["Router", "Server"]

log = logging.getLogger(__name__)

LARGE_FRAMES_BYTES_MAX: Final = 32 * MiB
"""Incomplete large frames of all clients together."""
BROKER_CONNECTIONS: Final = 64
"""Kept free of clients, so that however many there are, brokers still reach each other."""
CLIENT_HEARTBEAT_S: Final = 0.2


class Router(Protocol):
    def deliver(self, session: Session, frame: Frame) -> None:
        """Takes one frame, without waiting. Raises ProtocolError for a frame that has no place here."""

    def flush(self) -> None:
        """Sends what was gathered while frames were delivered."""

    def gate(self) -> trio.Event | None:
        """An event to wait for before more is read from clients, None if there is room."""

    def peer_gate(self) -> trio.Event | None:
        """The same for brokers: what they send is bounded by what this one's disk takes."""

    def ended(self, session: Session) -> None:
        """The connection is gone."""


class Server:
    def __init__(
        self,
        config: BrokerConfig,
        identity: Identity,
        router: Router,
        *,
        software: str,
        heard: Callable[[str], None],
        unread: Callable[[str], None],
        lost: Callable[[str], None],
        metrics: BrokerMetrics,
        poller: Poller,
    ) -> None:
        self._config = config
        self._identity = identity
        self._router = router
        self._software = software
        self._heard = heard
        self._unread = unread
        self._lost = lost
        self._metrics = metrics
        self._poller = poller
        self._budget = ByteBudget(LARGE_FRAMES_BYTES_MAX)
        self._complaints = Complaints(log, logging.WARNING)
        self._sessions: dict[Session, None] = {}
        self.connections = 0

    @property
    def sessions(self) -> Collection[Session]:
        """Those that were welcomed; a view."""
        return self._sessions.keys()

    async def run(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """Serves until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _beat(self) -> None:
        """Clients that wait for something hear that this broker is alive, so that they can leave one that is not."""
        while True:
            await trio.sleep(CLIENT_HEARTBEAT_S)
            for session in list(self._sessions):
                session.channel.close_if_stalled()
                if session.member is not None and session.channel.is_paused:
                    self._unread(session.member.broker)
                if session.member is None and (session.is_awaiting or session.channel.is_paused):
                    session.channel.send(Heartbeat())

    async def drain(self) -> None:
        """Waits until what is queued on the connections has been sent; the caller bounds the time."""
        for session in list(self._sessions):
            await session.channel.drain(1)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            if self.connections > self._config.connections_max + BROKER_CONNECTIONS:
                self._metrics.connections_refused += 1
                self._complaints.log(f"a connection was refused: {self.connections - 1} are open, connections_max is reached")
                return
            session, greeting = await self._shake_hands(stream)
            if session.member is None and self.connections > self._config.connections_max:
                self._metrics.connections_refused += 1
                self._complaints.log(f"a client was refused: {self.connections - 1} connections are open, connections_max is reached")
                return
            await self._talk(session, greeting)
        except ProtocolError as error:
            self._metrics.connections_broken += 1
            self._complaints.log(f"connection from {_remote(stream)}: {error}")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it left while shaking hands
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)

    async def _shake_hands(self, stream: trio.abc.Stream) -> tuple[Session, Greeting]:
        with trio.move_on_after(self._config.handshake_timeout_s):
            greeting = await receive_hello(stream)
            hello = greeting.hello
            version = agree_version(hello.versions)
            refusal = self._refusal(hello, version)
            if refusal is not None or version is None:
                assert refusal is not None
                await answer(stream, refusal, greeting.request)
                await stream.aclose()
                raise ProtocolError(refusal.message, code=refusal.code)
            identity = self._identity
            welcome = Welcome(version, FEATURES, self._software, identity.cluster, identity.broker, identity.incarnation)
            await answer(stream, welcome, greeting.request)
            member = Member(hello.broker, hello.incarnation) if hello.broker else None
            name = f"broker {hello.broker}" if hello.broker else f"client {_remote(stream)}"
            channel = Channel(stream, name=name, reader=greeting.reader)
            return Session(channel, member, version, is_local=_is_local(stream)), greeting
        raise ProtocolError(f"did not finish the handshake within {self._config.handshake_timeout_s:g} s", code="protocol")

    def _refusal(self, hello: Hello, version: int | None) -> Failure | None:
        if version is None:
            mine = f"{PROTOCOL_VERSIONS[0]} to {PROTOCOL_VERSIONS[1]}"
            return Failure(
                "wrong_version",
                f"this broker speaks versions {mine}, not {hello.versions[0]} to {hello.versions[1]}",
                "update the older side",
            )
        if hello.broker and hello.cluster != self._identity.cluster:
            return Failure("wrong_cluster", f"broker {hello.broker} is of another cluster", "check its address list and data directory")
        return None

    async def _talk(self, session: Session, greeting: Greeting) -> None:
        router, channel = self._router, session.channel
        member = session.member

        def take(frame: Frame) -> None:
            if member is not None:
                self._heard(member.broker)
            router.deliver(session, frame)

        self._sessions[session] = None
        self._metrics.connections_accepted += 1
        try:
            for frame in greeting.rest:
                take(frame)
            router.flush()
            await channel.run(
                take,
                after_chunk=router.flush,
                gate=router.gate if member is None else router.peer_gate,
                budget=self._budget if member is None else None,
                poller=self._poller,
            )
        finally:
            channel.close("the connection ended")  # before its descriptor can be another's
            self._sessions.pop(session, None)
            router.ended(session)
            if member is not None:
                self._lost(member.broker)


def _remote(stream: trio.abc.Stream) -> str:
    if isinstance(stream, trio.SocketStream):
        try:
            return "{}:{}".format(*stream.socket.getpeername()[:2])
        except OSError:
            return "a closed socket"
    return "memory"


def _is_local(stream: trio.abc.Stream) -> bool:
    """Whether the other side is on this machine."""
    if not isinstance(stream, trio.SocketStream):
        return True
    try:
        host = stream.socket.getpeername()[0]
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except (OSError, ValueError):
        return False
