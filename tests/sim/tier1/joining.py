"""How a simulated broker comes into its cluster at each start, and how others bring a replacement among the voters: `broker.readmission`.

The steps and their order are the shell's (P-31, P-40); what they decide is decided by the real cores.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from streamq.metadata import changes
from streamq.metadata.acceptor import Standing
from streamq.metadata.proposer import Ask, Chosen, identity
from streamq.metadata.voters import Readmission, Step, can_replace_one, founding_quorum, replacing, voters_key, why_not_next
from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.model.ids import Member
from streamq.model.messages import AdoptVoters, Keys, ListKeys, Promise, ReadAccepted, ReadVoters, Rejoin, VotersView
from streamq.model.registers import BrokerRegister, ClusterRegister, Voter, Voters, broker_key
from streamq.wire.codec import encode
from tests.sim.tier1.checks import Violation
from tests.sim.tier1.endpoint import Inbox, Steps, Wait

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["CLUSTER", "Joining", "Readmissions"]

CLUSTER = b"c" * 16
ASK_AGAIN_FIRST_S = 0.02
ASK_AGAIN_MAX_S = 0.5
REJOIN_TIMEOUT_S = 7.0
REJOIN_PATIENCE_S = 10.0
STEPS_DEADLINE_S = 60.0


class WrongDirectoryError(Exception):
    """P-31: this broker must not serve from this directory."""


class Readmissions:
    """Carries re-admissions out for other brokers: one task for each replacement at a time."""

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.world = process.world
        self._registers = process.registers
        self._acceptor = process.acceptor
        self._under_way: set[tuple[int, Member]] = set()
        self._waiting: list[Inbox] | None = None

    def on_rejoin(self, message: Rejoin) -> Generator[Wait, Any, VotersView]:
        """Answers once a configuration that names the replacement is decided; the rest goes on in the background. Raises StreamqError."""
        register = message.register
        replacement = Voter(register.broker, register.incarnation, register.host, register.port)
        yield from self._take_turn()
        try:
            while True:
                voters = self._acceptor.voters
                if voters.voter(replacement.broker) is None:
                    return VotersView(voters=voters, ready=False)
                if voters.names(replacement.member):
                    break
                yield from self._decide_next(voters, replacement)
        finally:
            self._pass_turn()
        work = (voters.number, replacement.member)
        if work not in self._under_way:
            self._under_way.add(work)
            self.process.spawn(self._carry_out(voters, replacement.member))
        return VotersView(voters=voters, ready=False)

    def _take_turn(self) -> Generator[Wait, Any, None]:
        if self._waiting is None:
            self._waiting = []
            return
        turn = Inbox()
        self._waiting.append(turn)
        yield turn.wait()

    def _pass_turn(self) -> None:
        if self._waiting:
            self.process.after(0.0, self._waiting.pop(0).put, None)
        else:
            self._waiting = None

    def _decide_next(self, voters: Voters, replacement: Voter) -> Generator[Wait, Any, None]:
        if not can_replace_one(voters):
            raise UnavailableError("the others are no majority", code="unavailable")
        yield from self._expect_ready(voters, [v.broker for v in voters.voters if v.broker != replacement.broker])
        content = replacing(voters, replacement)
        attempt = self._registers.new_attempt(
            voters_key(content.number), lambda value: encode(content) if value is None else value, voters=voters
        )
        yield from self._registers.run_attempt(attempt, self.world.now + 2.0)
        outcome = attempt.outcome
        if not isinstance(outcome, Chosen) or outcome.value is None:
            raise UnavailableError("the next configuration could not be decided", code="unavailable")
        decided = self.world.decode(Voters, outcome.value)
        if fault := why_not_next(voters, decided):
            raise Violation(f"P-40: {fault}")
        yield self._registers.ask(self.process.name, AdoptVoters(voters=decided))

    def _expect_ready(self, voters: Voters, survivors: Sequence[str]) -> Generator[Wait, Any, None]:
        """No other voter is replaced meanwhile (P-40): every survivor answers everything under this very number."""
        answers = yield from self._ask_all([Ask(broker, ReadVoters()) for broker in survivors])
        views = {ask.broker: answer for ask, answer in answers}
        others = [b for b, view in views.items() if isinstance(view, VotersView) and view.voters.number != voters.number]
        if others:
            yield from self._registers.follow_numbers(others)
            raise UnavailableError("some were in another configuration", code="not_ready")
        if not all(isinstance(view, VotersView) and view.ready for view in views.values()):
            raise UnavailableError("all others must be up", code="not_ready")

    def _ask_all(self, asks: Sequence[Ask]) -> Generator[Wait, Any, list[Any]]:
        """Every answer or failure."""
        inbox = Inbox()
        for ask in asks:
            self._registers.ask_into(ask, inbox)
        answers: list[Any] = []
        while len(answers) < len(asks):
            yield inbox.wait()
            items, inbox.items = inbox.items, []
            answers += items
        return answers

    def _carry_out(self, voters: Voters, replacement: Member) -> Steps:
        steps = Readmission(voters=voters, replacement=replacement)
        failures = 0
        until = self.world.now + STEPS_DEADLINE_S
        while steps.step not in (Step.DONE, Step.SUPERSEDED) and self._acceptor.voters.number <= voters.number and self.world.now < until:
            before = steps.step, steps.keys
            yield from self._advance(steps)
            failures = 0 if (steps.step, steps.keys) != before else failures + 1
            if failures:
                yield self.process.sleep(max(ASK_AGAIN_FIRST_S, self._registers.pause_s(failures)))
        self.world.counters["readmissions"] += steps.step is Step.DONE
        self._under_way.discard((voters.number, replacement))

    def _advance(self, steps: Readmission) -> Generator[Wait, Any, None]:
        """One round of the present step: every request or rescan that it lacks."""
        asks = steps.asks()
        answers = yield from self._ask_all(asks)
        for ask, answer in answers:
            if isinstance(answer, VotersView):
                steps.on_voters(ask.broker, answer)
            elif isinstance(answer, Keys) and isinstance(ask.message, ListKeys):
                steps.on_keys(ask.broker, after=ask.message.after, page=answer)
        if asks:
            return
        for key in steps.keys:
            attempt = self._registers.new_attempt(
                key, identity, voters=steps.voters, preparers=steps.survivors, must_accept=steps.replacement.broker
            )
            yield from self._registers.run_attempt(attempt, self.world.now + 3.0)
            if isinstance(attempt.outcome, Chosen):
                steps.on_rescanned(key)


class Joining:
    """The steps of `join_cluster`, each of which returns when it is achieved."""

    def __init__(self, process: "Process", register: BrokerRegister) -> None:
        self.process = process
        self.world = process.world
        self._registers = process.registers
        self._acceptor = process.acceptor
        self._register = register

    def run(self) -> Generator[Wait, Any, bool]:
        """False: this directory must not serve (P-31)."""
        try:
            yield from self._prove()
            yield from self._rejoin()
            yield from self._write_registers()
        except WrongDirectoryError:
            self.world.counters["wrong_directories"] += 1
            self.process.end(keep=1.0, keeps_written=True)
            return False
        return True

    def _perform(self, effect: Any) -> Wait:
        return lambda resume: self._acceptor.perform(effect, resume)

    # --- the directory is the newest of this broker (P-31)

    def _prove(self) -> Generator[Wait, Any, None]:
        self._check(self._acceptor.accepted(broker_key(self.process.name)))
        pause = ASK_AGAIN_FIRST_S
        while not (yield from self._ask_for_evidence()):
            yield self.process.sleep(pause)
            pause = min(ASK_AGAIN_MAX_S, pause * 2)
        if self._acceptor.standing is Standing.SUPERSEDED:
            raise WrongDirectoryError
        yield self._perform(self._acceptor.core.on_proved())

    def _ask_for_evidence(self) -> Generator[Wait, Any, bool]:
        """One round over all others; ends as soon as enough have answered, and what they know says nothing against this directory."""
        name, voters = self.process.name, self._acceptor.voters
        others = [voter.broker for voter in voters.voters if voter.broker != name]
        if self._acceptor.standing is Standing.FOUNDING:
            needed = founding_quorum(voters)
        else:
            needed = voters.majority if voters.voter(name) is None else voters.majority - 1
        inbox = Inbox()
        for broker in others:
            self.process.spawn(self._ask_one(broker, inbox))
        answered: list[bytes | None] = []
        finished = 0
        while len(answered) < needed and finished < len(others):
            yield inbox.wait()
            items, inbox.items = inbox.items, []
            for answer in items:
                finished += 1
                if isinstance(answer, Promise):
                    answered.append(answer.value)
        for value in answered:
            self._check(value)
        return len(answered) >= needed

    def _ask_one(self, broker: str, inbox: Inbox) -> Steps:
        view = yield self._registers.ask(broker, ReadVoters())
        if isinstance(view, VotersView) and view.voters.number > self._acceptor.voters.number:
            yield self._registers.ask(self.process.name, AdoptVoters(voters=view.voters))
        question = ReadAccepted(number=0, key=broker_key(self.process.name), as_evidence=True)
        inbox.put((yield self._registers.ask(broker, question)))

    def _check(self, value: bytes | None) -> None:
        if value is None:
            return
        known = self.world.decode(BrokerRegister, value)
        record = self._acceptor.core.record
        fault = changes.directory_fault(known, mine=self._register, replaces=record.replaces, is_this_start_unknown=True)
        if self._acceptor.standing is Standing.FOUNDING or fault is not None:
            raise WrongDirectoryError

    # --- the acceptor is among the voters (P-40)

    def _rejoin(self) -> Generator[Wait, Any, None]:
        turn = 0
        pause = ASK_AGAIN_FIRST_S
        while self._acceptor.is_to_be_admitted:
            voters = self._acceptor.voters
            if self._acceptor.standing is Standing.SUPERSEDED or not can_replace_one(voters):
                raise WrongDirectoryError
            others = [voter.broker for voter in voters.voters if voter.broker != self.process.name]
            asked = others[turn % len(others)]
            turn += 1
            if (yield from self._ask_to_rejoin(asked)):
                until = self.world.now + REJOIN_PATIENCE_S
                while self._acceptor.standing is Standing.ADMITTED and self.world.now < until:
                    yield self._changed(until - self.world.now)
            else:
                yield self.process.sleep(pause)
                pause = min(ASK_AGAIN_MAX_S, pause * 2)

    def _changed(self, timeout_s: float) -> Wait:
        def wait(resume: Any) -> None:
            self._acceptor.changed.append(lambda: self.process.after(0.0, resume, None))
            self.process.after(timeout_s, resume, None)

        return wait

    def _ask_to_rejoin(self, broker: str) -> Generator[Wait, Any, bool]:
        member, mine = self._acceptor.member, self._register
        # What is replaced among the voters is the acceptor's incarnation; the directory's own is registered afterwards.
        register = BrokerRegister(mine.broker, member.incarnation, mine.host, mine.port, mine.rack, mine.starts)
        answer = yield self._registers.ask(broker, Rejoin(register=register), REJOIN_TIMEOUT_S)
        if not isinstance(answer, VotersView):
            return False
        yield self._registers.ask(self.process.name, AdoptVoters(voters=answer.voters))
        return self._acceptor.voters.names(member)

    # --- the registers name this start of it (P-31)

    def _write_registers(self) -> Generator[Wait, Any, None]:
        registers, name, key = self._registers, self.process.name, broker_key(self.process.name)
        known = yield from self._insist(lambda: registers.get_as(BrokerRegister, key))
        self._check(None if known is None else encode(known))
        if self._acceptor.core.record.replaces is None:
            is_own = known is None or known.incarnation == self._register.incarnation
            yield self._perform(self._acceptor.core.on_replaces(b"" if is_own else known.incarnation))
        replaces = self._acceptor.core.record.replaces
        assert replaces is not None
        change = changes.register_broker(self._register, replaces=replaces)
        yield from self._insist(lambda: registers.change_as(BrokerRegister, key, change))
        join = changes.join(CLUSTER, name)
        yield from self._insist(lambda: registers.change_as(ClusterRegister, "cluster", join))

    def _insist(self, call: Any) -> Generator[Wait, Any, Any]:
        while True:
            try:
                return (yield from call())
            except (UnavailableError, UnknownOutcomeError):
                yield self.process.sleep(ASK_AGAIN_FIRST_S)
