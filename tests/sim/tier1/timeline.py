"""Events of a trace as lines for people: when, who, what, in the words of the protocol."""

import re
from typing import Any, Final

from streamq.log.replica_state import ReplicaState
from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1.checks import named
from tests.sim.tier1.events import BatchId, Event

__all__ = ["line"]

COLUMN: Final = 10


def line(event: Event) -> str:
    """For example `b2         sealed: epoch 3, tail 41, high watermark 38`."""
    given = dict(event._asdict())
    member = given.pop("member", None)
    who = next((given.pop(name) for name in ("reader", "consumer") if name in given), member.broker if member is not None else "register")
    index = given.pop("partition", 0)
    if "base" in given and "end" in given:
        given["offsets"] = f"[{given.pop('base')}, {given.pop('end')})"
    if member is not None and who != member.broker:
        given["from"] = member.broker
    told = [
        _short(value) if type(value) is BatchId else f"{_words(name)} {_short(value)}"
        for name, value in given.items()
        if value is not None and value is not False
    ]
    place = f" in partition {index}" if index else ""
    return (
        f"{who:{COLUMN}} {_words(type(event).__name__)}{place}: {', '.join(told)}"
        if told
        else f"{who:{COLUMN}} {_words(type(event).__name__)}"
    )


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def _short(value: Any) -> str:
    if isinstance(value, PartitionRegister):
        trimmed = f" from {value.start_offset}" if value.start_offset else ""
        return f"{' '.join(map(_segment, value.chain))}{trimmed}"
    if isinstance(value, ReplicaState):
        limbo = "everywhere" if value.limbo_everywhere else value.limbo
        return f"(sealed {value.sealed}, chain {' '.join(map(_segment, value.chain)) or 'none'}{f', limbo {limbo}' if limbo else ''})"
    if isinstance(value, BatchId):
        return named(value)
    if isinstance(value, Member):
        return f"{value.broker}/{value.incarnation[-2:].hex()}"
    if isinstance(value, bytes):
        return value[-3:].hex()
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return str(value)


def _segment(segment: Segment) -> str:
    """Epoch, sequencer, offsets, and who holds it in which incarnation."""
    end = "…" if segment.end is None else segment.end
    return f"{segment.epoch}:{segment.sequencer or '-'}[{segment.base}, {end})@{'+'.join(map(_short, segment.replicas))}"
