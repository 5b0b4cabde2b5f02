"""How a broker comes into its cluster at each start, and how others bring a replacement among the voters (P-31, P-40).

The broker's own side, `join_cluster`: prove the directory, get the acceptor admitted, register. The other side, `Readmissions`: decide the
next voter configuration on behalf of a broker that asked with `Rejoin`, and carry out the steps of `metadata.voters.Readmission`. All of it
may be repeated and carried on by anybody; a broker that waits asks one after the other until it is in.
"""

import logging
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Final, TypeVar

import trio

from streamq.broker.local_acceptor import LocalAcceptor
from streamq.broker.registers import Registers
from streamq.metadata import changes
from streamq.metadata.acceptor import Standing
from streamq.metadata.proposer import Ask, Chosen, identity
from streamq.metadata.voters import Readmission, Step, can_replace_one, founding_quorum, replacing, voters_key, why_not_next
from streamq.model.errors import CorruptDataError, ProtocolError, UnavailableError, UnknownOutcomeError
from streamq.model.ids import Member
from streamq.model.messages import AdoptVoters, Failure, Keys, ListKeys, Message, Promise, ReadAccepted, ReadVoters, Rejoin, VotersView
from streamq.model.registers import BrokerRegister, ClusterRegister, Voter, Voters, broker_key
from streamq.wire.codec import decode_value, encode

__all__ = ["Readmissions", "join_cluster"]

log = logging.getLogger(__name__)
T = TypeVar("T")

ASK_AGAIN_FIRST_S: Final = 0.02
ASK_AGAIN_MAX_S: Final = 0.5
EVIDENCE_GRACE_S: Final = 0.25
"""How long the other voters are waited for once as many as are needed have said what they know of this broker."""
REJOIN_TIMEOUT_S: Final = 7.0
"""One `Rejoin`: the broker that is asked decides a register for it, retries included."""
REJOIN_PATIENCE_S: Final = 10.0
"""How long the steps after the decision may take before the broker asks again; whoever is at it just goes on."""
STEPS_DEADLINE_S: Final = 60.0
"""How long one broker tries to carry a re-admission through; then the replacement's next `Rejoin` begins it anew."""
RESCANS_AT_ONCE: Final = 16
LOG_EVERY_S: Final = 5.0


class Readmissions:
    """Carries re-admissions out for other brokers: one task for each replacement at a time."""

    def __init__(self, *, registers: Registers, local: LocalAcceptor, nursery: trio.Nursery) -> None:
        self._registers = registers
        self._voting = registers.voting
        self._local = local
        self._nursery = nursery
        self._under_way: set[tuple[int, Member]] = set()
        self._turn = trio.Lock()

    async def on_rejoin(self, message: Rejoin) -> VotersView:
        """Answers once a configuration that names the replacement is decided; the rest goes on in the background.

        Raises StreamqError (not_ready, unavailable, unknown_outcome): the broker asks again. A broker that is no voter only registers
        itself.
        """
        register = message.register
        replacement = Voter(register.broker, register.incarnation, register.host, register.port)
        async with self._turn:
            while True:
                voters = self._local.voters
                if voters.voter(replacement.broker) is None:
                    return VotersView(voters=voters, ready=False)
                if voters.names(replacement.member):
                    break
                await self._decide_next(voters, replacement)
        self._carry_on(voters, replacement.member)
        return VotersView(voters=voters, ready=False)

    async def _decide_next(self, voters: Voters, replacement: Voter) -> None:
        """One number further: the content that is decided for it already, or else this replacement's. Adopted here on return."""
        if not can_replace_one(voters):
            raise UnavailableError(
                f"{len(voters.voters)} metadata voters cannot replace one of them: the others are no majority",
                code="unavailable",
                hint="the lost voter's newest data directory is needed",
            )
        survivors = [voter.broker for voter in voters.voters if voter.broker != replacement.broker]
        await self._expect_ready(voters, survivors)
        content = replacing(voters, replacement)
        attempt = self._voting.new_attempt(
            voters_key(content.number), lambda value: encode(content) if value is None else value, voters=voters
        )
        await self._voting.run_attempt(attempt)
        outcome = attempt.outcome
        if not isinstance(outcome, Chosen) or outcome.value is None:
            raise UnavailableError(f"voter configuration {content.number} could not be decided: {attempt.problems}", code="unavailable")
        decided = decode_value(Voters, outcome.value)
        fault = why_not_next(voters, decided)
        if fault is not None:
            raise ProtocolError(f"register {voters_key(content.number)} is broken: {fault}", code="protocol")
        log.info("voter configuration %d is decided: %s", decided.number, [f"{v.broker}/{v.incarnation.hex()[:8]}" for v in decided.voters])
        await self._local.answer(AdoptVoters(voters=decided))

    async def _expect_ready(self, voters: Voters, survivors: Sequence[str]) -> None:
        """No other voter is replaced meanwhile (P-40): every survivor answers everything under this very number."""
        views: dict[str, Message] = {}

        async def read(broker: str) -> None:
            views[broker] = await self._voting.ask(broker, ReadVoters())

        async with trio.open_nursery() as nursery:
            for broker in survivors:
                nursery.start_soon(read, broker)
        others = [b for b, view in views.items() if isinstance(view, VotersView) and view.voters.number != voters.number]
        if others:
            await self._voting.follow_numbers(others)
            raise UnavailableError(f"voters {', '.join(sorted(others))} were in another configuration", code="not_ready")
        lacking = [b for b, view in views.items() if not (isinstance(view, VotersView) and view.ready)]
        if lacking:
            raise UnavailableError(f"voters {', '.join(sorted(lacking))} are not ready; all others must be up", code="not_ready")

    def _carry_on(self, voters: Voters, replacement: Member) -> None:
        work = (voters.number, replacement)
        if work not in self._under_way:
            self._under_way.add(work)
            self._nursery.start_soon(self._carry_out, voters, replacement)

    async def _carry_out(self, voters: Voters, replacement: Member) -> None:
        steps = Readmission(voters=voters, replacement=replacement)
        failures = 0
        try:
            with trio.move_on_after(STEPS_DEADLINE_S):
                while steps.step not in (Step.DONE, Step.SUPERSEDED) and self._local.voters.number <= voters.number:
                    before = steps.step, steps.keys
                    await self._advance(steps)
                    failures = 0 if (steps.step, steps.keys) != before else failures + 1
                    if failures:
                        await trio.sleep(max(ASK_AGAIN_FIRST_S, self._registers.pause_s(failures)))
            log.info("re-admission of %s in voter configuration %d: %s", replacement.broker, voters.number, steps.step.name)
        finally:
            self._under_way.discard((voters.number, replacement))

    async def _advance(self, steps: Readmission) -> None:
        """One round of the present step: every request or rescan that it lacks, at once."""
        limiter = trio.CapacityLimiter(RESCANS_AT_ONCE)

        async def ask(each: Ask) -> None:
            answer = await self._voting.ask(each.broker, each.message)
            if isinstance(answer, VotersView):
                steps.on_voters(each.broker, answer)
            elif isinstance(answer, Keys) and isinstance(each.message, ListKeys):
                steps.on_keys(each.broker, after=each.message.after, page=answer)

        async def rescan(key: str) -> None:
            async with limiter:
                attempt = self._voting.new_attempt(
                    key, identity, voters=steps.voters, preparers=steps.survivors, must_accept=steps.replacement.broker
                )
                await self._voting.run_attempt(attempt)
                if isinstance(attempt.outcome, Chosen):
                    steps.on_rescanned(key)

        async with trio.open_nursery() as nursery:
            for each in steps.asks():
                nursery.start_soon(ask, each)
            for key in steps.keys:
                nursery.start_soon(rescan, key)


async def join_cluster(
    *,
    registers: Registers,
    local: LocalAcceptor,
    register: BrokerRegister,
    bootstrap: Callable[[], Sequence[str]],
) -> BrokerRegister:
    """Awaited once at each start, before the broker serves: proves that the directory is not an older copy or in use elsewhere (P-31), has
    the acceptor admitted where that is needed (P-40), registers `broker/<id>` and `cluster`. Retries for ever while too few voters can be
    reached.

    The router must already answer requests for the local acceptor while this runs (all brokers may start at once).
    Raises AlreadyExistsError (wrong_directory, wrong_cluster) or CorruptDataError: the broker must stop with that message.
    `bootstrap`: names of brokers to ask besides the voters. Cancelling it leaves nothing half done: the next start goes on.
    """
    joining = _Joining(registers, local, register, bootstrap)
    await joining.prove()
    await joining.rejoin()
    await joining.register()
    return register


class _Joining:
    """The steps of `join_cluster`, each of which returns when it is achieved."""

    def __init__(
        self, registers: Registers, local: LocalAcceptor, register: BrokerRegister, bootstrap: Callable[[], Sequence[str]]
    ) -> None:
        self._registers = registers
        self._voting = registers.voting
        self._local = local
        self._register = register
        self._bootstrap = bootstrap
        self._logged = -LOG_EVERY_S

    # --- the directory is the newest of this broker (P-31)

    async def prove(self) -> None:
        """Asks the other voters what they know of this broker, and lets the acceptor answer once nothing can speak against it.

        A directory that has acceptor state counts as one voter of the majority that is asked: its state is whole unless it is an older
        copy, and a majority with it is all that a cluster with a minority down can give. A founding directory holds nothing that could
        count: it may be a second one made with the same identity, after the first was lost. So the others alone must make sure of it, which
        for three voters means both others; all founders are asked at once and answer each other before any of them is admitted.

        An older copy lacks what its broker accepted itself, so one voter that was away then may say nothing against it: whoever else can be
        reached in a moment is heard as well.
        """
        self._check(self._local.accepted(broker_key(self._local.broker)))
        pause = ASK_AGAIN_FIRST_S
        heard: dict[str, bytes | None] = {}
        with trio.CancelScope() as grace:
            while True:
                await self._ask_for_evidence(heard, grace)
                for value in heard.values():
                    self._check(value)
                if self._has_heard_all(heard):
                    break
                if len(heard) < self._evidence_needed():
                    self._log_waiting("other metadata voters must confirm that this data directory is the newest")
                await trio.sleep(pause)
                pause = min(ASK_AGAIN_MAX_S, pause * 2)
        for value in heard.values():
            self._check(value)
        if self._local.standing is Standing.SUPERSEDED:
            raise changes.wrong_directory(self._local.broker, "another data directory has taken this broker's place among the voters")
        await self._local.prove()

    def _has_heard_all(self, heard: Container[str]) -> bool:
        return all(voter.broker in heard for voter in self._local.voters.voters if voter.broker != self._local.broker)

    def _evidence_needed(self) -> int:
        voters = self._local.voters
        if self._local.standing is Standing.FOUNDING:
            return founding_quorum(voters)
        return voters.majority if voters.voter(self._local.broker) is None else voters.majority - 1

    async def _ask_for_evidence(self, heard: dict[str, bytes | None], grace: trio.CancelScope) -> None:
        """One round over those that have not been heard yet. When enough were, the grace for the others begins."""

        async def ask(broker: str) -> None:
            view = await self._voting.ask(broker, ReadVoters())
            if isinstance(view, VotersView) and view.voters.number > self._local.voters.number:
                await self._local.answer(AdoptVoters(voters=view.voters))
            question = ReadAccepted(number=0, key=broker_key(self._local.broker), as_evidence=True)
            answer = await self._voting.ask(broker, question)
            if isinstance(answer, Promise) and _is_evidence(answer.value):
                heard[broker] = answer.value
                if len(heard) >= self._evidence_needed():
                    grace.deadline = min(grace.deadline, trio.current_time() + EVIDENCE_GRACE_S)

        async with trio.open_nursery() as nursery:
            for voter in self._local.voters.voters:
                if voter.broker != self._local.broker and voter.broker not in heard:
                    nursery.start_soon(ask, voter.broker)

    def _check(self, value: bytes | None) -> None:
        if value is None:
            return
        known = decode_value(BrokerRegister, value)
        if self._local.standing is Standing.FOUNDING:
            raise changes.wrong_directory(
                self._local.broker, f"this data directory is new, and the cluster has seen start {known.starts} of this broker already"
            )
        fault = changes.directory_fault(known, mine=self._register, replaces=self._local.replaces, is_this_start_unknown=True)
        if fault is not None:
            raise changes.wrong_directory(self._local.broker, fault)

    # --- the acceptor is among the voters (P-40)

    async def rejoin(self) -> None:
        """Has others replace the lost incarnation until the acceptor is ready. A broker that is no voter has nothing to do here."""
        turn = 0
        pause = ASK_AGAIN_FIRST_S
        while self._is_to_be_admitted():
            voters = self._local.voters
            if self._local.standing is Standing.SUPERSEDED:
                raise changes.wrong_directory(self._local.broker, "another data directory has taken this broker's place among the voters")
            if not can_replace_one(voters):
                raise CorruptDataError(
                    f"{self._local.broker} lost what it promised as a metadata voter, and the others alone are no majority",
                    code="data_damaged",
                    hint="restore the newest copy of its data directory",
                )
            names = dict.fromkeys([voter.broker for voter in voters.voters] + list(self._bootstrap()))
            others = [name for name in names if name != self._local.broker]
            asked = others[turn % len(others)]
            turn += 1
            if await self._ask_to_rejoin(asked):
                await self._wait_until_ready()
            else:
                await trio.sleep(pause)
                pause = min(ASK_AGAIN_MAX_S, pause * 2)

    def _is_to_be_admitted(self) -> bool:
        return self._local.standing is not Standing.READY and self._local.voters.voter(self._local.broker) is not None

    async def _ask_to_rejoin(self, broker: str) -> bool:
        member = self._local.member
        # What is replaced among the voters is the acceptor's incarnation; the directory's own is registered afterwards.
        register = _with_incarnation(self._register, member.incarnation)
        answer = await self._voting.ask(broker, Rejoin(register=register), timeout_s=REJOIN_TIMEOUT_S)
        if not isinstance(answer, VotersView):
            if isinstance(answer, Failure):
                self._log_waiting(f"{broker} cannot re-admit this broker yet ({answer.code}: {answer.message})")
            return False
        await self._local.answer(AdoptVoters(voters=answer.voters))
        return self._local.voters.names(member)

    async def _wait_until_ready(self) -> None:
        with trio.move_on_after(REJOIN_PATIENCE_S):
            while self._local.standing is Standing.ADMITTED:
                await self._local.changed()

    # --- the registers name this start of it (P-31)

    async def register(self) -> None:
        """Writes `broker/<id>`, then `cluster`."""
        key = broker_key(self._local.broker)
        known = await self._insist(lambda: self._registers.get_as(BrokerRegister, key))
        self._check(None if known is None else encode(known))
        if self._local.replaces is None:
            # Durable before the change: a directory that was replaced while it was away must not take the place back.
            is_own = known is None or known.incarnation == self._register.incarnation
            await self._local.set_replaces(b"" if known is None or is_own else known.incarnation)
        replaces = self._local.replaces
        assert replaces is not None
        change = changes.register_broker(self._register, replaces=replaces)
        await self._insist(lambda: self._registers.change_as(BrokerRegister, key, change))
        join = changes.join(self._local.cluster, self._local.broker)
        await self._insist(lambda: self._registers.change_as(ClusterRegister, "cluster", join))

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except (UnavailableError, UnknownOutcomeError) as error:
                self._log_waiting(error.message)
                await trio.sleep(ASK_AGAIN_FIRST_S)

    def _log_waiting(self, reason: str) -> None:
        now = trio.current_time()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.warning("%s is not in the cluster yet: %s", self._local.broker, reason)


def _is_evidence(value: bytes | None) -> bool:
    """What one broker says that is no register of a broker says nothing about this one either; others are asked."""
    try:
        return value is None or decode_value(BrokerRegister, value) is not None
    except ProtocolError:
        return False


def _with_incarnation(register: BrokerRegister, incarnation: bytes) -> BrokerRegister:
    return BrokerRegister(register.broker, incarnation, register.host, register.port, register.rack, register.starts)
