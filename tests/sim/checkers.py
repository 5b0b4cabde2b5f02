"""What is wrong with a history: the judge of every run, simulated or of real processes.

`check` returns every anomaly that it finds, none for a correct run, and raises ValueError for a history that is no material (two sends
of one value). Each function below looks for one kind of thing and leaves the others alone. None of them knows how the records came
about; what they know is the protocol's promises. An unknown outcome is taken as both: such a record may lie in the log or not, but if it
does, it is there once and in order. Cost: O(n log n) in the number of records.

What makes the real-time checks sound: an ack, a poll and a tip read each prove, at the moment when the client has it, that everything
below some offset is in the log for ever: a bound. Whatever is sent after that moment gets an offset at or above the bound, and a tip read
that begins after it tells at least the bound. Events that overlap, or touch in time, are concurrent and prove nothing about each other.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from tests.sim.anomaly import Anomaly, Kind, told
from tests.sim.history import History, Outcome, Place, Poll, Send, TipSeen
from tests.sim.stored_checkers import check_registers, check_replicas

__all__ = ["Anomaly", "Kind", "check", "told"]


def check(history: History) -> list[Anomaly]:
    facts = _Facts(history)
    return [
        *_log_holes(facts),
        *_acked(facts),
        *_duplicates(facts),
        *_refused(facts),
        *_phantoms(facts),
        *_agreement(facts),
        *_consumer_runs(facts),
        *_sender_order(facts),
        *_appends_in_real_time(facts),
        *_tips_in_real_time(facts),
        *_tips_past_end(facts),
        *check_replicas(history),
        *check_registers(history),
    ]


class _Bound(NamedTuple):
    """From `at` on it was certain that everything below `offset` is in the log."""

    at: float
    offset: int
    why: Send | Poll | TipSeen


class _Facts:
    """The history, with the indexes that several checks share."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.sent = {send.value: send for send in history.sends}
        if len(self.sent) != len(history.sends):
            raise ValueError("a value was sent twice: records can't be told apart")
        self.log = {partition: dict(records) for partition, records in history.log.items()}
        self.places: dict[bytes, list[Place]] = defaultdict(list)
        for partition, records in history.log.items():
            for offset, value in records:
                self.places[value].append(Place(partition, offset))

    def start(self, partition: int) -> int:
        """The start offset: what was trimmed is neither lost nor a hole."""
        registers = self.history.registers.get(partition)
        return registers[-1].start_offset if registers else 0

    def end(self, partition: int) -> int:
        records = self.history.log.get(partition)
        return records[-1][0] + 1 if records else self.start(partition)

    def offset(self, send: Send) -> int | None:
        """Where it lies, by its ack, else by the log."""
        if send.offset is not None:
            return send.offset
        places = self.places.get(send.value)
        return places[0].offset if places and places[0].partition == send.partition else None

    @cached_property
    def bounds(self) -> dict[int, tuple[list[float], list[_Bound]]]:
        """Per partition the moments at which something became certain, and for each the largest bound up to then."""
        found: dict[int, list[_Bound]] = defaultdict(list)
        for send in self.history.sends:
            if send.outcome is Outcome.ACKED and send.ended is not None and send.offset is not None:
                found[send.partition].append(_Bound(send.ended, send.offset + 1, send))
        for poll in self.history.polls:
            if poll.records:
                found[poll.partition].append(_Bound(poll.at, max(offset for offset, _ in poll.records) + 1, poll))
        for tip in self.history.tips:
            found[tip.partition].append(_Bound(tip.ended, tip.high_watermark, tip))
        result = {}
        for partition, bounds in found.items():
            bounds.sort(key=lambda bound: bound.at)
            largest: list[_Bound] = list(accumulate(bounds, _larger))
            result[partition] = ([bound.at for bound in bounds], largest)
        return result

    def certain_before(self, partition: int, began: float) -> _Bound | None:
        """The largest bound of those that were certain strictly before `began`."""
        if partition not in self.bounds:
            return None
        times, largest = self.bounds[partition]
        before = bisect_left(times, began)
        return largest[before - 1] if before else None


def _larger(a: _Bound, b: _Bound) -> _Bound:
    return b if b.offset > a.offset else a


# --- the log, against what senders were told -----------------------------------------------------------------------------


def _log_holes(facts: _Facts) -> Iterator[Anomaly]:
    for partition, records in facts.history.log.items():
        expected = facts.start(partition)
        for offset, _ in records:
            if offset != expected:
                message = f"the log goes on with {offset} where {expected} is expected"
                yield Anomaly(Kind.HOLE_IN_LOG, message, partition, expected)
            expected = offset + 1


def _acked(facts: _Facts) -> Iterator[Anomaly]:
    for send in facts.history.sends:
        if send.outcome is not Outcome.ACKED:
            continue
        start, places = facts.start(send.partition), facts.places.get(send.value)
        if send.offset is None:  # acked as a repeat, and nobody said of what: it is there, unless it was trimmed
            is_held = bool(places) or start > 0
        else:
            is_held = send.offset < start or facts.log.get(send.partition, {}).get(send.offset) == send.value
        if is_held:
            continue
        if places:
            message = f"{_named(send)} was acked at {send.offset} and lies at {', '.join(_spelt(place) for place in places)}"
            yield Anomaly(Kind.DISPLACED, message, send.partition, send.offset, send.ended)
        else:
            message = f"{_named(send)} was acked and is not in the log, which ends at {facts.end(send.partition)}"
            yield Anomaly(Kind.LOST, message, send.partition, send.offset, send.ended)


def _duplicates(facts: _Facts) -> Iterator[Anomaly]:
    """What was trimmed counts as far as somebody has read it."""
    found: dict[bytes, dict[Place, None]] = {value: dict.fromkeys(places) for value, places in facts.places.items()}
    for poll in facts.history.polls:
        start = facts.start(poll.partition)
        for offset, value in poll.records:
            if offset < start:
                found.setdefault(value, {})[Place(poll.partition, offset)] = None
    for value, seen in found.items():
        places = sorted(seen)
        if len(places) > 1 and (send := facts.sent.get(value)) is not None and send.sender not in facts.history.plain_senders:
            message = f"{_named(send)} ({send.outcome.name}) lies at {', '.join(_spelt(place) for place in places)}"
            yield Anomaly(Kind.DUPLICATE, message, places[1].partition, places[1].offset, send.began)


def _refused(facts: _Facts) -> Iterator[Anomaly]:
    refused = {send.value: send for send in facts.history.sends if send.outcome is Outcome.REFUSED}
    if not refused:
        return
    for value, send in refused.items():
        for place in facts.places.get(value, ()):
            message = f"{_named(send)} was refused ({send.why or 'no reason told'}) and is in the log"
            yield Anomaly(Kind.REFUSED_READ, message, place.partition, place.offset, send.ended)
    for poll in facts.history.polls:
        for offset, value in poll.records:
            if value in refused and facts.log.get(poll.partition, {}).get(offset) != value:
                message = f"{_named(refused[value])} was refused and {poll.consumer} read it"
                yield Anomaly(Kind.REFUSED_READ, message, poll.partition, offset, poll.at)


def _phantoms(facts: _Facts) -> Iterator[Anomaly]:
    sent = facts.sent
    for value, places in facts.places.items():
        if value not in sent:
            yield Anomaly(Kind.PHANTOM, f"{_spelt_value(value)} lies in the log and nobody sent it", *places[0])
        elif sent[value].partition != places[0].partition and sent[value].offset is None:
            message = f"{_named(sent[value])} went to partition {sent[value].partition} and lies at {_spelt(places[0])}"
            yield Anomaly(Kind.DISPLACED, message, *places[0])
    for poll in facts.history.polls:
        for offset, value in poll.records:
            if value not in sent and value not in facts.places:
                yield Anomaly(
                    Kind.PHANTOM, f"{poll.consumer} read {_spelt_value(value)}, which nobody sent", poll.partition, offset, poll.at
                )


# --- readers ---------------------------------------------------------------------------------------------------------------


def _agreement(facts: _Facts) -> Iterator[Anomaly]:
    """Polls against the log; those of offsets that were trimmed, against each other."""
    trimmed: dict[Place, tuple[bytes, str]] = {}
    for poll in facts.history.polls:
        log, start, end = facts.log.get(poll.partition, {}), facts.start(poll.partition), facts.end(poll.partition)
        for offset, value in poll.records:
            known = log.get(offset)
            if known == value:
                continue
            if offset >= end:
                message = f"{poll.consumer} read {_spelt_value(value)}; the log ends at {end}"
                yield Anomaly(Kind.VANISHED, message, poll.partition, offset, poll.at)
            elif known is not None:
                message = f"{poll.consumer} read {_spelt_value(value)} where {_spelt_value(known)} lies"
                yield Anomaly(Kind.INCONSISTENT, message, poll.partition, offset, poll.at)
            elif offset < start:
                other, reader = trimmed.setdefault(Place(poll.partition, offset), (value, poll.consumer))
                if other != value:
                    message = f"{poll.consumer} read {_spelt_value(value)} where {reader} had read {_spelt_value(other)}"
                    yield Anomaly(Kind.INCONSISTENT, message, poll.partition, offset, poll.at)


def _consumer_runs(facts: _Facts) -> Iterator[Anomaly]:
    """Consecutive offsets from the first; which is the one asked for, where the history tells it, or the start offset if that is later."""
    expected: dict[tuple[str, int], int] = {}
    for poll in facts.history.polls:
        run = (poll.consumer, poll.partition)
        for offset, value in poll.records:
            wanted = expected.get(run)
            if wanted is None:
                asked = facts.history.asked.get(run, offset)
                wanted = offset if asked <= offset <= facts.start(poll.partition) else asked
            if offset != wanted:
                kind = Kind.SKIPPED if offset > wanted else Kind.REPEATED
                message = f"{poll.consumer} was handed {offset} ({_spelt_value(value)}) where {wanted} was to come"
                yield Anomaly(kind, message, poll.partition, wanted, poll.at)
            expected[run] = offset + 1


# --- order -----------------------------------------------------------------------------------------------------------------


def _sender_order(facts: _Facts) -> Iterator[Anomaly]:
    latest: dict[tuple[str, int], tuple[Send, int]] = {}
    for send in sorted(facts.history.sends, key=lambda send: send.number):
        if send.outcome is Outcome.REFUSED or send.sender in facts.history.plain_senders:
            continue
        offset = facts.offset(send)
        if offset is None:
            continue
        before = latest.get((send.sender, send.partition))
        if before is not None and before[1] >= offset:
            message = f"{_named(send)} lies at {offset}, {_named(before[0])}, sent before it, at {before[1]}"
            yield Anomaly(Kind.SENDER_ORDER, message, send.partition, offset, send.began)
        latest[send.sender, send.partition] = (send, offset)


def _appends_in_real_time(facts: _Facts) -> Iterator[Anomaly]:
    for send in facts.history.sends:
        if send.outcome is Outcome.REFUSED:
            continue
        offset = facts.offset(send)
        if offset is None:
            continue
        bound = facts.certain_before(send.partition, send.began)
        if bound is not None and offset < bound.offset:
            message = f"{_named(send)} was sent at {send.began:.6f} s and lies at {offset}, but {_reason(bound)}"
            yield Anomaly(Kind.REAL_TIME_ORDER, message, send.partition, offset, send.began)


def _tips_in_real_time(facts: _Facts) -> Iterator[Anomaly]:
    for tip in facts.history.tips:
        bound = facts.certain_before(tip.partition, tip.began)
        if bound is not None and tip.high_watermark < bound.offset:
            kind = Kind.TIP_FELL if isinstance(bound.why, TipSeen) else Kind.STALE_TIP
            read = f"{tip.reader} began a tip read at {tip.began:.6f} s that told {tip.high_watermark} in epoch {tip.epoch}"
            message = f"{read}, but {_reason(bound)}"
            yield Anomaly(kind, message, tip.partition, tip.high_watermark, tip.ended)


def _tips_past_end(facts: _Facts) -> Iterator[Anomaly]:
    for tip in facts.history.tips:
        if tip.high_watermark > facts.end(tip.partition):
            message = f"{tip.reader} was told {tip.high_watermark} in epoch {tip.epoch}; the log ends at {facts.end(tip.partition)}"
            yield Anomaly(Kind.TIP_PAST_END, message, tip.partition, tip.high_watermark, tip.ended)


# --- words -----------------------------------------------------------------------------------------------------------------


def _reason(bound: _Bound) -> str:
    why = bound.why
    if isinstance(why, Send):
        return f"{_named(why)} had been acked at offset {why.offset} at {bound.at:.6f} s"
    if isinstance(why, Poll):
        return f"{why.consumer} had read offset {bound.offset - 1} at {bound.at:.6f} s"
    return f"{why.reader} had been told the tip {bound.offset} (epoch {why.epoch}) at {bound.at:.6f} s"


def _named(send: Send) -> str:
    return f"{_spelt_value(send.value)} (number {send.number} of {send.sender})"


def _spelt(place: Place) -> str:
    return f"{place.partition}/{place.offset}"


def _spelt_value(value: bytes) -> str:
    return repr(value if len(value) <= 40 else value[:37] + b"...")[1:]
