"""Handling under random handouts, ends, failures and drops: order within a lane, and no position past what is not done."""

from hypothesis import example, given
from hypothesis import strategies as st

from streamq_consumer.handling import Handling, Order, Task
from streamq_consumer.records import Record

PLACES = (("t", 0), ("t", 1))
KEYS = (None, b"a", b"b")

kinds = st.sampled_from(["add", "add", "next", "next", "done", "done", "fail", "give up", "drop"])
steps = st.lists(st.tuples(kinds, st.integers(0, 1), st.integers(0, 9)), max_size=60)


class World:
    """What a shell does with it, and a plain account of what is done."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.handling = Handling(order)
        self.next_offset = dict.fromkeys(PLACES, 0)
        self.running: list[Task] = []
        self.handed: dict[tuple[str, int], dict[int, bytes | None]] = {place: {} for place in PLACES}
        self.undone: dict[tuple[str, int], set[int]] = {place: set() for place in PLACES}
        self.given_up: dict[tuple[str, int], set[int]] = {place: set() for place in PLACES}
        self.now = 0.0

    def lane(self, record: Record) -> object:
        if self.order == "partition":
            return record.topic, record.partition
        return (record.topic, record.partition, record.key) if self.order == "key" and record.key is not None else record.offset

    def step(self, kind: str, which: int, number: int) -> None:
        place = PLACES[which]
        self.now += 1
        if kind == "add":
            offset = self.next_offset[place]
            self.next_offset[place] += 1
            key = KEYS[number % 3]
            self.handling.add([Record(place[0], place[1], offset, 0, key, None)])
            self.undone[place].add(offset)
        elif kind == "next":
            task = self.handling.next(self.now)
            if task is not None:
                ordered = self.order == "partition" or (self.order == "key" and task.record.key is not None)
                for other in self.running:
                    assert not (ordered and self.lane(other.record) == self.lane(task.record)), "two of one lane run"
                self.running.append(task)
        elif kind == "drop":
            dropped = self.handling.drop(place)
            runs = {task.record.offset for task in self.running if task.place == place}
            kept_undone = {offset for offset in self.undone[place] if offset in runs or offset in self.given_up[place]}
            if dropped is not None:
                assert dropped == min(self.undone[place] - kept_undone)
                self.next_offset[place] = dropped
            self.undone[place] = kept_undone
            if dropped is not None and any(offset >= dropped for offset in kept_undone):
                self.next_offset[place] = max(self.next_offset[place], max(kept_undone) + 1)
        elif self.running:
            task = self.running.pop(number % len(self.running))
            if kind == "done":
                self.handling.on_done(task)
                self.undone[task.place].discard(task.record.offset)
            elif kind == "fail":
                self.handling.on_failed(task, again_at=self.now + number)
            else:
                self.handling.on_given_up(task)
                self.given_up[task.place].add(task.record.offset)


@given(st.sampled_from(["partition", "key", "none"]), steps)
@example("partition", [("add", 0, 0), ("add", 0, 0), ("next", 0, 0), ("give up", 0, 0), ("drop", 0, 0)])  # was passed over
def test_positions_and_order(order: Order, script: list[tuple[str, int, int]]) -> None:
    world = World(order)
    for step in script:
        world.step(*step)
        assert world.handling.running == len(world.running)
        for place in PLACES:
            undone = world.undone[place]
            assert world.handling.first_undone(place) == (min(undone) if undone else None)


@given(st.sampled_from(["partition", "key", "none"]), st.lists(st.sampled_from(KEYS), max_size=20), st.integers(1, 4))
def test_everything_is_handled_in_the_end_and_each_lane_in_order(order: Order, keys: list[bytes | None], failures: int) -> None:
    handling = Handling(order)
    handling.add(Record("t", 0, offset, 0, key, None) for offset, key in enumerate(keys))
    now, done, running = 0.0, [], []
    while not handling.is_idle:
        now += 1
        while (task := handling.next(now)) is not None:
            running.append(task)
        task = running.pop()
        if task.attempts <= failures % 3:
            handling.on_failed(task, again_at=now + 1)
        else:
            handling.on_done(task)
            done.append(task.record)
    assert sorted(record.offset for record in done) == list(range(len(keys)))
    lanes: dict[object, list[int]] = {}
    for record in done:
        lanes.setdefault(record.key if order == "key" else None, []).append(record.offset)
    if order == "partition":
        assert [record.offset for record in done] == list(range(len(keys)))
    if order == "key":
        assert all(offsets == sorted(offsets) for key, offsets in lanes.items() if key is not None)
    assert handling.first_undone(("t", 0)) is None
