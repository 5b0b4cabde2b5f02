"""The acceptor of CASPaxos (P-2, P-3), under numbered voter configurations (P-40).

It keeps a cell for each register: the highest ballot it promised, and the value it accepted last with the ballot of that. Each `on_*`
returns one effect: `Persist`, whose answer may leave only once the write is durable (P-3), or `Answer`, which may leave once every
`Persist` returned before it is durable: nothing is ever told that a crash could take back.

Before it answers for anything an acceptor must be named, in its incarnation, by the configuration that it has durably adopted, and must
have proved its directory (`on_proved`): see `Standing`. Source: Rystsov, "CASPaxos" (2018); the admission of a replacement is checked in
spec/CasVoters.tla.
"""

import heapq
from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec

from streamq.model.ids import Ballot, Incarnation, Member
from streamq.model.messages import (
    Accept,
    Accepted,
    AdoptVoters,
    Failure,
    Keys,
    ListKeys,
    Message,
    Prepare,
    Promise,
    ReadAccepted,
    ReadVoters,
    VotersReady,
    VotersView,
)
from streamq.model.registers import Voters

__all__ = ["BALLOT_COUNTER_MAX", "KEYS_PER_PAGE", "Acceptor", "AcceptorRecord", "Answer", "Cell", "Effect", "Persist", "Standing"]

KEYS_PER_PAGE: Final = 1_000
"""Keys in one answer to `ListKeys`."""
BALLOT_COUNTER_MAX: Final = 1 << 62
"""No honest proposer gets there; a larger counter would leave no ballot above it."""


class Standing(Enum):
    """What an acceptor may do. It only ever moves downwards in this list, except that ADMITTED becomes READY."""

    FOUNDING = "founding"
    """The first configuration names it and it has never answered; awaits proof that nobody has used its name yet."""
    OUTSIDE = "outside"
    """The adopted configuration does not name this incarnation: it awaits re-admission, or is no voter at all."""
    ADMITTED = "admitted"
    """Named as the replacement of a lost incarnation: it accepts; awaits the end of the scan before it answers prepares and reads."""
    READY = "ready"
    """It answers everything."""
    SUPERSEDED = "superseded"
    """It was named once and another incarnation has its place: it never answers again."""


class Cell(msgspec.Struct, frozen=True, array_like=True):
    """One register at one acceptor; `value` is None exactly while `accepted` is."""

    promised: Ballot
    accepted: Ballot | None
    value: bytes | None


class AcceptorRecord(msgspec.Struct, frozen=True, array_like=True):
    """What an acceptor keeps durably besides its cells.

    `incarnation` is the directory's, unless acceptor state was lost: then it is drawn anew, and a re-admission makes it good (P-3).
    `replaces` is the incarnation in `broker/<id>` that this directory set out to replace, empty for none, None while it has not looked
    (P-31).
    """

    incarnation: Incarnation
    voters: Voters
    standing: Standing
    replaces: Incarnation | None = None


class Persist(msgspec.Struct, frozen=True):
    """Make `cell` (key and content) or `record` durable, then answer."""

    then: Message
    cell: tuple[str, Cell] | None = None
    record: AcceptorRecord | None = None


class Answer(msgspec.Struct, frozen=True):
    """Answer once everything asked to be persisted before is durable."""

    then: Message


Effect = Persist | Answer


class Acceptor:
    """Invariants: in each cell `promised >= accepted`; both only grow; the number only grows; see `check`."""

    def __init__(self, *, broker: str, record: AcceptorRecord, cells: Mapping[str, Cell]) -> None:
        self._broker = broker
        self._record = record
        self._cells = dict(cells)
        self._is_proved = False

    @property
    def record(self) -> AcceptorRecord:
        return self._record

    @property
    def member(self) -> Member:
        return Member(self._broker, self._record.incarnation)

    @property
    def is_proved(self) -> bool:
        """Whether this start of the broker has proved its directory; until then only `ReadVoters`, `AdoptVoters` and evidence are
        answered."""
        return self._is_proved

    def cell(self, key: str) -> Cell | None:
        return self._cells.get(key)

    def check(self, key: str) -> None:
        cell = self._cells[key]
        assert cell.accepted is None or cell.promised >= cell.accepted
        assert (cell.accepted is None) == (cell.value is None)

    def on_message(self, message: Message) -> Effect:
        """Any request for an acceptor, to the method that it is named after."""
        match message:
            case Prepare():
                return self.on_prepare(message)
            case Accept():
                return self.on_accept(message)
            case ReadAccepted():
                return self.on_read_accepted(message)
            case ListKeys():
                return self.on_list_keys(message)
            case ReadVoters():
                return self.on_read_voters(message)
            case AdoptVoters():
                return self.on_adopt_voters(message)
            case VotersReady():
                return self.on_voters_ready(message)
        return Answer(Failure(code="bad_request", message=f"{type(message).__name__} is not for an acceptor"))

    # --- registers -----------------------------------------------------------------------------------------------------

    def on_prepare(self, message: Prepare) -> Effect:
        refusal = self._refusal(message.number, needs_ready=True)
        if refusal is not None:
            return Answer(refusal)
        if message.ballot.counter > BALLOT_COUNTER_MAX:
            return Answer(Failure(code="bad_request", message=f"ballot counter {message.ballot.counter} is over the limit"))
        cell = self._cells.get(message.key)
        if cell is not None and message.ballot <= cell.promised:  # P-2: only above its promise
            return Answer(Promise(ok=False, promised=cell.promised, accepted=None, value=None))
        accepted, value = (cell.accepted, cell.value) if cell is not None else (None, None)
        promise = Promise(ok=True, promised=message.ballot, accepted=accepted, value=value)
        return self._set(message.key, Cell(message.ballot, accepted, value), promise)

    def on_accept(self, message: Accept) -> Effect:
        # P-40: a replacement accepts as soon as it has adopted the number.
        refusal = self._refusal(message.number, needs_ready=False)
        if refusal is not None:
            return Answer(refusal)
        if message.ballot.counter > BALLOT_COUNTER_MAX:
            return Answer(Failure(code="bad_request", message=f"ballot counter {message.ballot.counter} is over the limit"))
        cell = self._cells.get(message.key)
        if cell is not None and message.ballot < cell.promised:  # P-2: at or above its promise
            return Answer(Accepted(ok=False, promised=cell.promised))
        if cell is not None and message.ballot == cell.accepted:
            # A ballot is one attempt with one value; a second value for it is a broken proposer, and must not be taken.
            return Answer(Accepted(ok=message.value == cell.value, promised=cell.promised))
        return self._set(message.key, Cell(message.ballot, message.ballot, message.value), Accepted(ok=True, promised=message.ballot))

    def on_read_accepted(self, message: ReadAccepted) -> Effect:
        refusal = None if message.as_evidence else self._refusal(message.number, needs_ready=True)
        if refusal is not None:
            return Answer(refusal)
        cell = self._cells.get(message.key)
        if cell is None:
            return Answer(Promise(ok=True, promised=None, accepted=None, value=None))
        return Answer(Promise(ok=True, promised=cell.promised, accepted=cell.accepted, value=cell.value))

    def on_list_keys(self, message: ListKeys) -> Effect:
        refusal = self._refusal(message.number, needs_ready=True)
        if refusal is not None:
            return Answer(refusal)
        found = heapq.nsmallest(
            KEYS_PER_PAGE + 1,
            (key for key, cell in self._cells.items() if cell.accepted and key > message.after and key.startswith(message.prefix)),
        )
        return Answer(Keys(keys=tuple(found[:KEYS_PER_PAGE]), more=len(found) > KEYS_PER_PAGE))

    def _set(self, key: str, cell: Cell, then: Message) -> Persist:
        self._cells[key] = cell
        self.check(key)
        return Persist(then=then, cell=(key, cell))

    def _refusal(self, number: int, *, needs_ready: bool) -> Failure | None:
        voters, standing = self._record.voters, self._record.standing
        if not self._is_proved:
            return Failure(code="not_ready", message=f"{self._broker} has not yet proved that its data directory is the newest")
        if number != voters.number:  # P-40: from an adoption on it refuses every other number
            return Failure(code="wrong_number", message=f"{self._broker} is in voter configuration {voters.number}, not {number}")
        if standing is Standing.READY or (standing is Standing.ADMITTED and not needs_ready):
            return None
        return Failure(code="not_ready", message=f"the acceptor of {self._broker} is {standing.value} in voter configuration {number}")

    # --- voters --------------------------------------------------------------------------------------------------------

    def on_read_voters(self, _message: ReadVoters) -> Effect:
        return Answer(self._view())

    def on_adopt_voters(self, message: AdoptVoters) -> Effect:
        """The content is a decided one: nobody tells any other (P-40)."""
        mine, told = self._record.voters, message.voters
        if told.number == mine.number and told != mine:
            return Answer(Failure(code="internal", message=f"two contents of voter configuration {told.number}: {mine} and {told}"))
        if told.number <= mine.number:  # never goes back
            return Answer(self._view())
        return self._record_as(msgspec.structs.replace(self._record, voters=told, standing=self._standing_under(told)))

    def on_voters_ready(self, message: VotersReady) -> Effect:
        """The report that a scan is done counts for its number and its incarnation only (P-40)."""
        is_meant = message.number == self._record.voters.number and message.member == self.member
        if not is_meant or self._record.standing is not Standing.ADMITTED:
            return Answer(self._view())
        return self._record_as(msgspec.structs.replace(self._record, standing=Standing.READY))

    def on_proved(self) -> Effect:
        """The broker has asked the others and found no newer start of itself (P-31). A founder becomes ready by it, durably."""
        self._is_proved = True
        if self._record.standing is not Standing.FOUNDING:
            return Answer(self._view())
        return self._record_as(msgspec.structs.replace(self._record, standing=Standing.READY))

    def on_replaces(self, incarnation: Incarnation) -> Effect:
        """Fixes, once, whose place in `broker/<id>` this directory takes."""
        assert self._record.replaces is None
        return self._record_as(msgspec.structs.replace(self._record, replaces=incarnation))

    def _standing_under(self, voters: Voters) -> Standing:
        standing = self._record.standing
        if not voters.names(self.member):
            return Standing.OUTSIDE if standing is Standing.OUTSIDE else Standing.SUPERSEDED
        return Standing.ADMITTED if standing is Standing.OUTSIDE else standing

    def _record_as(self, record: AcceptorRecord) -> Persist:
        assert record.voters.number >= self._record.voters.number
        self._record = record
        return Persist(then=self._view(), record=record)

    def _view(self) -> VotersView:
        return VotersView(voters=self._record.voters, ready=self._record.standing is Standing.READY and self._is_proved)
