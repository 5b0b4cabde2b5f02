"""What an observer may conclude: consumers of one replica (`ServeConc`, `ClosedConc`) and readers of the tip (`TipLin`, `ReadDone`)."""

from tests.sim.tier1.events import Consumed, TipBegan, TipConcluded
from tests.spec.abstract_log import AbstractLog, require

__all__ = ["on_consumed", "on_tip_began", "on_tip_concluded"]


def on_consumed(log: AbstractLog, event: Consumed) -> None:
    """P-23: what this replica holds of the epoch, below a high watermark told for it or below its end, once it has opened so far.

    The consumer gets it later than the replica served it, so what counts is what the replica ever held and showed."""
    copy, epoch = log.copy(event.member), log.epoch(event.epoch)
    require(copy.opened >= epoch.number, "P-23", f"{event.member} served epoch {epoch.number}, which it has not opened")
    places = epoch.batches(event.base, event.end)
    batches = tuple(place.batch for place in places)
    require(batches == event.batches, "I-2", f"{event.batches} was served where {batches} was assigned")
    held = copy.held.get(epoch.number, epoch.base)
    require(event.end <= held, "P-23", f"offsets up to {event.end} were served by a replica that never held more than {held}")
    shown = copy.shown.get(epoch.number, epoch.base)
    if copy.opened > epoch.number and epoch.end is not None:
        shown = max(shown, epoch.end)
    require(event.end <= shown, "P-23", f"offsets up to {event.end} were served, and those up to {shown} are readable there")
    for place in places:
        log.observe(place)


def on_tip_began(log: AbstractLog, event: TipBegan) -> None:
    log.floors[event.reader] = log.acked_end


def on_tip_concluded(log: AbstractLog, event: TipConcluded) -> None:
    """P-24: all that was acked before the read began lies below it (`TipLin`), and all that lies below it is committed (P-17)."""
    epoch = log.epoch(event.epoch)
    floor = log.floors.pop(event.reader, 0)
    require(event.high_watermark >= floor, "P-24", f"the tip is {event.high_watermark}; {floor} was acked before the read began")
    most = max(epoch.base, epoch.high_watermark if epoch.end is None else epoch.end)
    require(event.high_watermark <= most, "P-17", f"the tip is {event.high_watermark}, and what is committed ends at {most}")
    epoch.told = max(epoch.told, event.high_watermark)
