"""The trace check: what happened in a run of the real cores must be something that the model of the protocol allows.

The model's state is `AbstractLog`, its rules are in `rules_of_*.py`. They were written from `StreamqPartition.tla` and the protocol, and
look at nothing but the trace: neither at what streamq's code decides nor how. README.md maps the model's actions to events and to code.

    check_trace(world.trace)        raises TraceError at the first event whose guard does not hold
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from streamq.model.ids import Member
from tests.sim.tier1.events import (
    Acked,
    Assigned,
    Consumed,
    Crashed,
    Cut,
    Digested,
    Durable,
    Event,
    Founded,
    LimboEnded,
    LimboEntered,
    Lost,
    Opened,
    OpenTaken,
    RegisterChanged,
    Repaired,
    Reported,
    Sealed,
    SealTaken,
    SequencerBegan,
    SequencerStopped,
    Started,
    Taken,
    TakeoverBegan,
    TakeoverEnded,
    TipBegan,
    TipConcluded,
    Traced,
    WatermarkTold,
)
from tests.spec import rules_of_observers as observers
from tests.spec import rules_of_replicas as replicas
from tests.spec import rules_of_takeovers as takeovers
from tests.spec.abstract_log import AbstractLog, Broken, require

__all__ = ["RULES", "Rule", "TraceError", "TraceModel", "check_trace"]


class TraceError(AssertionError):
    """The model does not allow this trace: the event at `index` breaks `rule` (a P-rule, an invariant or a step of the takeover)."""

    def __init__(self, index: int, traced: Traced, *, rule: str, action: str, why: str) -> None:
        super().__init__(f"event {index}, at {traced.at:.6f} s: {rule} ({action}): {why}\n  {traced.event}")
        self.index = index
        self.event = traced.event
        self.rule = rule


class Rule(NamedTuple):
    """The action of `StreamqPartition.tla` that an event stands for, and its guard and effect."""

    action: str
    take: Callable[[AbstractLog, Any], None]


RULES: Final[dict[type[Event], Rule]] = {
    Acked: Rule("WatermarkConc", takeovers.on_acked),
    Assigned: Rule("Assign", takeovers.on_assigned),
    Consumed: Rule("ServeConc, ClosedConc", observers.on_consumed),
    Cut: Rule("Cut", replicas.on_cut),
    Digested: Rule("Close", takeovers.on_digested),
    Durable: Rule("Store, Repair", replicas.on_durable),
    LimboEnded: Rule("Lose", replicas.on_limbo_ended),
    LimboEntered: Rule("Lose", replicas.on_limbo_entered),
    Lost: Rule("Lose", replicas.on_lost),
    OpenTaken: Rule("Open", replicas.on_open_taken),
    Opened: Rule("Open", replicas.on_opened),
    RegisterChanged: Rule("Close", takeovers.on_register_changed),
    Repaired: Rule("Repair", replicas.on_repaired),
    Reported: Rule("Store", replicas.on_reported),
    SealTaken: Rule("Seal", replicas.on_seal_taken),
    Sealed: Rule("Seal", replicas.on_sealed),
    SequencerBegan: Rule("Close", takeovers.on_sequencer_began),
    SequencerStopped: Rule("Assign", takeovers.on_sequencer_stopped),
    Started: Rule("Lose", replicas.on_started),
    Taken: Rule("Store, Repair", replicas.on_taken),
    TakeoverBegan: Rule("Close", takeovers.on_takeover_began),
    TakeoverEnded: Rule("Close", takeovers.on_takeover_ended),
    TipBegan: Rule("ReadStart", observers.on_tip_began),
    TipConcluded: Rule("ReadDone", observers.on_tip_concluded),
    WatermarkTold: Rule("KnownWatermark", replicas.on_watermark_told),
}
"""`Founded` (Init) and `Crashed` (no action: a pause) are about no log that is there; `TraceModel` takes them itself."""


class TraceModel:
    """Reads a trace event by event. `counts` says how many of each kind were accepted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logs: dict[int, AbstractLog] = {}
        self._down: set[Member] = set()
        self._index = 0

    def take(self, traced: Traced) -> None:
        """Accepts the event, or raises TraceError; the state is of no use after that."""
        rule = RULES.get(type(traced.event))
        try:
            self._take(traced.event, rule)
        except Broken as broken:
            action = rule.action if rule is not None else "Init"
            raise TraceError(self._index, traced, rule=broken.rule, action=action, why=str(broken)) from None
        self.counts[type(traced.event).__name__] += 1
        self._index += 1

    def _take(self, event: Event, rule: Rule | None) -> None:
        if isinstance(event, Crashed):
            self._crash(event.member)
            return
        if isinstance(event, Founded):
            require(event.partition not in self._logs, "P-8", "the partition was founded before")
            self._logs[event.partition] = AbstractLog(event.register)
            return
        assert rule is not None, event
        self._require_up(event)
        log = self._logs.get(event.partition)
        if log is None:
            raise Broken("P-8", f"partition {event.partition} was not founded")
        rule.take(log, event)

    def _require_up(self, event: Event) -> None:
        """A process that is gone does nothing. What it served may still arrive; what its disk lost, and registers, are no acts of it."""
        if isinstance(event, Started):
            self._down.discard(event.member)
        elif not isinstance(event, (Lost, RegisterChanged, TipBegan, TipConcluded, Consumed)):
            require(event.member not in self._down, "P-8", f"{event.member} acts after it crashed")

    def _crash(self, member: Member) -> None:
        """Its sequencers are gone for good (P-8), and what was not durable."""
        self._down.add(member)
        for log in self._logs.values():
            copy = log.copies.get(member)
            if copy is not None:
                copy.taken = dict(copy.durable)
                copy.opening = copy.opened
            for epoch in log.epochs.values():
                if epoch.sequencer == member:
                    epoch.has_stopped = True


def check_trace(trace: Iterable[Traced]) -> Counter[str]:
    """Accepts the whole trace, or raises TraceError. Returns how many events of each kind there were."""
    model = TraceModel()
    for traced in trace:
        model.take(traced)
    return model.counts
