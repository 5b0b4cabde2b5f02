"""The trace check accepts what the protocol allows, and every guard of it refuses something."""

import ast
import traceback
from pathlib import Path

import msgspec
import pytest

from streamq.log.replica_state import ReplicaState
from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister
from tests.sim.tier1.events import (
    Acked,
    Assigned,
    Consumed,
    Cut,
    Digested,
    Durable,
    Founded,
    LimboEnded,
    LimboEntered,
    Lost,
    Opened,
    OpenTaken,
    RegisterChanged,
    Repaired,
    Reported,
    SealTaken,
    SequencerBegan,
    SequencerStopped,
    Started,
    Taken,
    TakeoverEnded,
    WatermarkTold,
)
from tests.spec.hand_made import B1, B2, B3, P0, P1, PARTITION, Q0, REGISTERS, Script, attempt, good
from tests.spec.trace_model import RULES, TraceError, check_trace

HERE = Path(__file__).parent
OTHER = Member("b3", b"x" * 16)
"""b3 in another incarnation."""
STRANGER = Member("b1", b"y" * 16)


def test_a_run_by_the_rules_is_accepted() -> None:
    assert check_trace(good().trace()).total() == len(good())


def test_the_run_has_an_event_of_every_kind() -> None:
    assert set(RULES) <= {type(step.event) for step in good()}


TAKE_P0 = Taken(B3, 0, 2, 0, 1, (P0,))


def returned(**changes: object) -> ReplicaState:
    """What b1 finds at its second start."""
    state = ReplicaState(PARTITION, "t", sealed=1, chain=REGISTERS[1].chain)
    return msgspec.structs.replace(state, **changes)


def changed(version: int, of: int, /, **changes: object) -> PartitionRegister:
    """A version of the register with one segment otherwise than it is."""
    register = REGISTERS[version]
    chain = tuple(msgspec.structs.replace(s, **changes) if s.epoch == of else s for s in register.chain)
    return msgspec.structs.replace(register, chain=chain)


def settings(version: int, **changes: object) -> PartitionRegister:
    return msgspec.structs.replace(REGISTERS[version], **changes)


def changing(number: int, after: PartitionRegister) -> Script:
    """The register change of that takeover makes something else of the register."""
    return good().instead(f"change {number}", after=after)


def moved_end() -> PartitionRegister:
    """Of epoch 1, with a chain that is sound for all that."""
    return msgspec.structs.replace(changed(3, 1, end=1), chain=(*changed(3, 1, end=1).chain[:1], *changed(3, 2, base=1).chain[1:]))


def lost_while_up(*, epochs: tuple[int, ...] | None) -> Script:
    """b3 crashes and loses its state while epoch 2 is open, and is said to be in limbo for these epochs."""
    state = Started(B3, 2, 0, ReplicaState(PARTITION), ())
    return good().before("assign p0", Lost(B3, 0, "state"), state, LimboEntered(B3, 0, epochs), SealTaken(B3, 0, 1), Opened(B3, 0, 2))


def _fenced() -> Script:
    """A newer epoch of the producer has written, and then the older one goes on."""
    newer = P0._replace(epoch=1)
    return good().before("assign p1", Assigned(B1, 0, 2, 1, 2, newer)).instead("assign p1", base=2, end=4)


def _memory_lost() -> Script:
    """b2's host crashed and lost what it had reported from memory; its answer to the seal counts all the same."""
    register = changed(1, 2, durability="memory")
    state = Started(B2, 2, 0, ReplicaState(PARTITION, "t", sealed=1, chain=register.chain), ())
    script = changing(1, register).instead("sealed 2 b2", tail=0)
    return script.before("mark 2 b2", Lost(B2, 0, "memory"), state)


def _incomplete() -> Script:
    """b1 holds nothing of epoch 2 and sequences epoch 4."""
    script = good().instead("told 2 b1", member=B2).instead("consume p0", member=B2).instead("return b1", runs=())
    of_b1 = ("take 2 0 b1", "durable 2 0 b1", "report 2 0 b1", "take 2 1 b1", "durable 2 1 b1")
    for name in (*of_b1, "repair b3", "repair b3 durable"):
        script = script.without(name)
    script = script.instead("sealed 2 b3", tail=1)
    return script.before("ack p0", TAKE_P0, Durable(B3, 0, 2, 1), Reported(B3, 0, 2, 1))


STORING = {
    "a hole": ("P-13", good().before("ack p0", Taken(B3, 0, 2, 1, 2, (P0,)))),
    "a batch that nobody assigned": ("P-12", good().before("assign p0", TAKE_P0)),
    "another batch": ("P-12", good().instead("take 2 0 b2", batches=(P1,))),
    "half a batch": ("P-13", good().instead("take 3 1 b3", end=2)),
    "a store of an epoch that is not opened": ("4.3", good().without("open 2 b2")),
    "a store in a sealed epoch": ("4.3", good().before("take 2 0 b2", SealTaken(B2, 0, 2))),
    "a store by another incarnation": (
        "4.3",
        good().before("ack p0", SealTaken(OTHER, 0, 1), Opened(OTHER, 0, 2), TAKE_P0._replace(member=OTHER)),
    ),
    "a store in limbo": ("4.3", lost_while_up(epochs=(1, 2)).before("ack p0", TAKE_P0)),
    "a copy past the end": ("step 4", good().before("cut b1", Cut(B3, 0, 2, 1), Taken(B3, 0, 2, 1, 3, (P1,)))),
    "durable before taken": ("P-13", good().instead("durable 2 0 b2", tail=3)),
    "reported while sealed": ("P-11", good().before("report 2 0 b2", SealTaken(B2, 0, 2))),
    "reported before durable": ("4.4", good().without("durable 2 0 b2")),
    "reported by another incarnation": ("P-11", good().instead("report 2 0 b2", member=B2._replace(incarnation=b"x" * 16))),
    "reported in limbo": ("P-11", lost_while_up(epochs=(1, 2)).before("ack p0", Reported(B3, 0, 2, 0))),
}

TAKEOVERS = {
    "an opening that does not seal": ("step 6", good().before("mark 1 b3", OpenTaken(B3, 0, 2))),
    "a mark that falls": ("P-16", good().before("digest 1", SealTaken(B1, 0, 1))),
    "a seal without its mark": ("P-16", good().without("mark 1 b2")),
    "a seal that counts what is not durable": ("P-16", good().instead("sealed 2 b2", tail=3)),
    "a seal that forgets what was reported": ("4.4", good().instead("sealed 2 b2", tail=0)),
    "a seal that hides limbo": ("P-29", good().instead("sealed 3 b3", limbo=False)),
    "a seal with a high watermark that nobody has": ("I-6", good().instead("sealed 2 b2", high_watermark=2)),
    "a repair refused with another end": ("step 4", good().instead("repaired b3", end=2)),
    "a repair without its mark": ("step 4", good().before("ack p0", Repaired(B3, 0, 2, 0, None))),
    "a repair answered before it is durable": ("step 4", good().without("repair b3 durable")),
    "an epoch opened without a seal": ("step 6", good().without("mark 1 b3")),
    "an epoch opened without the cut": ("step 6", good().without("cut b1")),
    "a cut of what is not void": ("P-9", good().instead("cut b1", end=0)),
    "a cut of an open epoch": ("P-9", good().before("ack p0", Cut(B2, 0, 2, 0))),
    "an attempt twice": ("P-5", good().instead("begin 2", attempt=attempt(1))),
    "an attempt of somebody else": ("P-5", good().instead("digest 2", member=B3)),
    "too few seals": ("P-36", good().instead("digest 2", answered=(B2,))),
    "a seal of another incarnation": ("P-10", good().instead("digest 2", answered=(B2, OTHER))),
    "a seal that was not answered": ("step 1", good().instead("digest 2", answered=(B2, B1))),
    "a seal from limbo": ("step 1", good().instead("digest 3", answered=(B2, B3))),
    "L below a tail": ("step 2", good().instead("digest 2", tail=0)),
    "L above all tails": ("step 2", good().instead("digest 2", tail=3)),
    "L below a high watermark": ("step 2", good().instead("digest 2", high_watermark=2)),
    "done without the change": ("P-19", good().before("digest 2", TakeoverEnded(B2, 0, 2, attempt(2), "DONE"))),
}

REGISTER = {
    "a value that is not the last": ("P-2", good().instead("change 2", before=REGISTERS[0])),
    "another id": ("P-39", changing(2, settings(2, id=b"q" * 16))),
    "a chain with a gap": ("I-8", changing(2, changed(2, 2, epoch=7))),
    "a base that is not the end": ("I-8", changing(2, changed(2, 3, base=2))),
    "an end before the base": ("I-8", changing(2, changed(2, 1, base=5))),
    "nothing open": ("I-8", changing(2, changed(2, 3, end=9))),
    "two epochs at once": ("I-8", changing(1, REGISTERS[2])),
    "a start offset that falls": ("P-41", good().before("forget b3", RegisterChanged(0, REGISTERS[4], settings(4, start_offset=0)))),
    "a trim past the high watermark": ("P-41", good().instead("trim", after=settings(4, start_offset=4))),
    "a segment gone that is not trimmed": ("P-41", good().instead("trim", after=settings(4, chain=REGISTERS[4].chain[1:]))),
    "another write quorum for an old segment": ("P-36", changing(2, changed(2, 2, write=1))),
    "another end for a closed segment": ("P-9", changing(3, moved_end())),
    "a holder that holds nothing": ("P-22", changing(2, changed(2, 2, replicas=(B1, B2, OTHER)))),
    "an attempt that nobody began": ("P-5", changing(2, changed(2, 3, attempt=attempt(9)))),
    "an end that the takeover did not find": ("step 5", good().without("digest 2")),
    "an attempt that opened an epoch before": (
        "P-5",
        changing(3, changed(3, 4, attempt=attempt(1))).before("stop 3", Digested(B1, 0, 3, attempt(1), 3, 3, (B1, B2))),
    ),
    "somebody else as sequencer": ("P-8", changing(2, changed(2, 3, sequencer="b3"))),
    "a close before the repair": ("P-18", good().without("repair b3").without("repair b3 durable").without("repaired b3")),
    "a close before the copy": ("step 3", good().without("copy b1").without("copy b1 durable")),
    "a next epoch of strangers": ("step 5", changing(2, changed(2, 3, replicas=(STRANGER, B2, OTHER)))),
    "a next epoch with quorums of its own": ("P-36", changing(2, changed(2, 3, read=3))),
}  # fmt: skip


SEQUENCER = {
    "two sequencers of an epoch": ("P-8", good().before("assign p0", SequencerBegan(B1, 0, 2, 0))),
    "a sequencer that took nothing over": ("P-8", good().instead("sequencer 2", member=B2)),
    "a sequencer in a later start": ("P-8", good().before("sequencer 2", Started(B1, 2, 0, returned(), ()))),
    "another base": ("P-34", good().instead("sequencer 2", base=1)),
    "before its own replica opened the epoch": ("step 6", good().without("open 2 b1")),
    "an incomplete sequencer": ("P-34", _incomplete()),
    "a stop by somebody else": ("P-8", good().instead("stop 3", member=B1)),
    "assigned by somebody else": ("P-8", good().instead("assign p1", member=B2)),
    "assigned after the stop": ("P-14", good().before("assign p1", SequencerStopped(B1, 0, 2))),
    "assigned in its own epoch after a restart": ("P-14", good().before("mark 2 b1", Assigned(B1, 0, 2, 3, 4, Q0))),
    "an offset twice": ("P-12", good().instead("assign p1", base=0, end=2)),
    "a batch twice in an epoch": ("I-5", good().instead("assign p1", batch=P0)),
    "a batch again that was kept": ("I-5", good().before("assign p1 again", Assigned(B2, 0, 3, 1, 2, P0))),
    "a producer that is fenced": ("P-33", _fenced()),
    "a gap in the sequence": ("P-35", good().instead("assign p0", batch=P1)),
    "acked by somebody else": ("P-8", good().instead("ack p0", member=B2)),
    "acked below W": ("P-11", good().without("report 2 0 b2")),
    "acked at another offset": ("P-12", good().instead("ack p1", base=0)),
    "a repeat answered with a void offset": ("P-34", good().before("assign p1 again", Acked(B2, 0, 3, 1, 3, P1, True))),
    "a repeat before it is committed": ("P-11", good().before("report 3 1 b3", Acked(B2, 0, 3, 1, 3, P1, True))),
}

DISKS = {
    "a start twice": ("P-5", good().instead("return b1", start=1)),
    "a mark forgotten": ("P-16", good().instead("return b1", state=returned(sealed=0))),
    "a chain forgotten": ("P-1", good().instead("return b1", state=returned(chain=()))),
    "durable batches forgotten": ("P-27", good().instead("return b1", runs=((2, 0, 1),))),
    "batches that were never there": ("P-28", good().instead("return b1", runs=((2, 0, 4),))),
    "a lost disk under its old incarnation": ("P-31", good().before("return b1", Lost(B1, 0, "disk"))),
    "limbo for an epoch forgotten": ("P-29", good().before("stop b1", LimboEntered(B1, 0, (3,)))),
    "limbo everywhere forgotten": ("P-29", good().before("stop b1", LimboEntered(B1, 0, None))),
    "limbo that ends while the epoch is open": ("P-29", good().before("begin 3", LimboEnded(B3, 0, 3))),
    "limbo that ends before all is held": ("P-29", good().without("refill 2 durable")),
    "limbo left without reading the register": ("P-29", good().without("limbo b3 read").instead("sealed 3 b3", limbo=False)),
    "memory lost and no limbo": ("P-29", _memory_lost()),
    "acts of a process that is gone": ("P-8", good().without("return b1")),
    "a partition that nobody founded": ("P-8", good().without("founded")),
    "a partition founded twice": ("P-8", good().before("begin 1", Founded(0, REGISTERS[0]))),
    "an epoch that nobody opened": ("P-8", good().instead("take 2 0 b2", epoch=5)),
}

OBSERVERS = {
    "a high watermark of an epoch that is not opened": ("P-23", good().before("open 2 b3", WatermarkTold(B3, 0, 2, 0))),
    "a high watermark that nobody can have told": ("I-6", good().instead("told 2 b1", offset=2)),
    "a high watermark that falls": ("I-6", good().before("tip", WatermarkTold(B1, 0, 2, 0))),
    "served before it was opened": ("P-23", good().instead("consume p1", member=B1).without("open 3 b1")),
    "other batches served": ("I-2", good().instead("consume p0", batches=(P1,))),
    "served what is not held": ("P-23", good().instead("consume p1", member=B1)),
    "served past the high watermark": ("P-23", good().without("told 2 b1")),
    "served what is void": ("P-23", good().before("cut b1", Consumed("c", B1, 0, 2, 1, 3, (P1,)))),
    "a tip below what was acked": ("P-24", good().instead("tip is", high_watermark=0)),
    "a tip above what is committed": ("P-17", good().instead("tip is", high_watermark=3)),
}


ALL = {**STORING, **TAKEOVERS, **REGISTER, **SEQUENCER, **DISKS, **OBSERVERS}


@pytest.mark.parametrize("name", ALL)
def test_what_the_protocol_forbids_is_refused(name: str) -> None:
    rule, script = ALL[name]
    with pytest.raises(TraceError) as refused:
        check_trace(script.trace())
    assert refused.value.rule == rule, refused.value


def guards(file: Path) -> set[tuple[str, int]]:
    """Every place in the file that refuses: file and first line."""
    functions = [
        n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef) and n.name not in ("require", "invariant")
    ]
    return {(file.name, node.lineno) for function in functions for node in ast.walk(function) if _refuses(node)}


def _refuses(node: ast.AST) -> bool:
    call = node.exc if isinstance(node, ast.Raise) else node
    name = "Broken" if isinstance(node, ast.Raise) else "require"
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name


def refusal(script: Script) -> tuple[str, int]:
    """The guard that refuses the trace."""
    with pytest.raises(TraceError) as refused:
        check_trace(script.trace())
    broken = refused.value.__context__
    assert broken is not None
    frames = [f for f in traceback.extract_tb(broken.__traceback__) if f.name != "require"]
    lineno = frames[-1].lineno
    assert lineno is not None
    return Path(frames[-1].filename).name, lineno


def test_every_guard_refuses_something() -> None:
    """A guard that no trace can break would be no guard."""
    files = [*HERE.glob("rules_of_*.py"), HERE / "abstract_log.py", HERE / "trace_model.py"]
    places = set().union(*(guards(file) for file in files))
    assert places - {refusal(script) for _, script in ALL.values()} == set()
