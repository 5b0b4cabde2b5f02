"""The producer's session against a cluster that takes over, refuses and breaks connections, as a model in a few lines."""

from collections import deque
from itertools import count
from random import Random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import Ack, Nack
from streamq_producer.effects import Acked, Effect, Entry, Failed, Locate, Open, Transmit
from streamq_producer.session import PartitionSession

BROKERS = ("b1", "b2", "b3")
TIMEOUT_S = 2.0
FAULTS = ["busy", "unavailable", "stopping", "record_too_large", "unknown_outcome", "unknown_stored", "internal"]
LOST = UnavailableError("connection lost", code="unavailable")


class Request(NamedTuple):
    ticket: int
    producer: bytes
    producer_epoch: int
    sequence: int
    payload: int


class World:
    """One log, a sequencer that moves, and for each broker a connection that keeps the order in both directions."""

    def __init__(self, random: Random, *, is_idempotent: bool, in_flight: int, are_identified: bool = False) -> None:
        self.random = random
        self.now = 0.0
        self.sequencer = "b1"
        self.log: list[int] = []
        self.table: dict[bytes, tuple[int, dict[int, int]]] = {}
        self.requests: dict[str, deque[Request]] = {b: deque() for b in BROKERS}
        self.late: list[tuple[str, Request]] = []
        """What was on its way when a connection broke, and may arrive at any time."""
        self.answers: dict[str, deque[Ack | Nack]] = {b: deque() for b in BROKERS}
        self.open: set[str] = set()
        self.is_sick = True
        self.sickness = random.choice([0.05, 0.2, 0.5])
        self.faults = random.sample(FAULTS, random.randint(1, len(FAULTS)))
        self.added: list[Entry] = []
        self.acked: dict[int, int] = {}
        self.failed: dict[int, Failed] = {}
        self.opening: deque[str] = deque()
        self.is_locating = False
        self.session = PartitionSession(
            replicas=BROKERS,
            sequencer="b1",
            in_flight=in_flight,
            tickets=count(1),
            producer=b"P" * 16 if is_idempotent else NO_PRODUCER,
            are_identified=are_identified,
        )
        self.are_identified = are_identified

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Transmit):
                assert effect.broker in self.open
                for entry in effect.entries:
                    assert entry.sequence is not None
                    assert isinstance(entry.token, int)
                    producer = b"%d" % entry.token if self.are_identified else self.session.producer
                    request = Request(entry.tickets[-1], producer, self.session.producer_epoch, entry.sequence, entry.token)
                    self.requests[effect.broker].append(request)
            elif isinstance(effect, Acked):
                self._settle(effect.entry)
                assert isinstance(effect.entry.token, int)
                self.acked[effect.entry.token] = effect.ack.base
            elif isinstance(effect, Failed):
                self._settle(effect.entry)
                assert isinstance(effect.entry.token, int)
                self.failed[effect.entry.token] = effect
            elif isinstance(effect, Open):
                self.opening.append(effect.broker)
            elif isinstance(effect, Locate):
                self.is_locating = True

    def _settle(self, entry: Entry) -> None:
        assert entry.token not in self.acked, "settled twice"
        assert entry.token not in self.failed, "settled twice"

    def add(self) -> None:
        entry = Entry(len(self.added), records=1, deadline=self.now + TIMEOUT_S)
        self.added.append(entry)
        self.carry_out(self.session.add(entry, self.now))

    def connect(self) -> None:
        if self.opening:
            broker = self.opening.popleft()
            if self.is_sick and self.random.random() < 0.3:
                self.carry_out(self.session.on_lost(broker, LOST, self.now))
            else:
                self.open.add(broker)
                self.carry_out(self.session.on_opened(broker, self.now))

    def locate(self) -> None:
        if self.is_locating:
            self.is_locating = False
            hint = self.sequencer if not self.is_sick or self.random.random() < 0.7 else self.random.choice(BROKERS)
            self.carry_out(self.session.on_view(BROKERS, hint, self.now))

    def serve(self, broker: str) -> None:
        if self.requests[broker]:
            answer = self._answer(broker, self.requests[broker].popleft())
            if answer is not None:
                self.answers[broker].append(answer)

    def _answer(self, broker: str, request: Request) -> Ack | Nack | None:
        ticket, producer, producer_epoch, sequence, payload = request
        sick = self.is_sick and self.random.random() < self.sickness
        if broker != self.sequencer:
            hint = self.sequencer if not sick else self.random.choice(("", *BROKERS))
            return Nack(ticket, "not_sequencer", "not me", hint)
        if sick:
            code = self.random.choice(
                ["busy", "unavailable", "stopping", "record_too_large", "unknown_outcome", "unknown_stored", "internal"]
            )
            if code != "unknown_stored":
                return Nack(ticket, code, code, "")
        newest, known = self.table.get(producer, (producer_epoch, {}))
        if producer == NO_PRODUCER:
            sequence = len(self.log)
        elif producer_epoch < newest:
            return Nack(ticket, "fenced", "fenced", "")
        elif producer_epoch > newest and sequence == 0:
            known = {}
        elif producer_epoch > newest:
            return Nack(ticket, "sequence_gap", "gap", "")
        elif sequence in known:
            return Ack(ticket, known[sequence], 0, 2, 3, True)
        elif sequence != len(known):
            return Nack(ticket, "sequence_gap", "gap", "")
        known[sequence] = len(self.log)
        self.table[producer] = (producer_epoch, known)
        self.log.append(payload)
        if sick:
            return Nack(ticket, "unknown_outcome", "sealed meanwhile", "")
        return Ack(ticket, known[sequence], 0, 2, 3, True)

    def hear(self, broker: str) -> None:
        if self.answers[broker]:
            answer = self.answers[broker].popleft()
            session = self.session
            self.carry_out(session.on_ack(answer, self.now) if isinstance(answer, Ack) else session.on_nack(answer, self.now))

    def cut(self, broker: str) -> None:
        """The connection breaks; what was on its way may still reach the broker first, but no answer comes back."""
        for _ in range(self.random.randint(0, len(self.requests[broker]))):
            self.serve(broker)
        if self.is_sick:
            self.late += [(broker, request) for request in self.requests[broker]]
        self.requests[broker].clear()
        self.answers[broker].clear()
        self.open.discard(broker)
        self.carry_out(self.session.on_lost(broker, LOST, self.now))

    def arrive_late(self) -> None:
        if self.late:
            self._answer(*self.late.pop(0))

    def busy_broker(self, action: str) -> str:
        """One that has something to do, if any has."""
        busy = [b for b in BROKERS if (self.requests[b] if action == "serve" else self.answers[b] if action == "hear" else True)]
        return self.random.choice(busy or BROKERS)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.session.next_deadline <= self.now:
            self.carry_out(self.session.on_time(self.now))

    def heal(self) -> None:
        """From now on nothing goes wrong: everything must be settled, in bounded time."""
        self.is_sick = False
        for _ in range(2_000):
            if self.session.is_idle:
                return
            self.connect()
            self.locate()
            for broker in BROKERS:
                self.serve(broker)
                self.hear(broker)
            self.pass_time(0.01)
        raise AssertionError("the session does not come to an end")


def check_outcomes(world: World) -> None:
    assert set(world.acked) | set(world.failed) == set(range(len(world.added)))
    for payload, offset in world.acked.items():
        assert world.log[offset] == payload
    for payload, failed in world.failed.items():
        if not isinstance(failed.error, UnknownOutcomeError):
            assert payload not in world.log, f"{failed.error!r} says it is not stored, and it is"
    assert len(set(world.log)) == len(world.log), "stored twice"


WORDS = (
    ["add"] * 4
    + ["connect"] * 3
    + ["locate"]
    + ["serve"] * 5
    + ["hear"] * 5
    + ["cut", "cut", "move", "time", "time", "time", "late", "late"]
)


def play(world: World) -> None:
    for action in world.random.choices(WORDS, k=world.random.choice([20, 100, 200])):
        broker = world.busy_broker(action)
        if action == "add":
            world.add()
        elif action == "connect":
            world.connect()
        elif action == "locate":
            world.locate()
        elif action == "serve":
            world.serve(broker)
        elif action == "hear":
            world.hear(broker)
        elif action == "cut":
            world.cut(broker)
        elif action == "late":
            world.arrive_late()
        elif action == "move":
            world.sequencer = broker
        else:
            world.pass_time(world.random.choice([0.001, 0.02, 0.3, 1.0]))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5))
def test_idempotent_batches_are_stored_at_most_once_in_order_and_every_outcome_is_true(seed: int, in_flight: int) -> None:
    """I-3 and I-5: whatever breaks, an ack is true, a refusal is true, and what is stored lies in the order it was added."""
    world = World(Random(seed), is_idempotent=True, in_flight=in_flight)
    play(world)
    world.heal()
    check_outcomes(world)
    while world.late:
        world.arrive_late()
    check_outcomes(world)
    assert world.log == sorted(world.log), "unknown outcomes included"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5))
def test_without_numbers_nothing_is_sent_again_while_it_may_be_stored(seed: int, in_flight: int) -> None:
    """Not idempotent: no batch is stored twice either, since what is in doubt is reported as unknown."""
    world = World(Random(seed), is_idempotent=False, in_flight=in_flight)
    play(world)
    world.heal()
    check_outcomes(world)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5), st.booleans())
def test_records_with_ids_are_stored_at_most_once_and_every_outcome_is_true(seed: int, in_flight: int, is_idempotent: bool) -> None:
    """Also of a producer that does not number its other batches. In what order is nobody's promise."""
    world = World(Random(seed), is_idempotent=is_idempotent, in_flight=in_flight, are_identified=True)
    play(world)
    world.heal()
    check_outcomes(world)
    while world.late:
        world.arrive_late()
    check_outcomes(world)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5))
def test_a_takeover_alone_loses_nothing(seed: int, in_flight: int) -> None:
    """Connections break and sequencers move, but nobody refuses for good: everything is acked."""
    world = World(Random(seed), is_idempotent=True, in_flight=in_flight)
    world.is_sick = False
    for _ in range(60):
        world.add()
        world.connect()
        broker = world.random.choice(BROKERS)
        world.serve(broker)
        world.hear(broker)
        if world.random.random() < 0.1:
            world.sequencer = world.random.choice(BROKERS)
            world.cut(world.random.choice(BROKERS))
        world.pass_time(0.005)
    world.heal()
    check_outcomes(world)
    assert not world.failed
    assert world.log == list(range(60))
