"""What sequencers, takeovers and the register may do: the guards of the model's `Assign` and `Close`, and of acks (P-11)."""

from itertools import pairwise

from streamq.model.ids import NO_PRODUCER, Member
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1.events import (
    Acked,
    Assigned,
    Digested,
    RegisterChanged,
    SequencerBegan,
    SequencerStopped,
    TakeoverBegan,
    TakeoverEnded,
)
from tests.spec.abstract_log import AbstractLog, Broken, Epoch, Placed, invariant, require

__all__ = [
    "on_acked",
    "on_assigned",
    "on_digested",
    "on_register_changed",
    "on_sequencer_began",
    "on_sequencer_stopped",
    "on_takeover_began",
    "on_takeover_ended",
]


# --- the sequencer: Assign ----------------------------------------------------------------------------------------------------


def on_sequencer_began(log: AbstractLog, event: SequencerBegan) -> None:
    """The one that the register names, in the process that took over, complete (P-34), and once."""
    epoch, copy = log.epoch(event.epoch), log.copy(event.member)
    require(epoch.sequencer is None, "P-8", f"epoch {epoch.number} has had a sequencer already")
    began = log.attempts.get(epoch.segment.attempt)
    require(began == (event.member, copy.start), "P-8", f"the takeover into epoch {epoch.number} was begun by {began}")
    require(event.base == epoch.base, "P-34", f"epoch {epoch.number} begins at {epoch.base}, not at {event.base}")
    require(copy.opened >= epoch.number, "step 6", "the sequencer's own replica has not opened the epoch")
    for segment in log.register.chain:
        if segment.epoch < epoch.number and segment.end is not None and segment.end > max(segment.base, log.register.start_offset):
            held = copy.held.get(segment.epoch, 0)
            require(
                held >= segment.end, "P-34", f"epoch {segment.epoch} ends at {segment.end}; the new sequencer never held more than {held}"
            )
    epoch.sequencer = event.member


def on_sequencer_stopped(log: AbstractLog, event: SequencerStopped) -> None:
    epoch = log.epoch(event.epoch)
    require(epoch.sequencer == event.member, "P-8", f"the sequencer of epoch {epoch.number} is {epoch.sequencer}")
    epoch.has_stopped = True


def _require_sequencing(epoch: Epoch, member: Member) -> None:
    require(epoch.sequencer == member, "P-8", f"the sequencer of epoch {epoch.number} is {epoch.sequencer}")
    require(not epoch.has_stopped, "P-14", f"the sequencer of epoch {epoch.number} has stopped")


def on_assigned(log: AbstractLog, event: Assigned) -> None:
    """`Assign`: the next offset, for a batch that is new to the table and next in its producer's sequence."""
    epoch, batch = log.epoch(event.epoch), event.batch
    _require_sequencing(epoch, event.member)
    require(event.base == epoch.next_offset < event.end, "P-12", f"{epoch.next_offset} is the next offset, not {event.base}")
    if batch.producer != NO_PRODUCER:
        _require_next_in_sequence(log, epoch, event)
        epoch.table[batch.producer] = (batch.epoch, batch.sequence)
        epoch.placed[batch] = event.base
    epoch.stores[event.base] = Placed(event.base, event.end, batch)
    epoch.next_offset = event.end


def _require_next_in_sequence(log: AbstractLog, epoch: Epoch, event: Assigned) -> None:
    batch = event.batch
    below, here = log.kept.get(batch), epoch.placed.get(batch)
    known = here if here is not None or below is None or below >= epoch.base else below
    require(known is None, "I-5", f"{batch} lies at offset {known} already")
    of = epoch.table.get(batch.producer)
    require(of is None or batch.epoch >= of[0], "P-33", f"{batch} is of a producer that {of} has fenced")
    expected = of[1] + 1 if of is not None and of[0] == batch.epoch else 0
    require(batch.sequence == expected, "P-35", f"{batch} leaves a gap: {expected} is next")


def on_acked(log: AbstractLog, event: Acked) -> None:
    """P-11, P-35: W replicas have reported it; or, repeated, it lies below what is committed at the offset that is told."""
    epoch = log.epoch(event.epoch)
    _require_sequencing(epoch, event.member)
    if event.repeat:
        epoch = _epoch_of(log, event)
    place = epoch.stores.get(event.base)
    require(place == (event.base, event.end, event.batch), "P-12", f"acked was {event.batch}, and {place} was assigned there")
    most = epoch.wth_tail(epoch.reported) if epoch.end is None or not event.repeat else epoch.end
    require(event.end <= most, "P-11", f"offsets up to {event.end} were acked, and W replicas have reported {most}")
    if event.batch.producer != NO_PRODUCER:
        before = log.acked.setdefault(event.batch, event.base)
        invariant(before == event.base, "I-5", f"{event.batch} was acked at {before} and at {event.base}")
    log.acked_end = max(log.acked_end, event.end)
    log.observe(Placed(event.base, event.end, event.batch))


def _epoch_of(log: AbstractLog, event: Acked) -> Epoch:
    """The epoch that a repeat was committed in, as the answering sequencer may know it: its own, or one before."""
    for number in range(event.epoch, 0, -1):
        epoch = log.epochs.get(number)
        if epoch is not None and event.base in epoch.stores and (epoch.end is None or event.end <= epoch.end):
            return epoch
    raise Broken("P-34", f"a repeat was answered with offset {event.base}, where nothing is")


# --- takeovers: Close ----------------------------------------------------------------------------------------------------------


def on_takeover_began(log: AbstractLog, event: TakeoverBegan) -> None:
    require(event.attempt not in log.attempts, "P-5", "an attempt's id was used before")
    log.attempts[event.attempt] = (event.member, log.copy(event.member).start)


def on_takeover_ended(log: AbstractLog, event: TakeoverEnded) -> None:
    """DONE is said only by the one whose change won (P-19)."""
    if event.phase == "DONE":
        opened = log.epochs.get(event.epoch + 1)
        require(opened is not None and opened.segment.attempt == event.attempt, "P-19", "a takeover that did not win takes itself for done")


def on_digested(log: AbstractLog, event: Digested) -> None:
    """Steps 1 and 2: N - W + 1 answers that count, and L the largest tail in answers that these replicas gave."""
    epoch = log.epoch(event.epoch)
    began = log.attempts.get(event.attempt)
    require(began is not None and began[0] == event.member, "P-5", f"the attempt was begun by {began}")
    quorum = len(epoch.segment.replicas) - epoch.segment.write + 1
    answered = set(event.answered)
    require(len(answered) >= quorum, "P-36", f"{len(answered)} of the {quorum} seals that epoch {epoch.number} needs were counted")
    for member in event.answered:
        require(member in epoch.segment.replicas, "P-10", f"{member} is no replica of epoch {epoch.number}")
        require(
            member in epoch.first_sealed, "step 1", f"{member} never answered a seal of epoch {epoch.number}, or only from limbo (P-29)"
        )
    lowest = max(epoch.first_sealed[m] for m in answered)
    highest = max(epoch.furthest[m] for m in answered)
    require(lowest <= event.tail <= highest, "step 2", f"L is {event.tail}, and the answers allow {lowest} to {highest}")
    require(event.high_watermark <= event.tail, "step 2", f"a high watermark of {event.high_watermark} was told, past L, {event.tail}")
    epoch.digests[event.attempt, event.tail] = event.high_watermark


def on_register_changed(log: AbstractLog, event: RegisterChanged) -> None:
    before, after = event.before, event.after
    require(before == log.register, "P-2", "a register change builds on a value that is not the register's")
    require(after.id == before.id, "P-39", "the partition has another id")
    _require_chain(after)
    _require_trim(log, after)
    closes = after.last.epoch == before.last.epoch + 1
    require(closes or after.last.epoch == before.last.epoch, "I-8", f"epoch {after.last.epoch} follows epoch {before.last.epoch}")
    for segment in before.chain:
        _require_kept(log, segment, after, closes=closes)
    if closes:
        _close(log, before, after)
    log.register = after


def _require_chain(register: PartitionRegister) -> None:
    for segment, following in pairwise(register.chain):
        require(following.epoch == segment.epoch + 1, "I-8", f"epoch {following.epoch} follows epoch {segment.epoch}")
        require(segment.end == following.base, "I-8", f"epoch {segment.epoch} ends at {segment.end}, the next begins at {following.base}")
        require(segment.base <= following.base, "I-8", f"epoch {segment.epoch} ends before it begins")
    require(register.last.end is None, "I-8", "no epoch is open")


def _require_trim(log: AbstractLog, after: PartitionRegister) -> None:
    start = after.start_offset
    require(start >= log.register.start_offset, "P-41", f"the start offset fell to {start}")
    most = max(log.last.told, log.last.base)
    require(start == log.register.start_offset or start <= most, "P-41", f"the start offset {start} is past {most}, the largest told")


def _require_kept(log: AbstractLog, segment: Segment, after: PartitionRegister, *, closes: bool) -> None:
    """What may become of a segment: dropped when trimmed, closed if it is the last, with a new holder if it is closed."""
    now = next((s for s in after.chain if s.epoch == segment.epoch), None)
    if now is None:
        is_trimmed = segment.end is not None and segment.end <= after.start_offset
        require(is_trimmed, "P-41", f"epoch {segment.epoch} left the chain and is not trimmed")
        return
    fixed = ("base", "write", "read", "durability", "sequencer", "attempt")
    for name in fixed:
        require(getattr(now, name) == getattr(segment, name), "P-36", f"{name} of epoch {segment.epoch} changed")
    is_closing = closes and segment.end is None
    require(is_closing or now.end == segment.end, "P-9", f"the end of epoch {segment.epoch} changed from {segment.end} to {now.end}")
    epoch = log.epoch(segment.epoch)
    for member in set(now.replicas) - set(segment.replicas):
        held = max(log.copy(member).held.get(segment.epoch, epoch.base), epoch.repaired.get(member, 0))
        is_holder = now.end is not None and log.raised(epoch, held) >= now.end
        require(is_holder, "P-22", f"{member} was named as a holder of epoch {segment.epoch} with a tail of {held}")


def _close(log: AbstractLog, before: PartitionRegister, after: PartitionRegister) -> None:
    """`Close`, steps 3 to 5: with an L that the seals allow, held by B and by W brokers, and a next epoch whose replicas have answered."""
    epoch, closed, opened = log.last, after.chain[-2], after.last
    assert closed.end is not None
    end, began = closed.end, log.attempts.get(opened.attempt)
    if began is None:
        raise Broken("P-5", "no takeover began with the attempt that opened the epoch")
    high_watermark = epoch.digests.get((opened.attempt, end))
    if high_watermark is None:
        raise Broken("step 5", f"epoch {epoch.number} was closed at {end}, which the takeover did not find")
    require(all(s.attempt != opened.attempt for s in before.chain), "P-5", "the attempt has opened an epoch already")
    require(opened.sequencer == began[0].broker, "P-8", f"{opened.sequencer} was named as sequencer by {began[0].broker}")
    epoch.batches(max(epoch.base, before.start_offset), end, may_begin_inside=True)
    held = log.raised(epoch, log.copy(began[0]).held.get(epoch.number, epoch.base))
    require(held >= end, "step 3", f"the new sequencer never held more than {held} of epoch {epoch.number}, which was closed at {end}")
    whole = {member for member, tail in epoch.furthest.items() if tail >= end} | {began[0]}
    is_repaired = high_watermark >= end or len(whole) >= epoch.segment.write
    require(is_repaired, "P-18", f"offsets up to {end} are on {len(whole)} brokers, and the high watermark told is {high_watermark}")
    quorum = max(after.write, len(opened.replicas) - after.write + 1)
    answered = sum(1 for member in opened.replicas if member in epoch.answered)
    require(answered >= quorum, "step 5", f"{answered} of the {quorum} replicas needed have answered the takeover")
    require((opened.write, opened.read) == (after.write, after.read), "P-36", "the new epoch has other quorums than the settings")
    invariant(epoch.told <= end, "I-6", f"a high watermark of {epoch.told} was told, and the epoch ends at {end}")
    invariant(epoch.seen_end <= end, "I-1", f"offsets up to {epoch.seen_end} were seen, and the epoch ends at {end}")
    _begin_epoch(log, epoch, opened, end)


def _begin_epoch(log: AbstractLog, epoch: Epoch, opened: Segment, end: int) -> None:
    """The next epoch, whose table is the fold over what was kept: void batches leave it (P-34)."""
    epoch.end = end
    table = dict(epoch.first_table)
    for place in sorted(p for p in epoch.stores.values() if p.end <= end):
        if place.batch.producer != NO_PRODUCER:
            table[place.batch.producer] = (place.batch.epoch, place.batch.sequence)
            log.kept[place.batch] = place.base
    log.epochs[opened.epoch] = Epoch(opened, table)
