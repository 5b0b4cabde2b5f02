"""The proposer of CASPaxos: one attempt at a change (P-2), and the quorum read without a round (P-4), as state machines.

    PREPARING --majority promised--> ACCEPTING --majority accepted--> CHOSEN
        |                                |
        +------ majority impossible -----+--> BURNT: a new attempt needs a new ballot

An attempt lies in one voter configuration. A change function may give up by raising a StreamqError; what it saw may then be a value that
was accepted but never chosen, so the attempt first makes that value certain, as an identity change, and reports the refusal with it.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

import msgspec

from streamq.metadata.acceptor import BALLOT_COUNTER_MAX
from streamq.model.errors import StreamqError
from streamq.model.ids import Ballot
from streamq.model.messages import Accept, Accepted, Message, Prepare, Promise, ReadAccepted
from streamq.model.registers import Voters

__all__ = ["Ask", "Attempt", "Ballots", "Burnt", "Change", "Chosen", "Phase", "QuorumRead", "backoff_s", "identity"]

Change = Callable[[bytes | None], bytes | None]
"""Pure, from the value (None: never written) to the next one; None only for None, which writes nothing. Raises StreamqError to give up."""

BACKOFF_FIRST_S: Final = 0.004
BACKOFF_MAX_S: Final = 0.25


def identity(value: bytes | None) -> bytes | None:
    return value


def backoff_s(failures: int, jitter: float) -> float:
    """How long to wait after so many failed attempts of one change (P-5); `jitter` in [0, 1). The first is made up for at once: it only
    taught the proposer which ballot to exceed."""
    assert 0 <= jitter < 1
    if failures <= 1:
        return 0.0
    return jitter * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


class Ballots:
    """The ballots of one start of one proposer: each is above all seen for its key, and is never given out twice (P-2)."""

    def __init__(self, *, proposer: str, start: bytes) -> None:
        self._proposer = proposer
        self._start = start
        self._seen: dict[str, int] = {}

    def next(self, key: str) -> Ballot:
        counter = self._seen.get(key, 0) + 1
        self._seen[key] = counter
        return Ballot(counter, self._proposer, self._start)

    def on_seen(self, key: str, ballot: Ballot | None) -> None:
        """No honest ballot lies beyond the limit: one that does must not lead this proposer to where no acceptor follows."""
        if ballot is not None and self._seen.get(key, 0) < ballot.counter <= BALLOT_COUNTER_MAX:
            self._seen[key] = ballot.counter


class Ask(msgspec.Struct, frozen=True):
    """Send `message` to `broker`, and bring its answer or its failure back."""

    broker: str
    message: Message


class Chosen(msgspec.Struct, frozen=True):
    """The register held `value` at a moment during the attempt. `ballot` orders values of one key; None with a register never written.

    `refusal`: why the change function gave up on exactly this value; None when the change is done.
    """

    ballot: Ballot | None
    value: bytes | None
    refusal: StreamqError | None = None


class Burnt(msgspec.Struct, frozen=True):
    """`above`: the highest ballot that was in the way. `wrong_number`: brokers in another voter configuration."""

    above: Ballot | None
    wrong_number: frozenset[str]


class Phase(Enum):
    PREPARING = "asked all to promise; awaits a majority of promises"
    ACCEPTING = "applied the change to the newest value promised; awaits a majority of acceptances"
    CHOSEN = "a majority holds the value; nothing is awaited"
    BURNT = "no majority is possible any more, or the deadline passed; the ballot is of no further use"


class Attempt:
    """One ballot, one value at most (pitfall 29). Only the first answer of each broker in each phase counts.

    `preparers` and `must_accept` serve the rescan of P-40: who may answer the prepare, and whose acceptance is needed besides a majority.
    """

    def __init__(
        self,
        *,
        key: str,
        ballot: Ballot,
        voters: Voters,
        change: Change,
        preparers: frozenset[str] | None = None,
        must_accept: str | None = None,
    ) -> None:
        self.key = key
        self.ballot = ballot
        self.voters = voters
        self.phase = Phase.PREPARING
        self.outcome: Chosen | Burnt | None = None
        self.problems: dict[str, str] = {}
        self._change = change
        self._all = frozenset(voter.broker for voter in voters.voters)
        self._preparers = self._all if preparers is None else preparers & self._all
        self._must_accept = must_accept
        self._promises: dict[str, Promise] = {}
        self._accepted: set[str] = set()
        self._failed: set[str] = set()
        self._above: Ballot | None = None
        self._wrong_number: set[str] = set()
        self._value: bytes | None = None
        self._refusal: StreamqError | None = None

    @property
    def may_have_happened(self) -> bool:
        """Whether a change was sent out to be accepted: it may then still be completed by others, even when the attempt is burnt."""
        return self._value is not None and self._refusal is None

    def begin(self) -> list[Ask]:
        message = Prepare(number=self.voters.number, key=self.key, ballot=self.ballot)
        return [Ask(broker, message) for broker in sorted(self._preparers)]

    def on_promise(self, broker: str, promise: Promise) -> list[Ask]:
        if self.phase is not Phase.PREPARING or broker not in self._preparers or broker in self._promises or broker in self._failed:
            return []
        if not promise.ok or promise.promised != self.ballot:
            return self._on_refused(broker, promise.promised)
        self._promises[broker] = promise
        return self._propose() if len(self._promises) >= self.voters.majority else []

    def on_accepted(self, broker: str, accepted: Accepted) -> list[Ask]:
        if self.phase is not Phase.ACCEPTING or broker not in self._all or broker in self._accepted or broker in self._failed:
            return []
        if not accepted.ok:
            return self._on_refused(broker, accepted.promised)
        self._accepted.add(broker)
        if len(self._accepted) >= self.voters.majority and (self._must_accept is None or self._must_accept in self._accepted):
            self._choose(self.ballot, self._value)
        return []

    def on_prepare_failed(self, broker: str, *, code: str, message: str) -> list[Ask]:
        return self._on_failed(broker, code, message) if self.phase is Phase.PREPARING and broker not in self._promises else []

    def on_accept_failed(self, broker: str, *, code: str, message: str) -> list[Ask]:
        return self._on_failed(broker, code, message) if self.phase is Phase.ACCEPTING and broker not in self._accepted else []

    def on_deadline(self) -> None:
        if self.outcome is None:
            self._burn()

    def _propose(self) -> list[Ask]:
        newest = max(self._promises.values(), key=_accepted_order)
        current = newest.value
        try:
            self._value = self._change(current)
        except StreamqError as refusal:
            self._value, self._refusal = current, refusal
        is_certain = all(promise.accepted == newest.accepted for promise in self._promises.values())
        if self._value is None or (self._value == current and is_certain and self._must_accept is None):
            # P-4: a majority reports the same accepted ballot, or nothing at all. With nothing promised at this ballot by a majority no
            # older value can have been chosen, nor ever be.
            assert self._value == current
            self._choose(newest.accepted, current)
            return []
        self.phase = Phase.ACCEPTING
        self._failed = set()
        message = Accept(number=self.voters.number, key=self.key, ballot=self.ballot, value=self._value)
        return [Ask(broker, message) for broker in sorted(self._all)]

    def _on_refused(self, broker: str, promised: Ballot | None) -> list[Ask]:
        if promised is not None and (self._above is None or promised > self._above):
            self._above = promised
        return self._on_failed(broker, "conflict", "has promised a higher ballot")

    def _on_failed(self, broker: str, code: str, message: str) -> list[Ask]:
        self._failed.add(broker)
        self.problems[broker] = f"{code}: {message}"
        if code == "wrong_number":  # P-40: an attempt does not span two configurations
            self._wrong_number.add(broker)
        possible = len((self._preparers if self.phase is Phase.PREPARING else self._all) - self._failed)
        is_needed = self.phase is Phase.ACCEPTING and broker == self._must_accept
        if possible < self.voters.majority or is_needed:
            self._burn()
        return []

    def _choose(self, ballot: Ballot | None, value: bytes | None) -> None:
        self.phase = Phase.CHOSEN
        self.outcome = Chosen(ballot, value, self._refusal)

    def _burn(self) -> None:
        self.phase = Phase.BURNT
        self.outcome = Burnt(self._above, frozenset(self._wrong_number))


def _accepted_order(promise: Promise) -> tuple[bool, Ballot]:
    return promise.accepted is not None, promise.accepted or Ballot(0, "", b"")


class QuorumRead:
    """P-4: returns without a round if a majority reports the same accepted ballot; what it found otherwise an identity change completes.

    `outcome` is set as soon as a majority agrees. `is_split`: a majority answered and does not agree so far. `is_over`: it never will.
    """

    def __init__(self, *, key: str, voters: Voters) -> None:
        self.key = key
        self.voters = voters
        self.outcome: Chosen | None = None
        self.highest: Ballot | None = None
        self.wrong_number: set[str] = set()
        self.problems: dict[str, str] = {}
        self._all = frozenset(voter.broker for voter in voters.voters)
        self._answers: dict[str, Promise] = {}

    @property
    def is_split(self) -> bool:
        return self.outcome is None and len(self._answers) >= self.voters.majority

    @property
    def is_over(self) -> bool:
        if self.outcome is not None:
            return True
        open_ = len(self._all) - len(self._answers) - len(self.problems)
        accepted = [answer.accepted for answer in self._answers.values()]
        most = max((accepted.count(ballot) for ballot in accepted), default=0)
        if most + open_ >= self.voters.majority:
            return False
        # The answers cannot agree any more. The newest value can be completed if a majority answers at all (P-4): with a bare majority up,
        # giving up at the first disagreement would do so for ever.
        return self.is_split or len(self._answers) + open_ < self.voters.majority

    def begin(self) -> list[Ask]:
        message = ReadAccepted(number=self.voters.number, key=self.key)
        return [Ask(broker, message) for broker in sorted(self._all)]

    def on_promise(self, broker: str, promise: Promise) -> None:
        if self.outcome is not None or broker not in self._all or broker in self._answers or broker in self.problems or not promise.ok:
            return
        self._answers[broker] = promise
        for ballot in (promise.promised, promise.accepted):
            if ballot is not None and (self.highest is None or ballot > self.highest):
                self.highest = ballot
        agreeing = sum(1 for answer in self._answers.values() if answer.accepted == promise.accepted)
        if agreeing >= self.voters.majority:
            self.outcome = Chosen(promise.accepted, promise.value)

    def on_failed(self, broker: str, *, code: str, message: str) -> None:
        if broker in self._answers:
            return
        self.problems[broker] = f"{code}: {message}"
        if code == "wrong_number":
            self.wrong_number.add(broker)
