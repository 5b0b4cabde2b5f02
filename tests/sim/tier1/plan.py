"""What one run is to be, as data: the cluster, its network and disks, its clients, and every fault with its time. Drawn from a seed.

Each seed enables a random subset of the fault kinds at rates of its own (swarm testing): some runs are calm, some are wild.
"""

from random import Random
from typing import NamedTuple

from streamq.model.limits import DEDUP_MS_DEFAULT
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
    ambush_s: float = 0.0
    """If not 0: producers send something first, and the fault comes so much later, while that is on its way."""


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
    kind: str = "batches"
    """`ids`, `appends`: see `conditions`."""


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
    dedup_ms: int = DEDUP_MS_DEFAULT


CONFIGURATIONS = (
    # replicas, write, read, brokers, weight
    (3, 2, 2, 3, 46),
    (3, 2, 2, 4, 8),
    (3, 3, 1, 3, 8),
    (3, 1, 3, 3, 8),
    (5, 3, 3, 5, 12),
    (4, 2, 3, 4, 8),
    (2, 2, 1, 3, 6),
    (1, 1, 1, 3, 4),
)

KINDS: dict[str, tuple[float, float, float]] = {
    # weight, shortest and longest time in seconds
    "crash": (6, 0.2, 6.0),
    "stop": (2, 0.2, 4.0),
    "pause": (4, 0.3, 6.0),
    "eio": (2, 0.5, 4.0),
    "dead": (1, 0.0, 0.0),
    "isolate": (4, 0.2, 6.0),
    "oneway": (4, 0.2, 6.0),
    "split": (3, 0.3, 5.0),
    "flap": (2, 1.0, 5.0),
    "reset": (3, 0.0, 0.0),
    "slow_link": (3, 0.3, 5.0),
    "cut_clients": (2, 0.3, 4.0),
    "clock": (2, 0.0, 0.0),
    "slow_disk": (4, 0.3, 5.0),
    "full_disk": (2, 0.5, 6.0),
    "rot_journal": (4, 0.2, 4.0),
    "rot_file": (3, 0.0, 0.0),
    "lose_disk": (4, 0.2, 5.0),
    "lose_acceptor": (3, 0.2, 3.0),
    "takeovers": (3, 0.0, 0.0),
    "duel": (2, 0.0, 0.0),
    "storm": (2, 0.0, 0.0),
    "settings": (2, 0.0, 6.0),
    "trim": (2, 0.0, 0.0),
}

MEETINGS = ("meet_loss", "meet_seal", "meet_trim")
"""See `meetings`."""
MEETING_SHARE = 0.3
CONDITIONS_SHARE = 0.4
"""Of runs with producers whose batches are stored on a condition."""


def plan_of(seed: int) -> Plan:
    draw = Random(f"tier 1, seed {seed}")
    replicas, write, read, brokers, _ = draw.choices(CONFIGURATIONS, [each[-1] for each in CONFIGURATIONS])[0]
    duration = draw.uniform(60.0, 72.0)
    partitions = 2 if draw.random() < 0.12 else 1
    names = tuple(f"b{i + 1}" for i in range(brokers))
    return Plan(
        seed=seed,
        brokers=brokers,
        voters=5 if brokers >= 5 and draw.random() < 0.7 else 3,
        replicas=replicas,
        write=write,
        read=read,
        durability="memory" if draw.random() < 0.08 else "fsync",
        partitions=partitions,
        duration_s=duration,
        network=_network(draw),
        disk=_disk(draw),
        producers=(*_producers(draw, partitions, duration), *_on_conditions(seed, partitions, duration)),
        consumers=draw.choice((1, 1, 2)),
        tip_readers=1,
        actions=_actions(draw, names, duration),
        dedup_ms=Random(f"window of seed {seed}").choice((1_500, 8_000, DEDUP_MS_DEFAULT)),
    )


def _network(draw: Random) -> NetworkProfile:
    is_ordered = draw.random() < 0.7
    return NetworkProfile(
        spread_s=draw.choice((0.0008, 0.002, 0.004, 0.02)),
        tail=draw.choice((0.0, 0.01, 0.05)),
        tail_s=draw.choice((0.05, 0.3)),
        is_ordered=is_ordered,
        loss=0.0 if is_ordered else draw.choice((0.0, 0.005, 0.03)),
        repeats=0.0 if is_ordered else draw.choice((0.0, 0.01, 0.05)),
    )


def _disk(draw: Random) -> DiskProfile:
    return DiskProfile(
        sync_s=draw.choice((0.0005, 0.001, 0.004)),
        spread_s=draw.choice((0.0, 0.003, 0.03)),
        are_cuts_volatile=draw.random() < 0.3,
        checkpoint_entries=draw.choice((15, 60, 300)),
    )


def _producers(draw: Random, partitions: int, duration: float) -> tuple[ProducerPlan, ...]:
    count = draw.choice((2, 3, 3, 4))
    batches = 140 // count
    strays = draw.choice((0.0, 0.0, 0.15, 0.4))
    found: list[ProducerPlan] = []
    for i in range(count):
        burst = draw.choice((1, 2, 4, 6))
        interval = (duration - 8.0) * burst / batches
        is_plain = i == count - 1 and draw.random() < 0.35
        window = draw.choice((1, 3, 5, 8))
        found.append(
            ProducerPlan(f"p{i}", i % partitions, not is_plain, batches, window, interval, burst, draw.uniform(0.1, 1.5), 0, strays)
        )
    if draw.random() < 0.2:  # a named producer that is opened again, while the older one goes on (P-33)
        first = found[0]
        found.append(first._replace(epoch=1, batches=20, interval_s=1.0, begins=draw.uniform(10.0, 40.0)))
    return tuple(found)


def _on_conditions(seed: int, partitions: int, duration: float) -> tuple[ProducerPlan, ...]:
    """In some runs, drawn by themselves."""
    draw = Random(f"conditions of seed {seed}")
    if draw.random() >= CONDITIONS_SHARE:
        return ()
    kinds = draw.choice((("ids", "ids"), ("appends", "appends"), ("ids", "ids", "appends", "appends")))
    strays = draw.choice((0.0, 0.15, 0.4))
    found: list[ProducerPlan] = []
    for i, kind in enumerate(kinds):
        burst = draw.choice((1, 3, 6))
        batches = 40
        interval = (duration - 8.0) * burst / batches
        window = draw.choice((1, 4, 8)) if kind == "ids" else 1
        begins = draw.uniform(0.1, 1.5)
        found.append(
            ProducerPlan(f"{kind[0]}{i}", draw.randrange(partitions), True, batches, window, interval, burst, begins, 0, strays, kind)
        )
    return tuple(found)


def _actions(draw: Random, names: tuple[str, ...], duration: float) -> tuple[Action, ...]:
    """Some faults come alone, some hard upon another, so that they meet."""
    kinds = draw.sample(list(KINDS), draw.choice((1, 2, 3, 5, 8, 12)))
    if not any(kind in ("crash", "pause", "isolate", "oneway", "split", "slow_disk", "lose_disk", "rot_journal") for kind in kinds):
        kinds.append("crash")
    weights = [KINDS[kind][0] for kind in kinds]
    at = 0.0
    found: list[Action] = []
    for _ in range(draw.choice((4, 6, 9, 14, 20))):
        is_close = found and draw.random() < 0.45
        at = at + draw.expovariate(2.0) if is_close else draw.uniform(2.0, duration - 4.0)
        if at > duration - 1.0:
            at = draw.uniform(2.0, duration - 4.0)
        kind = draw.choices(kinds, weights)[0]
        _, shortest, longest = KINDS[kind]
        target = "sequencer" if draw.random() < 0.4 else draw.choice(names)
        ambush = draw.uniform(0.0002, 0.012) if draw.random() < 0.5 else 0.0
        lasts = shortest + (longest - shortest) * draw.random() ** 2
        found.append(Action(round(at, 3), kind, target, draw.choice(names), round(lasts, 3), round(draw.random(), 6), round(ambush, 5)))
    if draw.random() < MEETING_SHARE:
        kind = draw.choice(MEETINGS)
        for at in (duration * 0.15, duration * 0.5, duration * 0.8):
            at = round(at + draw.uniform(0.0, 6.0), 3)
            found.append(Action(at, kind, "sequencer", "", round(draw.uniform(0.5, 5.0), 3), round(draw.random(), 6)))
    return tuple(sorted(found))
