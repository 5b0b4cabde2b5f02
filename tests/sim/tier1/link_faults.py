"""What befalls the links of tier 1. Each fault is carried out for a name and ends by itself; returns whether it was done."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.sim.tier1.plan import Action

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["LinkFaults"]


class LinkFaults:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.clients: Sequence[str] = ()
        self._cut: dict[tuple[str, str], int] = {}

    def cut(self, source: str, target: str, lasts_s: float) -> None:
        """Counted: a link is up again when every fault that cut it is over."""
        if source == target:
            return
        key = (source, target)
        self._cut[key] = self._cut.get(key, 0) + 1
        self.world.network.set_up(source, target, is_up=False)
        self.world.after(lasts_s, None, self._mend_link, key)

    def _mend_link(self, key: tuple[str, str]) -> None:
        left = self._cut.get(key, 0) - 1
        self._cut[key] = max(0, left)
        if left == 0:
            self.world.network.set_up(*key, is_up=True)

    def isolate(self, action: Action, name: str) -> bool:
        others = [b for b in self.world.brokers if b != name]
        if action.amount < 0.4:
            others += self.clients
        for other in others:
            self.cut(name, other, action.lasts_s)
            self.cut(other, name, action.lasts_s)
        return True

    def oneway(self, action: Action, name: str) -> bool:
        """What one broker sends, to one other or to all, gets lost; or what is sent to it."""
        for other in self.world.brokers:
            if other != name and (action.amount < 0.5 or other == action.other):
                self.cut(*((name, other) if action.amount * 10 % 1 < 0.5 else (other, name)), action.lasts_s)
        return True

    def split(self, action: Action, name: str) -> bool:
        """Two sides; clients stay connected to both."""
        pattern = int(action.amount * 1024)
        side = {name} | {b for i, b in enumerate(self.world.brokers) if pattern >> i & 1}
        for one in self.world.brokers:
            for other in self.world.brokers:
                if (one in side) != (other in side):
                    self.cut(one, other, action.lasts_s)
        return 0 < len(side) < len(self.world.brokers)

    def flap(self, action: Action, name: str) -> bool:
        step = 0.05 + action.amount
        at = 0.0
        while at < action.lasts_s:
            self.world.after(at, None, self._isolate_quietly, name, step * 0.6)
            at += step
        return True

    def _isolate_quietly(self, name: str, lasts_s: float) -> None:
        for other in self.world.brokers:
            if other != name:
                self.cut(name, other, lasts_s)
                self.cut(other, name, lasts_s)

    def reset(self, action: Action, name: str) -> bool:
        process = self.world.processes.get(name)
        if process is None:
            return False
        connections = [peer.connection for peer in process.peers if peer.connection is not None] + list(process.sessions)
        for connection in connections:
            connection.close()
        return bool(connections)

    def slow_link(self, action: Action, name: str) -> bool:
        links = [self.world.network.link(*pair) for b in self.world.brokers if b != name for pair in ((name, b), (b, name))]
        for link in links:
            link.slowness = 10 + 300 * action.amount**3
        self.world.after(action.lasts_s, None, self._quicken, links)
        return True

    def _quicken(self, links: Sequence[object]) -> None:
        for link in links:
            link.slowness = 1.0  # type: ignore[attr-defined]

    def cut_clients(self, action: Action, name: str) -> bool:
        for client in self.clients:
            self.cut(client, name, action.lasts_s)
            self.cut(name, client, action.lasts_s)
        return bool(self.clients)
