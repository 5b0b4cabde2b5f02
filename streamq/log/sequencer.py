"""The sequencer: who assigns offsets in one open epoch, and decides when a batch is acked (protocol sections 4 and 8).

Batches get consecutive offsets in the order of `on_produce` and wait in flight until the high watermark, the W-th largest local tail of
the segment's replicas, passes them. A local tail only counts from a replica named in the segment with its incarnation, and only from
reports of a replica that is not sealed (P-11). One rejection for a sealed epoch ends it all (P-14).

What was assigned but is not committed yet is judged from an overlay: a producer's entry is copied from the replica's table when its first
batch of this epoch is assigned, and goes on here. Until then the table cannot hold anything of this epoch about that producer.
"""

import enum
from collections import deque
from typing import Final, NamedTuple

import msgspec

from streamq.log.idempotence import Fenced, Gap, IdempotenceTable, Next, Place, Producer, Repeat, first_batch, judge
from streamq.log.record_ids import RecordIds
from streamq.model.batches import BatchHeader, fault_of_flags
from streamq.model.errors import ProtocolError
from streamq.model.ids import NO_PRODUCER, Member, PartitionId, ProducerId
from streamq.model.limits import DEDUP_MS_DEFAULT, IDS_PER_PARTITION_MAX, IN_FLIGHT_BATCHES_MAX, OFFSET_MAX, PRODUCERS_PER_PARTITION_MAX
from streamq.model.messages import StoredRun
from streamq.model.quorum import high_watermark
from streamq.model.registers import Segment
from streamq.model.tables import StoredId

__all__ = ["Acked", "Assigned", "Duplicate", "Phase", "Progress", "Refused", "Sequencer", "Waiting"]

BATCHES_IN_FLIGHT_MAX: Final = 32_768
"""Assigned and not yet acked, of all producers; the broker's bound in bytes is usually met first."""
TICKETS_PER_BATCH_MAX: Final = 64
"""Repeats that wait for the outcome of the same batch."""


class Assigned(msgspec.Struct, frozen=True):
    """Stamp the batch with these and send it to every replica of the segment, in this order."""

    epoch: int
    base: int
    append_time: int
    window_ms: int = 0
    """Of a record with an id: for how long that counts."""


class Waiting(msgspec.Struct, frozen=True):
    """A repeat of a batch that is still on its way: its ticket will be acked together with the first one's. Drop the batch."""


class Duplicate(msgspec.Struct, frozen=True):
    """A repeat of a batch below the high watermark: ack it. `base` is None if it is older than the last K batches (P-35)."""

    base: int | None
    append_time: int
    copies: int
    mark: int = 0


class Refused(msgspec.Struct, frozen=True):
    """Certainly not stored; `code` is one of `model.errors.CODES`.

    `is_doubtful`: it rests on what this sequencer lacks. One that is deposed and does not know it would say the same of what is there, so
    it is told only once the epoch was confirmed to be the last, after it was found.
    """

    code: str
    message: str
    is_doubtful: bool = False


class Acked(NamedTuple):
    ticket: object
    base: int
    append_time: int
    copies: int
    mark: int = 0
    """The highest of its producer with this batch, see `log.idempotence`."""
    is_duplicate: bool = False
    """Of a record with an id: one of the same id was on its way already."""


class Progress(msgspec.Struct, frozen=True):
    """What a `StoredRun` led to."""

    advanced: bool = False
    """The high watermark moved."""
    acks: tuple[Acked, ...] = ()
    """In offset order."""
    unknown: tuple[object, ...] = ()
    """Tickets to be answered `unknown_outcome`: the sequencer has stopped."""
    resend_from: int | None = None
    """A gap: send this member everything from here on again."""
    open_again: bool = False
    """This member has not opened the epoch: send `Open` again, then everything from its tail on."""
    gone: bool = False
    """This member is lost for the epoch, so P-22 applies."""


class Phase(enum.Enum):
    SERVING = "Offsets are assigned; ends with a handoff or a rejection."
    DRAINING = "A handoff has begun (P-21): nothing new is assigned, what is in flight is awaited."
    STOPPED = "The epoch is sealed or over: nothing is assigned or acked any more (P-14)."


_NOTHING: Final = Progress()
_WAITING: Final = Waiting()


class _InFlight:
    __slots__ = ("append_time", "base", "end", "is_identified", "mark", "producer", "tickets", "token")

    def __init__(self, base: int, end: int, append_time: int, producer: ProducerId, ticket: object) -> None:
        self.base = base
        self.end = end
        self.append_time = append_time
        self.producer = producer
        self.mark = 0
        self.is_identified = False
        self.token = 0
        self.tickets = [ticket]


class Sequencer:
    """Invariants: what is in flight covers `[high_watermark, next_offset)` batch by batch; the high watermark never falls; no local tail is
    past `next_offset`; append times never fall."""

    def __init__(self, *, partition: PartitionId, segment: Segment, table: IdempotenceTable, dedup_ms: int = DEDUP_MS_DEFAULT) -> None:
        """For the open `segment` that this broker opened in this very start (P-8). `table` is its own replica's, folded to `segment.base`
        (`Replica.is_complete`, P-34); it is read, never changed."""
        assert segment.is_open
        assert table.position == segment.base, (table.position, segment.base)
        self.partition = partition
        self.segment = segment
        self.epoch = segment.epoch
        self.phase = Phase.SERVING
        self.next_offset = segment.base
        self.high_watermark = segment.base
        self.last_append_time = table.last_append_time
        self._table = table
        self._write = segment.write
        self._tails = dict.fromkeys(segment.replicas, segment.base)
        self._gone: set[Member] = set()
        self._in_flight: deque[_InFlight] = deque()
        self._by_base: dict[int, _InFlight] = {}
        self._overlay: dict[ProducerId, Producer] = {}
        self._flying: dict[ProducerId, int] = {}
        self.dedup_ms = dedup_ms
        """For how long ids of records count from now on; 0: records with new ids are refused."""
        self._ids = RecordIds()
        """Assigned here, and not in the table yet."""
        self._token = self._token_committed = table.fencing_token
        """The highest assigned, and the highest below the high watermark."""

    @property
    def in_flight(self) -> int:
        """Batches assigned and not yet acked."""
        return len(self._in_flight)

    @property
    def is_drained(self) -> bool:
        """A handoff may go on: nothing is in flight and nothing new will be."""
        return self.phase is Phase.DRAINING and not self._in_flight

    @property
    def gone(self) -> tuple[Member, ...]:
        """Members that are lost for this epoch: in limbo, or back in another incarnation (P-22)."""
        return tuple(m for m in self.segment.replicas if m in self._gone)

    def tail_of(self, member: Member) -> int:
        """The local tail last reported (the segment's base before): from where to feed a member that reconnects."""
        return self._tails[member]

    # --- assigning -----------------------------------------------------------------------------------------------------

    def on_produce(self, header: BatchHeader, ticket: object, now_ms: int) -> Assigned | Waiting | Duplicate | Refused:
        """`header` of a whole, checked batch. `ticket` comes back in `Progress`, unless the answer is Duplicate or Refused."""
        if self.phase is not Phase.SERVING:
            return Refused("not_sequencer", f"epoch {self.epoch} is being closed; another broker goes on")
        if header.partition != self.partition or header.records > OFFSET_MAX - self.next_offset:
            return Refused("bad_request", "the batch is not one of this partition, or the partition is full")
        at = max(now_ms, self.last_append_time)
        if header.flags and (fault := fault_of_flags(header)):
            return Refused("bad_request", fault)
        is_identified, is_fenced = header.is_identified, header.is_fenced
        producer = NO_PRODUCER if is_identified else header.producer
        if is_identified:
            if answer := self._on_identified(header, ticket, at):
                return answer
        elif producer != NO_PRODUCER:
            known = self._known(producer, at)
            verdict = judge(known, epoch=header.producer_epoch, sequence=header.sequence)
            if type(verdict) is not Next:
                return self._not_next(verdict, known, header, ticket)
            if refusal := self._over_a_limit(producer, known):
                return refusal
        if len(self._in_flight) >= BATCHES_IN_FLIGHT_MAX:
            return Refused("busy", f"{BATCHES_IN_FLIGHT_MAX} batches of this partition are in flight")
        if is_fenced and header.mark < self._token:
            return self._below_token(header.mark)
        if header.is_conditional and header.base != self.next_offset:
            return self._not_expected(header.base)
        base = self.next_offset
        self.next_offset = end = base + header.records
        self.last_append_time = at
        flight = _InFlight(base, end, at, producer, ticket)
        self._in_flight.append(flight)
        self._by_base[base] = flight
        if is_fenced:
            self._token = flight.token = header.mark
        if is_identified:
            flight.is_identified = True
            self._ids.add(StoredId(header.producer, base, at, self.dedup_ms))
            return Assigned(self.epoch, base, at, self.dedup_ms)
        if producer != NO_PRODUCER:
            flight.mark = self._note(header, known, Place(header.sequence, base, header.records, at)).mark
        return Assigned(self.epoch, base, at)

    def _on_identified(self, header: BatchHeader, ticket: object, at: int) -> Waiting | Duplicate | Refused | None:
        """None for a record whose id is new here. A setting that was altered changes nothing about ids that are known."""
        self._ids.forget_below(self._table.position)
        stored = self._ids.get(header.producer, at=at) or self._table.ids.get(header.producer, at=at)
        if stored is not None:
            return self._repeated(Place(0, stored.base, 1, stored.append_time), 0, ticket)
        if not self.dedup_ms:
            return Refused("bad_request", "this topic takes no records with ids: `streamq topic alter TOPIC --dedup-window 10m`")
        if len(self._ids) + len(self._table.ids) >= IDS_PER_PARTITION_MAX:
            count = len(self._ids) + self._table.ids.count_at(at)
            if count >= IDS_PER_PARTITION_MAX:
                return Refused("limit_reached", f"this partition remembers {count} ids of records; a shorter window needs fewer of them")
        return None

    def _below_token(self, token: int) -> Refused:
        """What was stored with a higher one stays, here and at every sequencer that follows: whoever has this batch had it before that, so
        its repeat was recognised. What is in flight may be void, as in `_not_expected`."""
        if token < self._token_committed:
            return Refused("fenced", f"fencing token {token} was followed by {self._token_committed}")
        return Refused("conflict", f"whether fencing token {token} was followed by {self._token} is not decided yet")

    def _not_expected(self, expected: int) -> Refused:
        """A batch that is new here, and wants another offset than the next. (A repeat of one that is stored was recognised before.)

        What is below the high watermark is there for ever, and so is the refusal. What is in flight may yet be void: a refusal for its sake
        would be one for nothing, so the producer is to ask again until that is decided. An offset past the next one may exist at a
        sequencer that has deposed this one, and does not stay past it: another copy of the batch that comes later may be stored.
        """
        if self.high_watermark <= expected < self.next_offset:
            return Refused("conflict", f"whether offset {expected} is free is not decided yet")
        message = f"offset {expected} was expected to be the next, and {self.next_offset} is"
        if expected > self.next_offset:
            return Refused("past_the_end", message, is_doubtful=True)
        return Refused("precondition_failed", message)

    def _known(self, producer: ProducerId, at: int) -> Producer | None:
        own = self._overlay.get(producer)
        if own is None:
            return self._table.get(producer, at=at)
        return own if own.counts_at(at) else None

    def _not_next(self, verdict: object, known: Producer | None, header: BatchHeader, ticket: object) -> Waiting | Duplicate | Refused:
        if type(verdict) is Fenced:
            return Refused("fenced", f"producer epoch {header.producer_epoch} was followed by {verdict.newest}")
        if type(verdict) is Gap:
            message = f"sequence {header.sequence} leaves a gap: {verdict.expected} is next for this producer here"
            return Refused("sequence_gap", message, is_doubtful=True)
        assert type(verdict) is Repeat
        assert known is not None
        if verdict.place is None:
            return Duplicate(None, 0, self._write, known.mark)
        return self._repeated(verdict.place, known.mark, ticket)

    def _repeated(self, place: Place, mark: int, ticket: object) -> Waiting | Duplicate | Refused:
        flight = self._by_base.get(place.base) if place.base >= self.high_watermark else None
        if flight is None:
            end = place.base + place.records
            copies = self._copies(end) if place.base >= self.segment.base else self._write
            return Duplicate(place.base, place.append_time, copies, mark)
        if len(flight.tickets) >= TICKETS_PER_BATCH_MAX:
            return Refused("busy", f"{TICKETS_PER_BATCH_MAX} repeats of the batch at {place.base} wait for it already")
        flight.tickets.append(ticket)  # P-35: answered once it is below the high watermark
        return _WAITING

    def _over_a_limit(self, producer: ProducerId, known: Producer | None) -> Refused | None:
        if self._flying.get(producer, 0) >= IN_FLIGHT_BATCHES_MAX:
            return Refused("busy", f"{IN_FLIGHT_BATCHES_MAX} batches of this producer are in flight in this partition")
        if known is None and self._table.producers + len(self._overlay) >= PRODUCERS_PER_PARTITION_MAX:
            self._expire()
            count = len(self._table.live(at=self.last_append_time) | self._overlay.keys())
            if count >= PRODUCERS_PER_PARTITION_MAX:
                return Refused(
                    "limit_reached", f"this partition knows {count} idempotent producers; entries expire a week after their last batch"
                )
        return None

    def _note(self, header: BatchHeader, known: Producer | None, place: Place) -> Producer:
        producer = header.producer
        own = self._overlay.get(producer)
        if known is None:
            own = first_batch(place, header)
        elif known.epoch != header.producer_epoch:
            own = known.begin_epoch(place, header)
        else:
            own = own if own is known else known.fork()
            own.add(place, header)
        self._overlay[producer] = own
        self._flying[producer] = self._flying.get(producer, 0) + 1
        return own

    def _expire(self) -> None:
        self._overlay = {producer: own for producer, own in self._overlay.items() if own.counts_at(self.last_append_time)}

    # --- acking --------------------------------------------------------------------------------------------------------

    def on_stored(self, member: Member, run: StoredRun) -> Progress:
        """`member`: the broker and the incarnation that speak on the connection (P-10)."""
        if run.epoch != self.epoch or self.phase is Phase.STOPPED:
            return _NOTHING
        before = self._tails.get(member)
        if before is None or member in self._gone:
            return self._from_outside(member)
        state = run.state
        if state == "stored":
            tail = run.local_tail
            if tail > self.next_offset:
                raise ProtocolError(
                    f"{member.broker} reports a local tail of {tail}, past {self.next_offset}, all that was sent", code="protocol"
                )
            if tail <= before:
                return _NOTHING
            self._tails[member] = tail
            mark = high_watermark(list(self._tails.values()), write=self._write, base=self.high_watermark)
            return self._advance(mark) if mark > self.high_watermark else _NOTHING
        if state == "gap":
            return Progress(resend_from=run.local_tail)
        if state == "not_opened":
            return Progress(open_again=True)
        if state == "limbo":
            self._lose(member)
            return Progress(gone=True)
        return self.stop()  # sealed or past_end: P-14

    def _advance(self, mark: int) -> Progress:
        acks: list[Acked] = []
        in_flight = self._in_flight
        copies = self._copies(mark)
        while in_flight and in_flight[0].end <= mark:
            flight = in_flight.popleft()
            del self._by_base[flight.base]
            place = (flight.base, flight.append_time, copies, flight.mark)
            acks += [Acked(ticket, *place, flight.is_identified and i > 0) for i, ticket in enumerate(flight.tickets)]
            self._token_committed = max(self._token_committed, flight.token)
            left = self._flying.get(flight.producer, 1) - 1
            if left:
                self._flying[flight.producer] = left
            else:
                self._flying.pop(flight.producer, None)
        self.high_watermark = mark
        return Progress(advanced=True, acks=tuple(acks))

    def _copies(self, end: int) -> int:
        """Replicas that hold everything below `end`; at least W when it is below the high watermark, lost ones included."""
        return max(self._write, sum(1 for tail in self._tails.values() if tail >= end))

    def _from_outside(self, member: Member) -> Progress:
        """P-10: not named in this segment, or not in this incarnation; or lost already."""
        named = self.segment.member(member.broker)
        if named is None or named in self._gone:
            return _NOTHING
        self._lose(named)
        return Progress(gone=True)

    def _lose(self, member: Member) -> None:
        """What it reported before its loss counts no more for what is to come; what was acked stays so (I-1)."""
        self._gone.add(member)
        self._tails[member] = self.segment.base

    # --- ending --------------------------------------------------------------------------------------------------------

    def begin_handoff(self) -> None:
        """P-21. From now on `on_produce` refuses; go on feeding `on_stored` until `is_drained`."""
        if self.phase is Phase.SERVING:
            self.phase = Phase.DRAINING

    def stop(self) -> Progress:
        """The epoch is over (a rejection, a newer epoch seen, the storage failed): `unknown` holds the tickets of what was assigned."""
        self.phase = Phase.STOPPED
        unknown = tuple(ticket for flight in self._in_flight for ticket in flight.tickets)
        self._in_flight.clear()
        self._by_base.clear()
        self._flying.clear()
        return Progress(unknown=unknown)

    def check(self) -> None:
        """The invariants; for tests and simulation."""
        at = self.high_watermark
        for flight in self._in_flight:
            assert flight.base == at, (flight.base, at)
            at = flight.end
        assert at == self.next_offset or self.phase is Phase.STOPPED, (at, self.next_offset)
        assert self.high_watermark <= self.next_offset
        assert all(tail <= self.next_offset for tail in self._tails.values())
