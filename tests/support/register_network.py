"""Acceptor and proposer cores on a network that delays, loses, repeats and reorders, with disks that lose what was not synced.

The value of a register is the list of the ids of the changes applied: the least forgiving there is, since applying one twice shows
(spec/CasRegister.tla). `check` holds all operations against one history.
"""

from collections import deque
from itertools import pairwise

from streamq.metadata.acceptor import Acceptor, AcceptorRecord, Answer, Cell, Effect, Standing
from streamq.metadata.proposer import Ask, Attempt, Ballots, Chosen, Phase, QuorumRead, identity
from streamq.metadata.voters import Readmission, Step, replacing, voters_key
from streamq.model.ids import Ballot, Member
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
    VotersReady,
    VotersView,
)
from streamq.model.registers import Voter, Voters
from streamq.wire.codec import decode_value, encode

KEY = "k"


def incarnation(broker: str, number: int) -> bytes:
    return f"{broker}#{number}".encode().ljust(16)


def first_voters(count: int) -> Voters:
    return Voters(number=1, voters=tuple(Voter(f"b{i}", incarnation(f"b{i}", 1), "host", 1) for i in range(1, count + 1)))


def ids(value: bytes | None) -> list[str]:
    return [] if value is None else value.decode().split(",")


def append(change: str):
    """A change function that recognises its own earlier application (P-5)."""

    def f(value: bytes | None) -> bytes:
        known = ids(value)
        return ",".join(known if change in known else [*known, change]).encode()

    return f


class Node:
    """A broker's acceptor with its disk: `durable` survives a crash, `queue` does not."""

    def __init__(self, broker: str, voters: Voters, number: int = 1) -> None:
        self.broker = broker
        self.number = number
        self.cells: dict[str, Cell] = {}
        member = Member(broker, incarnation(broker, number))
        standing = Standing.READY if voters.names(member) else Standing.OUTSIDE
        self.record = AcceptorRecord(member.incarnation, voters, standing)
        self.queue: deque[tuple[Effect, Envelope]] = deque()
        self.restart()

    def restart(self) -> None:
        self.queue.clear()
        self.core = Acceptor(broker=self.broker, record=self.record, cells=self.cells)
        self.core.on_proved()

    def take(self, envelope: "Envelope") -> "list[Envelope]":
        effect = self.core.on_message(envelope.ask.message)
        if isinstance(effect, Answer) and not self.queue:
            return [envelope.answered(effect.then)]
        self.queue.append((effect, envelope))
        return []

    def sync(self, count: int | None = None) -> "list[Envelope]":
        answers = []
        for _ in range(len(self.queue) if count is None else min(count, len(self.queue))):
            effect, envelope = self.queue.popleft()
            if not isinstance(effect, Answer):
                if effect.cell is not None:
                    self.cells[effect.cell[0]] = effect.cell[1]
                if effect.record is not None:
                    self.record = effect.record
            answers.append(envelope.answered(effect.then))
        return answers


class Operation:
    """Whoever asks: what it asks next comes out of `on_answer`."""

    def on_answer(self, ask: Ask, answer: Message) -> list[Ask]:
        raise NotImplementedError


class Envelope:
    def __init__(self, operation: Operation, ask: Ask, answer: Message | None = None) -> None:
        self.operation = operation
        self.ask = ask
        self.answer = answer

    def answered(self, answer: Message) -> "Envelope":
        return Envelope(self.operation, self.ask, answer)


class AttemptOperation(Operation):
    def __init__(self, attempt: Attempt, floor: list[str], change: str | None) -> None:
        self.attempt = attempt
        self.floor = floor
        self.change = change

    @property
    def result(self) -> list[str] | None:
        return ids(self.attempt.outcome.value) if isinstance(self.attempt.outcome, Chosen) else None

    def on_answer(self, ask: Ask, answer: Message) -> list[Ask]:
        attempt = self.attempt
        if isinstance(ask.message, Prepare):
            if isinstance(answer, Promise):
                return attempt.on_promise(ask.broker, answer)
            assert isinstance(answer, Failure)
            return attempt.on_prepare_failed(ask.broker, code=answer.code, message=answer.message)
        if isinstance(answer, Accepted):
            return attempt.on_accepted(ask.broker, answer)
        assert isinstance(answer, Failure)
        return attempt.on_accept_failed(ask.broker, code=answer.code, message=answer.message)


class ReadOperation(Operation):
    def __init__(self, read: QuorumRead, floor: list[str]) -> None:
        self.read = read
        self.floor = floor

    @property
    def result(self) -> list[str] | None:
        return None if self.read.outcome is None else ids(self.read.outcome.value)

    def on_answer(self, ask: Ask, answer: Message) -> list[Ask]:
        if isinstance(answer, Promise):
            self.read.on_promise(ask.broker, answer)
        elif isinstance(answer, Failure):
            self.read.on_failed(ask.broker, code=answer.code, message=answer.message)
        return []


class CarrierOperation(Operation):
    """One broker that carries a re-admission out, from the decision on. It may stop at any moment; others may be at it too."""

    def __init__(self, network: "Network", broker: str, replacement: Voter) -> None:
        self.network = network
        self.broker = broker
        self.replacement = replacement
        self.deciding: Attempt | None = None
        self.steps: Readmission | None = None
        self.rescans: dict[str, AttemptOperation] = {}

    def advance(self) -> None:
        """Sends, again or for the first time, what its present step lacks."""
        network = self.network
        if self.steps is None:
            voters = network.nodes[self.broker].core.record.voters
            if voters.names(self.replacement.member):
                self.steps = Readmission(voters=voters, replacement=self.replacement.member)
            elif self.deciding is None or self.deciding.phase is Phase.BURNT:
                self._decide(voters)
            return
        network.send(self, self.steps.asks())
        for key in self.steps.keys:
            rescan = self.rescans.get(key)
            if rescan is None or rescan.attempt.phase is Phase.BURNT:
                self._rescan(key)
            elif rescan.attempt.phase is Phase.CHOSEN:
                self.steps.on_rescanned(key)

    def _decide(self, voters: Voters) -> None:
        survivors = [v.broker for v in voters.voters if v.broker != self.replacement.broker]
        for broker in survivors:  # `_expect_ready` of the shell: what it learns stays true under this number
            record = self.network.nodes[broker].record
            if record.voters.number < voters.number:
                self.network.send(self, [Ask(broker, AdoptVoters(voters=voters))])
            if record.voters.number != voters.number or record.standing is not Standing.READY:
                return
        content = replacing(voters, self.replacement)
        self.deciding = Attempt(
            key=voters_key(content.number),
            ballot=self.network.ballots[self.broker].next(voters_key(content.number)),
            voters=voters,
            change=lambda value: encode(content) if value is None else value,
        )
        self.network.send(AttemptOperation(self.deciding, [], None), self.deciding.begin())
        self.network.decisions.append((self, self.deciding))

    def on_decided(self, decided: Voters) -> None:
        self.network.decided.setdefault(decided.number, set()).add(encode(decided))
        self.network.send(self, [Ask(self.broker, AdoptVoters(voters=decided))])
        self.deciding = None

    def _rescan(self, key: str) -> None:
        assert self.steps is not None
        attempt = Attempt(
            key=key,
            ballot=self.network.ballots[self.broker].next(key),
            voters=self.steps.voters,
            change=identity,
            preparers=self.steps.survivors,
            must_accept=self.replacement.broker,
        )
        self.rescans[key] = operation = AttemptOperation(attempt, self.network.floor() if key == KEY else [], None)
        if key == KEY:
            self.network.operations.append(operation)
        self.network.send(operation, attempt.begin())

    def on_answer(self, ask: Ask, answer: Message) -> list[Ask]:
        if self.steps is None:
            return []
        if isinstance(answer, VotersView):
            self.steps.on_voters(ask.broker, answer)
        elif isinstance(answer, Keys) and isinstance(ask.message, ListKeys):
            self.steps.on_keys(ask.broker, after=ask.message.after, page=answer)
        return []


class Network:
    """Acceptors b1, b2, …, the messages under way, and every operation ever begun."""

    def __init__(self, count: int = 3) -> None:
        self.voters = first_voters(count)
        self.nodes = {voter.broker: Node(voter.broker, self.voters) for voter in self.voters.voters}
        self.ballots = {broker: Ballots(proposer=broker, start=b"s1") for broker in self.nodes}
        self.bag: list[Envelope] = []
        self.operations: list[AttemptOperation | ReadOperation] = []
        self.decisions: list[tuple[CarrierOperation, Attempt]] = []
        self.decided: dict[int, set[bytes]] = {1: {encode(self.voters)}}
        self.accepted: dict[tuple[int, Ballot], set[str]] = {}
        self.chosen: list[list[str]] = []
        self.losses = 0

    # --- operations

    def floor(self) -> list[str]:
        """The longest value that was returned, or could have been: whatever begins now must return at least that."""
        results = [result for operation in self.operations if (result := operation.result) is not None]
        return max([*results, *self.chosen, []], key=len)

    def change(self, broker: str, change: str | None) -> AttemptOperation:
        """`change` None: an identity change, the slow path of a read."""
        attempt = Attempt(
            key=KEY,
            ballot=self.ballots[broker].next(KEY),
            voters=self.nodes[broker].core.record.voters,
            change=identity if change is None else append(change),
        )
        operation = AttemptOperation(attempt, self.floor(), change)
        self.operations.append(operation)
        self.send(operation, attempt.begin())
        return operation

    def read(self, broker: str) -> ReadOperation:
        operation = ReadOperation(QuorumRead(key=KEY, voters=self.nodes[broker].core.record.voters), self.floor())
        self.operations.append(operation)
        self.send(operation, operation.read.begin())
        return operation

    def send(self, operation: Operation, asks: list[Ask]) -> None:
        self.bag.extend(Envelope(operation, ask) for ask in asks)

    # --- what the network does

    def deliver(self, index: int, *, repeat: bool = False) -> None:
        envelope = self.bag[index] if repeat else self.bag.pop(index)
        if envelope.answer is None:
            self._emit(self.nodes[envelope.ask.broker].take(envelope))
            return
        for ask in envelope.operation.on_answer(envelope.ask, envelope.answer):
            self.bag.append(Envelope(envelope.operation, ask))
        if isinstance(envelope.operation, AttemptOperation):
            attempt = envelope.operation.attempt
            if attempt.outcome is not None and not isinstance(attempt.outcome, Chosen):
                for ballots in self.ballots.values():
                    ballots.on_seen(attempt.key, attempt.outcome.above)
        for carrier, attempt in list(self.decisions):
            if isinstance(attempt.outcome, Chosen):
                self.decisions.remove((carrier, attempt))
                carrier.on_decided(decode_value(Voters, attempt.outcome.value or b""))

    def sync(self, broker: str, count: int | None = None) -> None:
        self._emit(self.nodes[broker].sync(count))

    def crash(self, broker: str) -> None:
        """The process dies: what was not synced is gone, and its proposer comes back with another random start."""
        self.nodes[broker].restart()
        self.ballots[broker] = Ballots(proposer=broker, start=b"s%d" % (len(self.operations) + len(self.bag) + 2))

    def lose(self, broker: str, *, limit: int) -> Voter | None:
        """The disk is gone, if the protocol still bears it: every other voter is whole."""
        others_whole = all(n.record.standing is Standing.READY for name, n in self.nodes.items() if name != broker)
        if self.losses >= limit or not others_whole:
            return None
        self.losses += 1
        self.nodes[broker] = Node(broker, self.voters, self.nodes[broker].number + 1)
        self.crash(broker)
        return Voter(broker, self.nodes[broker].record.incarnation, "host", 1)

    def settle(self, *, only: frozenset[str] | None = None) -> None:
        """Delivers and syncs everything to and from these brokers until nothing moves."""
        moved = True
        while moved:
            moved = False
            for node in self.nodes.values():
                if node.queue:
                    self.sync(node.broker)
                    moved = True
            for index, envelope in enumerate(self.bag):
                if only is None or envelope.ask.broker in only:
                    self.deliver(index)
                    moved = True
                    break

    def _emit(self, answers: list[Envelope]) -> None:
        for envelope in answers:
            message = envelope.ask.message
            if isinstance(message, Accept) and message.key == KEY and isinstance(envelope.answer, Accepted) and envelope.answer.ok:
                by = self.accepted.setdefault((message.number, message.ballot), set())
                by.add(envelope.ask.broker)
                if 2 * len(by) > len(self.nodes) and ids(message.value) not in self.chosen:
                    self.chosen.append(ids(message.value))
            self.bag.append(envelope)

    # --- what must hold

    def check(self) -> None:
        for contents in self.decided.values():
            assert len(contents) <= 1, "two contents of one number"
        returned = [(operation, result) for operation in self.operations if (result := operation.result) is not None]
        values = sorted([*(result for _, result in returned), *self.chosen], key=len)
        for before, after in pairwise(values):
            assert after[: len(before)] == before, f"agreement: {before} and {after}"
        for operation, result in returned:
            assert result[: len(operation.floor)] == operation.floor, f"linear: {operation.floor} was there before {result}"
            assert len(set(result)) == len(result), f"once: {result}"
            if isinstance(operation, AttemptOperation) and operation.change is not None:
                assert operation.change in result, f"applied: {operation.change} in {result}"


__all__ = ["KEY", "CarrierOperation", "Network", "Step", "VotersReady", "append", "first_voters", "ids", "incarnation"]
