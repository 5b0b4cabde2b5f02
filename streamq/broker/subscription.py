"""One consumer's stream from one partition: whole batches below the high watermark known here, as far as its credit goes (P-23)."""

from typing import TYPE_CHECKING, Final

import trio

from streamq.model.limits import CREDIT_BYTES_MAX, MiB
from streamq.model.messages import Records

if TYPE_CHECKING:
    from streamq.broker.partition import Partition
    from streamq.net.channel import Channel

__all__ = ["Subscription", "stream"]

READ_BYTES: Final = 1 * MiB
QUEUE_BYTES: Final = 4 * MiB
"""What may wait on the connection before its streams pause."""
ALIVE_S: Final = 0.25
"""A stream without news says so, so that its consumer can tell an idle partition from a dead broker."""


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


async def stream(partition: "Partition", channel: "Channel", request: int, subscription: Subscription, offset: int) -> None:
    """Serves until the connection ends or the subscription's scope is cancelled. Raises StreamqError for the router to answer."""
    told: tuple[int, int] | None = None
    partition.subscriptions.add(subscription)
    try:
        while not channel.is_closed:
            await channel.drain(QUEUE_BYTES)
            batches = await partition.read(offset, max_bytes=min(subscription.credit, READ_BYTES)) if subscription.credit > 0 else []
            watermark = partition.replica.high_watermark
            if batches:
                offset = batches[-1].end
                subscription.credit -= sum(batch.size for batch in batches)
                payload = [part for batch in batches for part in (batch.head, batch.payload)]
                message = Records(watermark[0], watermark[1], partition.replica.state.start_offset)
                channel.send(message, request=request, is_answer=True, payload=payload)
                told = watermark
                await trio.lowlevel.checkpoint()
                continue
            if told != watermark:
                told = watermark
                channel.send(Records(watermark[0], watermark[1], partition.replica.state.start_offset), request=request, is_answer=True)
            if not await subscription.news():
                told = None
    finally:
        partition.subscriptions.discard(subscription)
