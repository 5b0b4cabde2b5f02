"""Which record is handled when, and how far a partition is done: pure. `run` is the shell around it.

Records wait in lanes, one after the other: a lane a partition, or one for each key in a partition, or one for each record. A record that
failed goes back to the front of its lane until its time has come; other lanes go on. A partition is done up to the first record that is
not, whatever was handled behind it.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from typing import Final, Literal

from streamq_consumer.records import Record

__all__ = ["Handling", "Order", "Task"]

Order = Literal["partition", "key", "none"]
Place = tuple[str, int]
NEVER: Final = float("inf")


class Task:
    """A record on its way: `attempts` counts those that were begun."""

    __slots__ = ("attempts", "is_done", "is_dropped", "is_given_up", "is_running", "lane", "record")

    def __init__(self, record: Record, lane: object) -> None:
        self.record = record
        self.lane = lane
        self.attempts = 0
        self.is_running = False
        self.is_done = False
        self.is_dropped = False
        self.is_given_up = False

    @property
    def place(self) -> Place:
        return (self.record.topic, self.record.partition)


class Handling:
    """Invariants: of one lane one task at most runs, and it is the lane's first; `_open` has, for each partition, its tasks in the order
    in which they came, from the first that is not done."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lanes: dict[object, deque[Task]] = {}
        self._ready: deque[Task] = deque()
        self._delayed: list[tuple[float, int, Task]] = []
        self._sequence = count()
        self._open: dict[Place, deque[Task]] = {}
        self.running = 0
        self.waiting = 0

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            task = Task(record, self._lane_of(record))
            self._open.setdefault(task.place, deque()).append(task)
            lane = self._lanes.get(task.lane)
            if lane is None:
                self._lanes[task.lane] = deque((task,))
                self._ready.append(task)
            else:
                lane.append(task)
            self.waiting += 1

    def _lane_of(self, record: Record) -> object:
        if self._order == "partition":
            return record.topic, record.partition
        if self._order == "key" and record.key is not None:
            return record.topic, record.partition, record.key
        return record.topic, record.partition, record.offset

    def next(self, now: float) -> Task | None:
        """One whose turn it is, begun from now on; None if there is none."""
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.append(heappop(self._delayed)[2])
        while self._ready:
            task = self._ready.popleft()
            if not task.is_dropped:
                task.is_running = True
                task.attempts += 1
                self.running += 1
                self.waiting -= 1
                return task
        return None

    @property
    def next_deadline(self) -> float:
        """When one that failed has its turn again."""
        return self._delayed[0][0] if self._delayed else NEVER

    def on_failed(self, task: Task, *, again_at: float) -> None:
        """It is to be tried again then; its lane waits for it."""
        self._stop(task)
        if task.is_dropped:
            self._leave(task)
        else:
            self.waiting += 1
            heappush(self._delayed, (again_at, next(self._sequence), task))

    def on_done(self, task: Task) -> None:
        self._stop(task)
        task.is_done = True
        self._leave(task)

    def on_given_up(self, task: Task) -> None:
        """It ended without being done, and is not tried again here; no position passes it."""
        self._stop(task)
        task.is_given_up = True

    def drop(self, place: Place) -> int | None:
        """What waits of a partition is not begun any more; the first such offset, None if nothing waits. What runs goes on."""
        waiting = (task for task in self._open.get(place, ()) if not (task.is_running or task.is_done or task.is_given_up))
        dropped = list(waiting)
        for task in dropped:
            task.is_dropped = True
            self.waiting -= 1
        if not dropped:
            return None
        self._open[place] = deque(task for task in self._open[place] if not task.is_dropped)
        self._trim(place)
        for lane in {task.lane: None for task in dropped}:
            kept = deque(task for task in self._lanes[lane] if not task.is_dropped)
            if kept:
                self._lanes[lane] = kept
            else:
                del self._lanes[lane]
        self._delayed = [entry for entry in self._delayed if not entry[2].is_dropped]
        self._delayed.sort()
        return min(task.record.offset for task in dropped)

    def first_undone(self, place: Place) -> int | None:
        """The first offset that was handed out and is not done; None if all is. What runs of a partition that was taken away and came back
        counts, too, beside what came since: so it is not always the first in line."""
        return min((task.record.offset for task in self._open.get(place, ()) if not task.is_done), default=None)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def _stop(self, task: Task) -> None:
        assert task.is_running
        task.is_running = False
        self.running -= 1

    def _leave(self, task: Task) -> None:
        lane = self._lanes[task.lane]
        assert lane[0] is task
        lane.popleft()
        if lane:
            self._ready.append(lane[0])
        else:
            del self._lanes[task.lane]
        self._trim(task.place)

    def _trim(self, place: Place) -> None:
        tasks = self._open.get(place)
        while tasks and tasks[0].is_done:
            tasks.popleft()
        if tasks is not None and not tasks:
            del self._open[place]
