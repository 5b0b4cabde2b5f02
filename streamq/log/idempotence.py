"""The idempotence table of one partition (P-33 to P-35): a pure fold over the batch headers of the committed log, in offset order.

    producer id -> producer epoch, last sequence, append time of its last batch, places of its last K batches

Two tables folded over the same headers answer alike, on whatever replica, because nothing but the headers goes in: an entry expires when
the log's own time, the newest append time, is `PRODUCER_EXPIRY_MS` past its last batch. Append times never fall, so an entry that has
expired once stays expired, and dropping it from memory earlier or later changes no answer. The fold refuses nothing: refusing is the
sequencer's part, which judges a batch before it assigns.
"""

from collections import OrderedDict, deque

import msgspec

from streamq.model.batches import BatchHeader
from streamq.model.ids import NO_PRODUCER, ProducerId
from streamq.model.limits import DEDUP_BATCHES, PRODUCER_EXPIRY_MS
from streamq.model.tables import Place, ProducerSnapshot, TableSnapshot

__all__ = [
    "Fenced",
    "Gap",
    "IdempotenceTable",
    "Next",
    "Place",
    "Producer",
    "ProducerSnapshot",
    "Repeat",
    "TableSnapshot",
    "Verdict",
    "first_batch",
    "judge",
]


class Next(msgspec.Struct, frozen=True):
    """The batch is the next one of its producer."""


class Repeat(msgspec.Struct, frozen=True):
    """The batch is in the log already; `place` is None if it is older than the last K."""

    place: Place | None


class Gap(msgspec.Struct, frozen=True):
    """The batch leaves out sequences: `expected` should come first."""

    expected: int


class Fenced(msgspec.Struct, frozen=True):
    """A newer epoch of the producer has written here."""

    newest: int


Verdict = Next | Repeat | Gap | Fenced
_NEXT = Next()


class Producer:
    """What is known of one producer. Invariant: `places` are the last of its batches in `epoch`, consecutive, up to `last_sequence`."""

    __slots__ = ("append_time", "epoch", "last_sequence", "places")

    def __init__(self, epoch: int, last_sequence: int, append_time: int, places: deque[Place]) -> None:
        self.epoch = epoch
        self.last_sequence = last_sequence
        self.append_time = append_time
        self.places = places

    def fork(self) -> "Producer":
        return Producer(self.epoch, self.last_sequence, self.append_time, self.places.copy())

    def add(self, place: Place) -> None:
        self.last_sequence = place.sequence
        self.append_time = place.append_time
        self.places.append(place)

    def place_of(self, sequence: int) -> Place | None:
        back = self.last_sequence - sequence
        if not 0 <= back < len(self.places):
            return None
        place = self.places[-1 - back]
        assert place.sequence == sequence, (place, sequence)
        return place


def first_batch(*, epoch: int, place: Place) -> Producer:
    return Producer(epoch, place.sequence, place.append_time, deque((place,), DEDUP_BATCHES))


def judge(known: Producer | None, *, epoch: int, sequence: int) -> Verdict:
    """P-35. A producer that is unknown (or expired), or comes back with a newer epoch, begins at sequence 0."""
    if known is None or epoch > known.epoch:
        return _NEXT if sequence == 0 else Gap(0)
    if epoch < known.epoch:
        return Fenced(known.epoch)
    if sequence == known.last_sequence + 1:
        return _NEXT
    if sequence > known.last_sequence:
        return Gap(known.last_sequence + 1)
    return Repeat(known.place_of(sequence))


class IdempotenceTable:
    """The fold over everything committed in `[0, position)`.

    Invariants: entries are ordered by the append time of their last batch, oldest first; none is newer than `last_append_time`."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.last_append_time = 0
        self._producers: OrderedDict[ProducerId, Producer] = OrderedDict()  # a dict would scan its holes to find the oldest

    @property
    def producers(self) -> int:
        """How many are in memory, some of which may have expired."""
        return len(self._producers)

    def get(self, producer: ProducerId, *, at: int) -> Producer | None:
        """The entry as it counts at the append time `at`; expired ones do not. Read it, never change it."""
        known = self._producers.get(producer)
        return known if known is None or known.append_time + PRODUCER_EXPIRY_MS >= at else None

    def fold(self, header: BatchHeader) -> None:
        """Takes the next committed batch. Asserts that it begins at `position`."""
        assert header.base == self.position, (header.base, self.position)
        self.position = header.base + header.records
        at = header.append_time
        if at > self.last_append_time:
            self.last_append_time = at
        if header.producer == NO_PRODUCER:
            return
        place = Place(header.sequence, header.base, header.records, at)
        known = self._producers.get(header.producer)
        if known is None or header.producer_epoch != known.epoch or known.append_time + PRODUCER_EXPIRY_MS < at:
            self._producers[header.producer] = first_batch(epoch=header.producer_epoch, place=place)
        else:
            known.add(place)
        self._producers.move_to_end(header.producer)
        self._expire()

    def verdict(self, producer: ProducerId, *, epoch: int, sequence: int, at: int) -> Verdict:
        return judge(self.get(producer, at=at), epoch=epoch, sequence=sequence)

    def live(self, *, at: int) -> set[ProducerId]:
        return {name for name, known in self._producers.items() if known.append_time + PRODUCER_EXPIRY_MS >= at}

    def snapshot(self) -> TableSnapshot:
        """As a value, to be kept with checkpoints or given to another replica."""
        return TableSnapshot(
            self.position,
            self.last_append_time,
            tuple(ProducerSnapshot(name, p.epoch, p.last_sequence, p.append_time, tuple(p.places)) for name, p in self._producers.items()),
        )

    @classmethod
    def restore(cls, snapshot: TableSnapshot) -> "IdempotenceTable":
        table = cls(snapshot.position)
        table.last_append_time = snapshot.last_append_time
        for p in snapshot.producers:
            table._producers[p.producer] = Producer(p.epoch, p.last_sequence, p.append_time, deque(p.places, DEDUP_BATCHES))
        return table

    def become(self, other: "IdempotenceTable") -> None:
        """Takes the place of what was here; `other` must not be used any more."""
        self.position, self.last_append_time, self._producers = other.position, other.last_append_time, other._producers

    def _expire(self) -> None:
        """The oldest entry is first, so each fold looks at one or two."""
        limit = self.last_append_time - PRODUCER_EXPIRY_MS
        while self._producers:
            name = next(iter(self._producers))
            if self._producers[name].append_time >= limit:
                return
            del self._producers[name]
