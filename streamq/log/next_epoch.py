"""Step 5 of a takeover as pure functions: who holds the segment that closes, who replicates the one that opens, and whether that can be."""

from collections.abc import Container, Mapping

import msgspec

from streamq.model.ids import Member
from streamq.model.quorum import Quorum, reopen_quorum
from streamq.model.registers import PartitionRegister, Segment

__all__ = ["closed_segment", "lack_of_replicas", "next_replicas", "opened_segment"]


def next_replicas(register: PartitionRegister, segment: Segment, *, me: Member, answered: Mapping[str, Member]) -> tuple[Member, ...]:
    """The replicas that the partition prefers, each in the incarnation that answered this takeover, or else the one it was last known by.

    A preferred broker that never was a replica and does not answer has no known incarnation: one of `segment`'s others keeps its place.
    """
    wanted = register.replicas if me.broker in register.replicas else tuple(m.broker for m in segment.replicas)
    known = {m.broker: m for m in segment.replicas} | dict(answered) | {me.broker: me}
    chosen = [known[b] for b in wanted if b in known]
    spare = [known[m.broker] for m in segment.replicas if m.broker not in wanted]
    spare.sort(key=lambda m: m.broker not in answered)
    return tuple(chosen + spare[: len(wanted) - len(chosen)])


def lack_of_replicas(register: PartitionRegister, replicas: tuple[Member, ...], answered: Container[str]) -> str | None:
    """Why no epoch with these replicas may be opened: at least max(W, N - W + 1) of them must have answered; None if it may.

    The quorums are those of the partition's present settings (P-36).
    """
    if fault := Quorum(len(replicas), register.write, register.read).fault():
        return f"no next epoch is possible: {fault}"
    needed = reopen_quorum(replicas=len(replicas), write=register.write)
    count = sum(1 for m in replicas if m.broker in answered)
    return None if count >= needed else f"the next epoch needs {needed} of its replicas to answer, and {count} did"


def closed_segment(segment: Segment, *, end: int, replacements: Mapping[str, Member]) -> Segment:
    """The segment as the register will keep it; a replacement, which holds all of it, takes the place of its broker's replica (step 4)."""
    replicas = tuple(replacements.get(m.broker, m) for m in segment.replicas)
    return msgspec.structs.replace(segment, end=end, replicas=replicas)


def opened_segment(
    register: PartitionRegister, closed: Segment, replicas: tuple[Member, ...], *, sequencer: str, attempt: bytes
) -> Segment:
    assert closed.end is not None
    return Segment(
        epoch=closed.epoch + 1,
        base=closed.end,
        end=None,
        replicas=replicas,
        write=register.write,
        read=register.read,
        durability=register.durability,
        sequencer=sequencer,
        attempt=attempt,
    )
