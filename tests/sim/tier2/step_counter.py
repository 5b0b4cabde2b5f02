"""Death at any await: a process is killed before a certain step of its tasks, counted by trio's scheduler."""

import trio

from tests.sim.private_trio import PROCESS
from tests.sim.tier2.brokers import Broker

__all__ = ["StepCounter"]


class StepCounter(trio.abc.Instrument):
    """Kills a broker before a certain step of its tasks: at whatever await it then is."""

    def __init__(self) -> None:
        self.armed: dict[Broker, int] = {}

    def arm(self, broker: Broker, steps: int) -> None:
        if not self.armed:
            trio.lowlevel.add_instrument(self)
        self.armed[broker] = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        process = task.context.get(PROCESS)
        for broker, left in list(self.armed.items()):
            if broker.process is process and process is not None:
                self.armed[broker] = left - 1
                if left <= 0:
                    self.disarm(broker)
                    broker.kill()

    def disarm(self, broker: Broker) -> None:
        if self.armed.pop(broker, None) is not None and not self.armed:
            trio.lowlevel.remove_instrument(self)
