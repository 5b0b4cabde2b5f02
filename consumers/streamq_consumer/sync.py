"""The consumer for scripts without an event loop: the same names, blocking. The event loop runs in a thread of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Generic, Literal, Protocol, Self, TypeVar, Unpack

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from streamq.client.codecs import Codec
from streamq.client.settings import Timeouts, refuse_unless
from streamq.client.times import Lag, Place
from streamq.model.errors import StreamqError
from streamq.model.transactions import Transaction
from streamq_consumer.consumer import Consumer as AsyncConsumer
from streamq_consumer.consumer import ConsumerOptions
from streamq_consumer.dead_letter import DeadLetter as AsyncDeadLetter
from streamq_consumer.group import OnPlaces
from streamq_consumer.handling import Order
from streamq_consumer.records import Record, Stable, Tip
from streamq_consumer.run import Retry
from streamq_consumer.start import Start
from streamq_consumer.stats import ConsumerStats
from streamq_consumer.times import When
from streamq_consumer.typed import TypedRecord, decode

__all__ = ["Consumer", "DeadLetter", "Record", "Tip"]

T = TypeVar("T")

FETCH_RECORDS: Final = 10_000
"""How many records iteration takes over from the event loop's thread at once."""
FETCH_RECORDS_OF_GROUP: Final = 500
"""As many may come again after a crash."""
FETCH_S: Final = 1.0


class Consumer:
    """As `streamq_consumer.Consumer`, used with `with`, by one thread at a time. `on_assigned` and `on_revoked` are called in the event
    loop's thread, in which no method of the consumer can be called."""

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        topics: Sequence[str],
        group: str | None = None,
        start: Start = "earliest",
        partitions: Sequence[int] | None = None,
        broker: str | None = None,
        timeouts: Timeouts | None = None,
        on_assigned: OnPlaces | None = None,
        on_revoked: OnPlaces | None = None,
        **options: Unpack[ConsumerOptions],
    ) -> None:
        self._consumer = AsyncConsumer(
            bootstrap,
            topics=topics,
            group=group,
            start=start,
            partitions=partitions,
            broker=broker,
            timeouts=timeouts,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            **options,
        )
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._fetch_records = FETCH_RECORDS if group is None else FETCH_RECORDS_OF_GROUP
        self._held: list[Record] = []
        """Taken from the other thread and not handed out yet, the last one first."""
        self._held_since: dict[Place, int] = {}
        """Of which holds of a member's partitions that is."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self._consumer))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._portal is not None:
            self._unread(self._held)
        self._portal = None
        self._stack.__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[Record]:
        while True:
            while self._held:
                yield self._held.pop()
            self._held = self._call_fetch(self._fetch_records, FETCH_S)
            self._held.reverse()

    def decoded(self, codec: Codec[T]) -> "Decoded[T]":
        return Decoded(iter(self), codec)

    def batches(self, *, max_records: int = 500, max_wait: float = 0.2) -> Iterator[list[Record]]:
        batches = self._consumer.batches(max_records=max_records, max_wait=max_wait)
        while True:
            if self._held:
                yield self._take_held(max_records)
            else:
                yield self._open.call(batches.__anext__)

    def fetch(self, max_records: int = 500, *, timeout: float = 1.0) -> list[Record]:
        return self._take_held(max_records) if self._held else self._call_fetch(max_records, timeout)

    @property
    def partitions(self) -> tuple[tuple[str, int], ...]:
        return self._consumer.partitions

    def position(self, topic: str, partition: int) -> int:
        held = [record.offset for record in self._held if (record.topic, record.partition) == (topic, partition)]
        return min(held) if held else self._open.call(self._consumer.position, topic, partition)

    def positions(self) -> Mapping[tuple[str, int], int]:
        return {place: self.position(*place) for place in self.partitions}

    def seek(self, topic: str, partition: int, offset: int | Literal["earliest"]) -> None:
        self._open.call(self._consumer.seek, topic, partition, offset)
        self._held = [record for record in self._held if (record.topic, record.partition) != (topic, partition)]

    def commit(self, positions: Mapping[tuple[str, int], int] | None = None) -> None:
        if positions is None and self._held:
            positions = self.positions()
        self._open.call(self._consumer.commit, positions)

    def run(
        self,
        handler: Callable[[Record], object],
        *,
        concurrency: int = 1,
        order: Order = "partition",
        retry: Retry | None = None,
        dead_letter: "DeadLetter | None" = None,
        stuck_after_s: float = 60.0,
    ) -> None:
        """As the other, with a plain function, which is called in threads, `concurrency` at a time. Ctrl-C waits for those to return."""

        is_ours = dead_letter is None or isinstance(dead_letter, DeadLetter)
        refuse_unless(is_ours, "dead_letter is a streamq_consumer.sync.DeadLetter, of a blocking producer", code="bad_request")
        limiter: anyio.CapacityLimiter | None = None

        async def handle(record: Record) -> None:
            await anyio.to_thread.run_sync(handler, record, limiter=limiter)

        async def run() -> None:
            nonlocal limiter
            limiter = anyio.CapacityLimiter(concurrency)
            await self._consumer.run(
                handle, concurrency=concurrency, order=order, retry=retry, dead_letter=dead_letter, stuck_after_s=stuck_after_s
            )

        self._give_back()
        self._open.call(run)

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        self._open.call(self._consumer.pause, topic, partition)
        unread = [record for record in self._held if (record.topic, record.partition) in self._consumer.paused]
        self._unread(unread)
        self._held = [record for record in self._held if (record.topic, record.partition) not in self._consumer.paused]

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        self._open.call(self._consumer.resume, topic, partition)

    @property
    def paused(self) -> tuple[tuple[str, int], ...]:
        return self._consumer.paused

    def tip(self, topic: str, partition: int) -> Tip:
        return self._open.call(self._consumer.tip, topic, partition)

    def tips(self) -> dict[Place, Tip]:
        return self._open.call(self._consumer.tips)

    def offsets_for_times(self, times: Mapping[Place, When] | When) -> dict[Place, int]:
        return self._open.call(self._consumer.offsets_for_times, times)

    def lag(self) -> dict[Place, Lag]:
        return self._open.call(self._consumer.lag_from, self.positions())

    def lag_from(self, positions: Mapping[Place, int]) -> dict[Place, Lag]:
        return self._open.call(self._consumer.lag_from, positions)

    def last(self, count: int, *, ends: Mapping[Place, int] | None = None) -> list[Record]:
        async def last() -> list[Record]:
            return await self._consumer.last(count, ends=ends)

        records = self._open.call(last)
        self._held = []
        return records

    def stable(self, topic: str, partition: int) -> Stable:
        return self._open.call(self._consumer.stable, topic, partition)

    def stables(self) -> dict[Place, Stable]:
        return self._open.call(self._consumer.stables)

    def ranges(self) -> dict[Place, tuple[int, int]]:
        return self._open.call(self._consumer.ranges)

    def check_transactional(self) -> None:
        self._give_back()
        self._open.call(self._consumer.check_transactional)

    def commit_in(self, transaction: Transaction) -> None:
        """What iteration has taken over and the application was not given yet is not committed."""
        self._give_back()
        self._open.call(self._consumer.commit_in, transaction)

    def on_transaction_ended(self, *, is_committed: bool) -> None:
        async def on_ended() -> None:
            self._consumer.on_transaction_ended(is_committed=is_committed)

        if not is_committed:
            self._held = []
        self._open.call(on_ended)

    @property
    def trouble(self) -> StreamqError | None:
        return self._consumer.trouble

    @property
    def stats(self) -> ConsumerStats:
        async def stats() -> ConsumerStats:
            return self._consumer.stats

        return self._consumer.stats if self._portal is None else self._portal.call(stats)

    def _give_back(self) -> None:
        self._unread(self._held)
        self._held = []

    def _unread(self, held: list[Record]) -> None:
        """The first of each partition, which is the last in the list, is the next to be handed out again."""
        for place, offset in {(record.topic, record.partition): record.offset for record in held}.items():
            self._open.call(self._consumer._unread, *place, offset, self._held_since.get(place))

    def _take_held(self, max_records: int) -> list[Record]:
        taken = self._held[-max_records:][::-1]
        del self._held[-max_records:]
        return taken

    def _call_fetch(self, max_records: int, timeout: float) -> list[Record]:
        async def fetch() -> list[Record]:
            records = await self._consumer.fetch(max_records, timeout=timeout)
            self._held_since = self._consumer._sinces
            return records

        return self._open.call(fetch)

    @property
    def _open(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("a consumer is used inside its block: with Consumer(...) as consumer")
        return self._portal


class BlockingSender(Protocol):
    """A `streamq_producer.sync.Producer`."""

    def send(self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Mapping[str, bytes] | None = None) -> object:
        """Returns when the record is acked."""


class DeadLetter(AsyncDeadLetter):
    """As `streamq_consumer.DeadLetter`, with a blocking producer, for `Consumer.run` of this module."""

    def __init__(self, producer: BlockingSender, topic: str) -> None:
        super().__init__(_InThread(producer), topic)


class _InThread:
    """A blocking producer, awaited."""

    def __init__(self, producer: BlockingSender) -> None:
        self._producer = producer

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> object:
        return await anyio.to_thread.run_sync(lambda: self._producer.send(topic, value, key=key, headers=headers))


class Decoded(Generic[T]):
    """Typed records as they come. After a DecodeError another loop goes on with the record behind it."""

    def __init__(self, records: Iterator[Record], codec: Codec[T]) -> None:
        self._records = records
        self._codec = codec

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TypedRecord[T]:
        return decode(next(self._records), self._codec)
