"""The checkers report what is wrong, exactly that, and nothing of a history in which nothing is."""

import dataclasses
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.checkers import Kind, check, told
from tests.sim.history import History, Outcome, Poll, Send, StoredBatch, TipSeen

Log = list[tuple[int, bytes]]


def acked(number: int, offset: int, *, began: float, ended: float, sender: str = "s", partition: int = 0) -> Send:
    return Send(sender, number, partition, b"%s %d" % (sender.encode(), number), began, Outcome.ACKED, ended, offset)


def told_otherwise(number: int, outcome: Outcome, *, began: float, ended: float | None = None, sender: str = "s") -> Send:
    return Send(sender, number, 0, b"%s %d" % (sender.encode(), number), began, outcome, ended)


def log_of(*values: bytes, start: int = 0) -> Log:
    return list(enumerate(values, start))


BROKERS = ("b1", "b2", "b3")


def segment(epoch: int, base: int, end: int | None, *, attempt: bytes = b"") -> Segment:
    members = tuple(Member(broker, broker.encode() * 8) for broker in BROKERS)
    return Segment(epoch, base, end, members, 2, 2, "fsync", f"b{epoch % 3 + 1}", attempt or b"attempt %d" % epoch)


def register(*chain: Segment, start_offset: int = 0) -> PartitionRegister:
    return PartitionRegister(bytes(16), "t", 0, BROKERS, 2, 2, "fsync", start_offset, chain)


def clean() -> History:
    """Three records of one sender, two of another, with every outcome; two consumers, tip reads, replicas over two epochs."""
    sends = [
        acked(0, 0, began=1.0, ended=1.1),
        acked(1, 1, began=2.0, ended=2.1),
        told_otherwise(2, Outcome.UNKNOWN, began=3.0, ended=3.5),  # lies at 2
        told_otherwise(3, Outcome.UNKNOWN, began=3.6, ended=3.7),  # lies nowhere
        told_otherwise(0, Outcome.REFUSED, began=3.0, ended=3.1, sender="r"),
        told_otherwise(1, Outcome.OPEN, began=4.0, sender="r"),  # lies at 3
    ]
    log = log_of(b"s 0", b"s 1", b"s 2", b"r 1")
    stored = [StoredBatch(1, 0, 2, b"A"), StoredBatch(2, 2, 4, b"B")]
    closed, opened = segment(1, 0, 2), segment(2, 2, None)
    return History(
        sends=sends,
        polls=[Poll("c", 0, tuple(log[:2]), 2.5), Poll("c", 0, tuple(log[2:]), 5.0), Poll("d", 0, tuple(log[1:]), 5.0)],
        tips=[TipSeen("t", 0, 1.05, 1.2, 1, 0), TipSeen("t", 0, 2.2, 2.3, 1, 2), TipSeen("u", 0, 5.1, 5.2, 2, 4)],
        log={0: log},
        replicas={0: {"b1": stored[:], "b2": stored[:], "b3": stored[:1]}},
        registers={0: [register(segment(1, 0, None)), register(closed, opened)]},
        asked={("c", 0): 0, ("d", 0): 1},
    )


def test_a_correct_history_has_no_anomaly() -> None:
    assert check(clean()) == []


def test_a_value_sent_twice_is_no_material() -> None:
    history = clean()
    history.sends.append(dataclasses.replace(history.sends[0], number=9))
    with pytest.raises(ValueError, match="sent twice"):
        check(history)


def grow(history: History, value: bytes) -> None:
    """Appends a record, with its copies."""
    log = history.log[0]
    for broker in ("b1", "b2"):
        history.replicas[0][broker].append(StoredBatch(2, len(log), len(log) + 1, value))
    log.append((len(log), value))


def trim(history: History, start_offset: int) -> None:
    history.registers[0].append(msgspec.structs.replace(history.registers[0][-1], start_offset=start_offset))
    history.log[0] = history.log[0][start_offset:]


# --- one anomaly at a time -------------------------------------------------------------------------------------------------


def lost(history: History) -> None:
    history.sends.append(acked(7, 4, began=6.0, ended=6.1))


def lost_though_acked_as_a_repeat(history: History) -> None:
    """P-35: where it is was not told, but that it is there."""
    history.sends.append(dataclasses.replace(acked(7, 4, began=6.0, ended=6.1), offset=None))


def acked_as_a_repeat_in_another_partition(history: History) -> None:
    history.sends.append(Send("x", 0, 0, b"x 0", 6.0, Outcome.ACKED, 6.1))
    history.log[1] = log_of(b"x 0")


def displaced(history: History) -> None:
    history.sends[4:] = [acked(0, 4, began=4.0, ended=6.0, sender="r")]
    history.log[0][3] = (3, b"r 0")
    history.polls = []


def duplicate(history: History) -> None:
    grow(history, b"s 2")


def duplicate_of_what_was_trimmed(history: History) -> None:
    """The first one is gone since, but a consumer has read it."""
    trim(history, 2)
    end = len(history.log[0]) + 2
    history.log[0].append((end, b"s 1"))
    for broker in ("b1", "b2"):
        history.replicas[0][broker].append(StoredBatch(2, end, end + 1, b"s 1"))


def refused_in_the_log(history: History) -> None:
    grow(history, b"r 0")


def refused_and_read(history: History) -> None:
    """And trimmed since: of what still lies there it would have vanished as well."""
    trim(history, 2)
    history.polls = [Poll("e", 0, ((1, b"r 0"),), 6.0)]


def phantom_in_the_log(history: History) -> None:
    grow(history, b"from nowhere")


def in_another_partition(history: History) -> None:
    history.sends.append(Send("x", 0, 0, b"x 0", 6.0))
    history.log[1] = log_of(b"x 0")


def inconsistent(history: History) -> None:
    history.polls.append(Poll("e", 0, ((1, b"s 2"),), 6.0))


def inconsistent_below_the_start_offset(history: History) -> None:
    trim(history, 2)
    history.polls.append(Poll("e", 0, ((1, b"s 3"),), 6.0))


def vanished(history: History) -> None:
    history.sends.append(told_otherwise(7, Outcome.UNKNOWN, began=5.5, ended=5.6))
    history.polls.append(Poll("e", 0, ((4, b"s 7"),), 6.0))


def hole_in_the_log(history: History) -> None:
    history.registers[0] = []
    history.sends.append(told_otherwise(2, Outcome.OPEN, began=4.0, sender="r"))
    history.log[0].append((5, b"r 2"))


def log_that_begins_too_late(history: History) -> None:
    history.sends, history.polls, history.registers = history.sends[2:], [], {}
    history.log[0] = history.log[0][2:]


def skipped(history: History) -> None:
    history.polls = [Poll("c", 0, ((0, b"s 0"), (2, b"s 2")), 5.0)]


def skipped_at_its_start(history: History) -> None:
    history.polls = [Poll("c", 0, ((1, b"s 1"),), 5.0)]


def repeated(history: History) -> None:
    history.polls.append(Poll("c", 0, ((3, b"r 1"),), 6.0))


def sender_out_of_order(history: History) -> None:
    history.sends[0] = acked(5, 0, began=1.0, ended=1.1)
    history.log[0][0], history.polls = (0, b"s 5"), []


def appended_too_early(history: History) -> None:
    history.sends[5].began = 7.0  # it lies at 3
    history.sends.append(acked(0, 4, began=6.0, ended=6.5, sender="x"))
    grow(history, b"x 0")
    history.polls, history.tips = [], []


def read_before_it_was_sent(history: History) -> None:
    history.sends[5].began = 5.05  # `c` had it at 5.0


def stale_tip_after_an_ack(history: History) -> None:
    history.tips = [TipSeen("t", 0, 2.2, 2.3, 1, 1)]


def stale_tip_after_a_poll(history: History) -> None:
    history.tips = [TipSeen("t", 0, 6.0, 6.1, 2, 3)]


def tip_that_fell(history: History) -> None:
    history.polls = []
    history.tips.append(TipSeen("v", 0, 5.3, 5.4, 1, 3))


def tip_past_the_end(history: History) -> None:
    history.tips.append(TipSeen("v", 0, 5.3, 5.4, 1, 5))


def replicas_that_differ(history: History) -> None:
    history.replicas[0]["b2"][1] = StoredBatch(2, 2, 4, b"other")


def replicas_that_differ_in_size(history: History) -> None:
    history.replicas[0]["b3"].append(StoredBatch(2, 2, 3, b"B"))


def hole_in_a_replica(history: History) -> None:
    history.registers = {}
    history.replicas[0]["b3"] = [StoredBatch(1, 0, 1, b"A"), StoredBatch(1, 2, 3, b"C")]
    del history.replicas[0]["b1"], history.replicas[0]["b2"]


def void_batch(history: History) -> None:
    history.replicas[0]["b3"].append(StoredBatch(1, 2, 3, b"V"))
    for broker in ("b1", "b2"):
        history.replicas[0][broker].pop()
    history.log[0], history.sends, history.polls, history.tips = history.log[0][:2], history.sends[:2], [], []


def batch_of_no_epoch(history: History) -> None:
    history.replicas[0]["b3"].append(StoredBatch(9, 4, 5, b"V"))


def holder_without_the_data(history: History) -> None:
    history.replicas[0]["b3"] = []


def open_epoch_on_too_few(history: History) -> None:
    history.replicas[0]["b2"].pop()


def broken_chain(history: History) -> None:
    history.replicas = {}
    history.registers[0] = [register(segment(1, 0, 2), segment(2, 3, None))]


def end_that_moved(history: History) -> None:
    history.replicas = {}
    history.registers[0].append(register(segment(1, 0, 1), segment(2, 1, None)))


def sequencer_that_changed(history: History) -> None:
    history.registers[0].append(register(segment(1, 0, 2), segment(2, 2, None, attempt=b"another")))


def start_offset_that_fell(history: History) -> None:
    history.registers[0][0] = msgspec.structs.replace(history.registers[0][0], start_offset=1)


ANOMALIES: list[tuple[Callable[[History], None], Kind]] = [
    (lost, Kind.LOST),
    (lost_though_acked_as_a_repeat, Kind.LOST),
    (acked_as_a_repeat_in_another_partition, Kind.DISPLACED),
    (displaced, Kind.DISPLACED),
    (duplicate, Kind.DUPLICATE),
    (duplicate_of_what_was_trimmed, Kind.DUPLICATE),
    (refused_in_the_log, Kind.REFUSED_READ),
    (refused_and_read, Kind.REFUSED_READ),
    (phantom_in_the_log, Kind.PHANTOM),
    (in_another_partition, Kind.DISPLACED),
    (inconsistent, Kind.INCONSISTENT),
    (inconsistent_below_the_start_offset, Kind.INCONSISTENT),
    (vanished, Kind.VANISHED),
    (hole_in_the_log, Kind.HOLE_IN_LOG),
    (log_that_begins_too_late, Kind.HOLE_IN_LOG),
    (skipped, Kind.SKIPPED),
    (skipped_at_its_start, Kind.SKIPPED),
    (repeated, Kind.REPEATED),
    (sender_out_of_order, Kind.SENDER_ORDER),
    (appended_too_early, Kind.REAL_TIME_ORDER),
    (read_before_it_was_sent, Kind.REAL_TIME_ORDER),
    (stale_tip_after_an_ack, Kind.STALE_TIP),
    (stale_tip_after_a_poll, Kind.STALE_TIP),
    (tip_that_fell, Kind.TIP_FELL),
    (tip_past_the_end, Kind.TIP_PAST_END),
    (replicas_that_differ, Kind.REPLICAS_DIFFER),
    (replicas_that_differ_in_size, Kind.REPLICAS_DIFFER),
    (hole_in_a_replica, Kind.HOLE_IN_REPLICA),
    (void_batch, Kind.VOID_STORED),
    (batch_of_no_epoch, Kind.VOID_STORED),
    (holder_without_the_data, Kind.TOO_FEW_COPIES),
    (open_epoch_on_too_few, Kind.TOO_FEW_COPIES),
    (broken_chain, Kind.CHAIN),
    (end_that_moved, Kind.CHAIN_CHANGED),
    (sequencer_that_changed, Kind.CHAIN_CHANGED),
    (start_offset_that_fell, Kind.CHAIN_CHANGED),
]


@pytest.mark.parametrize(("spoil", "kind"), ANOMALIES, ids=[spoil.__name__ for spoil, _ in ANOMALIES])
def test_exactly_this_anomaly_is_reported(spoil: Callable[[History], None], kind: Kind) -> None:
    history = clean()
    spoil(history)
    found = check(history)
    assert {anomaly.kind for anomaly in found} == {kind}, told(found)
    assert kind.name in told(found)


def test_every_kind_has_a_history_that_shows_it() -> None:
    assert {kind for _, kind in ANOMALIES} == set(Kind)


def test_a_plain_sender_may_be_there_twice_and_in_any_order() -> None:
    history = clean()
    duplicate(history)
    history.plain_senders.add("s")
    assert check(history) == []


def test_what_was_trimmed_is_neither_lost_nor_a_hole_nor_skipped() -> None:
    history = clean()
    trim(history, 2)
    history.polls = [Poll("c", 0, tuple(history.log[0]), 6.0)]
    assert check(history) == []


def test_what_overlaps_in_time_proves_nothing() -> None:
    """Two sends that were open at once may lie in either order; a tip read may miss what was acked while it ran."""
    history = History(
        sends=[acked(0, 1, began=1.0, ended=2.0, sender="a"), acked(0, 0, began=2.0, ended=3.0, sender="b")],
        tips=[TipSeen("t", 0, 2.0, 4.0, 1, 0)],
        log={0: log_of(b"b 0", b"a 0")},
    )
    assert check(history) == []


# --- random histories ------------------------------------------------------------------------------------------------------


@dataclass
class IdealLog:
    """One correct log and its clients, in random order: each event takes its effect somewhere between its beginning and its end."""

    rng: random.Random
    history: History = field(default_factory=History)
    now: float = 0.0

    def run(self, steps: int, *, partitions: int = 2, senders: int = 3) -> History:
        logs = self.history.log = {p: [] for p in range(partitions)}
        number = dict.fromkeys((f"s{i}" for i in range(senders)), 0)
        position: dict[tuple[str, int], int] = {}
        for _ in range(steps):
            partition = self.rng.randrange(partitions)
            match self.rng.choice(("send", "send", "send", "poll", "tip")):
                case "send":
                    sender = self.rng.choice(list(number))
                    self.send(sender, number[sender], partition)
                    number[sender] += 1
                case "poll":
                    run = (self.rng.choice(("c", "d")), partition)
                    first = position.setdefault(run, self.rng.randrange(len(logs[partition]) + 1))
                    self.history.asked.setdefault(run, first)
                    records = tuple(logs[partition][first : first + self.rng.randrange(1, 4)])
                    position[run] = first + len(records)
                    self.history.polls.append(Poll(run[0], partition, records, self.tick()))
                case "tip":
                    began = self.tick() - self.rng.random()
                    self.history.tips.append(TipSeen("t", partition, began, self.tick(), 1, len(logs[partition])))
        return self.history

    def send(self, sender: str, number: int, partition: int) -> None:
        log = self.history.log[partition]
        value = b"%s %d" % (sender.encode(), number)
        send = Send(sender, number, partition, value, self.tick())
        send.outcome = self.rng.choice((*(Outcome.ACKED,) * 5, Outcome.UNKNOWN, Outcome.OPEN, Outcome.REFUSED))
        is_stored = send.outcome is Outcome.ACKED or (send.outcome is not Outcome.REFUSED and self.rng.random() < 0.5)
        if is_stored:
            log.append((len(log), value))
        if send.outcome is not Outcome.OPEN:
            send.ended = self.tick() + self.rng.random() * 3
            send.offset = len(log) - 1 if send.outcome is Outcome.ACKED else None
        self.history.sends.append(send)

    def tick(self) -> float:
        self.now += self.rng.random()
        return self.now


@given(st.integers(0, 2**32), st.integers(0, 80))
@settings(deadline=None)
def test_no_anomaly_in_what_an_ideal_log_did(seed: int, steps: int) -> None:
    found = check(IdealLog(random.Random(seed)).run(steps))
    assert found == [], told(found)


def _lose(history: History, rng: random.Random) -> None:
    send = rng.choice([send for send in history.sends if send.outcome is Outcome.ACKED])
    log = history.log[send.partition]
    values = [value for _, value in log if value != send.value]
    history.log[send.partition] = list(enumerate(values))


def _swap(history: History, rng: random.Random) -> None:
    partition, offset = rng.choice([(p, i) for p, log in history.log.items() for i in range(len(log) - 1) if _is_acked(history, log[i][1])])
    log = history.log[partition]
    log[offset], log[offset + 1] = (offset, log[offset + 1][1]), (offset + 1, log[offset][1])


def _is_acked(history: History, value: bytes) -> bool:
    return any(send.value == value and send.outcome is Outcome.ACKED for send in history.sends)


def _repeat(history: History, rng: random.Random) -> None:
    partition, value = rng.choice([(p, value) for p, log in history.log.items() for _, value in log])
    log = history.log[partition]
    log.append((len(log), value))


def _store_refused(history: History, rng: random.Random) -> None:
    send = rng.choice([send for send in history.sends if send.outcome is Outcome.ACKED])
    send.outcome, send.offset = Outcome.REFUSED, None


def _invent(history: History, rng: random.Random) -> None:
    partition, offset = rng.choice([(p, offset) for p, log in history.log.items() for offset, _ in log])
    history.log[partition][offset] = (offset, b"invented")


def _drop_from_poll(history: History, rng: random.Random) -> None:
    """All but the first record of a poll that has several."""
    at = rng.choice([i for i, poll in enumerate(history.polls) if len(poll.records) > 1])
    poll = history.polls[at]
    history.polls[at] = poll._replace(records=(poll.records[0], *poll.records[2:], (poll.records[-1][0] + 1, b"")))


def _hold_back_a_tip(history: History, rng: random.Random) -> None:
    """One that began when something was certain already."""
    acks = {p: [s for s in history.sends if s.partition == p and s.outcome is Outcome.ACKED] for p in history.log}
    late = [i for i, tip in enumerate(history.tips) if any((s.ended or 0) < tip.began for s in acks[tip.partition])]
    at = rng.choice(late)
    tip = history.tips[at]
    before = max(s.offset or 0 for s in acks[tip.partition] if (s.ended or 0) < tip.began)
    history.tips[at] = tip._replace(high_watermark=rng.randint(0, before))


CORRUPTIONS = (_lose, _swap, _repeat, _store_refused, _invent, _drop_from_poll, _hold_back_a_tip)


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_one_corruption_anywhere_is_found(corrupt: Callable[[History, random.Random], None], seed: int) -> None:
    rng = random.Random(seed)
    history = IdealLog(rng).run(150)
    corrupt(history, rng)
    assert check(history)


@pytest.mark.slow
def test_a_hundred_thousand_records_are_checked_within_seconds() -> None:
    """The bound leaves room for a busy machine; it excludes anything quadratic."""
    history = IdealLog(random.Random(1)).run(160_000, partitions=6, senders=24)
    began = time.process_time()
    assert check(history) == []
    assert time.process_time() - began < 6
