"""Which brokers hold the replicas of new partitions, and which of these each one prefers as its sequencer.

Replicas go to the least loaded brokers, in racks that the partition does not yet use while there are any; sequencers are then evened out by
moving one along a path of partitions whenever a broker has two more than another. Deterministic: a seed decides between equals.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

__all__ = ["Load", "Site", "place"]

_MASK: Final = (1 << 64) - 1


class Site(NamedTuple):
    broker: str
    rack: str
    """Empty: unknown, and then no rack of anybody's."""


class Load(NamedTuple):
    """What a broker carries already."""

    replicas: int = 0
    sequencers: int = 0


def place(
    sites: Sequence[Site], *, partitions: int, replicas: int, seed: int, load: Mapping[str, Load] | None = None
) -> list[tuple[str, ...]]:
    """For each partition its replicas, distinct brokers, the preferred sequencer first.

    Counts of sequencers differ by at most one where the loads at the start were equal; counts of replicas too, where racks leave the
    choice.
    """
    names = [site.broker for site in sites]
    assert len(set(names)) == len(names)
    assert 1 <= replicas <= len(sites)
    carried = load or {}
    held = {name: carried.get(name, Load()).replicas for name in names}
    sequencing = {name: carried.get(name, Load()).sequencers for name in names}
    placed: list[tuple[str, ...]] = []
    for index in range(partitions):
        chosen = _choose(sites, replicas, held, seed=_mix(seed, index))
        for name in chosen:
            held[name] += 1
        first = min(chosen, key=lambda name: (sequencing[name], chosen.index(name)))
        sequencing[first] += 1
        placed.append((first, *(name for name in chosen if name != first)))
    _even_out(placed, sequencing)
    return placed


def _choose(sites: Sequence[Site], replicas: int, held: Mapping[str, int], *, seed: int) -> list[str]:
    order = sorted(range(len(sites)), key=lambda i: _mix(seed, i))
    rank = {sites[i].broker: position for position, i in enumerate(order)}
    used: dict[str, int] = {}
    chosen: list[str] = []
    left = list(sites)
    for _ in range(replicas):
        site = min(left, key=lambda s: (used.get(s.rack, 0) if s.rack else 0, held[s.broker], rank[s.broker]))
        left.remove(site)
        used[site.rack] = used.get(site.rack, 0) + 1
        chosen.append(site.broker)
    return chosen


def _even_out(placed: list[tuple[str, ...]], sequencing: dict[str, int]) -> None:
    """Moves single sequencers from brokers with many, by way of others, to brokers with two fewer, until there is no such path."""
    while True:
        for busiest in sorted(sequencing, key=lambda name: -sequencing[name]):
            path = _path_down(placed, sequencing, busiest)
            if path:
                break
        else:
            return
        for index, name in path:
            sequencing[placed[index][0]] -= 1
            sequencing[name] += 1
            placed[index] = (name, *(other for other in placed[index] if other != name))


def _path_down(placed: Sequence[tuple[str, ...]], sequencing: Mapping[str, int], start: str) -> list[tuple[int, str]]:
    """The shortest chain of hand-overs from `start` to a broker with at least two sequencers fewer; [] if there is none."""
    led: dict[str, list[int]] = {}
    for index, replicas in enumerate(placed):
        led.setdefault(replicas[0], []).append(index)
    came: dict[str, tuple[int, str]] = {}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        if sequencing[at] <= sequencing[start] - 2:
            path = []
            while at != start:
                index, before = came[at]
                path.append((index, at))
                at = before
            return path[::-1]
        for index in led.get(at, ()):
            for name in placed[index][1:]:
                if name != start and name not in came:
                    came[name] = (index, at)
                    queue.append(name)
    return []


def _mix(seed: int, number: int) -> int:
    """splitmix64 (Steele, Lea and Flood, 2014): the same numbers on every broker and every run."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
