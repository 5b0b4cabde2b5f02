"""What a sequencer knows of another replica of its epoch. What may leave a replica behind is said by being set, so it cannot go unsaid."""

from collections.abc import Callable

import trio

from streamq.model.ids import Member

__all__ = ["Follower"]


class Follower:
    """Another replica of the epoch, looked after by `Stalls`."""

    def __init__(self, member: Member, *, tail: int, changed: Callable[[], None]) -> None:
        """`changed` is called whenever somebody may have to look after it again."""
        self.member = member
        self._changed = changed
        self._is_live = False
        self._is_feeding = False
        self.tail = tail
        self.reported = trio.Event()
        self.stalled_tail = -1

    @property
    def is_live(self) -> bool:
        """It is sent each batch as it is assigned; else it is fed from storage, or waited for."""
        return self._is_live

    @is_live.setter
    def is_live(self, value: bool) -> None:
        self._is_live = value
        self._changed()

    @property
    def is_feeding(self) -> bool:
        return self._is_feeding

    @is_feeding.setter
    def is_feeding(self, value: bool) -> None:
        self._is_feeding = value
        self._changed()
