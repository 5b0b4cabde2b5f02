"""Which batches lay on which disks when an ack left (P-11), told from a record of disks and acks and from nothing that a broker says.

What is known to be on a disk is what was written to a journal file before a sync of that file began that has ended. There a batch is looked
for as its bytes: whole, by its checksums, the payload that the producer sent, at the offset that the ack tells.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from streamq.model.batches import BATCH_HEADER_BYTES, Batch
from streamq.model.messages import Ack
from streamq.wire.batch_format import MAGIC, BadBatchError, decode_header, split_batches
from tests.support.recorded_disks import AckLeft, Event, SyncBegan, Synced, Wrote

__all__ = ["BatchKey", "Disks", "Found", "TooEarly", "Verdict", "key_of", "verdict"]

Place = tuple[str, str]
"""A disk and a file of its journal."""


class BatchKey(NamedTuple):
    """Of one batch of an idempotent producer, wherever it lies."""

    partition: bytes
    producer: bytes
    sequence: int


class Found(NamedTuple):
    base: int
    payload: bytes


class TooEarly(NamedTuple):
    """An ack that left when only these disks had the batch."""

    batch: BatchKey
    ack: Ack
    holders: frozenset[str]


class Verdict(NamedTuple):
    """`synced[i]` is how many disks had the batch of the i-th ack when it left; `too_early` is empty if each was enough."""

    synced: tuple[int, ...]
    too_early: tuple[TooEarly, ...]


def key_of(batch: Batch) -> BatchKey:
    return BatchKey(batch.header.partition, batch.header.producer, batch.header.sequence)


class Disks:
    """What lies on the disks after the events so far: what a crash may still take, and what it may not."""

    def __init__(self) -> None:
        self._written: dict[str, dict[BatchKey, Found]] = {}
        self._synced: dict[str, dict[BatchKey, Found]] = {}
        self._unsynced: dict[Place, list[Wrote]] = {}
        self._covered: dict[tuple[str, int], list[Wrote]] = {}
        self._images: dict[tuple[Place, bool], bytearray] = {}

    def follow(self, event: Event) -> None:
        """Events in the order of the record."""
        if isinstance(event, Wrote):
            self._unsynced.setdefault((event.disk, event.file), []).append(event)
            self._apply(self._written, [event], is_synced=False)
        elif isinstance(event, SyncBegan):
            self._covered[event.disk, event.number] = list(self._unsynced.get((event.disk, event.file), ()))
        elif isinstance(event, Synced):
            covered = self._covered.pop((event.disk, event.number))
            assert all(wrote.file == event.file for wrote in covered)
            place, done = (event.disk, event.file), set(map(id, covered))
            self._unsynced[place] = [wrote for wrote in self._unsynced.get(place, ()) if id(wrote) not in done]
            self._apply(self._synced, covered, is_synced=True)

    @classmethod
    def after(cls, record: Sequence[Event]) -> "Disks":
        disks = cls()
        for event in list(record):  # workers' threads go on recording
            disks.follow(event)
        return disks

    def written_to(self, batch: Batch, base: int) -> set[str]:
        """The disks to which this batch was handed, at this offset."""
        return {disk for disk, found in self._written.items() if found.get(key_of(batch)) == Found(base, batch.payload)}

    def holders(self, batch: Batch, base: int) -> set[str]:
        """The disks on which this batch lies, synced, at this offset."""
        return {disk for disk, found in self._synced.items() if found.get(key_of(batch)) == Found(base, batch.payload)}

    def _apply(self, known: dict[str, dict[BatchKey, Found]], writes: Sequence[Wrote], *, is_synced: bool) -> None:
        for wrote in writes:
            image = self._images.setdefault(((wrote.disk, wrote.file), is_synced), bytearray())
            end = wrote.offset + len(wrote.content)
            image.extend(bytes(max(0, end - len(image))))
            image[wrote.offset : end] = wrote.content
        for disk, file, start, end in _runs(writes):
            found = known.setdefault(disk, {})
            found.update(_batches_in(bytes(self._images[(disk, file), is_synced][start:end])))


def verdict(record: Sequence[Event], *, write_quorum: int) -> Verdict:
    """Holds each ack against the disks as they were when it left: W of them, and as many as it says itself, must have had the batch."""
    disks = Disks()
    counts: list[int] = []
    too_early: list[TooEarly] = []
    for event in record:
        if not isinstance(event, AckLeft):
            disks.follow(event)
            continue
        batch, ack = event
        holders = disks.holders(batch, ack.base)
        counts.append(len(holders))
        if len(holders) < max(write_quorum, ack.copies):
            too_early.append(TooEarly(key_of(batch), ack, frozenset(holders)))
    return Verdict(tuple(counts), tuple(too_early))


def _runs(writes: Sequence[Wrote]) -> Iterator[tuple[str, str, int, int]]:
    """Where these writes lie, those that touch each other as one: a system call may end in the middle of a batch."""
    begun: tuple[str, str, int, int] | None = None
    for wrote in sorted(writes, key=lambda each: each[:3]):
        end = wrote.offset + len(wrote.content)
        if begun is not None and begun[:2] == wrote[:2] and wrote.offset <= begun[3]:
            begun = *begun[:3], max(begun[3], end)
            continue
        if begun is not None:
            yield begun
        begun = wrote.disk, wrote.file, wrote.offset, end
    if begun is not None:
        yield begun


def _batches_in(content: bytes) -> Iterator[tuple[BatchKey, Found]]:
    """Every whole batch in these bytes; those that only look like one are passed over."""
    at = content.find(MAGIC)
    while at >= 0:
        try:
            header = decode_header(content[at : at + BATCH_HEADER_BYTES])
            [batch] = split_batches(content[at : at + BATCH_HEADER_BYTES + header.payload_bytes])
        except BadBatchError:
            pass
        else:
            yield key_of(batch), Found(batch.base, batch.payload)
        at = content.find(MAGIC, at + 1)
