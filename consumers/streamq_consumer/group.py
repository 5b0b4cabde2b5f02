"""A consumer as a member of a group: two tasks beside the application's, one that attends, one that commits.

`attend` asks the coordinator again and again whether anything is new, which is the heartbeat, too; what the answers ask for is carried out
at once. `commit` stores how far the application has come, every `commit_interval_s` and when a partition can be let go of.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

import anyio

from streamq.client.cluster import Cluster
from streamq.client.host import Host
from streamq.client.lifetime import Lifetime
from streamq.model.errors import GroupLostError, NotCoordinatorError, NotFoundError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq.model.groups import Entry
from streamq.model.messages import Attend, CommitPositions, Committed, GroupView, JoinGroup, LeaveGroup, Message, Ok
from streamq.model.transactions import Transaction
from streamq_consumer.membership import Hold, Membership, Place
from streamq_consumer.settings import GroupSettings

__all__ = ["GroupReader", "Listeners", "OnPlaces", "Reading"]

log = logging.getLogger("streamq_consumer")

ATTEND_PART: Final = 0.25
"""Of the session: how long a question waits for news."""
ATTEND_S_MAX: Final = 2.0
ASK_S: Final = 2.0
"""How long one broker is waited for, beyond what it is asked to wait, before another is asked."""
PAUSE_S: Final = 0.02
PAUSE_S_MAX: Final = 0.5
NEVER: Final = float("inf")
PARTING_S_MAX: Final = 5.0
"""Without automatic commits: how long the application has to commit a partition that is wanted back."""

T = TypeVar("T", bound=Message)
OnPlaces = Callable[[list[Place]], object]


class Listeners(NamedTuple):
    """What the application has called when partitions come and go. For each partition they take turns, the first one first."""

    on_assigned: OnPlaces | None = None
    on_revoked: OnPlaces | None = None


class Reading(Protocol):
    """What the consumer does for its group. Nothing of it may wait or raise, but `open`."""

    async def open(self, place: Place, offset: int | None, *, may_go_on: Callable[[], bool]) -> None:
        """Reads the partition from there (None: from where the consumer is told to start), if `may_go_on` then. Raises StreamqError."""

    def close(self, place: Place) -> int:
        """Hands out nothing of it any more; the offset that would have come next."""

    def in_hand(self, place: Place) -> int | None:
        """The first offset that the application has and may not have handled, if any."""

    def next_offset(self, place: Place) -> int | None:
        """The next offset to be handed out of an open partition; None if it is not open."""

    def wake(self) -> None:
        """Something changed that who waits for records has to look at."""


class _Taken(NamedTuple):
    since: int
    """The hold of which it is."""
    first: int
    """The first offset."""
    end: int | None = None
    """Behind the last, once nothing of it is handed out any more."""


class GroupReader:
    """Invariant: after `error` is set nothing is held, and both tasks have ended or are about to."""

    def __init__(
        self,
        cluster: Cluster,
        lifetime: Lifetime,
        host: Host,
        settings: GroupSettings,
        topics: Sequence[str],
        reading: Reading,
        listeners: Listeners = Listeners(),  # noqa: B008 (a value)
    ) -> None:
        self.settings: Final = settings
        self.error: StreamqError | None = None
        """Why nothing is read any more; raised by whatever the application calls next."""
        self.membership = Membership(session_s=settings.session_s)
        self._cluster = cluster
        self._lifetime = lifetime
        self._topics = tuple(topics)
        self._token = host.token()
        self._reading = reading
        self._listeners = listeners
        self._coordinator = ""
        self._marks: dict[Place, int] = {}
        """Without automatic commits: what the application has committed, to be told with the next commit."""
        self._taken: dict[Place, _Taken] = {}
        """Without automatic commits: what the application was handed since its last transaction."""
        self._taken_and_lost: set[Place] = set()
        """Where it was handed records of an earlier hold since then, too."""
        self._pending: dict[Place, int] = {}
        """The positions that wait for the transaction that is open."""
        self._is_parting = False
        self._parting_until = 0.0
        self._came_back_at = anyio.current_time()
        self._commit_wanted = anyio.Event()
        self._committing = anyio.Lock()

    async def join(self) -> None:
        """Raises NotFoundError for an unknown topic, UnavailableError when no broker coordinates in time."""
        settings = self.settings
        message = JoinGroup(settings.group, self._token, settings.member_name, self._topics, round(settings.session_s * 1000))
        with anyio.move_on_after(settings.join_s):
            view, asked_at = await self._ask(message, GroupView)
            self._on_view(view, asked_at)
            self._lifetime.start(self._attend)
            self._lifetime.start(self._commit_regularly)
            return
        reason = f"no broker has let this consumer into group {settings.group!r} within {settings.join_s:g} s"
        raise UnavailableError(reason, code="timed_out", hint="a majority of the brokers has to be up: see `streamq doctor`")

    # --- called by the consumer ----------------------------------------------------------------------------------------------

    def on_back(self) -> None:
        """The application comes for more: what it had is handled."""
        self._came_back_at = anyio.current_time()
        if self._is_parting:
            self._commit_wanted.set()

    def may_hand_out(self) -> bool:
        """Whether the session still holds, even if this process stood still since the last look. Raises `error`."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        if not self.membership.is_suspended and anyio.current_time() >= self.membership.stops_at:
            self._suspend()
        return not self.membership.is_suspended

    def positions(self) -> dict[Place, int]:
        """How far the application was handed each partition that it has, or had until it was wanted back."""
        holds = self.membership.holds
        found = {place: self._reading.next_offset(place) if hold.is_open else hold.next_offset for place, hold in holds.items()}
        return {place: offset for place, offset in found.items() if offset is not None}

    async def commit(self, positions: Mapping[Place, int]) -> None:
        """Stores these positions, and raises GroupLostError unless all of them count."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        unknown = [place for place in positions if place not in self.membership.holds]
        self._marks.update({place: offset for place, offset in positions.items() if place in self.membership.holds})
        fenced = await self._commit(positions)
        if fenced or unknown:
            named = ", ".join(f"{topic}/{partition}" for topic, partition in [*unknown, *((e.topic, e.partition) for e in fenced)])
            raise GroupLostError(
                f"another member of group {self.settings.group!r} has {named} now: these positions were not stored",
                hint="what was handled of these partitions comes again there; go on with the others",
            )

    # --- transactions --------------------------------------------------------------------------------------------------------

    def on_taken(self, place: Place, offset: int) -> None:
        """Records from this offset on are about to be handed out."""
        hold = self.membership.holds.get(place)
        if hold is None or self.settings.auto_commit:
            return
        taken = self._taken.get(place)
        if taken is not None and taken.since != hold.since:
            self._lose_taken(place, taken, taken.first)
            taken = None
        self._taken[place] = _Taken(hold.since, offset if taken is None else taken.first)

    def _lose_taken(self, place: Place, taken: _Taken, first: int) -> None:
        """The hold is over, and what was handed out from `first` on may be another member's."""
        if taken.end is None or taken.end > first:
            self._taken_and_lost.add(place)

    async def commit_in(self, transaction: Transaction) -> None:
        """Stores how far the application was handed each partition since its last transaction, to count if this one is committed.

        Raises GroupLostError unless this member still holds all of them, and TransactionAbortedError."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        if self._pending:
            # Of another producer's, which has not learned how it ended: what was handed out since then may be what comes next, or not.
            reason = f"this consumer has left group {self.settings.group!r}: what became of its last transaction was never learned"
            hint = "where one is unknown, open the consumer again with the producer: it goes on where it is to"
            await self.leave(GroupLostError(reason, hint=hint))
            assert self.error is not None
            raise self.error.with_traceback(None)
        positions = self.positions()
        entries: list[Entry] = []
        for place, taken in self._taken.items():
            hold = self.membership.holds.get(place)
            if hold is None or hold.since != taken.since or hold.is_released or place not in positions:
                self._lose_taken(place, taken, taken.first)
            elif positions[place] > taken.first:
                entries.append(Entry(place[0], place[1], hold.since, positions[place], False))
        lost = sorted(self._taken_and_lost)
        if not lost and entries:
            self._pending = {(entry.topic, entry.partition): entry.position for entry in entries if entry.position is not None}
            message = CommitPositions(self.settings.group, self._token, tuple(entries), transaction)
            async with self._committing:
                answer, _ = await self._ask(message, Committed)
            lost = [(entry.topic, entry.partition) for entry in answer.fenced]
        if lost:
            named = ", ".join(f"{topic}/{partition}" for topic, partition in lost)
            raise GroupLostError(
                f"another member of group {self.settings.group!r} may have {named}: the transaction cannot have their positions",
                hint="it is aborted, and what it read of these partitions comes again there; go on with the others",
            )

    def on_transaction_ended(self, *, is_committed: bool) -> list[tuple[Place, int]]:
        """From which offset on what this member still holds is to be handed out again."""
        taken, self._taken = self._taken, {}
        pending, self._pending = self._pending, {}
        holds = self.membership.holds
        if not is_committed:
            self._taken_and_lost.clear()
            return [(place, was.first) for place, was in taken.items() if place in holds and holds[place].since == was.since]
        positions = self.positions()
        for place, was in taken.items():
            hold = holds.get(place)
            first = pending.get(place, was.first)
            if hold is None or hold.since != was.since:
                self._lose_taken(place, was, first)
                continue
            if place in pending:
                hold.committed = max(first, hold.committed or 0)
            if positions.get(place, first) > first:  # read on before the outcome was known
                self._taken[place] = was._replace(first=first)
        if self._is_parting:
            self._commit_wanted.set()
        return []

    async def leave(self, why: StreamqError | None = None) -> None:
        """Commits what was handled and goes, so that others need not wait for the session to end. Never raises for what brokers do."""
        if self.error is not None:
            return
        with anyio.move_on_after(self.settings.leave_s, shield=True):
            try:
                async with self._committing:
                    entries = self.membership.entries(self._handled, lambda place: False)
                    await self._ask(LeaveGroup(self.settings.group, self._token, entries), Ok)
            except StreamqError as error:
                log.warning("leaving group %s: %s; its partitions wait for the end of the session", self.settings.group, error)
        self._end(why or GroupLostError(f"this consumer has left group {self.settings.group!r}"))

    # --- attending -----------------------------------------------------------------------------------------------------------

    async def _attend(self) -> None:
        wait_s = min(ATTEND_S_MAX, ATTEND_PART * self.settings.session_s)
        while self.error is None:
            question = Attend(self.settings.group, self._token, self.membership.generation, round(wait_s * 1000))
            view: GroupView | None = None
            asked_at = 0.0
            until = NEVER if self.membership.is_suspended else self.membership.stops_at
            try:
                with anyio.move_on_after(until - anyio.current_time()):
                    view, asked_at = await self._ask(question, GroupView, wait_s=wait_s)
            except StreamqError as error:
                # A group that is gone had given this member up before.
                self._end(error)
                return
            if self.error is not None:
                return  # it has left while the answer was on its way, and opens nothing any more
            if view is not None:
                self._on_view(view, asked_at)
            elif not self.membership.is_suspended:
                self._suspend()
            if self._has_hung():
                self._lifetime.start(self._give_up)
                return

    def _on_view(self, view: GroupView, asked_at: float) -> None:
        changes = self.membership.on_view(view, asked_at=asked_at)
        self._close(changes.closes)
        for place in changes.opens:
            self._lifetime.start(self._open, place, self.membership.holds[place].since)
        was_parting, self._is_parting = self._is_parting, self.membership.is_parting
        if self._is_parting:
            if changes.closes or not was_parting:  # and not with every view that says the same
                self._parting_until = anyio.current_time() + PARTING_S_MAX
            self._commit_wanted.set()
        self._reading.wake()

    async def _open(self, place: Place, since: int) -> None:
        pause_s = PAUSE_S
        while True:
            hold = self.membership.holds.get(place)
            if hold is None or hold.since != since or not self.membership.may_open(hold):
                return
            offset = hold.next_offset
            opened: list[bool] = []
            try:
                await self._reading.open(place, offset, may_go_on=partial(self._may_go_on, place, since, offset, opened))
            except UnavailableError as error:
                log.info("%s/%d cannot be read yet: %s", place[0], place[1], error)
            except StreamqError as error:
                self._end(error)
                return
            else:
                if any(opened):
                    self._tell(self._listeners.on_assigned, [place])
                if hold.next_offset == offset:
                    return
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _may_go_on(self, place: Place, since: int, offset: int | None, opened: list[bool]) -> bool:
        """Whether what was opened at this offset is still to be read, from there: what was handed out may have been given back since.
        `opened` learns it."""
        hold = self.membership.holds.get(place)
        opened.append(hold is not None and hold.next_offset == offset and self.membership.on_opened(place, since))
        return opened[-1]

    def _close(self, closes: Sequence[tuple[Place, Hold]]) -> None:
        """Nothing more is handed out of these, which were open."""
        for place, hold in closes:
            hold.next_offset = self._reading.close(place)
            taken = self._taken.get(place)
            if taken is not None and taken.since == hold.since:
                self._taken[place] = taken._replace(end=hold.next_offset)
        if closes:
            self._tell(self._listeners.on_revoked, [place for place, _ in closes])

    def _tell(self, listener: OnPlaces | None, places: list[Place]) -> None:
        """What a listener raises ends the block, once: after that nothing is told any more."""
        if listener is None:
            return
        try:
            listener(places)
        except BaseException:
            self._listeners = Listeners()
            raise

    def _suspend(self) -> None:
        log.warning("group %s: no coordinator has answered for %g s; nothing is handed out", self.settings.group, self.settings.session_s)
        self._close(self.membership.suspend())
        self._reading.wake()

    def _has_hung(self) -> bool:
        """A member that has hung keeps its partitions from everybody."""
        is_busy = any(self._reading.in_hand(place) is not None for place in self.membership.holds)
        return is_busy and anyio.current_time() > self._came_back_at + self.settings.processing_s

    async def _give_up(self) -> None:
        settings = self.settings
        message = f"this consumer has left group {settings.group!r}: what it was handed was not handled in {settings.processing_s:g} s"
        await self.leave(GroupLostError(message, hint="raise processing_s, or hand the work on to other tasks"))

    # --- committing ----------------------------------------------------------------------------------------------------------

    async def _commit_regularly(self) -> None:
        while self.error is None:
            with anyio.move_on_after(self.settings.commit_interval_s):
                await self._commit_wanted.wait()
            self._commit_wanted = anyio.Event()
            try:
                await self._commit({})
            except StreamqError as error:
                self._end(error)

    async def _commit(self, wanted: Mapping[Place, int]) -> list[Entry]:
        """The entries among `wanted` that were fenced."""
        async with self._committing:
            if self.error is not None:
                raise self.error.with_traceback(None)
            entries = self.membership.entries(self._handled, self._must_keep)
            if not entries:
                return []
            answer, _ = await self._ask(CommitPositions(self.settings.group, self._token, entries), Committed)
            self.membership.on_committed(entries, answer.fenced)
            self._is_parting = self.membership.is_parting
            for entry in entries:
                place = (entry.topic, entry.partition)
                if entry.releases or (entry.position is not None and self._marks.get(place, -1) <= entry.position):
                    self._marks.pop(place, None)
        return [entry for entry in answer.fenced if (entry.topic, entry.partition) in wanted]

    def _handled(self, place: Place, hold: Hold) -> int | None:
        if not self.settings.auto_commit:
            return self._marks.get(place)
        in_hand = self._reading.in_hand(place)
        marked = self._marks.get(place, -1)
        handled = in_hand if in_hand is not None else self._reading.next_offset(place) if hold.is_open else hold.next_offset
        return handled if handled is not None and handled > marked else marked if marked >= 0 else None

    def _must_keep(self, place: Place) -> bool:
        """Whether a parting partition is still the application's."""
        if self._reading.in_hand(place) is not None:
            return True
        hold = self.membership.holds[place]
        is_owed = not self.settings.auto_commit and hold.next_offset != (self._marks.get(place, hold.committed))
        return is_owed and anyio.current_time() < self._parting_until

    # --- asking --------------------------------------------------------------------------------------------------------------

    async def _ask(self, message: Message, kind: type[T], *, wait_s: float = 0.0) -> tuple[T, float]:
        """The coordinator's answer, and when it was asked. Tries for ever; raises what the coordinator refuses with."""
        pause_s = PAUSE_S
        while True:
            try:
                if not self._cluster.brokers:
                    await self._cluster.metadata(self._topics[:1])
                if not self._coordinator:
                    self._coordinator = self._another()
                asked_at = anyio.current_time()
                connection = None
                with anyio.move_on_after(ASK_S):
                    connection = await self._cluster.connection(self._coordinator)
                if connection is None:
                    raise UnavailableError(f"{self._coordinator} cannot be reached within {ASK_S:g} s", code="timed_out")
                return await connection.request(message, kind, timeout_s=wait_s + ASK_S), asked_at
            except NotCoordinatorError as error:
                is_news = error.coordinator != self._coordinator
                self._coordinator = error.coordinator
                if is_news and pause_s == PAUSE_S:
                    pause_s *= 2
                    continue
            except UnknownOutcomeError:
                pass  # all that a member asks may be asked again
            except (UnavailableError, NotFoundError) as error:
                if isinstance(error, NotFoundError) and error.code != "unknown_broker":
                    raise
                self._coordinator = self._another()
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _another(self) -> str:
        """A broker to ask who coordinates, another than the last."""
        brokers = sorted(self._cluster.brokers)
        return brokers[(brokers.index(self._coordinator) + 1) % len(brokers) if self._coordinator in brokers else 0] if brokers else ""

    def _end(self, error: StreamqError) -> None:
        if self.error is None:
            self.error = error
            self._reading.wake()
            self._close(self.membership.lose())
