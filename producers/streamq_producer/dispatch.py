"""The shell around the sessions: carries out what they decide, and tells them what happened.

Everything here is done in plain functions, called by whoever has news: the application that closes a batch, the connection that got an
answer, the clock. One task waits for deadlines and for batches that nobody closed. Batches for one broker that come together go in one
frame.
"""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

import anyio

from streamq.client.cluster import Cluster
from streamq.client.connection import Connection
from streamq.client.lifetime import Lifetime
from streamq.client.timers import Timers
from streamq.model.batches import Batch
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq.model.limits import FRAME_PAYLOAD_BYTES_MAX, MiB
from streamq.model.messages import MetadataView, Produce, Produced
from streamq.model.transactions import NO_TRANSACTION
from streamq.wire.framing import Frame
from streamq.wire.records import Row
from streamq_producer.delivery import BatchOutcome
from streamq_producer.effects import Acked, Effect, Entry, Failed, Locate, Open, Transmit
from streamq_producer.lane import Lane, SealedBatch
from streamq_producer.stats import ProducerMetrics, ProducerStats

__all__ = ["Dispatcher"]

FRAME_BYTES: Final = 1 * MiB
"""Batches are gathered into a frame up to this; a larger batch has one of its own."""
UNASKED_MAX: Final = 1_000
"""Failures kept for `flush` that nobody asked for; of more, the number is kept."""
assert 2 * FRAME_BYTES < FRAME_PAYLOAD_BYTES_MAX


class Dispatcher:
    """Invariants: `buffered_bytes` is what open batches and batches without an outcome hold; a ticket is in `_awaited` of the connection
    that it was sent over until it is answered or the connection ends; after each call from outside `_outgoing` is empty.
    """

    def __init__(self) -> None:
        self.buffered_bytes = 0
        self.room_at = 0
        self.tickets = count(1)
        self.unsettled: dict[BatchOutcome, int] = {}
        self.transaction = NO_TRANSACTION
        """The number of the one that batches closed now belong to."""
        self.transaction_failure: StreamqError | None = None
        """What a batch of the last one failed with first."""
        self._last_transaction = NO_TRANSACTION
        self.lanes: list[Lane] = []
        self.on_topic_gone: Callable[[str], None] = lambda topic: None
        self._cluster: Cluster | None = None
        self._lifetime = Lifetime()
        self._ready: list[Lane] = []
        self._timers: Timers[Lane]
        self._room: anyio.Event
        self._awaited: dict[Connection, dict[int, Lane]] = {}
        self._outgoing: dict[Connection, list[tuple[int, Batch]]] = {}
        self._reaching: dict[str, list[Lane]] = {}
        self._locating: set[str] = set()
        self._unasked: list[BatchOutcome] = []
        self._unasked_more = 0
        self._metrics = ProducerMetrics()
        self._acked = self._refused = self._unknown = 0
        self._gap_from = 0.0
        self._longest_gap_s = 0.0

    def start(self, cluster: Cluster, lifetime: Lifetime) -> None:
        self._cluster, self._lifetime = cluster, lifetime
        self._timers, self._room = Timers(), anyio.Event()
        lifetime.start(lambda: self._timers.run(self._on_time, turn=self._turn))

    def stop(self) -> None:
        """Settles what has no outcome; nothing is sent any more."""
        self._cluster = None
        for lane in self.lanes:
            if lane.rows:
                self._close_batch(lane)
            self._carry_out(lane, lane.session.give_up())
        self._outgoing.clear()
        self._awaited.clear()

    @property
    def stats(self) -> ProducerStats:
        waiting = sum(self.unsettled.values()) + sum(len(lane.rows) for lane in self.lanes)
        retries = sum(lane.session.retries for lane in self.lanes)
        metrics = self._metrics
        return ProducerStats(
            acked=self._acked,
            refused=self._refused,
            unknown=self._unknown,
            waiting=waiting,
            retries=retries,
            longest_gap_s=self._longest_gap_s,
            batches=metrics.batches,
            in_flight=sum(map(len, list(self._awaited.values()))),
            frames=metrics.frames,
            raw_bytes=metrics.raw_bytes,
            payload_bytes=metrics.payload_bytes,
            ack_seconds=metrics.ack_seconds.snapshot(),
        )

    # --- called by the producer ----------------------------------------------------------------------------------------------

    def opened(self, lane: Lane) -> None:
        """The lane has an open batch now, which the caller closes, or has closed with `will_close`."""
        if not self.unsettled:
            self._gap_from = anyio.current_time()
        self.unsettled[lane.outcome] = 0

    def open_named(self, lane: Lane, timestamp: int) -> None:
        """Sends the opening of a named producer; `lane.opened` tells what becomes of it."""
        self._add(lane, lane.opening(timestamp, anyio.current_time()))

    def append(
        self, lane: Lane, rows: list[Row], raw_bytes: int, timestamp: int, *, expected_offset: int | None, fencing_token: int | None
    ) -> BatchOutcome:
        """Sends these as one batch, behind what the lane has taken before, to be stored on these conditions."""
        if lane.rows:
            self._close_batch(lane)
        self.buffered_bytes += raw_bytes
        now = anyio.current_time()
        entry = lane.append(rows, raw_bytes, timestamp, now, expected_offset=expected_offset, fencing_token=fencing_token)
        self._add(lane, entry)
        return _batch(entry).outcome

    def send_identified(self, lane: Lane, row: Row, size: int, timestamp: int, *, hashed: bytes) -> BatchOutcome:
        """Sends a record that has an id, in the lane for these."""
        self.buffered_bytes += size
        entry = lane.identified(row, size, timestamp, anyio.current_time(), hashed=hashed)
        self._metrics.closed(_batch(entry).header)
        self._add(lane, entry)
        return _batch(entry).outcome

    def _add(self, lane: Lane, entry: Entry) -> None:
        now = anyio.current_time()
        sealed = _batch(entry)
        sealed.closed_at = now
        if not self.unsettled:
            self._gap_from = now
        self.unsettled[sealed.outcome] = entry.records
        self._carry_out(lane, lane.session.add(entry, now))
        self._flush()

    def will_close(self, lane: Lane) -> None:
        """The lane's open batch is closed at the next turn of the event loop if nothing is under way, else when it lingered."""
        if lane.session.is_idle:
            self._ready.append(lane)
            self._timers.wake()
        else:
            self._timers.schedule(lane)

    def seal(self, lane: Lane) -> None:
        """Closes the lane's open batch and sends it, or queues it behind those under way."""
        self._close_batch(lane)
        self._flush()

    def begin_transaction(self, number: int) -> None:
        """What is taken from now on belongs to it, what was taken before does not."""
        self.seal_all()
        self.transaction = self._last_transaction = number
        self.transaction_failure = None

    def end_transaction(self) -> None:
        self.seal_all()
        self.transaction = NO_TRANSACTION

    def seal_all(self) -> None:
        for lane in self.lanes:
            if lane.rows:
                self._close_batch(lane)
        self._flush()

    async def wait_for_room(self, limit: int) -> None:
        """Waits until less than `limit` is buffered; meanwhile no batch stays open, since nothing would fill it."""
        self.room_at = limit
        while self.buffered_bytes >= limit:
            self.seal_all()
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()

    def take_unasked(self) -> StreamqError | None:
        """The first failure that nobody asked for since the last call."""
        failed = [outcome for outcome in self._unasked if not outcome.was_asked]
        more = len(failed) - 1 + self._unasked_more
        self._unasked, self._unasked_more = [], 0
        if not failed:
            return None
        error = failed[0].error
        assert error is not None
        if more:
            error.add_note(f"and {more} more batches failed that nobody asked about")
        return error

    # --- called by connections -----------------------------------------------------------------------------------------------

    def on_message(self, connection: Connection, frame: Frame) -> None:
        produced = frame.message
        awaited = self._awaited.get(connection)
        if not isinstance(produced, Produced) or awaited is None:
            return
        now = anyio.current_time()
        for ack in produced.acks:
            lane = awaited.pop(ack.ticket, None)
            if lane is not None:
                self._carry_out(lane, lane.session.on_ack(ack, now))
                if lane.may_close:
                    self.will_close(lane)  # with what those send who were waiting for this ack
        for nack in produced.nacks:
            lane = awaited.pop(nack.ticket, None)
            if lane is not None:
                self._carry_out(lane, lane.session.on_nack(nack, now))
        connection.tickets = len(awaited)
        self._flush()

    def on_lost(self, connection: Connection, error: StreamqError) -> None:
        if self._cluster is None:
            return
        self._awaited.pop(connection, None)
        self._outgoing.pop(connection, None)
        now = anyio.current_time()
        for lane in self.lanes:
            self._carry_out(lane, lane.session.on_lost(connection.broker, error, now))
        self._flush()

    # --- the clock -----------------------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        ready, self._ready = self._ready, []
        for lane in ready:
            if lane.may_close:
                self._close_batch(lane)
            elif lane.rows:
                self._timers.schedule(lane)
        self._flush()

    def _on_time(self, lane: Lane, now: float) -> None:
        if lane.linger_until <= now:
            self._close_batch(lane)
        if lane.session.next_deadline <= now:
            self._carry_out(lane, lane.session.on_time(now))

    # --- what sessions decide ------------------------------------------------------------------------------------------------

    def _close_batch(self, lane: Lane) -> None:
        now = anyio.current_time()
        entry = lane.seal(self.transaction)
        sealed = _batch(entry)
        sealed.closed_at = now
        self._metrics.closed(sealed.header)
        self.unsettled[lane.outcome] = entry.records
        self._carry_out(lane, lane.session.add(entry, now))

    def _carry_out(self, lane: Lane, effects: Iterable[Effect]) -> None:
        todo = deque(effects)
        while todo:
            effect = todo.popleft()
            if isinstance(effect, Acked):
                self._on_acked(effect)
            elif isinstance(effect, Failed):
                self._on_failed(effect)
            elif self._cluster is None:
                continue
            elif isinstance(effect, Transmit):
                todo.extend(self._transmit(lane, effect, self._cluster))
            elif isinstance(effect, Open):
                todo.extend(self._open(lane, effect.broker, self._cluster))
            elif isinstance(effect, Locate) and lane.topic not in self._locating:
                self._locating.add(lane.topic)
                self._lifetime.start(self._locate, lane.topic, self._cluster)
        self._timers.schedule(lane)

    def _transmit(self, lane: Lane, effect: Transmit, cluster: Cluster) -> Iterable[Effect]:
        connection = cluster.open_connection(effect.broker)
        if connection is None:
            error = UnavailableError(f"the connection to {effect.broker} is lost", code="unavailable")
            return lane.session.on_lost(effect.broker, error, anyio.current_time())
        awaited = self._awaited.setdefault(connection, {})
        outgoing = self._outgoing.setdefault(connection, [])
        for entry in effect.entries:
            assert entry.sequence is not None
            ticket = entry.tickets[-1]
            awaited[ticket] = lane
            outgoing.append((ticket, _batch(entry).numbered(lane.session.producer, lane.session.producer_epoch, entry.sequence)))
        return ()

    def _open(self, lane: Lane, broker: str, cluster: Cluster) -> Iterable[Effect]:
        if cluster.open_connection(broker) is not None:
            return lane.session.on_opened(broker, anyio.current_time())
        waiting = self._reaching.get(broker)
        if waiting is None:
            self._reaching[broker] = [lane]
            self._lifetime.start(self._reach, broker, cluster)
        elif lane not in waiting:
            waiting.append(lane)
        return ()

    async def _reach(self, broker: str, cluster: Cluster) -> None:
        error: StreamqError | None = None
        try:
            await cluster.connection(broker)
        except StreamqError as failed:
            error = failed
        now = anyio.current_time()
        for lane in self._reaching.pop(broker):
            session = lane.session
            self._carry_out(lane, session.on_opened(broker, now) if error is None else session.on_lost(broker, error, now))
        self._flush()

    async def _locate(self, topic: str, cluster: Cluster) -> None:
        view: MetadataView | None = None
        try:
            view = await cluster.metadata([topic])
        except StreamqError:
            pass  # the sessions go on trying, and ask again
        finally:
            self._locating.discard(topic)
        found = next((t for t in view.topics if t.name == topic), None) if view is not None else None
        if found is None:
            return
        now = anyio.current_time()
        gone = NotFoundError(f"topic {topic!r} does not exist any more", code="unknown_topic")
        for lane in [lane for lane in self.lanes if lane.topic == topic]:
            fresh = found.partitions[lane.index] if not found.error and lane.index < len(found.partitions) else None
            if fresh is not None and fresh.id == lane.view.id:
                self._carry_out(lane, lane.session.on_view(fresh.replicas, fresh.sequencer, now))
                continue
            if lane.rows:
                self._close_batch(lane)
            effects = lane.session.on_gone(gone)
            self._carry_out(lane, effects)
            if effects:
                self.lanes.remove(lane)
                self.on_topic_gone(topic)
        self._flush()

    def _flush(self) -> None:
        """Sends what was gathered, in frames of about FRAME_BYTES."""
        while self._outgoing:
            connection, batches = self._outgoing.popitem()
            connection.tickets = len(self._awaited[connection])
            for group in _grouped(batches):
                payload = [part for _, batch in group for part in (batch.head, batch.payload)]
                if connection.is_open:
                    self._metrics.frames += 1
                    connection.send(Produce(tuple(ticket for ticket, _ in group)), payload=payload)

    # --- outcomes ------------------------------------------------------------------------------------------------------------

    def _on_acked(self, effect: Acked) -> None:
        now = anyio.current_time()
        self._longest_gap_s = max(self._longest_gap_s, now - self._gap_from)
        self._gap_from = now
        self._acked += effect.entry.records
        sealed = _batch(effect.entry)
        self._metrics.acked(now - sealed.closed_at)
        self._settled(sealed)
        sealed.outcome.settle(ack=effect.ack)

    def _on_failed(self, effect: Failed) -> None:
        if isinstance(effect.error, UnknownOutcomeError):
            self._unknown += effect.entry.records
        else:
            self._refused += effect.entry.records
        sealed = _batch(effect.entry)
        self._settled(sealed)
        sealed.outcome.settle(error=effect.error)
        if sealed.header.is_transactional:
            # Whoever ends the transaction asks: nothing else of it counts.
            if sealed.header.mark == self._last_transaction and self.transaction_failure is None:
                self.transaction_failure = effect.error
            return
        if sealed.outcome.was_asked:
            return
        if len(self._unasked) < UNASKED_MAX:
            self._unasked.append(sealed.outcome)
        else:
            self._unasked_more += 1

    def _settled(self, sealed: SealedBatch) -> None:
        self.unsettled.pop(sealed.outcome, None)
        self._release(sealed.buffered_bytes)

    def _release(self, size: int) -> None:
        self.buffered_bytes -= size
        if self.buffered_bytes < self.room_at and not self._room.is_set():
            self._room.set()


def _batch(entry: Entry) -> SealedBatch:
    assert isinstance(entry.token, SealedBatch)
    return entry.token


def _grouped(batches: list[tuple[int, Batch]]) -> Iterable[list[tuple[int, Batch]]]:
    group: list[tuple[int, Batch]] = []
    size = 0
    for ticket, batch in batches:
        if group and size + batch.size > FRAME_BYTES:
            yield group
            group, size = [], 0
        group.append((ticket, batch))
        size += batch.size
    if group:
        yield group
