"""What a member of a group holds and owes: pure. See `GroupReader` for the shell around it.

A partition is *held* from the view that brings it to the view that does not, and *parting* while the coordinator wants it back: nothing of
it is handed out any more, and it is let go of with the next commit once nothing of it is in the application's hands. A hold is named by the
generation in which it began: a partition that is lost and got again is another hold.

Nobody may be handed anything when no question was answered for a session, counted from when it was asked (`streamq.groups.sessions` says
why): all holds are then *suspended*, and go on where they stood if the coordinator still counts them.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from streamq.model.groups import Entry
from streamq.model.messages import GroupView

__all__ = ["Changes", "Hold", "Membership", "Place"]

Place = tuple[str, int]
NEVER = float("inf")


class Hold:
    """`next_offset` is where to begin, and for one that is parting or suspended where it was broken off; None: no position is known."""

    __slots__ = ("committed", "is_open", "is_parting", "is_released", "next_offset", "since")

    def __init__(self, since: int, position: int | None) -> None:
        self.since = since
        self.committed = position
        self.next_offset = position
        self.is_open = False
        """Its records may be handed out."""
        self.is_parting = False
        self.is_released = False
        """It was said to be let go of, and may be another's before the answer comes: nothing of it is read any more."""


class Changes(NamedTuple):
    """What a view asks for: partitions to open, and those to close at once, with the holds that they were open for."""

    opens: list[Place]
    closes: list[tuple[Place, Hold]]


class Membership:
    """Invariants: `holds` are those of the last view; none is open that is parting, or while `is_suspended`."""

    def __init__(self, *, session_s: float) -> None:
        self.generation = 0
        self.holds: dict[Place, Hold] = {}
        self.is_suspended = False
        self._session_s = session_s
        self._answered_from = -NEVER

    @property
    def stops_at(self) -> float:
        """From then on nothing may be handed out, unless a question is answered before."""
        return self._answered_from + self._session_s

    def on_view(self, view: GroupView, *, asked_at: float) -> Changes:
        self._answered_from = max(self._answered_from, asked_at)
        self.is_suspended = False
        if view.generation < self.generation:  # an older answer, late
            return Changes([], [])
        self.generation = view.generation
        changes = Changes([], [])
        now_held: dict[Place, Hold] = {}
        for topic in view.held:
            for held in topic.partitions:
                place = (topic.topic, held.partition)
                hold = self.holds.get(place)
                if hold is None or hold.since != held.since:
                    if hold is not None and hold.is_open:
                        changes.closes.append((place, hold))
                    hold = Hold(held.since, held.position)
                now_held[place] = hold
                if held.is_leaving:
                    if hold.is_open:
                        changes.closes.append((place, hold))
                        hold.is_open = False
                    hold.is_parting = True
                elif not hold.is_open and not hold.is_released:
                    # Also what was to go and may stay after all: it goes on where it was broken off.
                    hold.is_parting = False
                    changes.opens.append(place)
        changes.closes.extend((place, hold) for place, hold in self.holds.items() if hold.is_open and place not in now_held)
        self.holds = now_held
        return changes

    def suspend(self) -> list[tuple[Place, Hold]]:
        """The session is over as far as this member can tell: what is open has to be closed."""
        self.is_suspended = True
        closes = [(place, hold) for place, hold in self.holds.items() if hold.is_open]
        for _, hold in closes:
            hold.is_open = False
        return closes

    def lose(self) -> list[tuple[Place, Hold]]:
        """No member any more."""
        closes = [(place, hold) for place, hold in self.holds.items() if hold.is_open]
        self.holds = {}
        return closes

    @property
    def is_parting(self) -> bool:
        return any(hold.is_parting or hold.is_released for hold in self.holds.values())

    def may_open(self, hold: Hold) -> bool:
        return not (hold.is_open or hold.is_parting or hold.is_released or self.is_suspended)

    def on_opened(self, place: Place, since: int) -> bool:
        """Whether the hold for which this was opened is still to be read."""
        hold = self.holds.get(place)
        if hold is None or hold.since != since or not self.may_open(hold):
            return False
        hold.is_open = True
        return True

    def entries(self, handled: Callable[[Place, Hold], int | None], in_hand: Callable[[Place], bool]) -> tuple[Entry, ...]:
        """What to commit now: positions that moved, and partings of which nothing is in the application's hands.

        `handled` says up to where a partition was handled, None if that is not known to be further than the committed position.
        """
        entries: list[Entry] = []
        for place, hold in self.holds.items():
            position = handled(place, hold)
            if position is not None and hold.committed is not None and position <= hold.committed:
                position = None
            releases = hold.is_released or (hold.is_parting and not in_hand(place))
            hold.is_released = releases
            if position is not None or releases:
                entries.append(Entry(place[0], place[1], hold.since, position, releases))
        return tuple(entries)

    def on_committed(self, entries: Iterable[Entry], fenced: Iterable[Entry]) -> None:
        refused = set(fenced)
        for entry in entries:
            place = (entry.topic, entry.partition)
            hold = self.holds.get(place)
            if hold is None or hold.since != entry.since:
                continue
            if entry.position is not None and entry not in refused:
                hold.committed = max(entry.position, hold.committed or 0)
            if entry.releases:
                del self.holds[place]
