"""The producer that applications use. See `Producer`."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Literal, Self, TypedDict, TypeVar, Unpack

import anyio
import anyio.lowlevel

from streamq.client.cluster import Cluster
from streamq.client.codecs import Codec
from streamq.client.host import THIS_MACHINE, Host
from streamq.client.lifetime import Lifetime
from streamq.client.settings import Timeouts, refuse_unless
from streamq.model.errors import RefusedError
from streamq.model.limits import OFFSET_MAX
from streamq.wire.records import Row
from streamq_producer.delivery import BatchOutcome, Delivery, Receipt
from streamq_producer.dispatch import Dispatcher
from streamq_producer.lane import Lane
from streamq_producer.naming import open_producer
from streamq_producer.records import (
    RECORD_OVERHEAD_BYTES,
    check_values,
    checked_headers,
    checked_record,
    checked_timestamp,
    hash_of_id,
)
from streamq_producer.settings import BATCH_BYTES_LIMIT, ProducerSettings
from streamq_producer.stats import ProducerStats
from streamq_producer.topic import Topic
from streamq_producer.topics import Topics
from streamq_producer.transaction import Positions, Transaction, Transactions
from streamq_producer.typed import TypedTopic

__all__ = ["Producer", "ProducerOptions"]

FAILED_CLOSE_S: Final = 2.0
"""How long an exception that leaves the block is held up, at most, for what is under way."""

NAMELESS: Final = "only a named producer has positions: Producer(bootstrap, name=...)"

T = TypeVar("T")


class ProducerOptions(TypedDict, total=False):
    """The fields of `ProducerSettings`, which says what they mean."""

    linger_s: float
    batch_bytes: int
    buffer_bytes: int
    compression: Literal["zstd", "none"]
    level: int
    idempotent: bool
    in_flight: int
    delivery_timeout_s: float
    transactional: bool
    transaction_timeout_s: float
    close_timeout_s: float


class Producer:
    """Sends records to topics. Used with `async with`, under trio or asyncio; any number of tasks may use it at once.

    Entering the block reaches one broker of `bootstrap` ("host:port,host:port") or raises UnavailableError, within 10 s. Leaving it sends
    what is buffered and waits for outcomes, `close_timeout_s` at most, then raises the first failure that nobody asked for, unless
    another exception is on its way, which is held up for 2 s at most. When the block is cancelled nothing is waited for: what has no
    outcome by then is unknown, or not stored if it was never sent.

    A record is acked, certainly not stored, or of unknown outcome (UnknownOutcomeError, only after `delivery_timeout_s` or when the
    producer is closed with the record under way). An idempotent producer, the default, sends again what is in doubt until one of the
    first two is certain, and its records are stored at most once, in the order sent to each partition. That order continues over a batch
    that was given up: what follows is sent under a higher producer epoch, and what was sent behind it and is in doubt itself is unknown
    too.

    With a `name` it is the one producer of that name (P-33): entering the block ends the power of the one before to store anything in a
    partition, from the first use of that partition on. Records then go to a `partition`, or by `key`, and may carry a `position`, that of
    the record in whatever is read: `position()` tells after a restart how far that was stored. What is stored of a partition's positions
    is always a prefix, so after a failure nothing more goes to that partition until the producer is opened again.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        name: str | None = None,
        timeouts: Timeouts | None = None,
        host: Host = THIS_MACHINE,
        **options: Unpack[ProducerOptions],
    ) -> None:
        """Raises RefusedError for addresses or options that make no sense. `host` is where it runs: only a simulation brings another."""
        self.settings: Final = ProducerSettings(**options)
        refuse_unless(name != "", "a producer's name is not empty", code="bad_name")
        refuse_unless(name is None or self.settings.idempotent, "a named producer is idempotent", code="bad_request")
        is_named = name is not None or not self.settings.transactional
        refuse_unless(is_named, "a transactional producer has a name: Producer(..., name=..., transactional=True)", code="bad_request")
        self.name: Final = name
        self._transactions: Transactions | None = None
        self._dispatcher = Dispatcher()
        self._host = host
        self._now_ms = host.now_ms
        self._cluster = Cluster(bootstrap, timeouts=timeouts, listener=self._dispatcher, host=host)
        self._lifetime = Lifetime()
        self._topics = Topics(self._cluster, self._dispatcher, host, self.settings, name)
        self._known = self._topics.known
        self._batch_bytes = self.settings.batch_bytes
        self._buffer_bytes = self.settings.buffer_bytes
        self._turn_due = False
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._cluster.__aenter__()
        try:
            if self.name is not None:
                await self._open_named(self.name)
        except BaseException as error:
            await self._cluster.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._lifetime.open()
        self._dispatcher.on_topic_gone = self._topics.forget
        self._dispatcher.start(self._cluster, self._lifetime)
        self._is_open = True
        return self

    async def _open_named(self, name: str) -> None:
        settings = self.settings
        transaction_ms = round(settings.transaction_timeout_s * 1000) if settings.transactional else 0
        identity = await open_producer(self._cluster, name, attempt=self._host.token(), transaction_ms=transaction_ms)
        self._topics.identity = identity
        if settings.transactional:
            timeout_s = settings.delivery_timeout_s
            self._transactions = Transactions(self._cluster, self._dispatcher, name, identity, timeout_s=timeout_s)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None:
                await self._drain(self.settings.close_timeout_s)
            elif isinstance(error, Exception):
                await self._drain(min(self.settings.close_timeout_s, FAILED_CLOSE_S))
        finally:
            self._is_open = False
            self._known.clear()
            self._dispatcher.stop()
            try:
                await self._lifetime.close(error, traceback)
            finally:
                await self._cluster.__aexit__(kind, error, traceback)
        unasked = self._dispatcher.take_unasked()
        if unasked is not None and error is None:
            raise unasked

    @property
    def stats(self) -> ProducerStats:
        return self._dispatcher.stats

    async def send(
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
        """Stores one record and returns when W replicas have it; `enqueue` says what the arguments mean, `Delivery.receipt` what is raised.

        Cancelled while it waits for room or for metadata, it has not sent the record; later, the record is on its way and its outcome is
        lost to the caller: to know it, `enqueue` and keep the delivery.
        """
        if self._turn_due or self._dispatcher.buffered_bytes >= self._buffer_bytes:
            await self._take_turn()
        known = self._known.get(topic) or await self._open_topic(topic)
        if id is not None:
            return await self._put_identified(known, id, value, key, headers, timestamp, partition, position).receipt()
        if self.name is not None:
            await self._open_lane(known.named_lane(key, partition))
        lane, delivery = self._put(known, value, key, headers, timestamp, partition, position)
        if lane.may_close and not lane.is_shared:
            self._dispatcher.seal(lane)
        elif len(lane.rows) == 1:
            self._dispatcher.will_close(lane)
        return await delivery.receipt()

    async def enqueue(
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
        """Takes the record and returns what becomes of it; waits for room only, and lets other tasks run once a batch.

        Records with equal keys go to one partition (`partition_of`), those without to one after the other, a batch each; `partition`
        overrules both. `timestamp` is in milliseconds since 1970, now if not given. Raises NotFoundError for an unknown topic or
        partition, RefusedError for a record over the limit, UnavailableError when the topic could not be looked up. Cancelled, it has not
        taken the record.

        A named producer's record goes by `key` or `partition`; its `position` must be above the one before in its partition. Where the
        producer was not yet, the opening of the partition is waited for. Raises FencedError when another of the name was opened, and
        UnavailableError when something before it failed.

        Of records with equal `id` in one partition, within the topic's window (`dedup_ms`, 10 minutes if nobody has said otherwise), the
        first is stored, and the receipt of every other one says where that is. Without key and partition a record goes by its id. It is a
        batch of its own, sent at once, and has no certain place among the others of its producer.
        """
        if self._turn_due or self._dispatcher.buffered_bytes >= self._buffer_bytes:
            await self._take_turn()
        known = self._known.get(topic)
        if known is None:
            known = await self._open_topic(topic)
        if id is not None:
            return self._put_identified(known, id, value, key, headers, timestamp, partition, position)
        if self.name is not None:
            await self._open_lane(known.named_lane(key, partition))
        elif value.__class__ is bytes and key is None and partition is None and timestamp is None and not headers and position is None:
            # Nearly every record of a flood: it joins the open batch and does not fill it. The rest below does the same in more steps.
            lane = known.current
            rows = lane.rows
            size = len(value) + RECORD_OVERHEAD_BYTES
            raw_bytes = lane.raw_bytes + size
            if rows and raw_bytes < self._batch_bytes:
                lane.raw_bytes = raw_bytes
                self._dispatcher.buffered_bytes += size
                at = self._now_ms()
                if at > lane.max_timestamp:
                    lane.max_timestamp = at
                rows.append((at - lane.first_timestamp or None, None, value, None))
                return Delivery(lane.outcome, len(rows) - 1)
        lane, delivery = self._put(known, value, key, headers, timestamp, partition, position)
        if len(lane.rows) == 1:
            self._dispatcher.will_close(lane)
        return delivery

    async def enqueue_many(
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
        """The fast path: takes all values, with the same headers and timestamp, and returns a delivery for each batch that they went into.

        `keys` gives each value its key, `positions` its position; these rise. `Delivery.indexes` tells which of the values a delivery
        stands for; together they stand for all.
        Nothing is taken if any record is refused. Cancelled, it has taken as many as went before, and these are sent.
        """
        values = list(values)
        known = self._known.get(topic) or await self._open_topic(topic)
        own_headers, headers_bytes = checked_headers(headers) if headers else (None, 0)
        check_values(values, keys, headers_bytes)
        if self.name is not None:
            for lane in known.named_lanes(keys, partition):
                await self._open_lane(lane)
        if positions is not None:
            self._check_positioned()
            refuse_unless(len(positions) == len(values), f"{len(positions)} positions for {len(values)} values", code="bad_request")
            known.check_positions(positions, keys, partition)
        at = self._host.now_ms() if timestamp is None else checked_timestamp(timestamp)
        extra = headers_bytes + RECORD_OVERHEAD_BYTES
        if keys is None:
            return await self._enqueue_runs(known, values, own_headers, extra, at, partition, positions)
        runs: dict[BatchOutcome, _Run] = {}
        all_runs: list[_Run] = []
        for index, (value, key) in enumerate(zip(values, keys, strict=True)):
            if self._turn_due or self._dispatcher.buffered_bytes >= self._buffer_bytes:
                await self._take_turn()
            lane = known.lane_of(key, partition)
            delta = self._make_room(lane, len(value) + extra + (len(key) if key else 0), at)
            if not lane.rows:
                self._dispatcher.will_close(lane)
            run = runs.get(lane.outcome)
            if run is None or run.end != len(lane.rows):  # another task has put records between
                run = runs[lane.outcome] = _Run(lane.outcome, len(lane.rows))
                all_runs.append(run)
            run.indexes.append(index)
            lane.rows.append((delta, key, value, own_headers))
            if positions is not None:
                lane.mark = lane.position = positions[index]
            if lane.raw_bytes >= self._batch_bytes:
                self._roll(lane)
        return [Delivery(run.batch, run.first, len(run.indexes), run.indexes) for run in all_runs]

    async def append(
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
        """Stores all values, as one batch, on a condition, or nothing. For applications that have one writer, and must notice when there
        are two. At least one condition is given:

        - `expected_offset` is the partition's next offset: who reads up to an offset and appends there has read all that is before it.
          Else AlreadyExistsError (`precondition_failed`: something else is there, or the partition does not go so far).
        - No append with a higher `fencing_token` is stored: whoever gets the right to write from elsewhere (a lock, a lease) gets a higher
          number with it. Else FencedError (`fenced`). What is sent without a token is not checked.

        Either means: certainly not stored. Returns when W replicas have it, and raises what `Delivery.receipt` raises. A retry after a
        broken connection finds its own batch. Cancelled, it is as `send`: the outcome is lost to the caller.
        """
        refuse_unless(self.name is None, "a named producer does not append by offset or token: its positions do that", code="bad_request")
        refuse_unless(self.settings.idempotent, "only an idempotent producer appends so: retries must be known", code="bad_request")
        given = [number for number in (expected_offset, fencing_token) if number is not None]
        refuse_unless(bool(given), "append takes an expected_offset, a fencing_token, or both", code="bad_request")
        refuse_unless(
            all(0 <= n <= OFFSET_MAX for n in given), f"offsets and tokens are 0 to {OFFSET_MAX}, not {given}", code="bad_request"
        )
        values = list(values)
        own_headers, headers_bytes = checked_headers(headers) if headers else (None, 0)
        check_values(values, keys, headers_bytes)
        keyed = list(zip(values, keys if keys is not None else [None] * len(values), strict=True))
        extra = headers_bytes + RECORD_OVERHEAD_BYTES
        raw_bytes = sum(len(value) + (len(key) if key else 0) + extra for value, key in keyed)
        refuse_unless(raw_bytes <= BATCH_BYTES_LIMIT, f"{raw_bytes} bytes are too many for one batch", code="record_too_large")
        await self._take_turn()
        known = self._known.get(topic) or await self._open_topic(topic)
        lane = known.lane_of(None, partition)
        rows: list[Row] = [(None, key, value, own_headers) for value, key in keyed]
        outcome = self._dispatcher.append(
            lane, rows, raw_bytes, self._host.now_ms(), expected_offset=expected_offset, fencing_token=fencing_token
        )
        return await Delivery(outcome, 0, len(rows)).receipt()

    def transaction(self, positions: Positions | None = None) -> Transaction:
        """What this producer sends in the block, to any topics, is read as a whole or not at all:
        `async with producer.transaction(): ...`. For a named producer with `transactional=True`, one transaction at a time.

        Leaving the block waits for all acks and commits; consumers are handed nothing of it before. An exception in the block aborts it
        (as `abort()` of what the block is entered with does without one), and is raised on. With a consumer, a member of a group that
        has `auto_commit=False`, the positions of what it has handed out since its last transaction are committed with it, or not; when
        it is aborted these records are handed out again.

        Entering raises UnavailableError or UnknownOutcomeError if the outcome of the one before cannot be learned. Leaving raises, with
        nothing committed: what a record failed with; TransactionAbortedError when it has become too old; GroupLostError when the
        consumer has lost a partition whose records it had handed out; FencedError when another producer of the name was opened. It
        raises UnknownOutcomeError if no majority of brokers answers for `delivery_timeout_s`: it may be committed then, and opening
        producer and consumer anew goes on behind it or before it, whichever is right. Cancelled, it is aborted, unless its commit was
        under way.
        """
        if self._transactions is None:
            self._check_open()
            hint = "Producer(bootstrap, name=..., transactional=True)"
            raise RefusedError("this producer has no transactions", code="bad_request", hint=hint)
        return Transaction(self._transactions, positions)

    def topic(self, name: str, codec: Codec[T]) -> TypedTopic[T]:
        """The topic with objects for values: `producer.topic("orders", Structs(Order))` sends what the codec makes of an Order."""
        return TypedTopic(self, name, codec)

    async def flush(self) -> None:
        """Sends what is buffered and waits until everything taken so far has an outcome. Raises the first failure that nobody asked for.

        Cancelled, it changes nothing: what was sent goes on.
        """
        self._dispatcher.seal_all()
        for outcome in list(self._dispatcher.unsettled):
            await outcome.wait()
        error = self._dispatcher.take_unasked()
        if error is not None:
            raise error

    async def position(self, topic: str, partition: int) -> int:
        """How far the positions given to producers of this name are stored in this partition: the last one, 0 when there is none.

        Of the records that go there, those at or below it are stored, and those above are not, unless this very producer has sent them.
        Raises as `enqueue`, and RefusedError for a producer without a name.
        """
        refuse_unless(self.name is not None, NAMELESS, code="bad_request")
        lane = (self._known.get(topic) or await self._open_topic(topic)).lane_of(None, partition)
        await self._open_lane(lane)
        return lane.session.mark

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has. Raises NotFoundError, or UnavailableError."""
        return len((self._known.get(topic) or await self._open_topic(topic)).lanes)

    async def _open_lane(self, lane: Lane) -> None:
        """Until a named producer's opening is acked here. Raises what it, or anything after it, failed with."""
        if lane.opened is None:
            self._check_open()
            self._dispatcher.open_named(lane, self._host.now_ms())
        assert lane.opened is not None
        if not lane.opened.is_settled:
            await lane.opened.wait()
        failure = lane.opened.error or lane.session.failure
        if failure is not None:
            raise failure.with_traceback(None)

    async def _enqueue_runs(
        self,
        known: Topic,
        values: list[bytes],
        headers: dict[str, bytes] | None,
        extra: int,
        at: int,
        partition: int | None,
        positions: Sequence[int] | None,
    ) -> list[Delivery]:
        """Values without keys: as many as fit go into one batch, in one go."""
        deliveries: list[Delivery] = []
        start, total = 0, len(values)
        while start < total:
            if self._turn_due or self._dispatcher.buffered_bytes >= self._buffer_bytes:
                await self._take_turn()
            lane = known.lane_of(None, partition)
            delta = self._make_room(lane, len(values[start]) + extra, at)
            if not lane.rows:
                self._dispatcher.will_close(lane)
            end, size, room = start + 1, 0, self._batch_bytes - lane.raw_bytes
            while end < total and size < room:
                size += len(values[end]) + extra
                end += 1
            if size > room and end > start + 1:
                end -= 1
                size -= len(values[end]) + extra
            first = len(lane.rows)
            lane.rows += [(delta, None, value, headers) for value in values[start:end]]
            lane.raw_bytes += size
            if positions is not None:
                lane.mark = lane.position = positions[end - 1]
            self._dispatcher.buffered_bytes += size
            deliveries.append(Delivery(lane.outcome, first, end - start, range(start, end)))
            if end < total or lane.raw_bytes >= self._batch_bytes:
                self._roll(lane)
            start = end
        return deliveries

    def _put(
        self,
        known: Topic,
        value: bytes | None,
        key: bytes | None,
        headers: Mapping[str, bytes] | None,
        timestamp: int | None,
        partition: int | None,
        position: int | None,
    ) -> tuple[Lane, Delivery]:
        """Whoever calls it sees to it that the batch is closed, if the record is its first."""
        key, value, own_headers, size = checked_record(value, key, headers)
        lane = known.next_lane() if key is None and partition is None else known.lane_of(key, partition)
        at = self._host.now_ms() if timestamp is None else checked_timestamp(timestamp)
        if position is not None:
            self._check_positioned()
            lane.check_position(position)
        delta = self._make_room(lane, size, at)
        delivery = Delivery(lane.outcome, len(lane.rows))
        lane.rows.append((delta, key, value, own_headers))
        if position is not None:
            lane.mark = lane.position = position
        if lane.raw_bytes >= self._batch_bytes:
            self._roll(lane)
        return lane, delivery

    def _check_positioned(self) -> None:
        refuse_unless(self.name is not None, NAMELESS, code="bad_request")
        refuse_unless(not self._dispatcher.transaction, "a record of a transaction has no position", code="bad_request")

    def _put_identified(
        self,
        known: Topic,
        id: bytes,
        value: bytes | None,
        key: bytes | None,
        headers: Mapping[str, bytes] | None,
        timestamp: int | None,
        partition: int | None,
        position: int | None,
    ) -> Delivery:
        refuse_unless(self.name is None and position is None, "a named producer's records have no ids, but positions", code="bad_request")
        hashed = hash_of_id(id)
        key, value, own_headers, size = checked_record(value, key, headers)
        at = self._host.now_ms() if timestamp is None else checked_timestamp(timestamp)
        lane = known.lane_of(id if key is None else key, partition)
        row = (None, key, value, own_headers)
        return Delivery(self._dispatcher.send_identified(self._topics.identified(lane), row, size, at, hashed=hashed), 0)

    def _make_room(self, lane: Lane, size: int, at: int) -> int | None:
        """Opens a batch if the record needs one, counts the record, and returns its time as the batch stores it."""
        if lane.rows and lane.raw_bytes + size > self._batch_bytes:
            self._roll(lane)
        lane.raw_bytes += size
        self._dispatcher.buffered_bytes += size
        if not lane.rows:
            lane.begin(at, anyio.current_time())
            self._dispatcher.opened(lane)
            return None
        if at > lane.max_timestamp:
            lane.max_timestamp = at
        return at - lane.first_timestamp or None

    def _roll(self, lane: Lane) -> None:
        self._dispatcher.seal(lane)
        self._turn_due = True

    async def _take_turn(self) -> None:
        self._turn_due = False
        self._check_open()
        await anyio.lowlevel.checkpoint()
        await self._dispatcher.wait_for_room(self._buffer_bytes)
        self._check_open()

    async def _open_topic(self, name: str) -> Topic:
        self._check_open()
        known = await self._topics.open(name)
        self._check_open()
        return known

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("a producer is used inside its block: async with Producer(...) as producer")

    async def _drain(self, timeout_s: float) -> None:
        self._dispatcher.seal_all()
        with anyio.move_on_after(timeout_s):
            for outcome in list(self._dispatcher.unsettled):
                await outcome.wait()


class _Run:
    """Values of one call that follow each other in one batch."""

    __slots__ = ("batch", "first", "indexes")

    def __init__(self, batch: BatchOutcome, first: int) -> None:
        self.batch = batch
        self.first = first
        self.indexes: list[int] = []

    @property
    def end(self) -> int:
        return self.first + len(self.indexes)
