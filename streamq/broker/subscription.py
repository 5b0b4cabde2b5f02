"""One consumer's stream from one partition: whole batches below the high watermark known here, as far as its credit goes (P-23)."""

from typing import TYPE_CHECKING, Final

import trio

from streamq.model.batches import Batch
from streamq.model.limits import CREDIT_BYTES_MAX, MiB
from streamq.model.messages import Records

if TYPE_CHECKING:
    from streamq.broker.partition import Partition
    from streamq.net.channel import Channel

__all__ = ["READS_AT_ONCE", "Subscription", "stream"]

READ_BYTES: Final = 1 * MiB
QUEUE_BYTES: Final = 4 * MiB
"""What may wait on the connection before its streams pause."""
READS_AT_ONCE: Final = 4
"""Of one connection. Each may add a piece to the queue that was short enough when it began."""
ALIVE_S: Final = 5.0
"""A stream without news says so now and then. That its broker lives the connection says, for all of its streams (`Session.is_awaiting`): a
consumer of 1,000 idle partitions cost as much as one of busy ones when each stream said so four times a second."""


class Subscription:
    """`credit` is what the consumer is ready to take; one batch may overdraw it."""

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.scope = trio.CancelScope()
        self._news = trio.Event()

    def grant(self, credit: int) -> None:
        self.credit = min(self.credit + credit, CREDIT_BYTES_MAX)
        self._news.set()

    def wake(self) -> None:
        """The partition has more to read."""
        self._news.set()

    async def news(self) -> bool:
        """Waits for `grant` or `wake`; False when ALIVE_S passed without either."""
        with trio.move_on_after(ALIVE_S):
            await self._news.wait()
        happened = self._news.is_set()
        if happened:
            self._news = trio.Event()
        return happened


async def stream(
    partition: "Partition", channel: "Channel", request: int, subscription: Subscription, offset: int, reads: trio.CapacityLimiter
) -> None:
    """Serves until the connection ends or the subscription's scope is cancelled. Raises StreamqError for the router to answer.

    `reads`: the connection's. A thousand streams that wait for the disk together would overrun it together.
    """
    told: tuple[int, int] | None = None
    partition.subscriptions[subscription] = None
    try:
        while not channel.is_closed:
            batches: list[Batch] = []
            if subscription.credit > 0:
                await _turn(reads)
                try:
                    await channel.drain(QUEUE_BYTES)
                    batches = await partition.read(offset, max_bytes=min(subscription.credit, READ_BYTES))
                    if batches:
                        told = _send(partition, channel, request, batches)
                finally:
                    reads.release()
            if batches:
                offset = batches[-1].end
                subscription.credit -= sum(batch.size for batch in batches)
                await trio.lowlevel.checkpoint()
                continue
            watermark = partition.replica.high_watermark
            if told != watermark:
                told = watermark
                channel.send(Records(watermark[0], watermark[1], partition.replica.state.start_offset), request=request, is_answer=True)
            if not await subscription.news():
                told = None
    finally:
        partition.subscriptions.pop(subscription, None)


async def _turn(reads: trio.CapacityLimiter) -> None:
    """As `acquire`, without a pass of the scheduler when nobody waits."""
    try:
        reads.acquire_nowait()
    except trio.WouldBlock:
        await reads.acquire()


def _send(partition: "Partition", channel: "Channel", request: int, batches: list[Batch]) -> tuple[int, int]:
    """Returns the high watermark that was told with them."""
    watermark = partition.replica.high_watermark
    payload = [part for batch in batches for part in (batch.head, batch.payload)]
    message = Records(watermark[0], watermark[1], partition.replica.state.start_offset)
    channel.send(message, request=request, is_answer=True, payload=payload)
    return watermark
