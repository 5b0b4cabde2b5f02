"""The producer for scripts without an event loop: the same names, blocking. The event loop runs in a thread of its own.

Every call hops to that thread and back (tens of microseconds), so many records at once go through `enqueue_many`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar, Unpack

import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from streamq.client.codecs import Codec
from streamq.client.settings import Timeouts
from streamq.model.errors import StreamqError
from streamq.model.transactions import Transaction as TransactionName
from streamq_producer.delivery import Delivery as AsyncDelivery
from streamq_producer.delivery import Receipt
from streamq_producer.producer import Producer as AsyncProducer
from streamq_producer.producer import ProducerOptions
from streamq_producer.stats import ProducerStats
from streamq_producer.transaction import Transaction as AsyncTransaction
from streamq_producer.typed import encoded, encoded_many

__all__ = ["Delivery", "Producer", "Receipt", "Transaction", "TypedTopic"]

T = TypeVar("T")


class Delivery:
    """As `streamq_producer.Delivery`."""

    def __init__(self, delivery: AsyncDelivery, portal: BlockingPortal) -> None:
        self._delivery = delivery
        self._portal = portal

    @property
    def records(self) -> int:
        return self._delivery.records

    @property
    def indexes(self) -> Sequence[int]:
        return self._delivery.indexes

    @property
    def is_settled(self) -> bool:
        return self._delivery.is_settled

    def receipt(self) -> Receipt:
        return self._portal.call(self._delivery.receipt)

    def outcome(self) -> Receipt | StreamqError:
        return self._portal.call(self._delivery.outcome)


class Producer:
    """As `streamq_producer.Producer`, used with `with`; any number of threads may use it at once. An interrupt (Ctrl-C) leaves the block
    at once: what has no outcome by then is unknown.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        name: str | None = None,
        timeouts: Timeouts | None = None,
        **options: Unpack[ProducerOptions],
    ) -> None:
        self._producer = AsyncProducer(bootstrap, name=name, timeouts=timeouts, **options)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self._producer))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._portal = None
        self._stack.__exit__(kind, error, traceback)

    @property
    def name(self) -> str | None:
        return self._producer.name

    @property
    def stats(self) -> ProducerStats:
        return self._producer.stats

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        position: int | None = None,
        id: bytes | None = None,
    ) -> Receipt:
        async def send() -> Receipt:
            return await self._producer.send(
                topic, value, key=key, headers=headers, timestamp=timestamp, partition=partition, position=position, id=id
            )

        return self._open.call(send)

    def enqueue(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        position: int | None = None,
        id: bytes | None = None,
    ) -> Delivery:
        async def enqueue() -> AsyncDelivery:
            return await self._producer.enqueue(
                topic, value, key=key, headers=headers, timestamp=timestamp, partition=partition, position=position, id=id
            )

        portal = self._open
        return Delivery(portal.call(enqueue), portal)

    def enqueue_many(
        self,
        topic: str,
        values: Iterable[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        positions: Sequence[int] | None = None,
    ) -> list[Delivery]:
        async def enqueue_many() -> list[AsyncDelivery]:
            return await self._producer.enqueue_many(
                topic, values, keys=keys, headers=headers, timestamp=timestamp, partition=partition, positions=positions
            )

        portal = self._open
        return [Delivery(delivery, portal) for delivery in portal.call(enqueue_many)]

    def append(
        self,
        topic: str,
        partition: int,
        values: Sequence[bytes],
        *,
        expected_offset: int | None = None,
        fencing_token: int | None = None,
        keys: Sequence[bytes | None] | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Receipt:
        async def append() -> Receipt:
            return await self._producer.append(
                topic, partition, values, expected_offset=expected_offset, fencing_token=fencing_token, keys=keys, headers=headers
            )

        return self._open.call(append)

    def transaction(self, positions: "Positions | None" = None) -> "Transaction":
        portal = self._open
        return Transaction(self._producer.transaction(_InOtherThread(positions) if positions is not None else None), portal)

    def topic(self, name: str, codec: Codec[T]) -> "TypedTopic[T]":
        return TypedTopic(self, name, codec)

    def position(self, topic: str, partition: int) -> int:
        return self._open.call(self._producer.position, topic, partition)

    def partitions(self, topic: str) -> int:
        return self._open.call(self._producer.partitions, topic)

    def flush(self) -> None:
        self._open.call(self._producer.flush)

    @property
    def _open(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("a producer is used inside its block: with Producer(...) as producer")
        return self._portal


class Positions(Protocol):
    """What a transaction asks of the consumer whose positions belong to it: `streamq_consumer.sync.Consumer` does this."""

    def check_transactional(self) -> None: ...
    def commit_in(self, transaction: TransactionName) -> None: ...
    def on_transaction_ended(self, *, is_committed: bool) -> None: ...


class _InOtherThread:
    """A blocking consumer, which has an event loop of its own, as the other producer sees it."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    def check_transactional(self) -> None:
        self._positions.check_transactional()

    async def commit_in(self, transaction: TransactionName) -> None:
        await anyio.to_thread.run_sync(self._positions.commit_in, transaction)

    def on_transaction_ended(self, *, is_committed: bool) -> None:
        self._positions.on_transaction_ended(is_committed=is_committed)


class Transaction:
    """As `streamq_producer.Transaction`, used with `with`."""

    def __init__(self, transaction: AsyncTransaction, portal: BlockingPortal) -> None:
        self._transaction = transaction
        self._portal = portal
        self._context = portal.wrap_async_context_manager(transaction)

    @property
    def name(self) -> TransactionName | None:
        return self._transaction.name

    def abort(self) -> None:
        self._portal.call(self._transaction.abort)

    def __enter__(self) -> Self:
        self._context.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._context.__exit__(kind, error, traceback)


class TypedTopic(Generic[T]):
    """As `streamq_producer.TypedTopic`."""

    def __init__(self, producer: Producer, topic: str, codec: Codec[T]) -> None:
        self.topic: Final = topic
        self._producer = producer
        self._codec = codec

    def send(
        self,
        value: T | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        id: bytes | None = None,
    ) -> Receipt:
        data = encoded(self._codec, value)
        return self._producer.send(self.topic, data, key=key, headers=headers, timestamp=timestamp, partition=partition, id=id)

    def enqueue(
        self,
        value: T | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        id: bytes | None = None,
    ) -> Delivery:
        data = encoded(self._codec, value)
        return self._producer.enqueue(self.topic, data, key=key, headers=headers, timestamp=timestamp, partition=partition, id=id)

    def enqueue_many(
        self,
        values: Iterable[T],
        *,
        keys: Sequence[bytes | None] | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> list[Delivery]:
        data = encoded_many(self._codec, values)
        return self._producer.enqueue_many(self.topic, data, keys=keys, headers=headers, timestamp=timestamp, partition=partition)
