"""The quorum read of the tip (P-24) as a state machine. Times are seconds of any steady clock."""

import msgspec

from streamq.model.ids import Member
from streamq.model.messages import Tip, TipAnswer
from streamq.model.registers import PartitionRegister


class SendTip(msgspec.Struct, frozen=True):
    """To `broker` (may be this one itself); then `on_answer`, or `on_unreachable`."""

    broker: str
    tip: Tip


class ReadRegister(msgspec.Struct, frozen=True):
    """Begin a quorum read of the register now; then `on_register` (or `on_read_failed`). At most one is under way."""


class AskTakeOver(msgspec.Struct, frozen=True):
    """The high watermark does not move: have a replica take over from `epoch`, one of these that answered."""

    epoch: int
    brokers: tuple[str, ...]


TipEffect = SendTip | ReadRegister | AskTakeOver


class TipResult(msgspec.Struct, frozen=True):
    """Everything acked before the read began lies below `high_watermark`, and everything below it is acked or will never change."""

    epoch: int
    high_watermark: int
    answered: tuple[str, ...]


class TipRead:
    def __init__(self, *, register: PartitionRegister | None, now: float, poll_s: float = 0.004, stall_s: float = 0.3) -> None:
        """`register` may be any hint, however old; None if there is none."""

    result: TipResult | None
    next_deadline: float | None

    def start(self) -> list[TipEffect]: ...
    def on_answer(self, member: Member, answer: TipAnswer, now: float) -> list[TipEffect]: ...
    def on_unreachable(self, broker: str, now: float) -> list[TipEffect]: ...
    def on_register(self, register: PartitionRegister, now: float) -> list[TipEffect]: ...
    def on_read_failed(self, now: float) -> list[TipEffect]: ...
    def on_deadline(self, now: float) -> list[TipEffect]: ...
    def missing(self) -> str:
        """Why there is no result yet, for the error when the caller's patience ends."""
