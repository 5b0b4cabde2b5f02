"""What happened in a tier-1 run, in the words of protocol.md: the alphabet that a trace is written in and a trace checker reads.

`World.trace` is a list of `Traced` in the order in which things happened; events of one moment have the same time and keep their order.
Each event is recorded at the moment at which it takes effect: a durable thing when the disk has it, an answer when it leaves its broker, a
register change when a majority of the voters has accepted it durably (in whatever order its proposer learns of that).

`partition` is an index. A batch is known by its `BatchId` wherever it lies; ranges are half-open.
"""

from typing import NamedTuple

from streamq.log.replica_state import ReplicaState
from streamq.model.ids import Member
from streamq.model.registers import PartitionRegister

__all__ = [
    "Acked",
    "Assigned",
    "BatchId",
    "Consumed",
    "Crashed",
    "Cut",
    "Digested",
    "Durable",
    "Event",
    "Founded",
    "LimboEnded",
    "LimboEntered",
    "Lost",
    "OpenTaken",
    "Opened",
    "RegisterChanged",
    "Repaired",
    "Reported",
    "SealTaken",
    "Sealed",
    "SequencerBegan",
    "SequencerStopped",
    "Started",
    "Taken",
    "TakeoverBegan",
    "TakeoverEnded",
    "TipBegan",
    "TipConcluded",
    "Traced",
    "WatermarkTold",
]  # fmt: skip


class BatchId(NamedTuple):
    """`mark` tells batches without idempotence apart (`producer` is all zero then); it is 0 for idempotent ones."""

    producer: bytes
    epoch: int
    """The producer's epoch (P-33), not the log's."""
    sequence: int
    mark: int


class Founded(NamedTuple):
    """The first version of a partition's register, which no takeover made."""

    partition: int
    register: PartitionRegister


# --- processes and disks ---------------------------------------------------------------------------------------------------------


class Started(NamedTuple):
    """A process begins from its disk: one event for each partition that lies there, with its state and runs (epoch, base, tail), before
    the cuts that the restart repeats (step 6)."""

    member: Member
    start: int
    partition: int
    state: ReplicaState
    runs: tuple[tuple[int, int, int], ...]


class Crashed(NamedTuple):
    """The process is gone; everything that was not durable is lost, or a prefix of it is durable without anybody having been told."""

    member: Member


class Lost(NamedTuple):
    """The member's disk lost acknowledged data or state of the partition (found out at its next start), or the whole disk: then the broker
    comes back as another member."""

    member: Member
    partition: int
    what: str
    """`disk`: everything; `state`: sealed mark, chain and limbo; `batches`: a tail of one epoch's run; `memory`: a P-37 restart."""


class LimboEntered(NamedTuple):
    """Durably. `epochs` None: everywhere (`limbo_everywhere`), until the register is read."""

    member: Member
    partition: int
    epochs: tuple[int, ...] | None


class LimboEnded(NamedTuple):
    """Durably, for one epoch."""

    member: Member
    partition: int
    epoch: int


# --- a replica (sections 4 to 6) ---------------------------------------------------------------------------------------------------


class Taken(NamedTuple):
    """`[base, end)` of the epoch was taken (4.3, or by a repair or copy); it is on its way to the disk."""

    member: Member
    partition: int
    epoch: int
    base: int
    end: int
    batches: tuple[BatchId, ...]


class Durable(NamedTuple):
    """The local tail of the epoch is now `tail`."""

    member: Member
    partition: int
    epoch: int
    tail: int


class Reported(NamedTuple):
    """A `Stored` leaves: durable up to `tail`, in an epoch that is not sealed here (P-11)."""

    member: Member
    partition: int
    epoch: int
    tail: int


class SealTaken(NamedTuple):
    """The sealed mark was raised to `epoch`, by a `Seal`, a `Repair`, an `Open` or the register; not durable yet."""

    member: Member
    partition: int
    epoch: int


class OpenTaken(NamedTuple):
    """The chain up to `epoch` was taken, by an `Open` or from the register; not durable yet. What is taken in the epoch comes behind it in
    the journal, so stores may be taken now, and are reported after `Opened`."""

    member: Member
    partition: int
    epoch: int


class Sealed(NamedTuple):
    """The answer to a `Seal` leaves; the mark is durable (P-16)."""

    member: Member
    partition: int
    epoch: int
    tail: int
    high_watermark: int
    limbo: bool


class Repaired(NamedTuple):
    """The answer to a `Repair` leaves; what it says is durable. `end`: refused with the end that is known here."""

    member: Member
    partition: int
    epoch: int
    tail: int
    end: int | None


class Cut(NamedTuple):
    """The epoch's batches at and past `end` were forgotten here (0: the whole run)."""

    member: Member
    partition: int
    epoch: int
    end: int


class Opened(NamedTuple):
    """The chain up to `epoch` is durable here (step 6)."""

    member: Member
    partition: int
    epoch: int


class WatermarkTold(NamedTuple):
    """This replica shows the high watermark (epoch, offset) from now on (P-23)."""

    member: Member
    partition: int
    epoch: int
    offset: int


# --- sequencer, takeover, register ---------------------------------------------------------------------------------------------------


class SequencerBegan(NamedTuple):
    member: Member
    partition: int
    epoch: int
    base: int


class SequencerStopped(NamedTuple):
    member: Member
    partition: int
    epoch: int


class Assigned(NamedTuple):
    member: Member
    partition: int
    epoch: int
    base: int
    end: int
    batch: BatchId


class Acked(NamedTuple):
    """The ack leaves the sequencer. `repeat`: a sequence that was committed before (P-35); `epoch` is the answering sequencer's even so."""

    member: Member
    partition: int
    epoch: int
    base: int
    end: int
    batch: BatchId
    repeat: bool


class TakeoverBegan(NamedTuple):
    member: Member
    partition: int
    epoch: int
    attempt: bytes


class Digested(NamedTuple):
    """Steps 1 and 2 are done: L and the largest high watermark told, from these members' answers (those that count)."""

    member: Member
    partition: int
    epoch: int
    attempt: bytes
    tail: int
    high_watermark: int
    answered: tuple[Member, ...]


class TakeoverEnded(NamedTuple):
    """`phase` is a `Phase` name: DONE, LOST, DEFERRED, STUCK."""

    member: Member
    partition: int
    epoch: int
    attempt: bytes
    phase: str


class RegisterChanged(NamedTuple):
    """A majority of the voters has accepted `after`, whose predecessor in the order of ballots is `before`."""

    partition: int
    before: PartitionRegister
    after: PartitionRegister


# --- observers ---------------------------------------------------------------------------------------------------------------------


class TipBegan(NamedTuple):
    reader: str
    partition: int


class TipConcluded(NamedTuple):
    reader: str
    partition: int
    epoch: int
    high_watermark: int


class Consumed(NamedTuple):
    """A consumer was handed committed batches that `member` served from this epoch."""

    consumer: str
    member: Member
    partition: int
    epoch: int
    base: int
    end: int
    batches: tuple[BatchId, ...]


Event = (
    Founded | Started | Crashed | Lost | LimboEntered | LimboEnded | Taken | Durable | Reported | SealTaken | Sealed | Repaired | Cut
    | OpenTaken | Opened | WatermarkTold | SequencerBegan | SequencerStopped | Assigned | Acked | TakeoverBegan | Digested | TakeoverEnded
    | RegisterChanged | TipBegan | TipConcluded | Consumed
)  # fmt: skip


class Traced(NamedTuple):
    at: float
    """Virtual seconds."""
    event: Event
