"""What a producer sends together: all of it is read, or nothing. See `Producer.transaction`."""

from types import TracebackType
from typing import Final, Protocol, Self

import anyio

from streamq.client.cluster import Cluster
from streamq.model.errors import FencedError, RefusedError, StreamqError, TransactionAbortedError, UnavailableError, UnknownOutcomeError
from streamq.model.messages import EndTransaction, ProducerOpened, TransactionEnded
from streamq.model.transactions import NO_TRANSACTION
from streamq.model.transactions import Transaction as TransactionName
from streamq_producer.dispatch import Dispatcher

__all__ = ["Positions", "Transaction", "Transactions"]

PAUSE_S: Final = 0.02
PAUSE_S_MAX: Final = 0.5
ABORT_S: Final = 2.0
"""How long an exception that leaves the block is held up for the abort; it can be made up for with the next transaction."""


class Positions(Protocol):
    """What a transaction asks of the consumer whose positions belong to it: `streamq_consumer.Consumer` does this."""

    def check_transactional(self) -> None:
        """Raises RefusedError if its positions cannot belong to a transaction."""

    async def commit_in(self, transaction: TransactionName) -> None:
        """Stores how far the application was handed records since the last transaction, to count if this one is committed."""

    def on_transaction_ended(self, *, is_committed: bool) -> None:
        """Aborted: what was handed out since the one before is handed out again."""


class Transactions:
    """Those of one producer. Invariant: `_number` is the one that is open, or was not heard to have ended; all before are decided."""

    def __init__(self, cluster: Cluster, dispatcher: Dispatcher, name: str, opened: ProducerOpened, *, timeout_s: float) -> None:
        """`timeout_s` is how long an end is tried for, before its outcome is called unknown."""
        self._cluster = cluster
        self._dispatcher = dispatcher
        self._name = name
        self._opened = opened
        self._timeout_s = timeout_s
        self._number = NO_TRANSACTION
        self._decided = opened.decided
        self._is_committed = False
        """How `_decided` ended."""
        self._may_be_committed = False
        """The commit of `_number` was asked for."""
        self._owed: Positions | None = None
        """To be told how `_number` ended."""
        self._is_open = False

    async def begin(self) -> TransactionName:
        """Raises RefusedError while another is open, what `end` raises if the outcome of the one before is to be learned yet, and
        TransactionAbortedError if the application has gone on reading behind one that turns out to be aborted."""
        if self._is_open:
            raise RefusedError("a producer has one transaction at a time: leave the other one's block first", code="bad_request")
        self._is_open = True
        try:
            if self._number:
                await self.end(commits=False)
            self._pay()
        except BaseException as error:
            self._is_open = False
            owed = self._owed
            if isinstance(error, FencedError) and owed is not None:
                # Opening the other has aborted it (metadata.transactions, 3), and nobody asks again.
                self._owed = None
                owed.on_transaction_ended(is_committed=False)
            raise
        self._number = self._decided + 1
        self._dispatcher.begin_transaction(self._number)
        return TransactionName(self._opened.producer, self._number)

    def _pay(self) -> None:
        owed, self._owed = self._owed, None
        if owed is not None:
            owed.on_transaction_ended(is_committed=self._is_committed)
            if not self._is_committed:
                raise TransactionAbortedError(
                    "the transaction before was aborted after all: what was read since then comes again",
                    hint="leave what was read, and read on",
                )

    async def flush(self) -> None:
        """Waits until all of it has an outcome. Raises what a batch of it failed with."""
        self._dispatcher.end_transaction()
        for outcome in list(self._dispatcher.unsettled):
            await outcome.wait()
        if (failure := self._dispatcher.transaction_failure) is not None:
            raise failure.with_traceback(None)

    async def end(self, *, commits: bool) -> bool:
        """Whether it is committed. Asked until a broker tells. Raises FencedError when another of the name was opened, and
        UnknownOutcomeError."""
        message = EndTransaction(self._name, self._opened.epoch, self._number, commits)
        self._may_be_committed |= commits
        pause_s = PAUSE_S
        failure: StreamqError = UnavailableError("no broker has answered", code="timed_out")
        with anyio.move_on_after(self._timeout_s):
            while True:
                try:
                    ended = await self._cluster.request(message, TransactionEnded)
                except (UnavailableError, UnknownOutcomeError) as error:
                    failure = error
                else:
                    self._decided, self._number = self._number, NO_TRANSACTION
                    self._is_committed, self._may_be_committed = ended.committed, False
                    return ended.committed
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
        raise UnknownOutcomeError(
            f"whether the transaction is committed is unknown: {failure.message}",
            code="unknown_outcome",
            hint="open the producer and the consumer again: they go on behind it if it is, before it if not",
        )

    async def give_up(self, positions: Positions | None) -> bool | None:
        """Aborts, for at most `ABORT_S`, cancelled or not: whether it was committed before that, None if that is to be found out yet.

        Never raises. A transaction that nobody was told to abort is aborted with the next one's beginning, or for its age.
        """
        self._dispatcher.end_transaction()
        try:
            with anyio.move_on_after(ABORT_S, shield=True):
                if self._number:
                    await self.end(commits=False)
        except FencedError:
            # Opening the other has aborted it; `_number` stays, so that every beginning is refused (metadata.transactions, 3).
            self._may_be_committed = self._is_committed = False
        except StreamqError:
            pass
        self._is_open = False
        if self._may_be_committed:
            self._owed = positions
            return None
        is_committed = self._is_committed and not self._number
        if positions is not None:
            positions.on_transaction_ended(is_committed=is_committed)
        return is_committed

    def leave(self, positions: Positions | None) -> None:
        """It is committed."""
        self._is_open = False
        if positions is not None:
            positions.on_transaction_ended(is_committed=True)


class Transaction:
    """Used with `async with`, see `Producer.transaction`."""

    def __init__(self, transactions: Transactions, positions: Positions | None) -> None:
        self._transactions = transactions
        self._positions = positions
        self._is_to_abort = False
        self.name: TransactionName | None = None
        """The producer's id and the number, once it has begun."""

    def abort(self) -> None:
        """Has the block end with an abort instead of a commit, without an exception."""
        self._is_to_abort = True

    async def __aenter__(self) -> Self:
        if self._positions is not None:
            self._positions.check_transactional()
        self.name = await self._transactions.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        transactions, positions = self._transactions, self._positions
        if error is not None or self._is_to_abort:
            await transactions.give_up(positions)
            return
        try:
            await self._commit()
        except BaseException as failure:
            is_committed = await transactions.give_up(positions)
            if isinstance(failure, UnknownOutcomeError) and is_committed:
                return
            raise
        transactions.leave(positions)

    async def _commit(self) -> None:
        assert self.name is not None
        await self._transactions.flush()
        if self._positions is not None:
            await self._positions.commit_in(self.name)
        if not await self._transactions.end(commits=True):
            raise TransactionAbortedError(
                "the transaction was aborted before it could be committed: it took too long, or its consumer lost a partition",
                hint="nothing of it is read; do it again, or raise transaction_timeout_s",
            )
