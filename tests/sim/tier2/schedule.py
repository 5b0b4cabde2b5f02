"""Which faults a run meets, drawn from its seed before anything runs: data, so that a failing run can be made shorter.

Each seed draws its own mix of kinds (swarm testing): some runs are full of power cuts, some of partitions, some calm.
"""

import random
from typing import Final, NamedTuple

__all__ = ["KINDS", "LOSSES", "Fault", "draw_schedule"]

KINDS: Final[dict[str, float]] = {
    "kill": 3.0,
    "cut power": 3.0,
    "kill at a step": 3.0,
    "cut power at a disk operation": 3.0,
    "kill the sequencer": 3.0,
    "kill all": 0.7,
    "stop": 1.0,
    "pause": 2.0,
    "isolate": 2.0,
    "isolate one way": 2.0,
    "cut a link": 2.0,
    "flap": 1.0,
    "split": 1.0,
    "slow a link": 1.0,
    "reset connections": 1.5,
    "slow disk": 1.0,
    "full disk": 1.0,
    "sync fails": 1.5,
    "clock jumps": 1.0,
    "takeovers at once": 1.5,
    "duelling proposers": 0.7,
    "storm": 0.7,
    "empty disk": 1.5,
    "rot in the journal": 1.0,
    "rot in log files": 1.0,
    "rot in an index": 0.4,
    "rot in a checkpoint": 0.7,
    "rot in the identity": 0.3,
    "misdirected write": 0.7,
    "lost write": 0.7,
}
"""Kind to weight."""
LOSSES: Final = ("empty disk", "misdirected write", "lost write", *(kind for kind in KINDS if kind.startswith("rot ")))
"""Kinds that may take acked data from a disk: at most W - 1 at a time (I-1)."""
FIRST_AT_S: Final = 3.0
FAULTS_MIN: Final = 3


class Fault(NamedTuple):
    """`target` and `other` are indexes into the brokers; `amount` in [0, 1) scales what the kind scales."""

    at: float
    kind: str
    target: int
    other: int
    lasts_s: float
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}, b{self.target + 1} (b{self.other + 1}), for {self.lasts_s:.2f} s, {self.amount:.3f}"


def draw_schedule(rng: random.Random, *, brokers: int, until_s: float) -> list[Fault]:
    chosen = rng.sample(list(KINDS), rng.randint(2, 8))
    weights = [KINDS[kind] for kind in chosen]
    every_s = rng.choice((3.0, 6.0, 12.0))
    count = max(FAULTS_MIN, int(rng.expovariate(every_s / until_s)) if rng.random() < 0.2 else int(until_s / every_s))
    times = sorted(FIRST_AT_S + rng.random() * (until_s - FIRST_AT_S) for _ in range(min(count, 40)))
    faults = []
    for at in times:
        target, other = rng.sample(range(brokers), 2) if brokers > 1 else (0, 0)
        lasts_s = rng.choice((0.05, 0.4, 1.0, 2.5, 6.0)) * (0.5 + rng.random())
        faults.append(Fault(at, rng.choices(chosen, weights)[0], target, other, lasts_s, rng.random()))
    return faults
