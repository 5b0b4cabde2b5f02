"""What must hold (protocol section 9), looked at in every step, cheaply: each check costs the same however long the run is.

Raises `Violation` at the first step after which something cannot be mended any more; `final` judges what a whole run left behind.
"""

from typing import TYPE_CHECKING

from streamq.log.effects import Persist
from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER, PartitionId
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1 import events
from tests.sim.tier1.events import BatchId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.tier1.disk import Disk
    from tests.sim.tier1.partition import Partition
    from tests.sim.tier1.sequencing import Sequencing
    from tests.sim.tier1.world import World

__all__ = ["Checks", "Ledger", "Violation", "batch_id", "id_of", "id_text", "mark_of", "named"]


class Violation(AssertionError):
    """An invariant of the protocol does not hold."""


def batch_id(header: BatchHeader) -> BatchId:
    """A record with an id has no producer, and may be stored again after its window: it goes by what it says."""
    if header.is_identified:
        return BatchId(NO_PRODUCER, 0, 0, header.payload_crc)
    return BatchId(header.producer, header.producer_epoch, header.sequence, header.payload_crc)


class Ledger:
    """What is known for certain of one partition: once in here, never different.

    `seen`: base -> (end, batch) that somebody concluded to be committed. `assigned`: (epoch, base) -> (end, batch). `told`: the largest
    high watermark told for each epoch. `ends`: of closed epochs. `openings`: of named producers, with offset and mark.
    `committed`: all below it was concluded to be committed by somebody. `duplicates`: (id, offset) that somebody was told it is at.
    `tokens`: of batches that were assigned, by epoch and base; `fenced`: what was refused for a higher one. `time`: an append time told.
    """

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, BatchId]] = {}
        self.acked: dict[BatchId, tuple[int, int]] = {}
        self.assigned: dict[tuple[int, int], tuple[int, BatchId]] = {}
        self.told: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.openings: dict[BatchId, tuple[int, int]] = {}
        self.committed = 0
        self.start_offset = 0
        self.duplicates: dict[tuple[bytes, int], None] = {}
        self.ids_used = 0
        self.tokens: dict[tuple[int, int], int] = {}
        self.tokens_given = 0
        self.fenced: list[int] = []
        self.time = 0


class Checks:
    def __init__(self, world: "World", partitions: int) -> None:
        self.world = world
        self.ledgers = [Ledger() for _ in range(partitions)]

    # --- sequencers

    def on_assigned(self, sequencing: "Sequencing", batch: Batch) -> None:
        """P-12."""
        ledger = self.ledgers[sequencing.partition.index]
        header = batch.header
        place = (header.end, batch_id(header))
        if ledger.assigned.setdefault((header.epoch, header.base), place) != place:
            raise Violation(f"P-12: two batches were given offset {header.base} of epoch {header.epoch}")
        if header.is_fenced:
            ledger.tokens[header.epoch, header.base] = header.mark

    def on_ack(self, sequencing: "Sequencing", base: int, end: int, batch: BatchId, *, is_repeat: bool) -> None:
        """The sequencer says so to a producer: from now on it is so."""
        partition = sequencing.partition
        ledger = self.ledgers[partition.index]
        place = ledger.acked.setdefault(batch, (base, end))
        if place != (base, end) and batch.producer != NO_PRODUCER:
            raise Violation(f"I-5: {named(batch)} was acked at {place[0]} and at {base}")
        if not is_repeat:
            self._expect_copies(partition, sequencing.segment, end, "I-1, P-11")
        self.observe(partition.index, base, end, batch)

    def on_duplicate_id(self, sequencing: "Sequencing", base: int, header: BatchHeader) -> None:
        """Somebody is told that a record of the same id is there."""
        ledger = self.ledgers[sequencing.partition.index]
        ledger.duplicates[header.producer, base] = None
        ledger.committed = max(ledger.committed, base + 1)

    def on_refused(self, index: int, header: BatchHeader, code: str, floor: int) -> None:
        """For good, which takes something committed that says so: `floor` was the end of what was known to be when it was sent."""
        ledger = self.ledgers[index]
        if code == "fenced":
            known = (token for (_, base), token in ledger.tokens.items() if base < ledger.committed)
            if max(known, default=0) <= header.mark:
                raise Violation(f"token {header.mark} of {named(batch_id(header))} was refused for a higher one, and none is committed")
            ledger.fenced.append(header.mark)
        elif header.base == floor == ledger.committed:
            raise Violation(f"{named(batch_id(header))} was refused offset {floor}, and nothing is committed there")

    def on_progress(self, sequencing: "Sequencing", mark: int) -> None:
        """The sequencer's high watermark moved."""
        self._expect_copies(sequencing.partition, sequencing.segment, mark, "P-11")
        self._told(sequencing.partition.index, sequencing.epoch, mark)

    def _expect_copies(self, partition: "Partition", segment: Segment, end: int, rule: str) -> None:
        """W replicas named in the segment, in that incarnation, hold it durably, or have lost it since."""
        is_synced = segment.durability == "fsync"
        copies = 0
        for member in segment.replicas:
            disk = self.world.disks[member.broker]
            is_named = disk.incarnation == member.incarnation
            if is_named and self._held_to(disk, partition.id, segment.epoch, is_synced=is_synced) >= end:
                copies += 1
                continue
            copies += member.broker in self.world.wounded
        if copies < segment.write and end > segment.base:
            raise Violation(
                f"{rule}: epoch {segment.epoch} is said to be stored up to {end}, and {copies} of W = {segment.write} hold that"
            )

    def _held_to(self, disk: "Disk", partition: PartitionId, epoch: int, *, is_synced: bool) -> int:
        """What lies below the start offset counts as held (P-41)."""
        run = (disk.raw_runs if is_synced else disk.runs).get(partition, {}).get(epoch)
        state = disk.raw_states.get(("replica", partition))
        return max(run[-1].end if run else 0, state.start_offset if state is not None else 0)

    def on_opened(self, index: int, opening: BatchId, base: int, mark: int) -> None:
        """A named producer was told how far its earlier selves came (P-33): nothing that was acked to them is above."""
        ledger = self.ledgers[index]
        ledger.openings[opening] = (base, mark)
        acked = max((mark_of(b.epoch, b.sequence) for b in ledger.acked if _is_earlier(b, opening)), default=0)
        if mark < acked:
            raise Violation(f"P-33: {named(opening)} was told the mark {mark}, and {acked} had been acked")

    # --- what somebody concludes

    def observe(self, index: int, base: int, end: int, batch: BatchId) -> None:
        ledger = self.ledgers[index]
        place = (end, batch)
        known = ledger.seen.setdefault(base, place)
        if known != place:
            raise Violation(f"I-2: {named(known[1])} and {named(batch)} were both seen at offset {base}")
        ledger.committed = max(ledger.committed, end)

    def on_watermark(self, partition: "Partition", epoch: int, mark: int) -> None:
        """A replica shows it (P-23)."""
        if self.world.is_traced:  # an effect that leads to others may be carried out after they moved it on
            self.world.note(events.WatermarkTold(partition.me, partition.index, *partition.replica.high_watermark))
        self._told(partition.index, epoch, mark)

    def _told(self, index: int, epoch: int, mark: int) -> None:
        """I-6: a watermark told never exceeds what any takeover keeps."""
        ledger = self.ledgers[index]
        if mark > ledger.told.get(epoch, -1):
            ledger.told[epoch] = mark
            ledger.committed = max(ledger.committed, mark)
            end = ledger.ends.get(epoch)
            if end is not None and mark > end:
                raise Violation(f"I-6: a high watermark of {mark} was told for epoch {epoch}, which ends at {end}")

    def on_tip(self, index: int, *, floor: int, epoch: int, mark: int) -> None:
        """P-24: whatever was concluded to be committed before the read began lies below its result."""
        if mark < floor:
            raise Violation(f"P-24: the tip of partition {index} is {mark}, and everything below {floor} was known when the read began")
        self._told(index, epoch, mark)

    # --- replicas

    def on_durable(self, partition: "Partition", persist: Persist) -> None:
        if persist.state is None:
            return
        try:
            partition.replica.check()
        except AssertionError as broken:
            raise Violation(f"{partition.me.broker} broke an invariant of its own: {broken}") from None

    # --- the register

    def on_register(self, index: int, before: PartitionRegister, after: PartitionRegister) -> None:
        """A new version in the order of ballots."""
        ledger = self.ledgers[index]
        closed = after.segment(before.last.epoch)
        if before.last.is_open and closed is not None and closed.end is not None:
            self._on_closed(index, ledger, closed, before.last)
        ledger.start_offset = max(ledger.start_offset, after.start_offset)
        if after.start_offset > before.start_offset and after.start_offset > ledger.committed:
            raise Violation(f"P-41: the start offset is {after.start_offset}, and nobody was told more than {ledger.committed}")

    def _on_closed(self, index: int, ledger: Ledger, closed: Segment, opened: Segment) -> None:
        """P-9, P-18, I-6."""
        epoch, end = closed.epoch, closed.end
        assert end is not None
        ledger.ends[epoch] = end
        if ledger.told.get(epoch, 0) > end:
            raise Violation(f"I-6: epoch {epoch} was closed at {end}, and a high watermark of {ledger.told[epoch]} was told for it")
        if end == closed.base:
            return
        partition = self.world.partition_ids[index]
        copies = len(self.world.wounded)
        for broker, disk in self.world.disks.items():
            held = self._held_to(disk, partition, epoch, is_synced=opened.durability == "fsync")
            copies += broker not in self.world.wounded and held >= end
        if copies < opened.write:
            raise Violation(f"P-18: epoch {epoch} was closed at {end}, and {copies} brokers hold that; W = {opened.write}")

    # --- the end

    def judge_log(self, index: int, log: "Sequence[Batch]") -> None:
        """`log` is what is committed in the end, from the start offset on (I-1 to I-5)."""
        ledger = self.ledgers[index]
        at = ledger.start_offset
        places: dict[BatchId, int] = {}
        lasts: dict[bytes, tuple[int, int]] = {}
        found: dict[int, tuple[int, BatchId]] = {}
        self._judge_conditions(ledger, log)
        for batch in log:
            header = batch.header
            if header.base != at and not (at == ledger.start_offset and header.base < at < header.end):
                raise Violation(f"I-4: the final log has a hole from {at} to {header.base}")
            at = header.end
            name = batch_id(header)
            found[header.base] = (header.end, name)
            if name.producer == NO_PRODUCER:
                continue
            if name in places:
                raise Violation(f"I-5: {named(name)} lies at {places[name]} and at {header.base}")
            places[name] = header.base
            last = lasts.get(header.producer)
            expected = 0 if last is None or last[0] != header.producer_epoch else last[1] + 1
            is_first_kept = last is None and ledger.start_offset > 0
            if (header.sequence != expected and not is_first_kept) or (last is not None and header.producer_epoch < last[0]):
                raise Violation(f"I-3: {named(name)} lies at {header.base}, where sequence {expected} should follow {last}")
            lasts[header.producer] = (header.producer_epoch, header.sequence)
        for opening, (base, mark) in ledger.openings.items():
            stored = {at: batch for at, (_, batch) in (ledger.seen | found).items() if _is_earlier(batch, opening)}
            last_mark = max((mark_of(batch.epoch, batch.sequence) for batch in stored.values()), default=0)
            if mark < last_mark or (mark > last_mark and not ledger.start_offset):
                raise Violation(f"P-33: {named(opening)} was told the mark {mark}, and the earlier ones had come to {last_mark}")
            if max(stored, default=-1) > base:
                raise Violation(f"P-33: {named(opening)} lies at {base}, and something of an earlier one behind it, at {max(stored)}")
        for base, place in ledger.seen.items():
            if place[0] > ledger.start_offset and found.get(base) != place:
                raise Violation(f"I-1: {named(place[1])} was seen at offset {base}, where in the end there is {found.get(base)}")
        if ledger.committed > max(at, ledger.start_offset):
            raise Violation(f"I-1: everything below {ledger.committed} was committed, and the log ends at {at}")

    def _judge_conditions(self, ledger: Ledger, log: "Sequence[Batch]") -> None:
        """An id is there once within the window of the first, and where everybody was told; tokens rise."""
        stored: dict[bytes, BatchHeader] = {}
        ids: dict[int, bytes] = {}
        token, trimmed = 0, [t for (_, base), t in ledger.tokens.items() if base < ledger.start_offset]
        for batch in log:
            header = batch.header
            if header.is_fenced:
                if header.mark < token:
                    raise Violation(f"token {header.mark} of {named(batch_id(header))} lies at {header.base} behind token {token}")
                token = header.mark
            if header.is_identified:
                before = stored.get(header.producer)
                if before is not None and header.append_time <= before.append_time + before.mark:
                    raise Violation(f"{id_text(header.producer)} lies at {before.base}, and within its window at {header.base} again")
                self.world.counters["ids_again"] += before is not None
                stored[header.producer], ids[header.base] = header, header.producer
        for id, base in ledger.duplicates:
            if base >= ledger.start_offset and ids.get(base) != id:
                raise Violation(f"{id_text(id)} was said to lie at {base}")
        if ledger.fenced and max(token, *trimmed, 0) <= max(ledger.fenced):
            raise Violation(f"token {max(ledger.fenced)} was refused for a higher one, and the highest in the log is {token}")


def id_of(index: int, number: int) -> bytes:
    """As if it were the hash of one."""
    return (b"id%d.%d" % (index, number)).ljust(16, b"\0")


def id_text(id: bytes) -> str:
    return f"a record of {id.rstrip(bytes(1)).decode()}"


def mark_of(epoch: int, sequence: int) -> int:
    """Rises over all epochs of a name, and is never that of an opening."""
    return epoch * 100_000 + sequence + 1


def _is_earlier(batch: BatchId, opening: BatchId) -> bool:
    return batch.producer == opening.producer and batch.epoch < opening.epoch


def named(batch: BatchId) -> str:
    if batch.producer == NO_PRODUCER:
        return f"plain batch {batch.mark}"
    producer = batch.producer.rstrip(b"\0").decode(errors="replace")
    return f"batch {batch.sequence} of {producer}" + (f" (epoch {batch.epoch})" if batch.epoch else "")
