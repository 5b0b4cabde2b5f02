"""What is wrong with what lies on the replicas' disks in the end, and with the versions that a partition's register went through."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from streamq.model.registers import PartitionRegister, Segment
from tests.sim.anomaly import Anomaly, Kind
from tests.sim.history import History, StoredBatch

__all__ = ["check_registers", "check_replicas"]

Replicas = dict[str, list[StoredBatch]]


def check_replicas(history: History) -> Iterator[Anomaly]:
    for partition, replicas in history.replicas.items():
        yield from _same_bytes(partition, replicas)
        yield from _contiguous(partition, replicas)
        versions = history.registers.get(partition)
        if versions and not versions[-1].deleted:
            yield from _inside_segments(partition, replicas, versions[-1])
            yield from _copies(partition, replicas, versions[-1], end=_end(history, partition))


def check_registers(history: History) -> Iterator[Anomaly]:
    for partition, versions in history.registers.items():
        for version in versions:
            if (fault := version.fault()) is not None:
                yield Anomaly(Kind.CHAIN, fault, partition)
        for before, after in pairwise(versions):
            for what in _changed(before, after):
                yield Anomaly(Kind.CHAIN_CHANGED, what, partition)


# --- replicas --------------------------------------------------------------------------------------------------------------


def _same_bytes(partition: int, replicas: Replicas) -> Iterator[Anomaly]:
    """Of all batches that lie anywhere, no two that differ overlap."""
    holders: dict[StoredBatch, list[str]] = defaultdict(list)
    for broker, batches in replicas.items():
        for batch in batches:
            holders[batch].append(broker)
    reach: StoredBatch | None = None
    for batch in sorted(holders, key=lambda batch: (batch.base, batch.end)):
        if reach is not None and batch.base < reach.end and batch.end > reach.base:
            message = f"{_spelt(reach)} on {', '.join(holders[reach])} and {_spelt(batch)} on {', '.join(holders[batch])} are not the same"
            yield Anomaly(Kind.REPLICAS_DIFFER, message, partition, max(reach.base, batch.base))
        if reach is None or batch.end > reach.end:
            reach = batch


def _contiguous(partition: int, replicas: Replicas) -> Iterator[Anomaly]:
    for broker, batches in replicas.items():
        for before, after in pairwise(batches):
            if after.epoch == before.epoch and after.base != before.end:
                message = f"on {broker} {_spelt(after)} follows {_spelt(before)}"
                yield Anomaly(Kind.HOLE_IN_REPLICA, message, partition, before.end)


def _inside_segments(partition: int, replicas: Replicas, register: PartitionRegister) -> Iterator[Anomaly]:
    for broker, batches in replicas.items():
        for batch in batches:
            segment = register.segment(batch.epoch)
            if segment is None:
                # What was trimmed leaves the chain before it leaves the disk.
                if register.chain and batch.epoch < register.chain[0].epoch:
                    continue
                yield Anomaly(Kind.VOID_STORED, f"on {broker} {_spelt(batch)} is of an epoch that was never opened", partition, batch.base)
            elif batch.base < segment.base or (segment.end is not None and batch.end > segment.end):
                message = f"on {broker} {_spelt(batch)} is not within its segment [{segment.base}, {segment.end})"
                yield Anomaly(Kind.VOID_STORED, message, partition, batch.base)


def _copies(partition: int, replicas: Replicas, register: PartitionRegister, *, end: int) -> Iterator[Anomaly]:
    """A closed segment lies whole on each of its holders, the open one on W of its replicas as far as the log goes. Only brokers whose disk
    was looked at are judged."""
    for segment in register.chain:
        base, until = max(segment.base, register.start_offset), end if segment.end is None else segment.end
        if base >= until:
            continue
        looked_at = [member.broker for member in segment.replicas if member.broker in replicas]
        lacking = {broker: lack for broker in looked_at if (lack := _first_lacking(replicas[broker], segment, base, until)) is not None}
        allowed = len(segment.replicas) - segment.write if segment.end is None else 0
        if len(lacking) > allowed:
            where = ", ".join(f"{broker} from {lack} on" for broker, lack in sorted(lacking.items()))
            message = f"epoch {segment.epoch} is [{base}, {until}) and is lacking on {where}; {allowed} may lack some"
            yield Anomaly(Kind.TOO_FEW_COPIES, message, partition, min(lacking.values()))


def _first_lacking(batches: list[StoredBatch], segment: Segment, base: int, until: int) -> int | None:
    reached = base
    for batch in batches:
        if batch.epoch == segment.epoch and batch.base <= reached < batch.end:
            reached = batch.end
    return reached if reached < until else None


def _end(history: History, partition: int) -> int:
    log = history.log.get(partition)
    return log[-1][0] + 1 if log else 0


def _spelt(batch: StoredBatch) -> str:
    return f"batch [{batch.base}, {batch.end}) of epoch {batch.epoch}"


# --- registers -------------------------------------------------------------------------------------------------------------


def _changed(before: PartitionRegister, after: PartitionRegister) -> Iterator[str]:
    if after.id != before.id:
        if not before.deleted:
            yield f"the id changed from {before.id.hex()} to {after.id.hex()} without a deletion"
        return
    if before.deleted and not after.deleted:
        yield "a deleted partition came back under its old id"
    if after.deleted:
        return
    if after.start_offset < before.start_offset:
        yield f"the start offset fell from {before.start_offset} to {after.start_offset}"
    if after.chain[0].epoch < before.chain[0].epoch:
        yield f"epoch {after.chain[0].epoch} came back into a chain that began with {before.chain[0].epoch}"
    if after.last.epoch < before.last.epoch:
        yield f"the last epoch fell from {before.last.epoch} to {after.last.epoch}"
    for segment in before.chain:
        later = after.segment(segment.epoch)
        if later is not None:
            yield from _segment_changed(segment, later)


def _segment_changed(before: Segment, after: Segment) -> Iterator[str]:
    for name in ("base", "sequencer", "attempt", "write", "read", "durability"):
        was, became = getattr(before, name), getattr(after, name)
        if was != became:
            yield f"the {name} of epoch {before.epoch} changed from {was!r} to {became!r}"
    if before.end is not None and after.end != before.end:
        yield f"the end of epoch {before.epoch} changed from {before.end} to {after.end}"
    if before.is_open and after.is_open and after.replicas != before.replicas:
        yield f"the replicas of epoch {before.epoch} changed while it was open"
    if len(after.replicas) != len(before.replicas):
        yield f"epoch {before.epoch} had {len(before.replicas)} replicas and then {len(after.replicas)}"
