"""The consumer's session against replicas that know different amounts, repeat, skip, break and lie about places."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.model.errors import UnavailableError
from streamq_consumer.session import (
    FIRST_WINDOW_BYTES,
    Credit,
    Effect,
    Leave,
    Locate,
    PartitionSession,
    ReadTip,
    Span,
    Subscribe,
    Take,
    Tuning,
)

BROKERS = ("b1", "b2", "b3")
WINDOW_RECORDS = 50
LOST = UnavailableError("connection lost", code="unavailable")


class World:
    """One log, cut into batches once; replicas that know a prefix of it and send it from anywhere while they are sick."""

    def __init__(self, random: Random, *, start: int, sizes: list[int], record_bytes: int) -> None:
        self.random = random
        self.now = 0.0
        self.is_sick = True
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self.log = [Span(end - size, end, record_bytes * size) for size, end in zip(sizes, ends, strict=True)]
        self.end = ends[-1]
        self.start = min(start, self.end)
        self.known = dict.fromkeys(BROKERS, 0)
        self.buffer: list[tuple[Span, int]] = []
        self.delivered: list[int] = []
        self.handed_out = self.finished = 0
        self.stream: tuple[str, int, int] | None = None
        """Broker, attempt and the next offset of the subscription."""
        self.left: tuple[str, int, int] | None = None
        """The one before, of which something may still arrive."""
        self.credit = 0
        self.todo: list[Effect] = []
        self.window_bytes = WINDOW_RECORDS * record_bytes
        tuning = Tuning(window_bytes=self.window_bytes, stall_s=1.0, tip_check_s=1.0, patience_s=float("inf"))
        self.session = PartitionSession(offset=self.start, from_earliest=False, replicas=BROKERS, only="", spread=0, tuning=tuning)
        self.carry_out(self.session.start(0.0))

    def carry_out(self, effects: list[Effect], spans: list[Span] | None = None, told: int = 0) -> None:
        for effect in effects:
            if isinstance(effect, Take):
                assert spans is not None
                assert effect.skip >= 0
                assert spans[effect.at].end <= told
                self.buffer.append((spans[effect.at], effect.skip))
            elif isinstance(effect, Leave):
                self.left, self.stream = self.stream or self.left, None
            elif isinstance(effect, Credit):
                self.credit += effect.size
            elif isinstance(effect, Subscribe | ReadTip):
                self.todo.append(effect)
            else:
                assert isinstance(effect, Locate), effect
        ahead = min(self.window_bytes, FIRST_WINDOW_BYTES + self.finished)
        assert sum(span.size for span, _ in self.buffer) <= ahead + 2 * max(span.size for span in self.log)

    def work(self) -> None:
        """Connects, or answers a question about the tip; or fails to."""
        if not self.todo:
            return
        effect = self.todo.pop(0)
        if isinstance(effect, ReadTip):
            if not self.is_sick or self.random.random() < 0.7:
                self.carry_out(self.session.on_tip(self.end, 0, self.now))
        elif isinstance(effect, Subscribe):
            if self.is_sick and self.random.random() < 0.3:
                self.carry_out(self.session.on_ended(effect.attempt, LOST, self.now))
            elif effect.attempt == self.session.attempt:
                self.stream, self.credit = (effect.broker, effect.attempt, self.session.expected), self.session.credit
                self.session.on_subscribed(effect.attempt, self.now)

    def send(self) -> None:
        """A frame of the present subscription."""
        if self.stream is None:
            return
        broker, attempt, offset = self.stream
        known = self.known[broker] if self.is_sick else self.end
        spans = [span for span in self.log if span.end > offset and span.end <= known][: self.random.randint(1, 3)]
        while spans and self.credit - sum(span.size for span in spans[:-1]) <= 0:
            spans.pop()  # one batch may overdraw the credit, no more
        if self.is_sick and spans and self.random.random() < 0.3:
            spans = self._wrong(spans)
        if spans:
            self.stream = broker, attempt, max(offset, spans[-1].end)
            self.credit -= sum(span.size for span in spans)
        self.carry_out(self.session.on_records(attempt, spans, known, self.now), spans, known)

    def send_late(self) -> None:
        """A frame of a subscription that was left, just what would come next."""
        if self.left is not None:
            spans = [span for span in self.log if span.end > self.session.expected][:1]
            self.carry_out(self.session.on_records(self.left[1], spans, self.end, self.now), spans)

    def _wrong(self, spans: list[Span]) -> list[Span]:
        """Not what was asked for: a repeat, a hole, or something that cannot be read yet."""
        wrong = self.random.randint(0, 2)
        if wrong == 0:
            return [self.random.choice(self.log), *spans[1:]]
        after = [span for span in self.log if span.base >= spans[-1].end][:1]
        return spans[1:] if wrong == 1 else [*spans, *after]

    def hand_out(self) -> None:
        if self.buffer:
            span, skip = self.buffer.pop(0)
            self.delivered += range(span.base + skip, span.end)
            self.session.on_handed_out(span.end, span.size)
            self.handed_out += span.size

    def come_for_more(self) -> None:
        self.finished = self.handed_out
        self.carry_out(self.session.on_finished())

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.session.next_deadline <= self.now:
            self.carry_out(self.session.on_time(self.now))

    def cut(self) -> None:
        if self.stream is not None:
            attempt, self.stream = self.stream[1], None
            self.carry_out(self.session.on_ended(attempt, LOST, self.now))

    def learn(self) -> None:
        broker = self.random.choice(BROKERS)
        self.known[broker] = self.random.randint(self.known[broker], self.end)

    def heal(self) -> None:
        self.is_sick = False
        for _ in range(2_000):
            if len(self.delivered) == self.end - self.start:
                return
            self.work()
            self.send()
            self.hand_out()
            self.come_for_more()
            self.pass_time(0.05)
        raise AssertionError("the session does not get to the end")


WORDS = ["work"] * 3 + ["send"] * 6 + ["hand_out"] * 3 + ["come_for_more"] * 2 + ["learn"] * 2 + ["cut", "time", "send_late"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(0, 100), st.sampled_from([10, 5_000]))
def test_every_record_comes_once_in_order_from_the_place_asked_for(seed: int, sizes: list[int], start: int, record_bytes: int) -> None:
    """P-26, I-4: whatever replicas do, what is handed out is consecutive; and when they are well, all of it comes."""
    world = World(Random(seed), start=start, sizes=sizes, record_bytes=record_bytes)
    for action in world.random.choices(WORDS, k=150):
        if action == "time":
            world.pass_time(world.random.choice([0.01, 0.3, 1.0]))
        else:
            getattr(world, action)()
        assert world.delivered == list(range(world.start, world.start + len(world.delivered)))
    world.heal()
    assert world.delivered == list(range(world.start, world.end))
