"""Which transactions' outcomes a consumer asks for, and who waits for whom."""

from typing import cast

import anyio
import trio.testing

from streamq.client.cluster import Cluster
from streamq.client.lifetime import Lifetime
from streamq.model.batches import FLAG_TRANSACTIONAL, BatchHeader
from streamq.model.messages import OutcomesRead, ReadOutcomes
from streamq_consumer.outcomes import ASKED_AT_ONCE_MAX, Outcomes

DECIDED = b"d" * 16


class _Cluster:
    """One producer's transactions are committed, all others are open."""

    async def request(self, message: ReadOutcomes, kind: type[OutcomesRead], *, timeout_s: float) -> OutcomesRead:
        if message.transaction.producer == DECIDED:
            return OutcomesRead(0, 1, ())
        await anyio.sleep(message.wait_ms / 1000)
        return OutcomesRead(0, 0, ())


def _header(producer: bytes) -> BatchHeader:
    return BatchHeader(
        partition=bytes(16), records=1, payload_bytes=0, raw_bytes=0, payload_crc=0, producer=producer, producer_epoch=1, sequence=1,
        first_timestamp=0, max_timestamp=0, epoch=1, base=0, append_time=0, flags=FLAG_TRANSACTIONAL, mark=1,
    )  # fmt: skip


async def test_open_ones_do_not_keep_the_others_from_being_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    lifetime, decided = Lifetime(), anyio.Event()
    await lifetime.open()
    outcomes = Outcomes(cast(Cluster, _Cluster()), lifetime, decided.set)
    for i in range(2 * ASKED_AT_ONCE_MAX):
        assert outcomes.is_committed(_header(i.to_bytes(16))) is None
    await anyio.sleep(1)
    assert outcomes.is_committed(_header(DECIDED)) is None
    with anyio.fail_after(10):
        await decided.wait()
    assert outcomes.is_committed(_header(DECIDED))
    await lifetime.close(None, None)
