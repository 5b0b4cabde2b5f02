"""The cluster as a client sees it: which brokers there are, connections to them, and questions that any of them can answer.

Any broker in the bootstrap list is enough; the rest is learnt from `Metadata`, which is a hint (P-1). Addresses are tried side by side with
a small head start, so that a dead or paused one costs `Timeouts.stagger_s` and no more. The address that was dialled for a broker goes on
being used for it, beside the one that it advertises.

There is at most one connection to a broker, and one dial under way to it, shared by everybody who waits.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio

from streamq.client.connection import CHANGES, Connection, Listener, dial
from streamq.client.host import THIS_MACHINE, Host
from streamq.client.lifetime import Lifetime
from streamq.client.race import AllFailedError, race
from streamq.client.settings import Address, Timeouts, parse_bootstrap
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError
from streamq.model.messages import BrokerAddress, Message, Metadata, MetadataView, TopicView

__all__ = ["Cluster"]

BOOTSTRAP_ROUNDS: Final = 2
"""When every address refuses at once there is nothing to wait for; one more try covers a broker that just starts."""
PAUSE_S: Final = 0.05
PAUSE_S_MAX: Final = 0.5
REDIAL_PAUSE_S: Final = 0.02
"""A broker that could not be reached is not dialled again before."""
HINT_DOWN: Final = "are the brokers running, and is the address right? any broker of the cluster will do"
CHANGE_GRACE_S: Final = 1.0
"""A change is ended by its connection, which knows that it was sent, never by the clock around it."""

T = TypeVar("T", bound=Message)
Way = Callable[[], Awaitable[Connection]]


class _Dial:
    """A dial under way, and everybody who waits for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.connection: Connection | None = None
        self.error: StreamqError | None = None
        self.ended_at = 0.0


class Cluster:
    """Used with `async with`, which reaches one broker of the bootstrap list or raises UnavailableError naming each address and why.

    `listener` gets the one-way messages of all connections.

    Invariants: `_dialled` names one broker, the last that answered, for each address; `_dials` are under way, or failed a moment ago.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        timeouts: Timeouts | None = None,
        listener: Listener | None = None,
        host: Host = THIS_MACHINE,
    ) -> None:
        self.addresses: Final = parse_bootstrap(bootstrap)
        self.timeouts: Final = timeouts or Timeouts()
        self.brokers: dict[str, BrokerAddress] = {}
        """As last told by a broker; empty until `metadata` was asked for."""
        self._listener = listener
        self._host = host
        self._cluster = b""
        self._lifetime = Lifetime()
        self._connections: dict[str, Connection] = {}
        self._dialled: dict[str, Address] = {}
        self._dials: dict[Address, _Dial] = {}

    async def __aenter__(self) -> Self:
        await self._lifetime.open()
        try:
            await self._bootstrap()
        except BaseException as error:
            await self._lifetime.close(error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Closes all connections at once; what still waits for an answer gets UnavailableError or UnknownOutcomeError."""
        for connection in list(self._connections.values()):
            connection.close("the client was closed")
        await self._lifetime.close(error, traceback)

    # --- questions -----------------------------------------------------------------------------------------------------------

    async def request(self, message: Message, kind: type[T], *, broker: str = "", avoid: str = "", timeout_s: float | None = None) -> T:
        """The answer of any broker, or of `broker` if named.

        A question is put to a second broker when the first has not answered within `Timeouts.stagger_s`, and again to others when brokers
        say "not now"; what changes something goes to one broker at a time, and to another only if it was certainly not carried out.
        `avoid` names a broker to ask last. Raises the broker's own error, UnavailableError when time is up, and UnknownOutcomeError for
        a change that may have happened.
        """
        limit = self.timeouts.request_s if timeout_s is None else timeout_s
        last: StreamqError | None = None
        pause = PAUSE_S
        is_change = isinstance(message, CHANGES)
        with anyio.move_on_after(limit + CHANGE_GRACE_S if is_change else limit):
            while True:
                try:
                    if broker:
                        return await (await self.connection(broker)).request(message, kind, timeout_s=limit)
                    stagger = limit if is_change else self.timeouts.stagger_s
                    attempts = [self._attempt(reach, message, kind, limit) for reach in self._ways(avoid)]
                    return await race(attempts, stagger_s=stagger)
                except UnavailableError as error:
                    last = error
                await anyio.sleep(pause)
                pause = min(2 * pause, PAUSE_S_MAX)
        reason = f": {last.message}" if last is not None else ""
        code, hint = (last.code, last.hint) if last is not None else ("timed_out", "")
        raise UnavailableError(f"no answer to {type(message).__name__} within {limit:g} s{reason}", code=code, hint=hint)

    async def metadata(self, topics: Iterable[str] = ()) -> MetadataView:
        """Brokers and topics (all when none is named), as one broker knows them. Unknown topics say so in their `error`."""
        view = await self.request(Metadata(tuple(topics)), MetadataView)
        self._learn(view)
        return view

    async def topic(self, name: str) -> TopicView:
        """One topic. Raises NotFoundError."""
        view = await self.metadata([name])
        for topic in view.topics:
            if topic.name == name and not topic.error:
                return topic
        hint = f"create it with: streamq topic create {name}"
        raise NotFoundError(f"there is no topic {name!r}", code="unknown_topic", hint=hint)

    # --- connections ---------------------------------------------------------------------------------------------------------

    def open_connection(self, broker: str) -> Connection | None:
        """The connection to this broker, if there is one now."""
        connection = self._connections.get(broker)
        return connection if connection is not None and connection.is_open else None

    async def connection(self, broker: str) -> Connection:
        """The connection to this broker; dials if there is none. Raises UnavailableError; NotFoundError for a broker nobody knows."""
        connection = self.open_connection(broker)
        if connection is not None:
            return connection
        if broker not in self.brokers and broker not in self._dialled:
            await self.metadata()
            if broker not in self.brokers:
                known = ", ".join(sorted(self.brokers)) or "none"
                raise NotFoundError(f"there is no broker {broker!r} (known: {known})", code="unknown_broker")
        addresses = self._addresses_of(broker)
        connection = await race([self._dialler(address, broker) for address in addresses], stagger_s=self.timeouts.stagger_s)
        return connection

    def _addresses_of(self, broker: str) -> list[Address]:
        known = self.brokers.get(broker)
        addresses = [self._dialled[broker]] if broker in self._dialled else []
        if known is not None and Address(known.host, known.port) not in addresses:
            addresses.append(Address(known.host, known.port))
        return addresses

    def _ways(self, avoid: str) -> list[Way]:
        """Everything that can be asked, best first: open connections, other known brokers, then the bootstrap addresses."""
        is_open = [c.broker for c in self._connections.values() if c.is_open and c.broker != avoid]
        others = sorted((b for b in self.brokers.values() if b.broker not in is_open and b.broker != avoid), key=lambda b: not b.alive)
        last = [avoid] if avoid and (avoid in self._connections or avoid in self.brokers) else []
        named = [*is_open, *(b.broker for b in others), *last]
        covered = {address for broker in named for address in self._addresses_of(broker)}
        return [self._to_broker(b) for b in named] + [self._dialler(a) for a in self.addresses if a not in covered]

    def _to_broker(self, broker: str) -> Way:
        async def reach() -> Connection:
            return await self.connection(broker)

        return reach

    def _dialler(self, address: Address, expected: str = "") -> Way:
        async def reach() -> Connection:
            connection = await self._dial(address)
            if expected and connection.broker != expected:
                self._dialled.pop(expected, None)
                raise UnavailableError(f"{address}: broker {connection.broker} answers there, not {expected}", code="unavailable")
            return connection

        return reach

    def _attempt(self, reach: Way, message: Message, kind: type[T], timeout_s: float) -> Callable[[], Awaitable[T]]:
        async def ask() -> T:
            return await (await reach()).request(message, kind, timeout_s=timeout_s)

        return ask

    async def _dial(self, address: Address) -> Connection:
        under_way = self._dials.get(address)
        if under_way is not None and under_way.error is not None and anyio.current_time() - under_way.ended_at > REDIAL_PAUSE_S:
            under_way = None
        if under_way is None:
            under_way = self._dials[address] = _Dial()
            self._lifetime.start(self._carry_out, address, under_way)
        await under_way.done.wait()
        if under_way.connection is None:
            assert under_way.error is not None
            raise under_way.error.with_traceback(None)
        return under_way.connection

    async def _carry_out(self, address: Address, under_way: _Dial) -> None:
        try:
            fresh = await dial(address, timeouts=self.timeouts, host=self._host)
        except StreamqError as error:
            self._give_up(under_way, error)
            return
        self._cluster = self._cluster or fresh.welcome.cluster
        if fresh.welcome.cluster != self._cluster:
            message = f"{address}: broker {fresh.broker} belongs to another cluster"
            self._give_up(under_way, UnavailableError(message, code="unavailable", hint="give addresses of one cluster only"))
            fresh.close()
            await fresh.run()
            return
        connection = self.open_connection(fresh.broker)
        if connection is None:
            connection = self._connections[fresh.broker] = fresh
            fresh.listener = self._listener
        self._dialled = {broker: there for broker, there in self._dialled.items() if there != address}
        self._dialled[fresh.broker] = address
        under_way.connection = connection
        del self._dials[address]
        under_way.done.set()
        if connection is not fresh:
            fresh.close("not needed")
        await fresh.run()
        if self._connections.get(fresh.broker) is fresh:
            del self._connections[fresh.broker]

    def _give_up(self, under_way: _Dial, error: StreamqError) -> None:
        now = anyio.current_time()
        under_way.error, under_way.ended_at = error, now
        under_way.done.set()
        self._dials = {a: d for a, d in self._dials.items() if d.error is None or now - d.ended_at <= REDIAL_PAUSE_S}

    async def _bootstrap(self) -> None:
        error: AllFailedError | None = None
        with anyio.move_on_after(self.timeouts.bootstrap_s):
            for _ in range(BOOTSTRAP_ROUNDS):
                try:
                    await race([self._dialler(a) for a in self.addresses], stagger_s=self.timeouts.stagger_s, is_final=lambda _: False)
                    return
                except AllFailedError as failed:
                    error = failed
                await anyio.sleep(PAUSE_S_MAX / 2)
        if error is None:
            reasons = "; ".join(f"{address}: no answer within {self.timeouts.bootstrap_s:g} s" for address in self.addresses)
            raise UnavailableError(f"no broker answers: {reasons}", code="unavailable", hint=HINT_DOWN)
        if len(error.causes) == 1 and not isinstance(error.causes[0], UnavailableError):
            raise error.causes[0].with_traceback(None)
        raise UnavailableError(f"no broker answers: {error.message}", code="unavailable", hint=HINT_DOWN)

    def _learn(self, view: MetadataView) -> None:
        self.brokers = {broker.broker: broker for broker in view.brokers}
