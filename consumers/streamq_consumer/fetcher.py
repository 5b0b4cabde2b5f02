"""The shell around the sessions: carries out what they decide, tells them what happened, and keeps the line of feeds with something to
hand out.

As on the producer's side all of it happens in plain functions, called by the connection that got a frame, by the application that took a
batch, and by the clock. Batches are unpacked one at a time, when the application gets to them; until then they stay compressed.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

import anyio

from streamq.client.cluster import Cluster
from streamq.client.lifetime import Lifetime
from streamq.client.timers import Timers
from streamq.model.batches import Batch, BatchHeader
from streamq.model.errors import CorruptDataError, NotFoundError, StreamqError, UnavailableError
from streamq.model.messages import Credit, MetadataView, ReadTip, Records, TipRead
from streamq.wire.batch_format import BadBatchError, split_batches
from streamq.wire.framing import Frame
from streamq_consumer import session as decided
from streamq_consumer.feed import Feed
from streamq_consumer.outcomes import Outcomes
from streamq_consumer.records import Record, records_of
from streamq_consumer.settings import Isolation
from streamq_consumer.stats import ConsumerMetrics

__all__ = ["Fetcher"]

ASKED_AT_ONCE_MAX: Final = 16
"""Questions about tips under way together; more wait their turn."""


class Fetcher:
    """Invariant: a feed is in `_line` exactly when it `is_listed`, which it is while it has batches, the first of which may be looked at,
    and is not paused."""

    def __init__(self, cluster: Cluster, lifetime: Lifetime, metrics: ConsumerMetrics, *, isolation: Isolation) -> None:
        self.feeds: list[Feed] = []
        self._cluster = cluster
        self._lifetime = lifetime
        self._metrics = metrics
        self._line: deque[Feed] = deque()
        self._failed: list[Feed] = []
        self._news = anyio.Event()
        self._timers: Timers[Feed] = Timers()
        self._locating: set[str] = set()
        self._asking = anyio.Semaphore(ASKED_AT_ONCE_MAX)
        self._outcomes = Outcomes(cluster, lifetime, self._on_decided) if isolation == "read_committed" else None
        self._is_closed = False
        self._handed_out: Feed | None = None
        """Whose batch the application was given last, until it comes for more."""
        lifetime.start(lambda: self._timers.run(self._on_time, turn=lambda now: None))

    def add(self, feed: Feed) -> None:
        self.feeds.append(feed)
        self._carry_out(feed, feed.session.start(anyio.current_time()))

    def remove(self, feed: Feed) -> None:
        """Nothing of it is handed out any more."""
        feed.drop()
        feed.error = None
        self.feeds.remove(feed)
        self._failed = [other for other in self._failed if other is not feed]
        if self._handed_out is feed:
            self._handed_out = None
        if feed.is_listed:
            feed.is_listed = False
            self._line.remove(feed)
        self._carry_out(feed, feed.session.close())

    def pause(self, feed: Feed) -> None:
        """Nothing of it is handed out until `resume`; what it has buffered stays, and its broker sends no more than its credit."""
        feed.is_paused = True
        if feed.is_listed:
            feed.is_listed = False
            self._line.remove(feed)

    def resume(self, feed: Feed) -> None:
        feed.is_paused = False
        self._list(feed)
        self._news.set()

    def wake(self) -> None:
        """Has whoever waits for news look again."""
        self._news.set()

    def close(self) -> None:
        self._is_closed = True
        for feed in self.feeds:
            feed.leave()

    # --- called by the application -------------------------------------------------------------------------------------------

    @property
    def buffered_records(self) -> int:
        return sum(batch.header.records - skip for feed in self._line for batch, skip in feed.batches)

    @property
    def is_full(self) -> bool:
        """Every partition that has something buffered has used its credit up: waiting brings nothing more."""
        return bool(self._line) and all(feed.next_deadline == float("inf") for feed in self._line)

    async def wait_for_news(self) -> None:
        """Until something arrives, or fails for good."""
        self._finish()
        if self._news.is_set():
            self._news = anyio.Event()
        await self._news.wait()

    def take(self) -> tuple[Feed, list[Record]] | None:
        """The records of the next batch of the next feed in line; None if nothing is there. Raises what a feed failed with, as long as it
        is not sought to another place.
        """
        self._raise_failure()
        while self._line:
            self._finish()
            feed = self._line.popleft()
            feed.is_listed = False
            records = self._unpack(feed)
            self._list(feed)
            if records:
                return feed, records
        self._raise_failure()
        return None

    def _finish(self) -> None:
        """What was handed out last is done with: the application comes for more."""
        feed, self._handed_out = self._handed_out, None
        if feed is not None:
            self._carry_out(feed, feed.session.on_finished())

    def _raise_failure(self) -> None:
        for feed in self._failed:
            if not feed.is_paused and not feed.batches and feed.error is not None:
                raise feed.error.with_traceback(None)

    def seek(self, feed: Feed, offset: int, *, from_earliest: bool = False) -> None:
        feed.drop()
        feed.error = None
        feed.skip_before_ms = 0
        self._failed = [other for other in self._failed if other is not feed]
        self._carry_out(feed, feed.session.seek(offset, anyio.current_time(), from_earliest=from_earliest))

    def on_tip(self, feed: Feed, tip: TipRead) -> None:
        self._carry_out(feed, feed.session.on_tip(tip.high_watermark, tip.start_offset, anyio.current_time()))

    # --- called by connections and the clock -----------------------------------------------------------------------------------

    def on_frame(self, feed: Feed, attempt: int, frame: Frame) -> None:
        told = frame.message
        now = anyio.current_time()
        batches: list[Batch] = []
        damage = ""
        if not isinstance(told, Records):
            damage = f"a stream of records brought a {type(told).__name__}"
        else:
            try:
                for batch in split_batches(frame.payload):
                    if batch.header.partition != feed.view.id:
                        raise BadBatchError("a batch of another partition")
                    batches.append(batch)
            except BadBatchError as error:
                damage = error.message
            spans = [decided.Span(batch.base, batch.end, batch.size) for batch in batches]
            effects = feed.session.on_records(attempt, spans, told.high_watermark, now)
            for effect in effects:
                if isinstance(effect, decided.Take):
                    feed.batches.append((batches[effect.at], effect.skip))
            self._carry_out(feed, effects)
            self._list(feed)
        if damage and attempt == feed.session.attempt:
            self._metrics.damaged += 1
            feed.leave()
            broken = CorruptDataError(f"{feed.session.source} sent bytes that are damaged: {damage}", code="data_damaged")
            self._carry_out(feed, feed.session.on_ended(attempt, broken, now))

    def on_ended(self, feed: Feed, attempt: int, error: StreamqError) -> None:
        if attempt == feed.session.attempt:
            feed.stream = None
        if not self._is_closed:
            self._carry_out(feed, feed.session.on_ended(attempt, error, anyio.current_time()))

    def _on_time(self, feed: Feed, now: float) -> None:
        self._carry_out(feed, feed.session.on_time(now))

    # --- what sessions decide ------------------------------------------------------------------------------------------------

    def _carry_out(self, feed: Feed, effects: Iterable[decided.Effect]) -> None:
        todo = deque(effects)
        while todo and not self._is_closed:
            effect = todo.popleft()
            if isinstance(effect, decided.Subscribe):
                todo.extend(self._subscribe(feed, effect))
            elif isinstance(effect, decided.Leave):
                feed.leave()
            elif isinstance(effect, decided.Credit):
                if feed.stream is not None:
                    feed.stream.send(Credit(effect.size))
            elif isinstance(effect, decided.ReadTip):
                self._lifetime.start(self._read_tip, feed, effect.avoid)
            elif isinstance(effect, decided.Locate):
                if feed.topic not in self._locating:
                    self._locating.add(feed.topic)
                    self._lifetime.start(self._locate, feed.topic)
            elif isinstance(effect, decided.Fail):
                feed.error = effect.error
                self._failed.append(feed)
                self._news.set()
        self._timers.schedule(feed)

    def _subscribe(self, feed: Feed, effect: decided.Subscribe) -> Iterable[decided.Effect]:
        connection = self._cluster.open_connection(effect.broker)
        if connection is None:
            self._lifetime.start(self._reach, feed, effect)
            return ()
        feed.leave()
        now = anyio.current_time()
        try:
            feed.subscribe(connection, self, effect.attempt)
        except UnavailableError as error:
            return feed.session.on_ended(effect.attempt, error, now)
        self._metrics.subscriptions += 1
        feed.session.on_subscribed(effect.attempt, now)
        return ()

    async def _reach(self, feed: Feed, effect: decided.Subscribe) -> None:
        try:
            await self._cluster.connection(effect.broker)
        except StreamqError as error:
            self._carry_out(feed, feed.session.on_ended(effect.attempt, error, anyio.current_time()))
            return
        if feed.session.attempt == effect.attempt and feed.session.route is decided.Route.REACHING:
            self._carry_out(feed, [effect])

    async def _read_tip(self, feed: Feed, avoid: str) -> None:
        try:
            async with self._asking:
                tip = await self._cluster.request(ReadTip(feed.topic, feed.index), TipRead, avoid=avoid)
        except StreamqError:
            return  # it is asked again when it is due
        self.on_tip(feed, tip)

    async def _locate(self, topic: str) -> None:
        view: MetadataView | None = None
        try:
            view = await self._cluster.metadata([topic])
        except StreamqError:
            pass  # the sessions go on trying, and ask again
        finally:
            self._locating.discard(topic)
        found = next((t for t in view.topics if t.name == topic), None) if view is not None else None
        if found is None:
            return
        gone = NotFoundError(f"topic {topic!r} does not exist any more", code="unknown_topic")
        for feed in [feed for feed in self.feeds if feed.topic == topic]:
            fresh = found.partitions[feed.index] if not found.error and feed.index < len(found.partitions) else None
            if fresh is not None and fresh.id == feed.view.id:
                self._carry_out(feed, feed.session.on_view(fresh.replicas, anyio.current_time()))
            else:
                self._carry_out(feed, feed.session.on_gone(gone))

    # --- handing out ---------------------------------------------------------------------------------------------------------

    def _list(self, feed: Feed) -> None:
        if feed.batches and not feed.is_listed and not feed.is_paused and self._may_read(feed.batches[0][0].header) is not None:
            feed.is_listed = True
            self._line.append(feed)
            self._news.set()

    def _may_read(self, header: BatchHeader) -> bool | None:
        """Whether anything of this batch is to be handed out; None while its transaction is open."""
        if header.is_control:
            return False
        if self._outcomes is None or not header.is_transactional:
            return True
        return self._outcomes.is_committed(header)

    def _on_decided(self) -> None:
        if not self._is_closed:
            for feed in self.feeds:
                self._list(feed)

    def _unpack(self, feed: Feed) -> list[Record]:
        """The next batch's records; none if it is a control batch, aborted, was dropped by a seek, is damaged (and read again elsewhere),
        is all before the time, or what is known of its transaction was forgotten for others."""
        if not feed.batches or (may_read := self._may_read(feed.batches[0][0].header)) is None:
            return []
        batch, skip = feed.batches.popleft()
        try:
            records = records_of(feed.topic, feed.index, batch, skip=skip) if may_read else []
        except CorruptDataError as error:
            self._metrics.damaged += 1
            feed.drop()
            where = f"{feed.topic}/{feed.index} from offset {batch.base} on: {error.message}"
            damage = CorruptDataError(where, code=error.code, hint="streamq log verify finds the damaged file")
            self._carry_out(feed, feed.session.on_damaged(damage, anyio.current_time()))
            return []
        feed.session.on_handed_out(batch.end, batch.size)
        self._handed_out = feed
        if feed.skip_before_ms:
            at = next((i for i, record in enumerate(records) if record.timestamp >= feed.skip_before_ms), len(records))
            del records[:at]
            if records:
                feed.skip_before_ms = 0
        self._metrics.unpacked(batch.header, len(records))
        return records
