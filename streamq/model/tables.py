"""Idempotence tables as values (P-34): in checkpoints, and on the wire to a replica that lacks the headers below its start offset."""

from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from streamq.model.fields import U63, Id16
from streamq.model.ids import NO_PRODUCER
from streamq.model.limits import DEDUP_BATCHES

__all__ = ["NEVER_BEGUN", "Begun", "Place", "ProducerSnapshot", "StoredId", "TableSnapshot", "fault_of", "fault_of_id"]


class Place(NamedTuple):
    """Where a producer's batch lies."""

    sequence: U63
    base: U63
    records: U63
    append_time: U63


class Begun(NamedTuple):
    """A transaction of a producer, and where and when its first batch was appended in this partition."""

    number: U63
    base: U63
    append_time: U63


NEVER_BEGUN: Final = Begun(0, 0, 0)


class StoredId(NamedTuple):
    """A record that came with an id: another one of the same id is taken for it as long as the log's time is not past its window."""

    id: Id16
    """The hash of what the application gave."""
    base: U63
    append_time: U63
    window_ms: U63


class ProducerSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one producer; `places` are the last of its batches in `epoch`, consecutive, up to `last_sequence`."""

    producer: Id16
    epoch: U63
    last_sequence: U63
    append_time: U63
    places: tuple[Place, ...]
    mark: U63 = 0
    """The highest that it has told, in whatever epoch of its own."""
    named: bool = False
    transaction: Begun = NEVER_BEGUN


class TableSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """The fold over everything committed in `[0, position)`; producers in the order of their last batches' append times, ids in that of
    the log."""

    position: U63
    last_append_time: U63
    producers: tuple[ProducerSnapshot, ...]
    ids: tuple[StoredId, ...] = ()
    fencing_token: U63 = 0
    """The highest that was stored."""


def fault_of(snapshot: ProducerSnapshot, *, position: int, after: int, last_append_time: int) -> str | None:
    """Why no fold up to `position` comes to this entry, behind one whose last batch was appended at `after`; None if one may."""
    places = snapshot.places
    if snapshot.producer == NO_PRODUCER:
        return "is none"
    if snapshot.mark and not snapshot.named:
        return f"has the mark {snapshot.mark} and no name"
    if snapshot.transaction.base and snapshot.transaction.base >= position:
        return f"has a transaction that begins at {snapshot.transaction.base}, past {position}"
    if snapshot.transaction.number and not snapshot.named:
        return f"has transaction {snapshot.transaction.number} and no name"
    if not 0 < len(places) <= DEDUP_BATCHES:
        return f"has {len(places)} places"
    if not after <= snapshot.append_time <= last_append_time:
        return f"was last seen at {snapshot.append_time}, and comes between {after} and {last_append_time}"
    last = places[-1]
    if (last.sequence, last.append_time) != (snapshot.last_sequence, snapshot.append_time):
        return "does not end with its last batch"
    if last.base + last.records > position or not all(place.records for place in places):
        return f"has a batch past {position}, or one without a record"
    for before, place in pairwise(places):
        is_next = place.sequence == before.sequence + 1 and place.base >= before.base + before.records
        if not is_next or place.append_time < before.append_time:
            return f"has sequence {place.sequence} at {place.base} behind {before.sequence} at {before.base}"
    return None


def fault_of_id(stored: StoredId, *, position: int, after: StoredId | None, last_append_time: int) -> str | None:
    """As `fault_of`, of a record's id behind another one."""
    if stored.id == NO_PRODUCER or not stored.window_ms:
        return "is none, or counts for no time"
    if stored.base >= position or stored.append_time > last_append_time:
        return f"lies at {stored.base} since {stored.append_time}, past {position} or {last_append_time}"
    if after is not None and (stored.base <= after.base or stored.append_time < after.append_time):
        return f"lies at {stored.base} since {stored.append_time}, and comes behind {after.base} and {after.append_time}"
    return None
