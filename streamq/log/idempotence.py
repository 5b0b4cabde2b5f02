"""The idempotence table of one partition (P-33 to P-35): a pure fold over the batch headers of the committed log, in offset order.

    producer id -> producer epoch, last sequence, append time of its last batch, places of its last K batches, mark, whether it is named,
                   where its last transaction began

Two tables folded over the same headers answer alike, on whatever replica, because nothing but the headers goes in: an entry expires when
the log's own time, the newest append time, is `PRODUCER_EXPIRY_MS` past its last batch (of a named producer `NAMED_PRODUCER_EXPIRY_MS`).
Records with an id (`log.record_ids`) and the highest fencing token are folded beside the producers.
Append times never fall, so an entry that has expired once stays expired, and dropping it from memory earlier or later changes no answer.
The fold refuses nothing: refusing is the sequencer's part, which judges a batch before it assigns.

A producer is named once it has written an opening (a control batch, sequence 0 of its epoch) or a mark; its entry keeps the highest mark
over all its epochs. An ack tells the mark that the entry has with that batch, so the ack of an opening says how far the producer's earlier
selves came. Why that is right whatever happens in between:

- The older instance's batches lie before the opening, and count, or come after it, and are refused as fenced: no mark below the ack's is
  missing in it, none above it comes later.
- The opening is acked when it is below the high watermark, and so is everything before it that the mark counts. If the epoch ends
  first, what was in flight may be void, its marks with it; nobody was told them. The opening is sent again, to a sequencer whose table is
  folded over what is left: either it is a repeat of what is in the log, or it is assigned anew, and the mark is what that log has.
- A repeat of an opening is answered with the mark as it is then. It is the same as the first answer's, unless the new instance has written
  in between, and it writes nothing behind an opening whose ack it does not have (an ack for a try that is over tells it nothing new).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain

import msgspec

from streamq.log.record_ids import RecordIds
from streamq.model.batches import BatchHeader
from streamq.model.ids import NO_PRODUCER, ProducerId
from streamq.model.limits import DEDUP_BATCHES, NAMED_PRODUCER_EXPIRY_MS, PRODUCER_EXPIRY_MS
from streamq.model.tables import NEVER_BEGUN, Begun, Place, ProducerSnapshot, StoredId, TableSnapshot

__all__ = [
    "Begun",
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

    __slots__ = ("append_time", "epoch", "is_named", "last_sequence", "mark", "places", "transaction")

    def __init__(
        self,
        epoch: int,
        last_sequence: int,
        append_time: int,
        places: deque[Place],
        *,
        mark: int = 0,
        is_named: bool = False,
        transaction: Begun = NEVER_BEGUN,
    ) -> None:
        self.epoch = epoch
        self.last_sequence = last_sequence
        self.append_time = append_time
        self.places = places
        self.mark = mark
        self.is_named = is_named
        self.transaction = transaction
        """The highest that has written here."""

    def fork(self) -> "Producer":
        return Producer(
            self.epoch,
            self.last_sequence,
            self.append_time,
            self.places.copy(),
            mark=self.mark,
            is_named=self.is_named,
            transaction=self.transaction,
        )

    def counts_at(self, at: int) -> bool:
        """Whether it has not expired when the log's time is `at`."""
        return self.append_time + (NAMED_PRODUCER_EXPIRY_MS if self.is_named else PRODUCER_EXPIRY_MS) >= at

    def add(self, place: Place, header: BatchHeader) -> None:
        """The next batch of its epoch."""
        self._take_name(header, place)
        self.last_sequence = place.sequence
        self.append_time = place.append_time
        self.places.append(place)

    def begin_epoch(self, place: Place, header: BatchHeader) -> "Producer":
        """As it is after the first batch of another epoch of its own: the mark, the name and the transaction stay."""
        begun = first_batch(place, header)
        begun.mark = max(begun.mark, self.mark)
        begun.is_named = begun.is_named or self.is_named
        begun.transaction = max(begun.transaction, self.transaction)
        return begun

    def _take_name(self, header: BatchHeader, place: Place) -> None:
        if header.is_fenced:
            return  # its mark is a token
        self.is_named = self.is_named or header.mark > 0 or header.is_control
        if not header.is_transactional:
            self.mark = max(self.mark, header.mark)
        elif header.mark > self.transaction.number:
            self.transaction = Begun(header.mark, place.base, place.append_time)

    def place_of(self, sequence: int) -> Place | None:
        back = self.last_sequence - sequence
        if not 0 <= back < len(self.places):
            return None
        place = self.places[-1 - back]
        assert place.sequence == sequence, (place, sequence)
        return place


def first_batch(place: Place, header: BatchHeader) -> Producer:
    known = Producer(header.producer_epoch, place.sequence, place.append_time, deque((place,), DEDUP_BATCHES))
    known._take_name(header, place)
    return known


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

    Invariants: entries are ordered by the append time of their last batch, oldest first, the named among themselves and the others, too;
    a producer is in one of the two; none is newer than `last_append_time`."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.last_append_time = 0
        self._producers: OrderedDict[ProducerId, Producer] = OrderedDict()  # a dict would scan its holes to find the oldest
        self._named: OrderedDict[ProducerId, Producer] = OrderedDict()
        self.ids = RecordIds()
        self.fencing_token = 0

    @property
    def producers(self) -> int:
        """How many are in memory, some of which may have expired."""
        return len(self._producers) + len(self._named)

    def get(self, producer: ProducerId, *, at: int) -> Producer | None:
        """The entry as it counts at the append time `at`; expired ones do not. Read it, never change it."""
        known = self._producers.get(producer) or self._named.get(producer)
        return known if known is not None and known.counts_at(at) else None

    def fold(self, header: BatchHeader) -> None:
        """Takes the next committed batch. Asserts that it begins at `position`."""
        assert header.base == self.position, (header.base, self.position)
        self.position = header.base + header.records
        at = header.append_time
        if at > self.last_append_time:
            self.last_append_time = at
        self.ids.expire(self.last_append_time)
        if header.is_fenced:
            self.fencing_token = max(self.fencing_token, header.mark)
        if header.is_identified:
            self.ids.add(StoredId(header.producer, header.base, at, header.mark))
            return
        if header.producer == NO_PRODUCER:
            return
        place = Place(header.sequence, header.base, header.records, at)
        known = self._producers.pop(header.producer, None) or self._named.pop(header.producer, None)
        if known is None or not known.counts_at(at):
            known = first_batch(place, header)
        elif header.producer_epoch != known.epoch:
            known = known.begin_epoch(place, header)
        else:
            known.add(place, header)
        (self._named if known.is_named else self._producers)[header.producer] = known
        self._expire(self._producers)
        self._expire(self._named)

    def verdict(self, producer: ProducerId, *, epoch: int, sequence: int, at: int) -> Verdict:
        return judge(self.get(producer, at=at), epoch=epoch, sequence=sequence)

    def live(self, *, at: int) -> set[ProducerId]:
        return {name for name, known in self._entries() if known.counts_at(at)}

    def transactions(self) -> Iterator[tuple[ProducerId, Begun]]:
        """Of each producer the last transaction that has written here: of its own the only one that may be open."""
        for name, known in self._named.items():
            if known.transaction.number:
                yield name, known.transaction

    def snapshot(self) -> TableSnapshot:
        """As a value, to be kept with checkpoints or given to another replica."""
        return TableSnapshot(
            self.position,
            self.last_append_time,
            tuple(
                ProducerSnapshot(name, p.epoch, p.last_sequence, p.append_time, tuple(p.places), p.mark, p.is_named, p.transaction)
                for name, p in sorted(self._entries(), key=lambda entry: entry[1].append_time)
            ),
            self.ids.snapshot(),
            self.fencing_token,
        )

    @classmethod
    def restore(cls, snapshot: TableSnapshot) -> "IdempotenceTable":
        table = cls(snapshot.position)
        table.last_append_time = snapshot.last_append_time
        for p in snapshot.producers:
            entries = table._named if p.named else table._producers
            places = deque(p.places, DEDUP_BATCHES)
            entries[p.producer] = Producer(
                p.epoch, p.last_sequence, p.append_time, places, mark=p.mark, is_named=p.named, transaction=p.transaction
            )
        table.ids, table.fencing_token = RecordIds(snapshot.ids), snapshot.fencing_token
        return table

    def become(self, other: "IdempotenceTable") -> None:
        """Takes the place of what was here; `other` must not be used any more."""
        self.position, self.last_append_time = other.position, other.last_append_time
        self._producers, self._named = other._producers, other._named
        self.ids, self.fencing_token = other.ids, other.fencing_token

    def _entries(self) -> Iterator[tuple[ProducerId, Producer]]:
        return chain(self._producers.items(), self._named.items())

    def _expire(self, entries: OrderedDict[ProducerId, Producer]) -> None:
        """The oldest entry is first, so each fold looks at one or two."""
        while entries:
            name = next(iter(entries))
            if entries[name].counts_at(self.last_append_time):
                return
            del entries[name]
