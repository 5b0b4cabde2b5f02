"""What transactions promise, judged while it happens: by what producers send, what is voted for in registers, and what readers are handed.

- A transaction has one outcome, and all registers' versions tell it: numbers are decided one by one, what is aborted stays so, also when
  its number is moved to a block, which has it first; epochs grow by one, and abort the number that their predecessor may have begun.
- One instance at most writes under a number.
- Nothing is committed of which a record is not acked. All of it is read, or nothing: and that not before a majority has the outcome.
- Every input has its outputs in one committed transaction, no more and no less. The group's positions never move back, and never pass an
  input whose transaction is not committed.
- Readers see each partition alike: the same records at the same offsets, none passed over.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from streamq.groups.changes import with_outcomes
from streamq.model.groups import GroupRegister
from streamq.model.ids import Ballot
from streamq.model.registers import ProducerRegister
from streamq.model.transactions import AbortedRegister, Transaction

__all__ = ["Attempt", "Outgoing", "ReaderSeen", "TransactionObserver"]

Place = tuple[str, int]


class Outgoing(Protocol):
    """What becomes of a record: a producer's `Delivery`."""

    def is_acked(self) -> bool: ...


class _Sent(NamedTuple):
    topic: str
    value: str
    outgoing: Outgoing


class Attempt:
    """A transaction as its application knows it. `inputs` are the (partition, offset) pairs that it transforms."""

    def __init__(self, number: int, by: str, name: str, transaction: Transaction) -> None:
        self.number = number
        self.by = by
        self.name = name
        self.transaction = transaction
        self.inputs: list[tuple[int, int]] = []
        self.sent: list[_Sent] = []
        self.is_to_commit = False
        """Its application has asked for the commit, or is about to."""
        self.is_judged = False

    def __repr__(self) -> str:
        return f"transaction {self.transaction.number} of {self.name} (attempt {self.number}, of {self.by})"


class ReaderSeen:
    """What one reader was handed, by partition: (offset, value), in order."""

    def __init__(self, name: str, *, is_committed_only: bool, starts: Mapping[Place, int]) -> None:
        self.name = name
        self.is_committed_only = is_committed_only
        self.starts = starts
        self.records: defaultdict[Place, list[tuple[int, str]]] = defaultdict(list)

    def last(self, place: Place) -> int:
        records = self.records[place]
        return records[-1][0] if records else self.starts.get(place, 0) - 1

    @property
    def is_whole(self) -> bool:
        return not any(self.starts.values())


class TransactionObserver:
    def __init__(self, fail: Callable[[str], None], *, majority: int, source: str, outputs: Sequence[str]) -> None:
        self._fail = fail
        self._majority = majority
        self._source = source
        self._outputs = tuple(outputs)
        self.attempts: list[Attempt] = []
        self.readers: list[ReaderSeen] = []
        self.counters: Counter[str] = Counter()
        self.outcomes: dict[Transaction, bool] = {}
        """As majorities have them."""
        self.covered: dict[int, set[int]] = defaultdict(set)
        """Per partition of the source the offsets that committed transactions have transformed."""
        self._covered_to: Counter[int] = Counter()
        self._by_transaction: dict[Transaction, Attempt] = {}
        self._votes: dict[str, dict[Ballot, set[str]]] = defaultdict(dict)
        self._chosen: dict[str, Ballot] = {}
        self._producers: dict[str, ProducerRegister] = {}
        self._blocks: dict[str, frozenset[int]] = {}
        self._group: GroupRegister | None = None
        """The newest that any acceptor has taken."""
        self._known: defaultdict[Place, dict[int, str]] = defaultdict(dict)

    # --- applications ----------------------------------------------------------------------------------------------------------

    def on_begun(self, by: str, name: str, transaction: Transaction) -> Attempt:
        attempt = Attempt(len(self.attempts), by, name, transaction)
        self.attempts.append(attempt)
        other = self._by_transaction.setdefault(transaction, attempt)
        if other is not attempt:
            self._fail(f"two instances write under one number: {other} and {attempt}")
        return attempt

    def on_sent(self, attempt: Attempt, topic: str, value: str, outgoing: Outgoing) -> None:
        attempt.sent.append(_Sent(topic, value, outgoing))

    # --- registers -------------------------------------------------------------------------------------------------------------

    def on_producer_voted(self, broker: str, name: str, ballot: Ballot, register: ProducerRegister) -> None:
        number = register.decided
        if number > register.moved and number not in register.aborted:
            self._on_said_committed(Transaction(register.id, number))
        if self._is_chosen_now(f"producer/{name}", broker, ballot):
            before, self._producers[name] = self._producers.get(name), register
            self._judge_producer(name, before or ProducerRegister(register.id, 0, b"", register.timeout_ms), register)

    def _on_said_committed(self, transaction: Transaction) -> None:
        """An acceptor has taken it: whoever proposed that must have known that it may be."""
        attempt = self._by_transaction.get(transaction)
        if attempt is None or attempt.is_judged:
            return
        attempt.is_judged = True
        unacked = [sent.value for sent in attempt.sent if not sent.outgoing.is_acked()]
        if unacked:
            self._fail(f"{attempt} is committed, and {unacked} is not acked")
        if not attempt.is_to_commit:
            self._fail(f"{attempt} is committed, and its application has not asked for that")
        for partition, offset in attempt.inputs:
            known = self._group.partition(self._source, partition) if self._group is not None else None
            pending = known.pending if known is not None else None
            is_of_it = pending is not None and pending.transaction == transaction and pending.position > offset
            if known is None or not (is_of_it or (known.position or 0) > offset):
                self._fail(f"{attempt} is committed, which has transformed {partition}/{offset}, and the group has {known}")

    def _judge_producer(self, name: str, old: ProducerRegister, new: ProducerRegister) -> None:
        """Between two versions that were chosen there may be one that fewer acceptors had, and that the second was made of."""
        if new.id != old.id or new.decided < old.decided or new.epoch < old.epoch or new.moved < old.moved:
            self._fail(f"the register of {name} went from {old} to {new}")
        moved = frozenset[int]().union(*(numbers for key, numbers in self._blocks.items() if key.startswith(f"txn/{new.id.hex()}/")))
        fresh = range(old.decided + 1, new.decided + 1)
        outcomes = {number: number not in new.aborted and not (number <= new.moved and number in moved) for number in fresh}
        if old.epoch and old.is_transactional and list(outcomes.values()).count(False) < new.epoch - old.epoch:
            self._fail(f"{name} was opened, and what its former instance may have begun is not aborted: from {old} to {new}")
        if came := set(new.aborted) - set(old.aborted) - set(fresh):
            self._fail(f"{sorted(came)} of {name} were decided, and are aborted now: from {old} to {new}")
        gone = set(old.aborted) - set(new.aborted)
        if lacking := gone - moved:
            self._fail(f"{sorted(lacking)} of {name} were aborted, and neither the producer's register nor a block says so")
        if gone and new.moved < max(gone):
            self._fail(f"{sorted(gone)} of {name} were moved, and the register does not say so: {new}")
        self.counters["moved to blocks"] += len(gone)
        for number, is_committed in outcomes.items():
            self._on_decided(Transaction(new.id, number), is_committed=is_committed)

    def _on_decided(self, transaction: Transaction, *, is_committed: bool) -> None:
        self.outcomes[transaction] = is_committed
        self.counters["committed" if is_committed else "aborted"] += 1
        attempt = self._by_transaction.get(transaction)
        if attempt is None or not is_committed:
            return
        for partition, offset in attempt.inputs:
            if offset in self.covered[partition]:
                self._fail(f"doubled: input {partition}/{offset} is transformed again by {attempt}, which is committed")
            self.covered[partition].add(offset)
        for partition in {partition for partition, _ in attempt.inputs}:
            while self._covered_to[partition] in self.covered[partition]:
                self._covered_to[partition] += 1

    def on_block_voted(self, broker: str, key: str, ballot: Ballot, block: AbortedRegister) -> None:
        if self._is_chosen_now(key, broker, ballot):
            before, self._blocks[key] = self._blocks.get(key, frozenset()), frozenset(block.numbers)
            if lost := before - self._blocks[key]:
                self._fail(f"{key} has lost {sorted(lost)}")

    def on_group_voted(self, ballot: Ballot, register: GroupRegister) -> None:
        """Whoever proposed it must have known that all of it counts."""
        if ballot in self._votes["group"]:
            return
        self._votes["group"][ballot] = set()
        if ballot == max(self._votes["group"]):
            self._group = register
        topic = register.topic(self._source)
        for index, partition in enumerate(topic.partitions if topic is not None else ()):
            if (partition.position or 0) > self._covered_to[index]:
                position, covered = partition.position, self._covered_to[index]
                self._fail(f"position {position} of {index} counts, and only what is below {covered} is transformed and committed")

    def _is_chosen_now(self, key: str, broker: str, ballot: Ballot) -> bool:
        by = self._votes[key].setdefault(ballot, set())
        before = len(by)
        by.add(broker)
        if not before < self._majority <= len(by) or ballot < self._chosen.get(key, ballot):
            return False  # an older one that a majority has by now was known to whoever made the newer
        self._chosen[key] = ballot
        return True

    def is_committed(self, name: str, number: int) -> bool:
        """As a majority has it."""
        register = self._producers.get(name)
        return register is not None and self.outcomes.get(Transaction(register.id, number), False)

    # --- readers ---------------------------------------------------------------------------------------------------------------

    def reads(self, name: str, *, is_committed_only: bool, starts: Mapping[Place, int]) -> ReaderSeen:
        seen = ReaderSeen(name, is_committed_only=is_committed_only, starts=starts)
        self.readers.append(seen)
        return seen

    def known_end(self, place: Place) -> int:
        """Behind the last that a reader was handed."""
        return max(self._known[place], default=-1) + 1

    def on_read(self, seen: ReaderSeen, place: Place, offset: int, value: str) -> None:
        last = seen.last(place)
        if offset <= last:
            self._fail(f"{seen.name} was handed {offset} of {place} after {last}")
        if not seen.is_committed_only:
            seen.records[place].append((offset, value))
            return
        self._judge_outcome(seen, place, offset, value)
        known = self._known[place]
        if known.setdefault(offset, value) != value:
            self._fail(f"{seen.name} was handed {value!r} at {offset} of {place}, and another reader {known[offset]!r}")
        if passed := [at for at in known if last < at < offset]:
            self._fail(f"{seen.name} was handed {offset} of {place} after {last}: {passed} were passed over")
        for other in self.readers:
            if other.is_committed_only and other.last(place) > offset >= other.starts.get(place, 0) and not _has(other, place, offset):
                self._fail(f"{seen.name} was handed {offset} of {place}, which {other.name} was not")
        seen.records[place].append((offset, value))

    def _judge_outcome(self, seen: ReaderSeen, place: Place, offset: int, value: str) -> None:
        attempt = self.attempts[int(value.split()[0])]
        outcome = self.outcomes.get(attempt.transaction)
        if outcome is None:
            self._fail(f"{seen.name} was handed {value!r} ({place} {offset}), and {attempt} is not decided")
        elif not outcome:
            self._fail(f"{seen.name} was handed {value!r} ({place} {offset}), and {attempt} is aborted")

    # --- in the end ------------------------------------------------------------------------------------------------------------

    def committed(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if self.outcomes.get(attempt.transaction)]

    def lack(self, inputs: Sequence[int], register: GroupRegister | None) -> str | None:
        """Why not all is done: so many inputs a partition are to be transformed, committed, and read by everybody."""
        for partition, end in enumerate(inputs):
            if self._covered_to[partition] < end:
                return f"partition {partition} of the source is transformed to {self._covered_to[partition]} of {end}"
            counted = with_outcomes(register, self.outcomes) if register is not None else None
            known = counted.partition(self._source, partition) if counted is not None else None
            if end and (known is None or (known.position or 0) < end):
                return f"partition {partition} of the source is committed as {known}, and ends at {end}"
        expected = sum(len(attempt.sent) for attempt in self.committed())
        for seen in self.readers:
            if seen.is_committed_only and seen.is_whole and (count := sum(map(len, seen.records.values()))) < expected:
                return f"{seen.name} was handed {count} records of {expected}"
            for place, known_records in self._known.items():
                if known_records and seen.last(place) < max(known_records):
                    return f"{seen.name} was handed {place} up to {seen.last(place)}, and others up to {max(known_records)}"
        return None

    def judge(self, versions: Sequence[GroupRegister]) -> None:
        """Once nothing is lacking. `versions` of the group's register were chosen, oldest first."""
        self._judge_positions(versions)
        expected = Counter((sent.topic, sent.value) for attempt in self.committed() for sent in attempt.sent)
        for seen in self.readers:
            if not seen.is_committed_only:
                self._judge_uncommitted(seen)
            elif seen.is_whole:
                read = Counter((place[0], value) for place, records in seen.records.items() for _, value in records)
                if read != expected:
                    more, less = sorted((read - expected).elements())[:5], sorted((expected - read).elements())[:5]
                    self._fail(f"torn: {seen.name} was handed {more} beside what is committed, and not {less}")
                self._judge_outputs(seen)

    def _judge_outputs(self, seen: ReaderSeen) -> None:
        """Each input once a topic."""
        for topic in self._outputs:
            values = [value.split() for place, records in seen.records.items() if place[0] == topic for _, value in records]
            found = Counter((int(parts[1]), int(parts[2])) for parts in values if parts[1] != "-")
            for partition, offsets in self.covered.items():
                wrong = {offset: found[partition, offset] for offset in sorted(offsets) if found[partition, offset] != 1}
                if wrong:
                    self._fail(f"{seen.name} was handed outputs of partition {partition} in {topic} so often: {wrong}")

    def _judge_uncommitted(self, seen: ReaderSeen) -> None:
        for place, known in self._known.items():
            records = dict(seen.records[place])
            if missing := [offset for offset, value in known.items() if records.get(offset) != value]:
                self._fail(f"{seen.name}, which reads all, was not handed {sorted(missing)[:5]} of {place}")

    def _judge_positions(self, versions: Sequence[GroupRegister]) -> None:
        for before, after in pairwise(versions):
            if fault := after.fault():
                self._fail(f"the group's register is broken: {fault}")
            for topic in before.topics:
                for index, old in enumerate(topic.partitions):
                    new = after.partition(topic.name, index)
                    if new is None or (old.position or 0) > (new.position or 0):
                        self._fail(f"the position of {index} moved from {old.position} to {new and new.position}")
                    elif old.pending is not None and new.pending != old.pending and (new.position or 0) < old.pending.position:
                        outcome = self.outcomes.get(old.pending.transaction)
                        is_moved_on = new.pending is not None and new.pending.transaction == old.pending.transaction
                        if outcome is not False and not is_moved_on:
                            self._fail(f"the pending position of {index} went from {old} to {new}, and its transaction is {outcome}")


def _has(seen: ReaderSeen, place: Place, offset: int) -> bool:
    return any(at == offset for at, _ in seen.records[place])
