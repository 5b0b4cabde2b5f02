"""What clients saw of a cluster, and what lay in it in the end: the material that `checkers` judges, whatever kind of cluster it was.

Times are seconds of one clock that all clients of a run share (a virtual one in simulation, the monotonic one with real processes). Every
value that is sent is unique in its run, so that a record is known wherever it turns up.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from streamq.model.registers import PartitionRegister

__all__ = ["History", "Outcome", "Place", "Poll", "Send", "StoredBatch", "TipSeen"]


class Place(NamedTuple):
    partition: int
    offset: int


class Outcome(enum.Enum):
    OPEN = "It was sent and nobody has told what became of it; it may or may not be in the log."
    ACKED = "It is at `offset`, for ever."
    REFUSED = "It was certainly not stored."
    UNKNOWN = "Its sender was told that it may or may not be in the log."


@dataclass(slots=True)
class Send:
    """One record as its sender saw it. `number` counts the sends of one `sender` in the order they were made, over all partitions.

    Sends of one sender to one partition, by one idempotent producer, must lie in the log in the order of their numbers (I-3); a sender that
    comes back as another producer (a restarted client) is another sender.
    """

    sender: str
    number: int
    partition: int
    value: bytes
    began: float
    outcome: Outcome = Outcome.OPEN
    ended: float | None = None
    offset: int | None = None
    """Of what was acked; None if the ack did not tell it (P-35: a repeat of a batch that is older than the table remembers)."""
    why: str = ""


class Poll(NamedTuple):
    """Records that one `consumer` (one run of one, from its own start) was handed at once, in the order it got them."""

    consumer: str
    partition: int
    records: tuple[tuple[int, bytes], ...]
    """(offset, value)"""
    at: float


class TipSeen(NamedTuple):
    """One quorum read of the tip by the session `reader`."""

    reader: str
    partition: int
    began: float
    ended: float
    epoch: int
    high_watermark: int


class StoredBatch(NamedTuple):
    """A batch as it lies on one replica's disk; `content` is its header and payload, or a digest of them."""

    epoch: int
    base: int
    end: int
    content: bytes


@dataclass(slots=True)
class History:
    """`log`: what a consumer read of each partition after everything was healed, (offset, value) from the start offset to the tip.

    `replicas`: per partition and broker that is a replica, what lies there below the high watermark, in offset order. `registers`: per
    partition, the successive versions of its register as completed changes and quorum reads returned them, oldest first. `plain_senders`:
    those without idempotence, whose records may lie in the log twice and in another order. `asked`: the offset that a run of a consumer
    asked for in a partition; where it is not told, the first record that it was handed counts as asked for. The log is read after
    everything else.
    """

    sends: list[Send] = field(default_factory=list)
    polls: list[Poll] = field(default_factory=list)
    tips: list[TipSeen] = field(default_factory=list)
    log: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    replicas: dict[int, dict[str, list[StoredBatch]]] = field(default_factory=dict)
    registers: dict[int, list[PartitionRegister]] = field(default_factory=dict)
    plain_senders: set[str] = field(default_factory=set)
    asked: dict[tuple[str, int], int] = field(default_factory=dict)
