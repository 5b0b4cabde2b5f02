"""What an acceptor promises and accepts, ballot by ballot (P-2, P-3, P-6); re-admission is in scenarios/test_voters_counterexamples.py."""

from typing import TypeVar

import pytest

from streamq.metadata.acceptor import BALLOT_COUNTER_MAX, Acceptor, AcceptorRecord, Answer, Cell, Effect, Persist, Standing
from streamq.model.ids import Ballot
from streamq.model.messages import Accept, Accepted, Failure, Keys, ListKeys, Message, Prepare, Promise, ReadAccepted
from tests.support.register_network import first_voters, incarnation

T = TypeVar("T", bound=Message)
VOTERS = first_voters(3)
LOW, MINE, HIGH = (Ballot(counter, "b1", b"start") for counter in (1, 2, 3))
TWIN = Ballot(2, "b1", b"a later start")
"""The same counter of the same proposer, in its next start."""


@pytest.fixture
def acceptor() -> Acceptor:
    core = Acceptor(broker="b1", record=AcceptorRecord(incarnation("b1", 1), VOTERS, Standing.READY), cells={})
    core.on_proved()
    return core


def prepare(acceptor: Acceptor, ballot: Ballot) -> Promise:
    return said(acceptor.on_message(Prepare(number=1, key="k", ballot=ballot)), Promise)


def accept(acceptor: Acceptor, ballot: Ballot, value: bytes = b"v") -> Accepted:
    return said(acceptor.on_message(Accept(number=1, key="k", ballot=ballot, value=value)), Accepted)


def said(effect: Effect, kind: type[T]) -> T:
    assert isinstance(effect.then, kind)
    return effect.then


def test_a_promise_is_given_above_the_promise_only(acceptor: Acceptor) -> None:
    """Pitfall 31: an equal ballot would be promised to two attempts."""
    assert prepare(acceptor, MINE) == Promise(ok=True, promised=MINE, accepted=None, value=None)
    for again in (MINE, LOW):
        assert prepare(acceptor, again) == Promise(ok=False, promised=MINE, accepted=None, value=None)
    assert prepare(acceptor, HIGH).ok


def test_an_acceptance_is_given_at_the_promise_or_above(acceptor: Acceptor) -> None:
    prepare(acceptor, MINE)
    assert accept(acceptor, LOW) == Accepted(ok=False, promised=MINE)
    assert accept(acceptor, MINE).ok
    assert accept(acceptor, HIGH).ok, "also without a promise"
    assert not accept(acceptor, MINE).ok
    assert not prepare(acceptor, HIGH).ok, "accepting promises, too"
    assert acceptor.cell("k") == Cell(HIGH, HIGH, b"v")


def test_a_ballot_has_one_value(acceptor: Acceptor) -> None:
    """Pitfall 29: the same again is the same; another value under it is a broken proposer."""
    assert accept(acceptor, MINE, b"v").ok
    assert accept(acceptor, MINE, b"v").ok
    assert not accept(acceptor, MINE, b"w").ok
    assert acceptor.cell("k") == Cell(MINE, MINE, b"v")


def test_two_starts_of_a_proposer_never_share_a_ballot(acceptor: Acceptor) -> None:
    """Pitfall 30: its counter begins anew, and the acceptor tells the two apart."""
    assert prepare(acceptor, max(MINE, TWIN)).ok
    assert not prepare(acceptor, min(MINE, TWIN)).ok
    assert not accept(acceptor, min(MINE, TWIN)).ok


def test_what_was_accepted_is_told_with_the_next_promise(acceptor: Acceptor) -> None:
    accept(acceptor, LOW, b"old")
    assert prepare(acceptor, MINE) == Promise(ok=True, promised=MINE, accepted=LOW, value=b"old")
    assert accept(acceptor, HIGH, b"new").ok
    read = said(acceptor.on_message(ReadAccepted(number=1, key="k")), Promise)
    assert read == Promise(ok=True, promised=HIGH, accepted=HIGH, value=b"new")


def test_whatever_changes_is_written_and_nothing_else(acceptor: Acceptor) -> None:
    """P-3: the written cell is the one that is answered for; a refusal writes nothing."""
    effect = acceptor.on_message(Prepare(number=1, key="k", ballot=MINE))
    assert isinstance(effect, Persist)
    assert effect.cell == ("k", Cell(MINE, None, None))
    effect = acceptor.on_message(Accept(number=1, key="k", ballot=MINE, value=b"v"))
    assert isinstance(effect, Persist)
    assert effect.cell == ("k", Cell(MINE, MINE, b"v"))
    for message in (Prepare(number=1, key="k", ballot=LOW), Accept(number=1, key="k", ballot=LOW, value=b"x")):
        assert isinstance(acceptor.on_message(message), Answer)
    assert isinstance(acceptor.on_message(ReadAccepted(number=1, key="k")), Answer)


def test_no_ballot_leaves_none_above_it(acceptor: Acceptor) -> None:
    over = Ballot(BALLOT_COUNTER_MAX + 1, "b1", b"start")
    for message in (Prepare(number=1, key="k", ballot=over), Accept(number=1, key="k", ballot=over, value=b"v")):
        assert said(acceptor.on_message(message), Failure).code == "bad_request"
    assert acceptor.cell("k") is None


def test_nothing_is_answered_before_the_directory_is_proved() -> None:
    """P-31: an older copy of a directory has forgotten promises."""
    cells = {"k": Cell(HIGH, HIGH, b"v")}
    core = Acceptor(broker="b1", record=AcceptorRecord(incarnation("b1", 1), VOTERS, Standing.READY), cells=cells)
    questions: list[Message] = [
        Prepare(number=1, key="k", ballot=Ballot(9, "b2", b"s")),
        Accept(number=1, key="k", ballot=HIGH, value=b"v"),
    ]
    questions += [ReadAccepted(number=1, key="k"), ListKeys(number=1, prefix="", after="")]
    for message in questions:
        assert said(core.on_message(message), Failure).code == "not_ready"
    assert said(core.on_message(ReadAccepted(number=1, key="k", as_evidence=True)), Promise).value == b"v"
    core.on_proved()
    assert said(core.on_message(questions[0]), Promise).ok


def test_keys_are_listed_by_what_was_accepted(acceptor: Acceptor) -> None:
    for key, ballot in (("a/1", LOW), ("a/2", LOW), ("b", LOW)):
        acceptor.on_message(Accept(number=1, key=key, ballot=ballot, value=b"v"))
    acceptor.on_message(Prepare(number=1, key="a/3", ballot=LOW))
    assert said(acceptor.on_message(ListKeys(number=1, prefix="a/", after="a/1")), Keys) == Keys(keys=("a/2",), more=False)
