"""What a replica asks of its runner. Durable-before-send is data: what must wait for the disk rides on the write (`Persist.then`)."""

import msgspec

from streamq.log.replica_state import ReplicaState
from streamq.model.batches import Batch
from streamq.model.ids import PartitionId
from streamq.model.messages import Message

__all__ = ["Advanced", "Alarm", "Cut", "Effect", "Persist", "Reply"]


class Reply(msgspec.Struct, frozen=True):
    """Send `message` (with `batches` as payload) to whoever stands behind the opaque handle `to`, which a message came in with."""

    to: object
    message: Message
    batches: tuple[Batch, ...] = ()


class Cut(msgspec.Struct, frozen=True):
    """Tell storage to forget the epoch's batches at and past `end` (`Storage.cut`), now. Whoever reads beyond it reads nothing."""

    partition: PartitionId
    epoch: int
    end: int


class Advanced(msgspec.Struct, frozen=True):
    """More may be readable here than before: wake those who wait in `Replica.readable`."""

    epoch: int
    high_watermark: int


class Alarm(msgspec.Struct, frozen=True):
    """What the protocol excludes has been seen. Tell people; the core has already refused to go along with it."""

    reason: str


class Persist(msgspec.Struct, frozen=True):
    """Append to storage, in the order of emission: `batches` (all of `epoch`, up to `end`) and, if not None, the replica's new state.

    When durable, call `Replica.on_durable(persist)` and carry out what it returns; `then` is part of that, so never look at it yourself.
    With `sync=False` it may come back once the operating system has it (P-37).
    """

    batches: tuple[Batch, ...] = ()
    epoch: int = 0
    end: int = 0
    state: ReplicaState | None = None
    then: tuple["Effect", ...] = ()
    report_to: object = None
    """Where `Stored` goes, if it is still right to send one when the batches are durable; None: nowhere."""
    sync: bool = True


Effect = Reply | Persist | Cut | Advanced | Alarm
