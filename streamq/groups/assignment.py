"""Which member is to have which partition: even, and as little moved as can be (the idea of Kafka's cooperative sticky assignor)."""

from bisect import insort
from collections.abc import Iterable, Mapping

__all__ = ["Place", "assign"]

Place = tuple[str, int]
"""Topic and partition."""


def assign(places: Mapping[Place, tuple[int, int]], subscriptions: Mapping[int, frozenset[str]]) -> dict[Place, int]:
    """The target of each place that anybody subscribes to. `places` says the present holder and target of each, 0 for none.

    A target that still subscribes stays; a place without one goes back to its holder or else to who has least. Then, while somebody has
    two more than a fellow subscriber of one of its topics, one moves there. The result, taken for the targets, is its own result.
    """
    members = {number: _Member(number, wanted) for number, wanted in sorted(subscriptions.items())}
    subscribers: dict[str, list[_Member]] = {}
    for member in members.values():
        for topic in member.wanted:
            subscribers.setdefault(topic, []).append(member)
    free: list[Place] = []
    for place in sorted(places):
        holder, target = places[place]
        keeper = next((m for m in (target, holder) if m in members and place[0] in members[m].wanted), None)
        if keeper is not None:
            members[keeper].add(place, holder)
        elif place[0] in subscribers:
            free.append(place)
    for place in free:
        min(subscribers[place[0]], key=lambda m: m.load).add(place, places[place][0])
    for member in members.values():
        member.put_in_order()
    while _move_one(members.values(), places):
        pass
    return {place: member.number for member in members.values() for place in member.places()}


class _Member:
    """Invariant: in each topic's list what its holder is not this member comes last, so that it goes first."""

    def __init__(self, number: int, wanted: frozenset[str]) -> None:
        self.number = number
        self.wanted = wanted
        self.load = 0
        self._by_topic: dict[str, list[tuple[bool, Place]]] = {}

    def add(self, place: Place, holder: int) -> None:
        self._by_topic.setdefault(place[0], []).append((holder != self.number, place))
        self.load += 1

    def put_in_order(self) -> None:
        for mine in self._by_topic.values():
            mine.sort()

    def give(self, taker: "_Member", places: Mapping[Place, tuple[int, int]]) -> bool:
        """One place that the other subscribes to; best one that nobody has to let go of for it."""
        best: tuple[bool, Place] | None = None
        for topic, mine in self._by_topic.items():
            if mine and topic in taker.wanted and (best is None or mine[-1] > best):
                best = mine[-1]
        if best is None:
            return False
        place = best[1]
        self._by_topic[place[0]].pop()
        self.load -= 1
        taker.load += 1
        insort(taker._by_topic.setdefault(place[0], []), (places[place][0] != taker.number, place))
        return True

    def places(self) -> Iterable[Place]:
        return (place for mine in self._by_topic.values() for _, place in mine)


def _move_one(members: Iterable[_Member], places: Mapping[Place, tuple[int, int]]) -> bool:
    """Each move makes the sum of the squares of the loads smaller, so there is an end to them."""
    by_load = sorted(members, key=lambda m: m.load)
    for giver in reversed(by_load):
        for taker in by_load:
            if giver.load - taker.load < 2:
                break
            if giver.give(taker, places):
                return True
    return False
