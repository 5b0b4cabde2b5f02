"""What one run is to be, as data: the cluster, its network and disks, its clients, and every fault with its time. Drawn from a seed.

Each seed enables a random subset of the fault kinds at rates of its own (swarm testing): some runs are calm, some are wild.
"""

from random import Random
from typing import NamedTuple

from streamq.model.registers import Durability
from tests.sim.tier1.disk import DiskProfile
from tests.sim.tier1.network import NetworkProfile

__all__ = ["Action", "Plan", "ProducerPlan", "plan_of"]


class Action(NamedTuple):
    """One fault. `target` is a broker, or `sequencer`: of the partition `which` points at, at that time. `amount` in [0, 1) means what the
    kind makes of it."""

    at: float
    kind: str
    target: str
    other: str = ""
    lasts_s: float = 0.0
    amount: float = 0.0


class ProducerPlan(NamedTuple):
    name: str
    partition: int
    is_idempotent: bool
    batches: int
    window: int
    interval_s: float
    burst: int
    begins: float
    epoch: int = 0
    strays: float = 0.0
    """How often a batch is also sent to some other broker, which may have been the sequencer once."""


class Plan(NamedTuple):
    seed: int
    brokers: int
    voters: int
    replicas: int
    write: int
    read: int
    durability: Durability
    partitions: int
    duration_s: float
    network: NetworkProfile
    disk: DiskProfile
    producers: tuple[ProducerPlan, ...]
    consumers: int
    tip_readers: int
    actions: tuple[Action, ...]


def plan_of(seed: int) -> Plan:
    draw = Random(f"plan {seed}")
    producers = tuple(
        ProducerPlan(f"p{i}", 0, True, 40, 3, 1.2, 3, 0.2 + 0.1 * i) for i in range(3)
    )
    actions = tuple(
        sorted(Action(draw.uniform(2, 55), draw.choice(("crash", "isolate")), draw.choice(("b1", "b2", "b3")), "", draw.uniform(1, 5), draw.random()) for _ in range(6))
    )
    return Plan(seed, 3, 3, 3, 2, 2, "fsync", 1, 60.0, NetworkProfile(), DiskProfile(), producers, 1, 1, actions)
