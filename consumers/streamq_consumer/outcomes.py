"""What became of transactions, as far as the consumer has asked: which of their batches may be handed out, and which never.

A broker tells the outcomes of a whole block of a producer's numbers at once, so a long log of transactions costs few questions. Those
that are decided stay so (`streamq.metadata.transactions`); for an open one a broker is asked that answers when it is decided.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import anyio

from streamq.client.cluster import Cluster
from streamq.client.lifetime import Lifetime
from streamq.model.batches import BatchHeader
from streamq.model.errors import StreamqError
from streamq.model.messages import OutcomesRead, ReadOutcomes
from streamq.model.transactions import ABORTED_BLOCK, Transaction

__all__ = ["Outcomes"]

log = logging.getLogger("streamq_consumer")

WAIT_S: Final = 2.0
ASK_S: Final = 2.0
"""How long one broker is waited for, beyond what it is asked to wait."""
PAUSE_S: Final = 0.02
PAUSE_S_MAX: Final = 0.5
BLOCKS_KEPT_MAX: Final = 1_000
ASKED_AT_ONCE_MAX: Final = 128
"""Questions about open transactions take as long as these; more wait their turn."""
NO_TRANSACTION_CODE: Final = "not_found"
"""A majority's answer; "unknown_broker" is this client's own, and says nothing about the transaction."""


class Outcomes:
    """Invariant: a transaction of which `is_committed` has said that it is not known is being asked for."""

    def __init__(self, cluster: Cluster, lifetime: Lifetime, on_decided: Callable[[], None]) -> None:
        self._cluster = cluster
        self._lifetime = lifetime
        self._on_decided = on_decided
        self._blocks: OrderedDict[tuple[bytes, int], OutcomesRead] = OrderedDict()
        self._bogus: OrderedDict[Transaction, None] = OrderedDict()
        self._asked: set[Transaction] = set()
        self._asking = anyio.Semaphore(ASKED_AT_ONCE_MAX)

    def is_committed(self, header: BatchHeader) -> bool | None:
        """Of a transactional batch; None: it is being asked for, and `on_decided` will be called."""
        transaction = Transaction(header.producer, header.mark)
        block = self._blocks.get((transaction.producer, transaction.number // ABORTED_BLOCK))
        if block is not None and block.first <= transaction.number <= block.decided:
            return transaction.number not in block.aborted
        if transaction in self._bogus:
            return False
        if transaction not in self._asked:
            self._asked.add(transaction)
            self._lifetime.start(self._ask, transaction, header.append_time)
        return None

    async def _ask(self, transaction: Transaction, began_ms: int) -> None:
        question = ReadOutcomes(transaction, began_ms, round(WAIT_S * 1000))
        pause_s = PAUSE_S
        try:
            while not await self._is_answered(question):
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
        finally:
            self._asked.discard(transaction)
        self._on_decided()

    async def _is_answered(self, question: ReadOutcomes) -> bool:
        transaction = question.transaction
        try:
            # Those that stay open for long take turns with others.
            async with self._asking:
                answer = await self._cluster.request(question, OutcomesRead, timeout_s=WAIT_S + ASK_S)
        except StreamqError as error:
            if error.code != NO_TRANSACTION_CODE:
                log.info("the outcome of transaction %d of producer %s is not known yet: %s", *reversed(_named(transaction)), error)
                return False
            # No producer of ours writes such a batch; what is behind it must not be held up for ever.
            log.warning("what producer %s says to be transaction %d is left out: %s", *_named(transaction), error)
            self._bogus[transaction] = None
            if len(self._bogus) > BLOCKS_KEPT_MAX:
                self._bogus.popitem(last=False)
            return True
        if not answer.first <= transaction.number <= answer.decided:
            return False
        self._blocks[transaction.producer, transaction.number // ABORTED_BLOCK] = answer
        if len(self._blocks) > BLOCKS_KEPT_MAX:
            self._blocks.popitem(last=False)
        return True


def _named(transaction: Transaction) -> tuple[str, int]:
    return transaction.producer.hex(), transaction.number
