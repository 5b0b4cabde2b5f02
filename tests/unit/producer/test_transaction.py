"""How a transaction's block ends, whatever becomes of the questions that it asks."""

import asyncio
from contextlib import suppress
from typing import cast

from streamq.client.cluster import Cluster
from streamq.model.messages import EndTransaction, ProducerOpened, TransactionEnded
from streamq.model.transactions import Transaction as TransactionName
from streamq_producer.dispatch import Dispatcher
from streamq_producer.transaction import Transaction, Transactions


class _Cluster:
    def __init__(self) -> None:
        self.is_up = asyncio.Event()

    async def request(self, message: EndTransaction, kind: type[TransactionEnded]) -> TransactionEnded:
        await self.is_up.wait()
        return TransactionEnded(message.commits)


class _Positions:
    def __init__(self) -> None:
        self.told: list[bool] = []

    def check_transactional(self) -> None:
        pass

    async def commit_in(self, transaction: TransactionName) -> None:
        pass

    def on_transaction_ended(self, *, is_committed: bool) -> None:
        self.told.append(is_committed)


def test_cancelled_twice_under_asyncio_it_can_be_begun_again() -> None:
    """asyncio knows no shield: the second cancellation ends the wait for the abort."""

    async def work() -> None:
        cluster, positions = _Cluster(), _Positions()
        transactions = Transactions(cast(Cluster, cluster), Dispatcher(), "p", ProducerOpened(b"p" * 16, 1), timeout_s=5)

        async def block() -> None:
            async with Transaction(transactions, positions):
                await asyncio.sleep(60)

        task = asyncio.create_task(block())
        for _ in range(2):
            await asyncio.sleep(0.02)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert positions.told == [False]
        cluster.is_up.set()
        async with Transaction(transactions, positions) as again:
            assert again.name is not None
            assert again.name.number == 2
        assert positions.told == [False, True]

    asyncio.run(work())
