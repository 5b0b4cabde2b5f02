"""What a `Takeover` asks of its runner. Each effect says which call brings its outcome back."""

import msgspec

from streamq.model.messages import Seal
from streamq.model.registers import PartitionRegister, Segment

__all__ = [
    "AskTakeOver",
    "ChangeRegister",
    "OpenEpoch",
    "ReadRegister",
    "SendRepair",
    "SendSeal",
    "StartCopy",
    "TakeoverAlarm",
    "TakeoverEffect",
]


class ReadRegister(msgspec.Struct, frozen=True):
    """Quorum read, begun now; then `on_register`, or `on_read_failed`."""


class SendSeal(msgspec.Struct, frozen=True):
    """To `broker` (may be this one itself); then `on_sealed`, or `on_unreachable`."""

    broker: str
    seal: Seal


class StartCopy(msgspec.Struct, frozen=True):
    """`Copy` [offset, end) of `segment` from `sources` (best first), each piece through `Replica.on_repair` of the own replica; tell each
    durable tail by `on_copied`. When no source can go on: `on_copy_failed`."""

    segment: Segment
    offset: int
    end: int
    sources: tuple[str, ...]


class SendRepair(msgspec.Struct, frozen=True):
    """Send `Repair` with the own replica's batches [offset, end) of `segment`, in as many messages as needed; then `on_repaired` for each
    answer, or `on_unreachable`. Go on from the answer's tail as long as it moves."""

    broker: str
    segment: Segment
    offset: int
    end: int


class ChangeRegister(msgspec.Struct, frozen=True):
    """One compare-and-swap: if `closed.epoch` is last and open, close it as `closed` and append `opened`; then `on_changed` with whatever
    the register is afterwards (also when it is another's), or `on_change_failed` when the outcome is unknown."""

    closed: Segment
    opened: Segment


class OpenEpoch(msgspec.Struct, frozen=True):
    """Send `Open(register)` to every replica of its last segment, this broker first; then `on_opened` when the own replica has."""

    register: PartitionRegister


class AskTakeOver(msgspec.Struct, frozen=True):
    """Send `TakeOver` to that broker: it is better placed."""

    broker: str
    epoch: int


class TakeoverAlarm(msgspec.Struct, frozen=True):
    """What the protocol excludes has been seen; the takeover has stopped."""

    reason: str


TakeoverEffect = ReadRegister | SendSeal | StartCopy | SendRepair | ChangeRegister | OpenEpoch | AskTakeOver | TakeoverAlarm
