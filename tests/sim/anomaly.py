"""What can be wrong with a history: one kind for each thing that the protocol promises never to happen."""

import enum
from typing import NamedTuple

__all__ = ["Anomaly", "Kind", "told"]


class Kind(enum.Enum):
    LOST = "A record that was acked is not in the log (I-1)."
    DISPLACED = "A record lies at another offset, or in another partition, than it was acked at (I-1)."
    DUPLICATE = "A record of an idempotent producer lies in the log more than once (I-5)."
    REFUSED_READ = "A record whose sender was told that it was not stored is in the log, or was read."
    PHANTOM = "A record that nobody sent is in the log, or was read."
    INCONSISTENT = "Two readers saw different records at one offset (I-2)."
    VANISHED = "A record was read and is not in the log any more (I-2, P-23)."
    HOLE_IN_LOG = "The offsets of the log are not consecutive (I-4)."
    SKIPPED = "One run of a consumer passed over a record (P-26)."
    REPEATED = "One run of a consumer was handed an offset a second time, or went back (P-26)."
    SENDER_ORDER = "Records of one idempotent producer to one partition do not lie in the order in which it sent them (I-3)."
    REAL_TIME_ORDER = "A record sent after another was acked, read or told to lie below the tip has a smaller offset (I-3)."
    STALE_TIP = "A quorum read of the tip missed what was acked, or read, before it began (P-24)."
    TIP_FELL = "A quorum read of the tip returned less than one that had ended before it began (P-24, I-6)."
    TIP_PAST_END = "A quorum read of the tip told a high watermark beyond the end that the log came to have (I-6)."
    REPLICAS_DIFFER = "Two replicas do not hold the same bytes below the high watermark (I-2, P-12)."
    HOLE_IN_REPLICA = "A replica lacks something in the middle of an epoch (P-13)."
    VOID_STORED = "A replica counts a batch as readable that lies outside its epoch's segment (P-9)."
    TOO_FEW_COPIES = "Something below the high watermark lies on fewer replicas than its segment promises (P-11, P-22)."
    CHAIN = "Within one version of a register the segments do not form a chain (I-8)."
    CHAIN_CHANGED = "A register was changed in what must never change: a closed end, who opened an epoch, a lower start offset (P-8, P-9)."


class Anomaly(NamedTuple):
    kind: Kind
    message: str
    partition: int
    offset: int | None = None
    at: float | None = None
    """When the client saw it, in the history's clock."""

    def __str__(self) -> str:
        where = f"partition {self.partition}" + ("" if self.offset is None else f", offset {self.offset}")
        when = "" if self.at is None else f", at {self.at:.6f} s"
        return f"{self.kind.name}: {self.message} ({where}{when})"


def told(anomalies: list[Anomaly], *, most: int = 5) -> str:
    """For a report: how many of each kind, and the first `most` of each."""
    lines = []
    for kind in Kind:
        these = [anomaly for anomaly in anomalies if anomaly.kind is kind]
        if these:
            lines += [f"{kind.name}, {len(these)} times: {kind.value}", *(f"    {anomaly}" for anomaly in these[:most])]
    return "\n".join(lines)
