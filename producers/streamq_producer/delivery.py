"""What becomes of a record: a `Delivery` to ask, a `Receipt` when it is stored. Records of one batch share one outcome."""

from collections.abc import Sequence

import anyio
import msgspec

from streamq.model.errors import StreamqError
from streamq.model.messages import Ack

__all__ = ["BatchOutcome", "Delivery", "Receipt"]


class Receipt(msgspec.Struct, frozen=True):
    """The record is stored at `offset`, on `copies` replicas of `of`, synced to disk on them if `durable`.

    `timestamp` is the append time, in milliseconds since 1970. With `records` above 1 it speaks for the offsets from `offset` on; -1 when
    an earlier try had stored it so long ago that the broker does not know any more where (P-35).
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    copies: int
    of: int
    durable: bool
    records: int = 1
    is_duplicate: bool = False
    """Of a record with an id: one of that id was sent before (this very one, if its first answer was lost), and is what is at `offset`."""


class BatchOutcome:
    """The outcome that the records of one batch share. Invariant: `ack` or `error` is set at most once, and then `is_settled`."""

    __slots__ = ("_settled", "ack", "error", "is_settled", "partition", "topic", "was_asked")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.ack: Ack | None = None
        self.error: StreamqError | None = None
        self.is_settled = False
        self.was_asked = False
        """Somebody awaits or awaited it, so a failure need not be told again."""
        self._settled: anyio.Event | None = None

    def settle(self, *, ack: Ack | None = None, error: StreamqError | None = None) -> None:
        assert not self.is_settled
        self.ack, self.error, self.is_settled = ack, error, True
        if self._settled is not None:
            self._settled.set()

    async def wait(self) -> None:
        if self.is_settled:
            return
        if self._settled is None:
            self._settled = anyio.Event()
        await self._settled.wait()


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One record on its way, or (from `enqueue_many`) `records` of them that share a batch.

    Its failure is raised by `receipt`; one that nobody asks for is raised by `flush` or at the end of the producer's block.
    """

    batch: BatchOutcome
    first: int
    """Where its records begin in their batch."""
    records: int = 1
    indexes: Sequence[int] = ()
    """From `enqueue_many`: which of the values these are."""

    @property
    def is_settled(self) -> bool:
        return self.batch.is_settled

    async def receipt(self) -> Receipt:
        """Waits for the outcome. Raises RefusedError, NotFoundError, UnavailableError, FencedError (all: not stored) or
        UnknownOutcomeError (it may be stored). Cancelled, it changes nothing about the record; ask again at any time.
        """
        outcome = await self.outcome()
        if isinstance(outcome, Receipt):
            return outcome
        raise outcome.with_traceback(None)

    async def outcome(self) -> Receipt | StreamqError:
        """As `receipt`, but returns the error."""
        batch = self.batch
        batch.was_asked = True
        await batch.wait()
        ack = batch.ack
        if ack is None:
            assert batch.error is not None
            return batch.error
        offset = ack.base + self.first if ack.base >= 0 else -1
        return Receipt(
            batch.topic, batch.partition, offset, ack.append_time, ack.copies, ack.of, ack.durable, self.records, ack.is_duplicate
        )
