"""The consumer that applications use. See `Consumer`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Final, Literal, Self, TypedDict, TypeVar, Unpack

import anyio
import anyio.lowlevel

from streamq.client.cluster import Cluster
from streamq.client.codecs import Codec
from streamq.client.host import THIS_MACHINE, Host
from streamq.client.lifetime import Lifetime
from streamq.client.settings import Timeouts, refuse_unless
from streamq.client.times import Lag, Place, read_lags, read_tips
from streamq.model.errors import NotFoundError, RefusedError, StreamqError
from streamq.model.limits import GROUP_TOPICS_MAX, OFFSET_MAX
from streamq.model.messages import ReadTip, TipRead
from streamq.model.transactions import Transaction
from streamq_consumer.dead_letter import DeadLetter
from streamq_consumer.feed import Feed
from streamq_consumer.fetcher import Fetcher
from streamq_consumer.group import GroupReader, Listeners, OnPlaces
from streamq_consumer.hand import Hand
from streamq_consumer.handling import Handling, Order
from streamq_consumer.latest import read_last
from streamq_consumer.reading import GroupReading
from streamq_consumer.records import Record, Stable, Tip
from streamq_consumer.run import Handler, Retry, Runner
from streamq_consumer.session import Tuning
from streamq_consumer.settings import ConsumerSettings, GroupSettings, Isolation
from streamq_consumer.stable import read_stable, read_stables
from streamq_consumer.start import Assignment, Start, check_start, open_feeds
from streamq_consumer.stats import ConsumerMetrics, ConsumerStats
from streamq_consumer.times import When, offsets_for_times
from streamq_consumer.typed import Decoded

__all__ = ["Consumer", "ConsumerOptions"]

RECORDS_AT_ONCE_MAX: Final = 1_000_000
TIP_CHECKS_PER_S: Final = 20
"""Quorum reads of tips of partitions that bring nothing, of all together; with more partitions each is looked at less often."""
JITTER_STEPS: Final = 1 << 20


T = TypeVar("T")


class ConsumerOptions(TypedDict, total=False):
    """The fields of `ConsumerSettings` and, for a member of a group, `GroupSettings`, which say what they mean."""

    prefetch_bytes: int
    stall_s: float
    tip_check_s: float
    isolation: Isolation
    patience_s: float | None
    member_name: str
    session_s: float
    processing_s: float
    auto_commit: bool
    commit_interval_s: float
    join_s: float
    leave_s: float


class Consumer:
    """Reads topics, all of them or as a member of a group. Used with `async with`, under trio or asyncio, by one task at a time.

    Records of a partition come in offset order, without a hole or a repeat, whichever brokers come and go (P-26); partitions take turns,
    a batch each. `start` is "earliest", "latest" (what a quorum read says when the block is entered), an offset, a datetime (the first
    record at or after it; a naive one is local time), or a map from (topic, partition) to offset. `partitions` restricts all topics to
    these; `broker` names the one replica to read data from.

    Entering the block reaches one broker of `bootstrap` ("host:port,host:port") or raises UnavailableError within 10 s; NotFoundError for a
    topic, partition or broker that does not exist; OffsetError for an offset that is trimmed or past the tip.
    While nothing can be read because brokers are down, iteration waits; `trouble` says why, `patience_s` sets an end.
    An error of one partition (OffsetError, NotFoundError, CorruptDataError, UnavailableError) is raised when what came before it is
    handed out, and again until `seek` goes elsewhere. Any call may be cancelled without losing a record.

    With `group` the members of that group share the partitions. Each begins where the group has committed, or at `start` ("earliest",
    "latest" or a time) where it has not. What was handed out counts as handled, and is committed, when the application comes for more or
    leaves the block without an exception; so a record may come again after a crash, and none is left out. GroupLostError says that this
    consumer is no member any more: open a new one.

    `on_assigned` and `on_revoked` are plain functions, called with a list of (topic, partition): the first when this member begins to read
    these, before anything of them is handed out, and may `seek` in them; the second when nothing of them is handed out any more: they are
    wanted back by the group, or lost, or no broker has answered for a session, or the block ends. Of what is in hand then the position is
    still committed, as always, unless the partition is lost. Each partition is assigned and revoked in turn. They must not wait; what
    they raise ends the block.
    """

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
        host: Host = THIS_MACHINE,
        **options: Unpack[ConsumerOptions],
    ) -> None:
        """Raises RefusedError for arguments that make no sense. `host` is where it runs: only a simulation brings another."""
        refuse_unless(not isinstance(topics, str), "topics is a list of names", code="bad_request")
        refuse_unless(bool(topics), "no topic is named", code="bad_request")
        refuse_unless(partitions is None or len(partitions) > 0, "no partition is named; None stands for all", code="bad_request")
        check_start(start)
        of_group = {name: value for name, value in options.items() if name in GroupSettings.__struct_fields__}
        refuse_unless(group is not None or not of_group, f"{', '.join(of_group)}: only for a member of a group", code="bad_request")
        self._listeners = Listeners(on_assigned, on_revoked)
        listens = self._listeners != Listeners()
        refuse_unless(group is not None or not listens, "on_assigned, on_revoked: only for a member of a group", code="bad_request")
        if group is not None:
            refuse_unless(partitions is None and broker is None, "a group's members are given their partitions", code="bad_request")
            refuse_unless(len(set(topics)) <= GROUP_TOPICS_MAX, f"a member reads at most {GROUP_TOPICS_MAX} topics", code="bad_request")
            is_place = isinstance(start, str | datetime)
            refuse_unless(is_place, "a member of a group starts at earliest, latest or a time", code="bad_request")
        self._group_settings = GroupSettings(group=group, **of_group) if group is not None else None  # type: ignore[arg-type]
        own = {name: value for name, value in options.items() if name not in of_group}
        self.settings: Final = ConsumerSettings(**own)  # type: ignore[arg-type]
        self._assignment = Assignment(tuple(dict.fromkeys(topics)), None if partitions is None else frozenset(partitions), broker or "")
        self._start = start
        self._cluster = Cluster(bootstrap, timeouts=timeouts, host=host)
        self._lifetime = Lifetime()
        self._host = host
        self._metrics = ConsumerMetrics()
        self._fetcher: Fetcher | None = None
        self._feeds: dict[tuple[str, int], Feed] = {}
        self._hand = Hand()
        self._group: GroupReader | None = None
        self._reading = GroupReading(self, start)
        self._handling: Handling | None = None
        """While `run` runs: it knows what is handled."""

    async def __aenter__(self) -> Self:
        await self._cluster.__aenter__()
        try:
            await self._lifetime.open()
            if self._group_settings is None:
                feeds = await open_feeds(self._cluster, self._assignment, self._start, self._tuning)
                self._fetcher = self._make_fetcher()
                for feed in feeds:
                    self._add(feed)
            else:
                topics = self._assignment.topics
                self._fetcher = self._make_fetcher()
                group = GroupReader(self._cluster, self._lifetime, self._host, self._group_settings, topics, self._reading, self._listeners)
                await group.join()
                self._group = group
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if self._group is not None:
                if error is None:
                    self._come_back()
                await self._group.leave()
        finally:
            await self._close(kind, error, traceback)

    async def _close(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._fetcher is not None:
            self._fetcher.close()
        self._fetcher = None
        try:
            await self._lifetime.close(error, traceback)
        finally:
            await self._cluster.__aexit__(kind, error, traceback)

    # --- reading -------------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Record]:
        """Records as they come, for ever. Leaving the loop loses nothing: another one goes on behind the last record handed out."""
        return self._records()

    def decoded(self, codec: Codec[T]) -> Decoded[T]:
        """As iterating over the consumer, with values decoded: `async for order in consumer.decoded(Structs(Order))`.

        Raises DecodeError for a value that cannot be decoded; another loop over the same, or over the consumer, goes on behind it.
        """
        return Decoded(self._records(), codec)

    async def batches(self, *, max_records: int = 500, max_wait: float = 0.2) -> AsyncIterator[list[Record]]:
        """Lists of 1 to `max_records` records, for ever; a list is not held back for longer than `max_wait` seconds."""
        _check_count(max_records)
        refuse_unless(max_wait >= 0, f"max_wait must not be negative, as {max_wait} is", code="bad_request")
        while True:
            self._come_back()
            await self._until_available()
            with anyio.move_on_after(max_wait):
                while self._available < max_records and not self._open.is_full:
                    await self._open.wait_for_news()
            records = self._take(max_records)
            if records:
                yield records

    async def fetch(self, max_records: int = 500, *, timeout: float = 1.0) -> list[Record]:
        """What is there, up to `max_records`, waiting up to `timeout` seconds for the first; an empty list when nothing came."""
        _check_count(max_records)
        self._come_back()
        await anyio.lowlevel.checkpoint()
        records = self._take(max_records)
        with anyio.move_on_after(timeout):
            while not records:
                await self._until_available()
                records = self._take(max_records)
        return records

    async def run(
        self,
        handler: Handler,
        *,
        concurrency: int = 1,
        order: Order = "partition",
        retry: Retry | None = None,
        dead_letter: DeadLetter | None = None,
        stuck_after_s: float = 60.0,
        drain_s: float = 10.0,
    ) -> None:
        """Awaits `handler(record)` for each record, up to `concurrency` at a time, until it is cancelled.

        `order`: one at a time of each partition, of each key in a partition (records without a key are on their own), or "none". An
        exception of the handler has the record tried again (`retry`; what is behind it in its order waits, the rest goes on), then put
        into `dead_letter`; without one, `run` ends with HandlerError. `Reject` and DecodeError are not tried again. In a group, a record
        counts as handled when its handler has returned or its dead letter is acked, and positions move only past records before which
        all are.

        Cancelled, or at an error, it begins nothing new, gives what runs `drain_s` to end, and cancels the rest. A handler that takes
        longer than `stuck_after_s` is named in a warning of the logger `streamq_consumer`, with where it waits. Raises what reading
        raises (GroupLostError, OffsetError, …), HandlerError, NotFoundError when there is no topic for dead letters.
        """
        fetcher = self._open
        refuse_unless(self._handling is None, "this consumer runs a handler already", code="bad_request")
        is_committing = self._group_settings is None or self._group_settings.auto_commit
        refuse_unless(is_committing, "run commits what is handled: leave auto_commit as it is", code="bad_request")
        if dead_letter is not None:
            await self._cluster.topic(dead_letter.topic)
        runner = Runner(
            _Source(self, fetcher),
            handler,
            concurrency=concurrency,
            order=order,
            retry=retry or Retry(),
            dead_letter=dead_letter,
            stuck_after_s=stuck_after_s,
            drain_s=drain_s,
        )
        self._come_back()
        self._handling = runner.handling
        try:
            await runner.run()
        finally:
            self._unhandled()

    def _unhandled(self) -> None:
        """What `run` has taken and not handled is handed out again, from the first such record of each partition on."""
        handling, self._handling = self._handling, None
        assert handling is not None
        self._reading.on_back()
        places: list[tuple[str, int]] = [*self._feeds, *(self._group.membership.holds if self._group is not None else ())]
        for place in places:
            if (offset := handling.first_undone(place)) is not None and self._fetcher is not None:
                self._unread(*place, offset)

    async def commit(self, positions: Mapping[tuple[str, int], int] | None = None) -> None:
        """Stores how far this member has come, durably, as nothing but `auto_commit` does otherwise: all that was handed out so far, the
        record in hand included, or just these positions (the next offset to be handled, for each partition).

        A position never moves back: use `streamq group seek` for that. Raises GroupLostError when another member has got one of the
        partitions meanwhile; UnavailableError is never raised, it waits. Cancelled, the positions may be stored or not.
        """
        if self._group is None:
            raise RefusedError("only a member of a group commits: Consumer(..., group=...)", code="bad_request")
        for offset in (positions or {}).values():
            refuse_unless(0 <= offset <= OFFSET_MAX, f"a position is not negative, as {offset} is", code="bad_request")
        await self._group.commit(self._group.positions() if positions is None else positions)

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """Hands out nothing of this partition, of all of this topic, or of all that is read now, until `resume`. Nothing is lost by it."""
        for feed in self._chosen(topic, partition):
            if feed is self._hand.feed and len(self._hand):
                self.seek(feed.topic, feed.index, self.position(feed.topic, feed.index))
            self._open.pause(feed)

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """Ends what `pause` with the same arguments, or narrower ones, has begun."""
        for feed in self._chosen(topic, partition):
            self._open.resume(feed)

    @property
    def paused(self) -> tuple[tuple[str, int], ...]:
        """The (topic, partition) pairs that are paused."""
        return tuple(place for place, feed in self._feeds.items() if feed.is_paused)

    # --- places --------------------------------------------------------------------------------------------------------------

    @property
    def partitions(self) -> tuple[tuple[str, int], ...]:
        """The (topic, partition) pairs that are read."""
        return tuple(self._feeds)

    def position(self, topic: str, partition: int) -> int:
        """The offset of the next record to be handed out."""
        return self._hand.position(self._feed(topic, partition))

    def positions(self) -> Mapping[tuple[str, int], int]:
        return {place: self.position(*place) for place in self._feeds}

    def seek(self, topic: str, partition: int, offset: int | Literal["earliest"]) -> None:
        """Goes on at this offset; nothing that was fetched before is handed out any more."""
        feed = self._feed(topic, partition)
        if offset != "earliest":
            refuse_unless(0 <= offset <= OFFSET_MAX, f"an offset is not negative, as {offset} is", code="bad_request")
        self._reading.forget((topic, partition))
        self._hand.drop(feed)
        is_earliest = offset == "earliest"
        self._open.seek(feed, feed.view.start_offset if offset == "earliest" else offset, from_earliest=is_earliest)

    async def tip(self, topic: str, partition: int) -> Tip:
        """The end of any partition, by a quorum read (P-24): all that was acked before this call lies below its high watermark.

        Raises NotFoundError, or UnavailableError when R replicas do not answer.
        """
        told = await self._cluster.request(ReadTip(topic, partition), TipRead)
        return self._told(topic, partition, told)

    async def tips(self) -> dict[Place, Tip]:
        """As `tip`, of every partition that is read."""
        return {place: self._told(*place, told) for place, told in (await read_tips(self._cluster, self._feeds)).items()}

    async def stable(self, topic: str, partition: int) -> Stable:
        """The last stable offset of any partition, by a quorum read: where a reader of what is committed gets to now, and which transaction
        is in its way if that is not the tip. Raises NotFoundError, UnavailableError."""
        return await read_stable(self._cluster, (topic, partition))

    async def stables(self) -> dict[Place, Stable]:
        """As `stable`, of every partition that is read."""
        return await read_stables(self._cluster, tuple(self._feeds))

    async def ranges(self) -> dict[Place, tuple[int, int]]:
        """Of every partition that is read, the first offset that is kept, and the end of what can be handed out now, which waits for no
        transaction. Raises UnavailableError."""
        if self.settings.isolation == "read_uncommitted":
            return {place: (tip.start_offset, tip.high_watermark) for place, tip in (await self.tips()).items()}
        return {place: (stable.start_offset, stable.offset) for place, stable in (await self.stables()).items()}

    def _told(self, topic: str, partition: int, told: TipRead) -> Tip:
        feed = self._feeds.get((topic, partition))
        if feed is not None and self._fetcher is not None:
            self._fetcher.on_tip(feed, told)
        return Tip(topic, partition, told.high_watermark, told.epoch, told.start_offset, told.answered)

    async def offsets_for_times(self, times: Mapping[Place, When] | When) -> dict[Place, int]:
        """The offset of the first record at or after a time (a datetime, or milliseconds since 1970), of any partitions; one time alone
        stands for all partitions that are read. Where no record is so late: the tip, by a quorum read, where the next one will be.

        Times are the producers', and need not rise with the offsets: what follows may be older again. Changes no position.
        Raises NotFoundError, or UnavailableError when nobody can serve a partition for some seconds.
        """
        asked = times if isinstance(times, Mapping) else dict.fromkeys(self._feeds, times)
        return await offsets_for_times(self._cluster, asked)

    async def lag(self) -> dict[Place, Lag]:
        """How far each partition that is read is behind its tip (a quorum read): in records not handed out yet, and in seconds since the
        oldest of them was appended. Costs no data. Raises UnavailableError."""
        return await self.lag_from(self.positions())

    async def lag_from(self, positions: Mapping[Place, int]) -> dict[Place, Lag]:
        """As `lag`, of somebody who stands at these offsets, of any partitions."""
        return await read_lags(self._cluster, positions)

    async def last(self, count: int, *, ends: Mapping[Place, int] | None = None) -> list[Record]:
        """The last `count` records over all partitions that are read, in order of time; reading goes on behind them, at the ends of what
        can be handed out now (the tips, or before what lies behind an open transaction).

        Each partition's records stay in their own order. `ends`: count back from these offsets instead, as `offsets_for_times` gives them;
        those past the end mean the end. At most `LAST_RECORDS_MAX` over all partitions are looked at, `count` of each.
        A call that fails or is cancelled leaves all positions as they were.
        """
        return await read_last(self, count, ends or {})

    @property
    def trouble(self) -> StreamqError | None:
        """Why a partition gets nothing at the moment, if something is wrong; None while all of them are served."""
        return next((feed.session.trouble for feed in self._feeds.values() if feed.session.trouble is not None), None)

    @property
    def stats(self) -> ConsumerStats:
        metrics = self._metrics
        return ConsumerStats(
            records=metrics.records,
            batches=metrics.batches,
            payload_bytes=metrics.payload_bytes,
            raw_bytes=metrics.raw_bytes,
            buffered=self._fetcher.buffered_records if self._fetcher is not None else 0,
            subscriptions=metrics.subscriptions,
            damaged=metrics.damaged,
            stuck=metrics.stuck,
        )

    # --- transactions --------------------------------------------------------------------------------------------------------

    def check_transactional(self) -> None:
        """Whether `Producer.transaction` can commit the positions of this consumer; raises RefusedError if not."""
        self._open  # noqa: B018
        is_right = self._group_settings is not None and not self._group_settings.auto_commit and self._handling is None
        what = "transactions commit positions of a member of a group that has auto_commit=False, outside of run"
        refuse_unless(is_right, what, code="bad_request")

    async def commit_in(self, transaction: Transaction) -> None:
        """Called by `Producer.transaction`: stores the positions of what was handed out since the last transaction, to count if this one is
        committed. Raises GroupLostError if another member may have got any of it."""
        assert self._group is not None
        await self._group.commit_in(transaction)

    def on_transaction_ended(self, *, is_committed: bool) -> None:
        """Called by `Producer.transaction`."""
        if self._group is None:
            return
        for place, offset in self._group.on_transaction_ended(is_committed=is_committed):
            self._unread(*place, offset)
        hand = self._hand
        if hand.feed is not None and len(hand):
            self._group.on_taken((hand.feed.topic, hand.feed.index), hand.position(hand.feed))

    # --- inside --------------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Fetcher:
        if self._fetcher is None:
            raise RuntimeError("a consumer is used inside its block: async with Consumer(...) as consumer")
        return self._fetcher

    @property
    def _available(self) -> int:
        return len(self._hand) + self._open.buffered_records

    @property
    def _held(self) -> int:
        """Partitions that are this member's, open or about to be."""
        return len(self._group.membership.holds) if self._group is not None else 0

    def _come_back(self) -> None:
        """The application is done with what it was handed."""
        self._hand.yielded = None
        if self._group is not None:
            self._reading.on_back()
            self._group.on_back()

    @property
    def _sinces(self) -> dict[tuple[str, int], int]:
        """Which holds a member's partitions are."""
        return {place: hold.since for place, hold in self._group.membership.holds.items()} if self._group is not None else {}

    def _unread(self, topic: str, partition: int, offset: int, since: int | None = None) -> None:
        """What was handed out of a partition from this offset on was not looked at. `since`: the hold of which it was; one that has come
        after it begins elsewhere."""
        if since is not None and self._sinces.get((topic, partition)) != since:
            return
        if (topic, partition) in self._feeds:
            self.seek(topic, partition, offset)
        elif self._group is not None and (hold := self._group.membership.holds.get((topic, partition))) is not None:
            hold.next_offset = offset

    def _add(self, feed: Feed) -> None:
        self._feeds[feed.topic, feed.index] = feed
        self._open.add(feed)

    def _remove(self, place: tuple[str, int]) -> None:
        feed = self._feeds.pop(place)
        self._hand.drop(feed)
        self._open.remove(feed)

    async def _records(self) -> AsyncIterator[Record]:
        while True:
            self._come_back()
            self._hand.yielded = self._hand.feed
            for record in self._hand:
                yield record
            self._come_back()
            if self._load():
                await anyio.lowlevel.checkpoint()
            else:
                await self._until_available()

    async def _until_available(self) -> None:
        """Until there is something to take; raises what a partition failed with."""
        while not len(self._hand) and not self._load():
            await self._open.wait_for_news()

    def _load(self) -> bool:
        """Unpacks the next batch, if there is one. To be called when the one in hand is used up."""
        if self._group is not None and not self._group.may_hand_out():
            return False
        taken = self._open.take()
        if taken is None:
            return False
        feed, records = taken
        self._hand.fill(feed, records)
        if self._group is not None:
            self._group.on_taken((feed.topic, feed.index), records[0].offset)
        return True

    def _take(self, max_records: int) -> list[Record]:
        records = self._take_rest(max_records)
        while len(records) < max_records:
            try:
                if not self._load():
                    break
            except StreamqError:
                if records:
                    break  # it is raised when there is nothing before it
                raise
            records += self._take_rest(max_records - len(records))
        return records

    def _take_rest(self, max_records: int) -> list[Record]:
        records = self._hand.take(max_records)
        if records and self._group is not None:
            self._reading.on_handed_out((records[0].topic, records[0].partition), records[0].offset)
        return records

    def _make_fetcher(self) -> Fetcher:
        return Fetcher(self._cluster, self._lifetime, self._metrics, isolation=self.settings.isolation)

    def _chosen(self, topic: str | None, partition: int | None) -> list[Feed]:
        refuse_unless(partition is None or topic is not None, "a partition is one of a topic: name it", code="bad_request")
        if topic is not None and partition is not None:
            return [self._feed(topic, partition)]
        chosen = [feed for feed in self._feeds.values() if topic is None or feed.topic == topic]
        if topic is not None and topic not in self._assignment.topics:
            raise NotFoundError(f"topic {topic!r} is not read by this consumer", code="unknown_topic")
        return chosen

    def _feed(self, topic: str, partition: int) -> Feed:
        feed = self._feeds.get((topic, partition))
        if feed is None:
            raise NotFoundError(f"partition {partition} of {topic!r} is not read by this consumer", code="unknown_partition")
        return feed

    def _tuning(self, partitions: int) -> Tuning:
        return Tuning(
            window_bytes=self.settings.window_bytes(partitions=partitions),
            stall_s=self.settings.stall_s,
            tip_check_s=max(self.settings.tip_check_s, partitions / TIP_CHECKS_PER_S),
            patience_s=float("inf") if self.settings.patience_s is None else self.settings.patience_s,
        )


class _Source:
    """A consumer, as its runner sees it."""

    def __init__(self, consumer: Consumer, fetcher: Fetcher) -> None:
        self._consumer = consumer
        self._fetcher = fetcher

    def take(self, max_records: int) -> list[Record]:
        return self._consumer._take(max_records)

    async def wait(self) -> None:
        await self._fetcher.wait_for_news()

    def wake(self) -> None:
        self._fetcher.wake()

    def on_progress(self) -> None:
        if self._consumer._group is not None:
            self._consumer._group.on_back()

    def on_stuck(self) -> None:
        self._consumer._metrics.stuck += 1

    def jitter(self) -> float:
        return self._consumer._host.below(JITTER_STEPS) / JITTER_STEPS


def _check_count(max_records: int) -> None:
    refuse_unless(1 <= max_records <= RECORDS_AT_ONCE_MAX, f"max_records must be 1 to {RECORDS_AT_ONCE_MAX}", code="bad_request")
