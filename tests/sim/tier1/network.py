"""The simulated network: links that delay, hold, lose, repeat and reorder; connections that name the incarnation they lead to (P-10).

A link is one direction between two endpoints. A connection is dialled by one of them and carries requests and one-way messages there, and
answers and one-way messages back. On an ordered network each direction of a connection keeps its order and loses nothing while it is open,
as TCP does; what is sent into a partition waits for its end, or for the end of the connection. On an unordered one anything goes.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.model.batches import Batch
from streamq.model.ids import Member
from streamq.model.messages import Failure, Message

if TYPE_CHECKING:
    from tests.sim.tier1.endpoint import Endpoint
    from tests.sim.tier1.world import World

__all__ = ["Connection", "Link", "Network", "NetworkProfile"]

Answered = Callable[[Message, Sequence[Batch]], None]


class NetworkProfile(NamedTuple):
    """How a run's network behaves while nothing is broken. Times in seconds."""

    least_s: float = 0.0003
    spread_s: float = 0.0015
    tail: float = 0.0
    """How often a message takes up to `tail_s` longer."""
    tail_s: float = 0.08
    is_ordered: bool = True
    loss: float = 0.0
    repeats: float = 0.0


class Link:
    """One direction. `slowness` multiplies delays; `held` waits for the end of a partition."""

    __slots__ = ("held", "is_up", "slowness")

    def __init__(self) -> None:
        self.is_up = True
        self.slowness = 1.0
        self.held: list[tuple[Connection, Endpoint, Callable[..., None], tuple[Any, ...]]] = []


class Network:
    def __init__(self, world: "World", profile: NetworkProfile) -> None:
        self.world = world
        self.profile = profile
        self._links: dict[tuple[str, str], Link] = {}
        self._random = world.random.random

    def link(self, source: str, target: str) -> Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link()
        return link

    def delay(self, link: Link) -> float:
        profile, draw = self.profile, self._random()
        delay = (profile.least_s + profile.spread_s * draw * draw) * link.slowness
        if profile.tail and self._random() < profile.tail:
            delay += profile.tail_s * self._random()
        return delay

    def post(self, connection: "Connection", link: Link, to: "Endpoint", call: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Delivers `call(*args)` at the other end, when and if the network pleases."""
        profile = self.profile
        if not link.is_up:
            if profile.is_ordered or self._random() < 0.3:
                link.held.append((connection, to, call, args))
            return
        if profile.is_ordered:
            at = max(self.world.now + self.delay(link), connection.last_at.get(to, 0.0))
            connection.last_at[to] = at
            self.world.at(at, to, connection.deliver, call, args)
            return
        if profile.loss and self._random() < profile.loss:
            self.world.counters["messages_lost"] += 1
            return
        self.world.at(self.world.now + self.delay(link), to, connection.deliver, call, args)
        if profile.repeats and self._random() < profile.repeats:
            self.world.counters["messages_repeated"] += 1
            self.world.at(self.world.now + 3 * self.delay(link), to, connection.deliver, call, args)

    def set_up(self, source: str, target: str, *, is_up: bool) -> None:
        link = self.link(source, target)
        if link.is_up == is_up:
            return
        link.is_up = is_up
        if is_up:
            held, link.held = link.held, []
            for connection, to, call, args in held:
                self.post(connection, link, to, call, args)
        self.world.hearing_changed(source, target)


class Connection:
    """From `here`, which dialled, to `there`. `member`: who answers there, in the incarnation that it said (P-10); None for a client.

    Invariant: every request is answered once at most, with a `Failure` when it takes too long or the connection ends.
    """

    def __init__(self, world: "World", here: "Endpoint", there: "Endpoint", member: Member) -> None:
        self.world = world
        self.network = world.network
        self.here = here
        self.there = there
        self.member = member
        self.is_open = True
        self.last_at: dict[Endpoint, float] = {}
        self._out = world.network.link(here.name, there.name)
        self._back = world.network.link(there.name, here.name)
        self._requests: dict[int, Answered] = {}
        self._count = 0

    def send(self, message: Message, batches: Sequence[Batch] = ()) -> None:
        """One way, there."""
        if self.is_open:
            self.network.post(self, self._out, self.there, self.there.receive, (self, message, batches, 0))

    def tell(self, message: Message, batches: Sequence[Batch] = ()) -> None:
        """One way, back to who dialled."""
        if self.is_open:
            self.network.post(self, self._back, self.here, self.here.told, (self, message, batches))

    def request(self, message: Message, batches: Sequence[Batch], timeout_s: float, answered: Answered) -> None:
        if not self.is_open:
            self.world.after(0.0, self.here, answered, _CLOSED, ())
            return
        self._count += 1
        self._requests[self._count] = answered
        self.network.post(self, self._out, self.there, self.there.receive, (self, message, batches, self._count))
        self.world.after(timeout_s, self.here, self._expire, self._count)

    def answer(self, number: int, message: Message, batches: Sequence[Batch] = ()) -> None:
        if self.is_open:
            self.network.post(self, self._back, self.here, self._take_answer, (number, message, batches))

    def deliver(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.is_open:
            self.world.messages += 1
            call(*args)

    def _take_answer(self, number: int, message: Message, batches: Sequence[Batch]) -> None:
        answered = self._requests.pop(number, None)
        if answered is not None:
            answered(message, batches)

    def _expire(self, number: int) -> None:
        answered = self._requests.pop(number, None)
        if answered is not None:
            self.world.counters["requests_timed_out"] += 1
            answered(_TIMED_OUT, ())

    def close(self) -> None:
        """Broken: what is under way is lost, each end finds out when it does."""
        if not self.is_open:
            return
        self.is_open = False
        for answered in self._requests.values():
            self.world.after(0.0, self.here, answered, _CLOSED, ())
        self._requests.clear()
        self.here.lost(self)
        self.there.lost(self)


_CLOSED = Failure(code="unavailable", message="the connection broke")
_TIMED_OUT = Failure(code="timed_out", message="no answer in time")
