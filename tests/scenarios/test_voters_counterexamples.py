"""The counterexamples of tests/spec/README.md for registers and voters, against the real cores: each fails where its rule forbids.
A test bears the name of the configuration that found it.
"""

from streamq.metadata.acceptor import Persist, Standing
from streamq.metadata.changes import close_and_open, trim
from streamq.metadata.proposer import Ask, Attempt, Chosen, Phase, QuorumRead, identity
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
    ReadAccepted,
    VotersReady,
    VotersView,
)
from streamq.model.registers import PartitionRegister, Segment, Voter, Voters
from streamq.wire.codec import decode_value, encode
from tests.support.register_network import KEY, Envelope, Network, Node, Operation, append, incarnation

ONE = Network(3).voters


def replacement_of(broker: str, number: int = 2) -> Voter:
    return Voter(broker, incarnation(broker, number), "host", 1)


TWO = replacing(ONE, replacement_of("b1"))


def ballot(counter: int, proposer: str = "p") -> Ballot:
    return Ballot(counter, proposer, b"start")


def say(node: Node, message: Message) -> Message:
    """The node's answer, once it is durable."""
    answers = [*node.take(Envelope(Operation(), Ask(node.broker, message))), *node.sync()]
    assert answers[-1].answer is not None
    return answers[-1].answer


def code_of(answer: Message) -> str:
    return answer.code if isinstance(answer, Failure) else "ok"


def choose(nodes: list[Node], counter: int, change: str, *, number: int = 1, known: bytes | None = None) -> bytes:
    """A change prepared and accepted by exactly these nodes."""
    value = append(change)(known)
    for node in nodes:
        promise = say(node, Prepare(number=number, key=KEY, ballot=ballot(counter)))
        assert isinstance(promise, Promise)
        assert promise.ok
    for node in nodes:
        assert say(node, Accept(number=number, key=KEY, ballot=ballot(counter), value=value)) == Accepted(ok=True, promised=ballot(counter))
    return value


def nodes_of(network: Network) -> tuple[Node, Node, Node]:
    return network.nodes["b1"], network.nodes["b2"], network.nodes["b3"]


def lost(node: Node) -> Node:
    return Node(node.broker, ONE, node.number + 1)


# --- registers -------------------------------------------------------------------------------------------------------------


def test_mut_cas_read_any() -> None:
    """A value that one acceptor alone has accepted is never returned by a quorum read without a round (P-4)."""
    one, two, _ = nodes_of(Network(3))
    say(one, Accept(number=1, key=KEY, ballot=ballot(1), value=b"c1"))
    read = QuorumRead(key=KEY, voters=ONE)
    for node in (one, two):
        answer = say(node, ReadAccepted(number=1, key=KEY))
        assert isinstance(answer, Promise)
        read.on_promise(node.broker, answer)
    assert read.outcome is None
    assert read.is_split


def test_mut_cas_volatile_promise() -> None:
    """A promise leaves only when it is durable, and then survives the crash (P-3)."""
    node, _, _ = nodes_of(Network(3))
    asked = Envelope(Operation(), Ask("b1", Prepare(number=1, key=KEY, ballot=ballot(2))))
    assert node.take(asked) == []
    node.restart()
    assert node.core.cell(KEY) is None
    say(node, Prepare(number=1, key=KEY, ballot=ballot(2)))
    node.restart()
    assert say(node, Accept(number=1, key=KEY, ballot=ballot(1), value=b"c1")) == Accepted(ok=False, promised=ballot(2))


def test_a_read_waits_for_what_it_reports() -> None:
    """An accepted value that is still on its way to the disk is not reported: a crash could take it back (P-3)."""
    node, _, _ = nodes_of(Network(3))
    assert node.take(Envelope(Operation(), Ask("b1", Accept(number=1, key=KEY, ballot=ballot(1), value=b"c1")))) == []
    assert node.take(Envelope(Operation(), Ask("b1", ReadAccepted(number=1, key=KEY)))) == []
    answers = node.sync()
    assert [type(answer.answer) for answer in answers] == [Accepted, Promise]


def test_lit_cas_last_id() -> None:
    """A takeover's change recognises itself although another change lies on top of it (P-5)."""
    member = (Member("b1", b"i" * 16),)
    first = Segment(1, 0, None, member, 1, 1, "fsync", "b1", b"a1")
    register = PartitionRegister(b"p" * 16, "t", 0, ("b1",), 1, 1, "fsync", 0, (first,))
    second = Segment(2, 10, None, member, 1, 1, "fsync", "b1", b"a2")
    change = close_and_open("t", 0, partition=register.id, epoch=1, end=10, opened=second)
    won = change(register)
    on_top = trim("t", 0, partition=register.id, start_offset=5)(won)
    assert change(on_top) == on_top
    assert on_top.last.attempt == b"a2"


# --- voters ----------------------------------------------------------------------------------------------------------------


def test_mut_voters_at_once() -> None:
    """A replacement that has adopted the number answers no prepare before the scan is done."""
    one, two, three = nodes_of(Network(3))
    choose([one, two], 1, "c1")
    one = lost(one)
    for node in (one, two, three):
        say(node, AdoptVoters(voters=TWO))
    assert code_of(say(one, Prepare(number=2, key=KEY, ballot=ballot(2)))) == "not_ready"


def test_mut_voters_read_at_once() -> None:
    """… and no quorum read, no list and no unready vote either; it accepts."""
    one, two, three = nodes_of(Network(3))
    choose([one, two], 1, "c1")
    one = lost(one)
    for node in (one, two, three):
        say(node, AdoptVoters(voters=TWO))
    assert code_of(say(one, ReadAccepted(number=2, key=KEY))) == "not_ready"
    assert code_of(say(one, ListKeys(number=2, prefix="", after=""))) == "not_ready"
    assert say(one, Accept(number=2, key=KEY, ballot=ballot(2), value=b"c1")) == Accepted(ok=True, promised=ballot(2))


def rescan(*, promises: dict[str, Promise]) -> Attempt:
    attempt = Attempt(
        key=KEY, ballot=ballot(9), voters=TWO, change=identity, preparers=frozenset({"b2", "b3"}), must_accept="b1"
    )  # fmt: skip
    assert {ask.broker for ask in attempt.begin()} == {"b2", "b3"}
    for broker, promise in promises.items():
        attempt.on_promise(broker, promise)
    return attempt


NOTHING = Promise(ok=True, promised=ballot(9), accepted=None, value=None)
HOLDS_C1 = Promise(ok=True, promised=ballot(9), accepted=ballot(1), value=b"c1")


def test_mut_voters_rescan_with_it() -> None:
    """The replacement's promise counts for nothing in the rescan, even if one arrives."""
    attempt = rescan(promises={"b1": NOTHING, "b3": NOTHING})
    assert attempt.phase is Phase.PREPARING
    attempt.on_promise("b2", HOLDS_C1)
    assert attempt.phase is Phase.ACCEPTING
    attempt.on_accepted("b1", Accepted(ok=True, promised=ballot(9)))
    attempt.on_accepted("b2", Accepted(ok=True, promised=ballot(9)))
    assert attempt.outcome == Chosen(ballot(9), b"c1")


def test_mut_voters_ready_without_it() -> None:
    """The rescan of a key is done only when the replacement itself has accepted it, also where the survivors agree already."""
    agreed = rescan(promises={"b2": HOLDS_C1, "b3": HOLDS_C1})
    assert agreed.phase is Phase.ACCEPTING
    for broker in ("b2", "b3"):
        agreed.on_accepted(broker, Accepted(ok=True, promised=ballot(9)))
    assert agreed.outcome is None
    agreed.on_accept_failed("b1", code="timed_out", message="")
    assert agreed.phase is Phase.BURNT


def scan() -> Readmission:
    return Readmission(voters=TWO, replacement=replacement_of("b1").member)


def adopted(steps: Readmission, *brokers: str) -> None:
    for broker in brokers:
        steps.on_voters(broker, VotersView(voters=TWO, ready=False))


def test_mut_voters_list_early() -> None:
    """No survivor lists its keys before it refuses the old number, and nobody is asked before all have adopted the new one."""
    one, two, three = nodes_of(Network(3))
    steps = scan()
    adopted(steps, "b1", "b2")
    steps.on_keys("b2", after="", page=Keys(keys=(), more=False))
    assert steps.step is Step.ADOPT
    # 3 is still in number 1: it answers no list of number 2; once it has adopted, it accepts nothing of number 1.
    assert code_of(say(three, ListKeys(number=2, prefix="", after=""))) == "wrong_number"
    say(three, AdoptVoters(voters=TWO))
    assert code_of(say(three, Accept(number=1, key=KEY, ballot=ballot(1), value=b"c1"))) == "wrong_number"
    assert one.record.voters.number == two.record.voters.number == 1


def test_mut_voters_one_list() -> None:
    """The scan waits for the list of every survivor, all pages of it."""
    steps = scan()
    adopted(steps, "b1", "b2", "b3")
    assert steps.step is Step.LIST
    steps.on_keys("b3", after="", page=Keys(keys=(), more=False))
    assert steps.step is Step.LIST
    steps.on_keys("b2", after="", page=Keys(keys=("a", "k"), more=True))
    assert steps.asks() == [Ask("b2", ListKeys(number=2, prefix="", after="k"))]
    steps.on_keys("b2", after="", page=Keys(keys=(), more=False))  # the first page, answered again
    assert steps.step is Step.LIST
    steps.on_keys("b2", after="k", page=Keys(keys=("m",), more=False))
    assert steps.step is Step.RESCAN
    assert steps.keys == ("a", "k", "m")


def test_mut_voters_volatile_number() -> None:
    """An adoption is durable before it is answered, survives a restart, and is never taken back."""
    _, _, three = nodes_of(Network(3))
    assert isinstance(three.core.on_message(AdoptVoters(voters=TWO)), Persist)
    three.restart()
    say(three, AdoptVoters(voters=TWO))
    three.restart()
    assert code_of(say(three, Accept(number=1, key=KEY, ballot=ballot(1), value=b"c1"))) == "wrong_number"
    assert say(three, AdoptVoters(voters=ONE)) == VotersView(voters=TWO, ready=True)
    assert three.record.voters == TWO


def test_mut_voters_no_number() -> None:
    """A late accept of number 1 does not reach the replacement."""
    one, two, three = nodes_of(Network(3))
    value = append("c1")(None)
    say(one, Prepare(number=1, key=KEY, ballot=ballot(1)))
    say(two, Prepare(number=1, key=KEY, ballot=ballot(1)))
    say(one, Accept(number=1, key=KEY, ballot=ballot(1), value=value))
    two = lost(two)
    three_voters = replacing(ONE, replacement_of("b2"))
    say(two, AdoptVoters(voters=three_voters))
    assert code_of(say(two, Accept(number=1, key=KEY, ballot=ballot(1), value=value))) == "wrong_number"
    assert three.record.voters.number == 1


def test_mut_voters_no_decision() -> None:
    """Whoever proposes a content for a number that is decided keeps the decided one."""
    network = Network(3)
    first, second = (replacing(ONE, replacement_of("b1", number)) for number in (2, 3))
    decided = []
    for carrier, content in (("b2", first), ("b3", second)):

        class Deciding(Operation):
            def __init__(self, attempt: Attempt) -> None:
                self.attempt = attempt

            def on_answer(self, ask: Ask, answer: Message) -> list[Ask]:
                if isinstance(answer, Promise):
                    return self.attempt.on_promise(ask.broker, answer)
                assert isinstance(answer, Accepted)
                return self.attempt.on_accepted(ask.broker, answer)

        key = voters_key(2)
        value = encode(content)
        counter = 1 if carrier == "b2" else 2
        attempt = Attempt(key=key, ballot=ballot(counter, carrier), voters=ONE, change=lambda v, value=value: v or value)
        network.send(Deciding(attempt), attempt.begin())
        network.settle(only=frozenset({"b2", "b3"}))
        assert isinstance(attempt.outcome, Chosen)
        decided.append(decode_value(Voters, attempt.outcome.value or b""))
    assert decided == [first, first]


def test_two_contents_of_one_number_are_refused() -> None:
    """A voter that is told a second content for its number keeps the first and says so (an alarm: that cannot be)."""
    _, two, _ = nodes_of(Network(3))
    say(two, AdoptVoters(voters=TWO))
    assert code_of(say(two, AdoptVoters(voters=replacing(ONE, replacement_of("b1", 3))))) == "internal"
    assert two.record.voters == TWO


def test_mut_voters_ready_unnamed() -> None:
    """The end of a scan is reported for one number and one incarnation; the next incarnation needs its own."""
    node = lost(lost(Network(3).nodes["b1"]))
    assert node.core.member == replacement_of("b1", 3).member
    say(node, AdoptVoters(voters=TWO))
    assert node.record.standing is Standing.OUTSIDE
    three = replacing(TWO, replacement_of("b1", 3))
    say(node, AdoptVoters(voters=three))
    assert node.record.standing is Standing.ADMITTED
    for stale in (
        VotersReady(number=2, member=replacement_of("b1", 2).member),
        VotersReady(number=2, member=node.core.member),
        VotersReady(number=3, member=replacement_of("b1", 2).member),
    ):
        assert say(node, stale) == VotersView(voters=three, ready=False)
    assert say(node, VotersReady(number=3, member=node.core.member)) == VotersView(voters=three, ready=True)


def test_a_superseded_incarnation_never_answers_again() -> None:
    """No lost incarnation comes back: once a configuration names another in its place, an acceptor stays silent."""
    one, _, _ = nodes_of(Network(3))
    say(one, AdoptVoters(voters=TWO))
    assert one.record.standing is Standing.SUPERSEDED
    back = Voters(number=3, voters=ONE.voters)
    say(one, AdoptVoters(voters=back))
    assert one.record.standing is Standing.SUPERSEDED
    assert code_of(say(one, Prepare(number=3, key=KEY, ballot=ballot(5)))) == "not_ready"
