"""Carries out the faults of a plan, each at its time, as far as the protocol promises to bear them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.sim.tier1.plan import Action

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["Nemesis"]


class Nemesis:
    def __init__(self, world: "World", actions: Sequence[Action]) -> None:
        self.world = world
        self.applied = 0
        for action in actions:
            world.at(action.at, None, self._apply, action)

    def _apply(self, action: Action) -> None:
        if getattr(self, f"_{action.kind}")(action):
            self.applied += 1
            self.world.counters[f"fault_{action.kind}"] += 1

    def _crash(self, action: Action) -> bool:
        process = self.world.processes.get(action.target)
        if process is None:
            return False
        self.world.set_refusing(action.target, action.amount < 0.7)
        process.end(keep=action.amount, keeps_written=False)
        self.world.after(action.lasts_s, None, self._restart, action.target)
        return True

    def _restart(self, name: str) -> None:
        if name not in self.world.processes:
            self.world.start(name)

    def _isolate(self, action: Action) -> bool:
        for other in self.world.brokers:
            if other != action.target:
                self._set(action.target, other, False)
                self._set(other, action.target, False)
        self.world.after(action.lasts_s, None, self._join, action.target)
        return True

    def _set(self, source: str, target: str, is_up: bool) -> None:
        self.world.network.set_up(source, target, is_up=is_up)

    def _join(self, name: str) -> None:
        for other in self.world.brokers:
            if other != name:
                self._set(name, other, True)
                self._set(other, name, True)
