"""Registers as one simulated broker reads and changes them: attempts, quorum reads and pauses of `broker.registers` and `broker.voting`.

Everything is decided by the real cores, over the simulated network; proposers duel whenever several change one register.
"""

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from streamq.metadata.proposer import Ask, Attempt, Ballots, Burnt, Chosen, QuorumRead, backoff_s, identity
from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.model.ids import Ballot
from streamq.model.messages import (
    Accepted,
    AdoptVoters,
    Failure,
    Keys,
    ListKeys,
    Message,
    Prepare,
    Promise,
    ReadVoters,
    VotersView,
)
from streamq.model.registers import Voters
from streamq.wire.codec import encode
from tests.sim.tier1.endpoint import Inbox, Wait

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["Registers"]

T = TypeVar("T")
Change = Callable[[bytes | None], bytes]

REQUEST_TIMEOUT_S = 1.0
DEADLINE_S = 5.0
RETRY_S = 0.002
READ_GRACE_S = 0.01


class Registers:
    """All that raises, raises StreamqError, as the shell does; every method that may wait is a generator for a task."""

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.world = process.world
        self._acceptor = process.acceptor
        self._ballots = Ballots(proposer=process.name, start=self.world.token())
        self._known: dict[str, tuple[Ballot, bytes]] = {}
        self._turns: dict[str, list[Inbox]] = {}

    @property
    def voters(self) -> Voters:
        return self._acceptor.voters

    def new_attempt(
        self,
        key: str,
        change: Callable[[bytes | None], bytes | None],
        *,
        voters: Voters | None = None,
        preparers: frozenset[str] | None = None,
        must_accept: str | None = None,
    ) -> Attempt:
        return Attempt(
            key=key,
            ballot=self._ballots.next(key),
            voters=voters or self.voters,
            change=change,
            preparers=preparers,
            must_accept=must_accept,
        )

    # --- asking voters

    def _send(self, asks: Iterable[Ask], inbox: Inbox) -> None:
        for ask in asks:
            self.ask_into(ask, inbox)

    def ask_into(self, ask: Ask, inbox: Inbox) -> None:
        """The answer, or a `Failure`, comes as (ask, answer)."""
        if ask.broker == self.process.name:
            self._acceptor.submit(ask.message, lambda answer: inbox.put((ask, answer)))
        else:
            self.process.peers.request(ask.broker, ask.message, (), REQUEST_TIMEOUT_S, lambda answer, _: inbox.put((ask, answer)))

    def ask(self, broker: str, message: Message, timeout_s: float = REQUEST_TIMEOUT_S) -> Wait:
        """Resumes with the answer, or with a `Failure`."""
        if broker == self.process.name:
            return lambda resume: self._acceptor.submit(message, resume)
        return lambda resume: self.process.peers.request(broker, message, (), timeout_s, lambda answer, _: resume(answer))

    def run_attempt(self, attempt: Attempt, until: float) -> Generator[Wait, Any, None]:
        inbox = Inbox()
        self._send(attempt.begin(), inbox)
        while attempt.outcome is None:
            yield inbox.wait(self.process, until - self.world.now)
            if not inbox.items and self.world.now >= until:
                return
            items, inbox.items = inbox.items, []
            for ask, answer in items:
                self._send(_deliver(attempt, ask, answer), inbox)
        if isinstance(attempt.outcome, Burnt):
            self.world.counters["register_conflicts"] += attempt.outcome.above is not None
            self._ballots.on_seen(attempt.key, attempt.outcome.above)
            yield from self.follow_numbers(attempt.outcome.wrong_number)

    def _run_read(self, read: QuorumRead, until: float) -> Generator[Wait, Any, None]:
        inbox = Inbox()
        self._send(read.begin(), inbox)
        while not read.is_over and self.world.now < until:
            yield inbox.wait(self.process, until - self.world.now)
            items, inbox.items = inbox.items, []
            for ask, answer in items:
                if isinstance(answer, Promise):
                    read.on_promise(ask.broker, answer)
                else:
                    failure = _failure_of(answer)
                    read.on_failed(ask.broker, code=failure.code, message=failure.message)
            if read.is_split:
                until = min(until, self.world.now + READ_GRACE_S)
        self._ballots.on_seen(read.key, read.highest)

    def follow_numbers(self, brokers: Iterable[str]) -> Generator[Wait, Any, None]:
        """Brings these brokers and this one to the highest configuration that one of them has adopted (P-40)."""
        for broker in sorted(brokers):
            view = yield self.ask(broker, ReadVoters())
            if not isinstance(view, VotersView):
                continue
            mine = self.voters
            if view.voters.number > mine.number:
                yield self.ask(self.process.name, AdoptVoters(voters=view.voters))
            elif view.voters.number < mine.number:
                yield self.ask(broker, AdoptVoters(voters=mine))

    # --- reading and changing

    def get(self, key: str) -> Generator[Wait, Any, bytes | None]:
        until = self.world.now + DEADLINE_S
        floor = self.world.versions.newest(key)
        failures = 0
        while True:
            read = QuorumRead(key=key, voters=self.voters)
            yield from self._run_read(read, until)
            outcome = read.outcome
            if outcome is None and read.is_split:
                self.world.counters["reads_completed"] += 1
                attempt = self.new_attempt(key, identity)
                yield from self.run_attempt(attempt, until)
                outcome = attempt.outcome if isinstance(attempt.outcome, Chosen) else None
            if outcome is not None:
                return self._learn(key, outcome, floor)
            if self.world.now >= until:
                raise UnavailableError(f"no majority for {key}", code="timed_out")
            failures += 1
            yield from self.follow_numbers(read.wrong_number)
            yield self.process.sleep(max(RETRY_S, self.pause_s(failures)))

    def change(self, key: str, f: Change) -> Generator[Wait, Any, bytes]:
        """Changes of one broker to one register take turns."""
        until = self.world.now + DEADLINE_S
        waiting = self._turns.get(key)
        if waiting is not None:
            turn = Inbox()
            waiting.append(turn)
            yield turn.wait()
        else:
            self._turns[key] = []
        try:
            return (yield from self._change(key, f, until))
        finally:
            self._pass_turn(key)

    def _pass_turn(self, key: str) -> None:
        if not self.process.is_alive:
            return  # a generator that nobody resumes any more was thrown away
        waiting = self._turns[key]
        if waiting:
            self.process.after(0.0, waiting.pop(0).put, None)
        else:
            del self._turns[key]

    def _change(self, key: str, f: Change, until: float) -> Generator[Wait, Any, bytes]:
        failures = 0
        may_have_happened = False
        floor = self.world.versions.newest(key)
        while self.world.now < until:
            attempt = self.new_attempt(key, f)
            yield from self.run_attempt(attempt, until)
            may_have_happened |= attempt.may_have_happened
            outcome = attempt.outcome
            if isinstance(outcome, Chosen):
                self._learn(key, outcome, floor)
                if outcome.refusal is not None:
                    raise outcome.refusal
                assert outcome.value is not None
                return outcome.value
            failures += 1
            is_duel = outcome is not None and outcome.above is not None
            yield self.process.sleep(max(0.0 if is_duel else RETRY_S, self.pause_s(failures)))
        if may_have_happened:
            raise UnknownOutcomeError(f"the change of {key} may have happened", code="unknown_outcome")
        raise UnavailableError(f"no majority for {key}", code="timed_out")

    def pause_s(self, failures: int) -> float:
        return backoff_s(failures, self.world.random.random())

    def list_keys(self, prefix: str) -> Generator[Wait, Any, list[str]]:
        """The union over a majority."""
        voters = self.voters
        inbox = Inbox()
        asks = [Ask(voter.broker, ListKeys(number=voters.number, prefix=prefix, after="")) for voter in voters.voters]
        self._send(asks, inbox)
        found: set[str] = set()
        listed, answered = 0, 0
        wrong: list[str] = []
        while listed < voters.majority:
            if answered == len(asks):
                yield from self.follow_numbers(wrong)
                raise UnavailableError(f"no majority lists {prefix}", code="unavailable")
            yield inbox.wait()
            items, inbox.items = inbox.items, []
            for ask, answer in items:
                answered += 1
                if isinstance(answer, Keys):
                    assert not answer.more
                    listed += 1
                    found.update(answer.keys)
                elif isinstance(answer, Failure) and answer.code == "wrong_number":
                    wrong.append(ask.broker)
        return sorted(found)

    def get_as(self, kind: type[T], key: str) -> Generator[Wait, Any, T | None]:
        value = yield from self.get(key)
        return None if value is None else self.world.decode(kind, value)

    def change_as(self, kind: type[T], key: str, f: Callable[[T | None], T]) -> Generator[Wait, Any, T]:
        def change(value: bytes | None) -> bytes:
            current = None if value is None else self.world.decode(kind, value)
            changed = f(current)
            return value if value is not None and changed == current else encode(changed)

        value = yield from self.change(key, change)
        return self.world.decode(kind, value)

    def cached_as(self, kind: type[T], key: str) -> T | None:
        """A hint (P-1)."""
        known = self._known.get(key)
        return None if known is None else self.world.decode(kind, known[1])

    def _learn(self, key: str, chosen: Chosen, floor: Ballot | None) -> bytes | None:
        self.world.versions.on_returned(key, chosen, floor)
        if chosen.ballot is None or chosen.value is None:
            return None
        known = self._known.get(key)
        if known is None or known[0] < chosen.ballot:
            self._known[key] = (chosen.ballot, chosen.value)
        return chosen.value


def _deliver(attempt: Attempt, ask: Ask, answer: Message) -> list[Ask]:
    if isinstance(ask.message, Prepare):
        if isinstance(answer, Promise):
            return attempt.on_promise(ask.broker, answer)
        failure = _failure_of(answer)
        return attempt.on_prepare_failed(ask.broker, code=failure.code, message=failure.message)
    if isinstance(answer, Accepted):
        return attempt.on_accepted(ask.broker, answer)
    failure = _failure_of(answer)
    return attempt.on_accept_failed(ask.broker, code=failure.code, message=failure.message)


def _failure_of(answer: Message) -> Failure:
    return answer if isinstance(answer, Failure) else Failure(code="protocol", message=f"unexpected {type(answer).__name__}")
