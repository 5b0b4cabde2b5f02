"""What a replica may do, and what it may say: the guards of the model's `Store`, `Repair`, `Seal`, `Open` and of its faults.

Every rule is a function of the log and an event: it raises `Broken` if the event's guard does not hold, and else takes its effect.
"""

from dataclasses import replace

from streamq.model.ids import Member
from tests.sim.tier1.events import (
    Cut,
    Durable,
    LimboEnded,
    LimboEntered,
    Lost,
    Opened,
    OpenTaken,
    Repaired,
    Reported,
    Sealed,
    SealTaken,
    Started,
    Taken,
    WatermarkTold,
)
from tests.spec.abstract_log import AbstractLog, Broken, Copy, Epoch, require

__all__ = [
    "on_cut",
    "on_durable",
    "on_limbo_ended",
    "on_limbo_entered",
    "on_lost",
    "on_open_taken",
    "on_opened",
    "on_repaired",
    "on_reported",
    "on_seal_taken",
    "on_sealed",
    "on_started",
    "on_taken",
    "on_watermark_told",
]


# --- processes and disks: Lose, Forget ---------------------------------------------------------------------------------------


def on_lost(log: AbstractLog, event: Lost) -> None:
    """`Lose`: the next start may show less; what is owed for it is limbo, or, for a whole disk, another incarnation."""
    log.copy(event.member).losses.add(event.what)


def on_started(log: AbstractLog, event: Started) -> None:
    """A crash and restart is a pause: everything durable is still there (the guard against `Forget`), or was lost and is owed for."""
    copy = log.copy(event.member)
    require(event.start > copy.start, "P-5", f"start {event.start} follows start {copy.start}")
    runs = {epoch: tail for epoch, _, tail in event.runs}
    state, losses = event.state, copy.losses
    require("disk" not in losses, "P-31", "a lost disk came back under its old incarnation")
    if not losses & {"state"}:
        require(state.sealed >= copy.promised, "P-16", f"the sealed mark {state.sealed} is below {copy.promised}, which was promised")
        require(state.opened >= copy.opened, "P-1", f"epoch {copy.opened} was opened durably, and {state.opened} is the newest it knows")
        gone = copy.limbo - {*state.limbo, *(d.epoch for d in state.damaged)}
        # Its end may have become durable with nobody told.
        forgotten = [e for e in gone if not log.is_dropped(e) and not _is_whole(log.epoch(e), runs.get(e, 0))]
        require(state.limbo_everywhere or not forgotten, "P-29", f"a restart ended limbo for {sorted(forgotten)}")
        require(state.limbo_everywhere or not copy.limbo_everywhere, "P-29", "a restart ended limbo everywhere")
    for number, tail in copy.durable.items():
        is_from_memory = "memory" in losses and log.epoch(number).segment.durability == "memory"
        may_lack = is_from_memory or log.is_dropped(number) or bool(losses & {"state", "batches"})
        left = runs.get(number, 0)
        require(may_lack or left >= tail, "P-27", f"offsets up to {tail} of epoch {number} were durable, up to {left} are left")
    for number, tail in runs.items():
        most = copy.reached.get(number, 0)
        require(tail <= most, "P-28", f"a run of epoch {number} reaches {tail}, and never had more than {most}")
    _owe(log, copy)
    if "state" in losses:
        copy.promised = state.sealed
    copy.losses = set()
    copy.start, copy.sealed, copy.opened, copy.opening = event.start, state.sealed, state.opened, state.opened
    copy.taken, copy.durable = dict(runs), dict(runs)
    copy.held |= {number: max(tail, copy.held.get(number, 0)) for number, tail in runs.items()}
    copy.limbo, copy.limbo_everywhere = {*state.limbo, *(d.epoch for d in state.damaged)}, state.limbo_everywhere
    copy.owes_everywhere = copy.owes_everywhere or state.limbo_everywhere
    copy.watermark = (0, 0)
    for number in runs:
        _note_stored(log, copy, log.epoch(number))


def _is_whole(epoch: Epoch, tail: int) -> bool:
    return epoch.end is not None and max(tail, epoch.base) >= epoch.end


def _owe(log: AbstractLog, copy: Copy) -> None:
    """P-29: limbo for every epoch named in the register, which may be read later than now; P-37: for the open one."""
    if copy.losses & {"state", "batches"}:
        copy.owes |= {segment.epoch for segment in log.register.chain}
        copy.owes_everywhere = True
    if "memory" in copy.losses and log.register.last.durability == "memory" and copy.opened == log.register.last.epoch:
        copy.owes.add(log.register.last.epoch)


def on_limbo_entered(log: AbstractLog, event: LimboEntered) -> None:
    copy = log.copy(event.member)
    if event.epochs is None:
        copy.limbo_everywhere = True
        return
    copy.limbo |= set(event.epochs)
    copy.limbo_everywhere = copy.owes_everywhere = False


def on_limbo_ended(log: AbstractLog, event: LimboEnded) -> None:
    """The guard against `CopyOutOfLimbo`: only when the epoch is closed and all of it is held."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    if epoch.number in copy.owes and not log.is_dropped(epoch.number):
        require(log.has_whole(copy, epoch), "P-29", f"limbo ended for epoch {epoch.number}, which is open or not held whole")
    copy.limbo.discard(event.epoch)
    copy.owes.discard(event.epoch)


# --- storing: Store, Repair, and copying of closed epochs -------------------------------------------------------------------


def on_taken(log: AbstractLog, event: Taken) -> None:
    """`Store`, `Repair`, or a copy of a closed epoch: the next batches of the epoch, and the guard of one of these three."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    end = log.taken(copy, epoch)
    trimmed = log.raised(epoch, end)
    begins_at_trim = end < trimmed and event.base <= trimmed < event.end and epoch.number not in copy.taken
    require(event.base == end or begins_at_trim, "P-13", f"a run that ends at {end} goes on at {event.base}")
    batches = tuple(place.batch for place in epoch.batches(event.base, event.end))
    require(batches == event.batches, "P-12", f"{event.batches} was taken where {batches} was assigned")
    if copy.opened > epoch.number and epoch.end is not None:
        require(event.end <= epoch.end, "step 4", f"epoch {epoch.number} ends at {epoch.end}, as this replica knows")
    reasons = [reason for guard in (_may_take_store, _may_repair, _may_copy) if (reason := guard(log, copy, epoch, event.end))]
    require(len(reasons) < 3, "4.3", "; ".join(reasons))
    copy.taken[epoch.number] = event.end
    copy.reached[epoch.number] = max(event.end, copy.reached.get(epoch.number, 0))


def _may_take_store(log: AbstractLog, copy: Copy, epoch: Epoch, end: int) -> str:
    """As `_may_store`, but the chain may still be on its way to the disk, ahead of what is taken now (step 6)."""
    return _may_store(log, replace(copy, opened=max(copy.opened, copy.opening)), epoch, end)


def _may_store(log: AbstractLog, copy: Copy, epoch: Epoch, _end: int) -> str:
    """Why `Store` is not enabled; empty if it is."""
    if copy.opened < epoch.number:
        return "no store: the epoch was not opened here"
    if copy.sealed >= epoch.number:
        return "no store: the epoch is sealed here"
    if copy.member not in epoch.segment.replicas:
        return "no store: the epoch does not name this incarnation (P-10)"
    if log.must_be_in_limbo(copy, epoch):
        return "no store: this replica is in limbo (P-29)"
    return ""


def _may_repair(_log: AbstractLog, copy: Copy, epoch: Epoch, end: int) -> str:
    quorum = len(epoch.segment.replicas) - epoch.segment.write + 1
    if copy.sealed < epoch.number:
        return "no repair: a repair seals"
    if len(epoch.first_sealed) < quorum:
        return f"no repair: {len(epoch.first_sealed)} of {quorum} seals were answered"
    if max(epoch.furthest.values()) < end:
        return "no repair: nobody told of so much"
    return ""


def _may_copy(_log: AbstractLog, copy: Copy, epoch: Epoch, end: int) -> str:
    if epoch.end is None or max(copy.opened, copy.opening) <= epoch.number:
        return "no copy: the epoch is not closed, as far as this replica knows"
    return "" if end <= epoch.end else "no copy: past the end of the epoch"


def on_durable(log: AbstractLog, event: Durable) -> None:
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    taken = log.taken(copy, epoch)
    require(event.tail <= log.raised(epoch, taken), "P-13", f"a local tail of {event.tail}, where {taken} was taken")
    copy.durable[epoch.number] = max(event.tail, log.durable(copy, epoch))
    copy.held[epoch.number] = max(event.tail, copy.held.get(epoch.number, 0))
    _note_stored(log, copy, epoch)


def _note_stored(log: AbstractLog, copy: Copy, epoch: Epoch) -> None:
    """`stored` of the model: a local tail counts as told as soon as it is durable in an epoch that is not sealed here."""
    if not _may_store(log, copy, epoch, 0):
        tail = log.durable(copy, epoch)
        epoch.stored[copy.member] = max(tail, epoch.stored.get(copy.member, 0))


def _note_furthest(epoch: Epoch, member: Member, tail: int) -> None:
    epoch.furthest[member] = max(tail, epoch.furthest.get(member, 0))


def on_reported(log: AbstractLog, event: Reported) -> None:
    """What leaves `Store`: the mark is looked at first (`lit_sealed_duplicate_stored`), the data is durable."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    if reason := _may_store(log, copy, epoch, 0):
        raise Broken("P-11", f"a local tail was reported; {reason}")
    durable = log.raised(epoch, log.durable(copy, epoch))
    require(event.tail <= durable, "4.4", f"a local tail of {event.tail} was reported, and {durable} is durable")
    epoch.reported[event.member] = max(event.tail, epoch.reported.get(event.member, 0))


# --- takeover, as a replica sees it: Seal, Repair, Open ----------------------------------------------------------------------


def on_seal_taken(log: AbstractLog, event: SealTaken) -> None:
    copy = log.copy(event.member)
    require(event.epoch > copy.sealed, "P-16", f"the sealed mark fell from {copy.sealed} to {event.epoch}")
    copy.sealed = event.epoch


def on_sealed(log: AbstractLog, event: Sealed) -> None:
    """`Seal`: the mark first, then the answer with everything durable; it counts if the replica is `Good`."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    require(copy.sealed >= epoch.number, "P-16", "a seal was answered without its mark")
    durable = log.raised(epoch, log.durable(copy, epoch))
    most = _most_told(copy, epoch, durable)
    require(event.tail <= most, "P-16", f"a seal was answered with a tail of {event.tail}, and {durable} is durable")
    told = epoch.stored.get(event.member, 0)
    is_in_limbo = log.must_be_in_limbo(copy, epoch)
    require(event.limbo or not is_in_limbo, "P-29", "a seal was answered as if this replica were not in limbo")
    kept = told if epoch.end is None else min(told, epoch.end)  # what was void may be cut by now
    require(event.limbo or event.tail >= kept, "4.4", f"a seal was answered with a tail of {event.tail}, and {told} was durable before it")
    most = epoch.high_watermark if epoch.end is None else epoch.end
    require(event.high_watermark <= most, "I-6", f"a high watermark of {event.high_watermark} was told, and it is {most}")
    copy.promised = max(copy.promised, epoch.number)
    epoch.answered.add(event.member)
    epoch.told = max(epoch.told, event.high_watermark)
    if event.limbo or event.member not in epoch.segment.replicas:
        return
    epoch.first_sealed[event.member] = min(event.tail, epoch.first_sealed.get(event.member, event.tail))
    _note_furthest(epoch, event.member, event.tail)


def _most_told(copy: Copy, epoch: Epoch, durable: int) -> int:
    """An answer that was on its way when the epoch turned out to be closed, and was cut, may still leave: its takeover has lost already."""
    return durable if epoch.end is None else max(durable, copy.reached.get(epoch.number, 0))


def on_repaired(log: AbstractLog, event: Repaired) -> None:
    """What leaves `Repair`; the broker may be one that takes the place of a lost replica."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    if event.end is not None:
        is_true = epoch.end == event.end or (log.is_dropped(epoch.number) and event.end <= log.register.start_offset)
        require(is_true, "step 4", f"a repair was refused with the end {event.end}; epoch {epoch.number} ends at {epoch.end}")
        return
    require(copy.sealed >= epoch.number, "step 4", "a repair was answered without the sealed mark")
    durable = log.raised(epoch, log.durable(copy, epoch))
    most = _most_told(copy, epoch, durable)
    require(event.tail <= most, "step 4", f"a repair was answered with a tail of {event.tail}, and {durable} is durable")
    copy.promised = max(copy.promised, epoch.number)
    epoch.repaired[event.member] = max(event.tail, epoch.repaired.get(event.member, 0))
    _note_furthest(epoch, event.member, event.tail)


def on_open_taken(log: AbstractLog, event: OpenTaken) -> None:
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    require(copy.sealed >= epoch.number - 1, "step 6", f"epoch {epoch.number} is being opened with the sealed mark {copy.sealed}")
    copy.opening = epoch.number


def on_opened(log: AbstractLog, event: Opened) -> None:
    """`Open`: the chain from the register, everything before the epoch sealed, each earlier epoch cut at its own end."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    require(copy.sealed >= epoch.number - 1, "step 6", f"epoch {epoch.number} was opened with the sealed mark {copy.sealed}")
    for segment in log.register.chain:
        taken = copy.taken.get(segment.epoch, 0)
        if segment.epoch < epoch.number and segment.end is not None and taken > segment.base:
            require(taken <= segment.end, "step 6", f"epoch {segment.epoch} ends at {segment.end} and was not cut there, but at {taken}")
    copy.opened = max(copy.opened, epoch.number)
    copy.promised = max(copy.promised, epoch.number - 1)
    _note_stored(log, copy, epoch)


def on_cut(log: AbstractLog, event: Cut) -> None:
    """Only what is void, or was trimmed (P-41), is ever forgotten."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    end = max(event.end, epoch.base)
    is_trimmed = log.is_dropped(epoch.number) or log.taken(copy, epoch) < log.raised(epoch, 0)
    is_void = epoch.end is not None and end >= epoch.end
    require(is_trimmed or is_void, "P-9", f"epoch {epoch.number} was cut at {end}, and its end is {epoch.end}")
    for tails in (copy.taken, copy.durable):
        if event.end <= epoch.base:
            tails.pop(epoch.number, None)
        elif epoch.number in tails:
            tails[epoch.number] = min(tails[epoch.number], end)


def on_watermark_told(log: AbstractLog, event: WatermarkTold) -> None:
    """P-23: of an epoch that is opened here, and no more than the sequencer can have announced (4.5, I-6)."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    require(copy.opened >= epoch.number, "P-23", f"a high watermark of epoch {epoch.number} was taken before that was opened")
    most = log.raised(epoch, epoch.wth_tail(epoch.reported))
    require(event.offset <= most, "I-6", f"a high watermark of {event.offset} is shown; the W-th largest local tail told is {most}")
    told = (event.epoch, event.offset)
    require(told >= copy.watermark, "I-6", f"the high watermark fell from {copy.watermark} to {told}")
    copy.watermark = told
    copy.shown[epoch.number] = max(event.offset, copy.shown.get(epoch.number, 0))
    epoch.told = max(epoch.told, event.offset)
