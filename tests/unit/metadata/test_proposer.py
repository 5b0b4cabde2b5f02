"""One attempt, one ballot, one value; what a set of promises and acceptances proves (P-2, P-4, P-5)."""

import pytest

from streamq.metadata.proposer import Attempt, Ballots, Burnt, Chosen, Phase, QuorumRead, backoff_s
from streamq.model.errors import NotFoundError
from streamq.model.ids import Ballot
from streamq.model.messages import Accept, Accepted, Promise
from tests.support.register_network import append, first_voters

VOTERS = first_voters(3)
MINE = Ballot(5, "b1", b"start")
OLD, NEWER, ABOVE = Ballot(1, "b2", b"s"), Ballot(2, "b3", b"s"), Ballot(9, "b2", b"s")


def attempt(change: str = "c") -> Attempt:
    core = Attempt(key="k", ballot=MINE, voters=VOTERS, change=append(change))
    assert {ask.broker for ask in core.begin()} == {"b1", "b2", "b3"}
    return core


def promise(accepted: Ballot | None = None, value: bytes | None = None) -> Promise:
    return Promise(ok=True, promised=MINE, accepted=accepted, value=value)


def refusal(promised: Ballot = ABOVE) -> Promise:
    return Promise(ok=False, promised=promised, accepted=None, value=None)


ACCEPTED = Accepted(ok=True, promised=MINE)


def test_the_change_is_applied_to_the_value_of_the_highest_ballot() -> None:
    core = attempt()
    assert core.on_promise("b1", promise(OLD, b"old")) == []
    asks = core.on_promise("b3", promise(NEWER, b"newer"))
    assert [ask.message for ask in asks] == [Accept(number=1, key="k", ballot=MINE, value=b"newer,c")] * 3
    core.on_accepted("b2", ACCEPTED)
    assert core.outcome is None
    core.on_accepted("b2", ACCEPTED)
    assert core.outcome is None, "an acceptor counts once"
    core.on_accepted("b1", ACCEPTED)
    assert core.outcome == Chosen(MINE, b"newer,c")


def test_what_comes_after_a_burnt_ballot_changes_nothing() -> None:
    """Pitfall 29: the attempt is over; its value may yet be completed by others, and nothing else goes out under its ballot."""
    core = attempt()
    core.on_promise("b1", promise())
    assert not core.may_have_happened
    core.on_promise("b2", promise())
    core.on_deadline()
    assert core.outcome == Burnt(None, frozenset())
    assert core.may_have_happened
    assert core.on_promise("b3", promise(NEWER, b"newer")) == []
    assert core.on_accepted("b1", ACCEPTED) == core.on_accepted("b2", ACCEPTED) == []
    assert core.phase is Phase.BURNT


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.ACCEPTING])
def test_refusals_burn_it_when_no_majority_is_left_and_name_the_ballot_above(phase: Phase) -> None:
    core = attempt()
    if phase is Phase.ACCEPTING:
        core.on_promise("b1", promise())
        core.on_promise("b2", promise())
        core.on_accepted("b1", Accepted(ok=False, promised=NEWER))
        core.on_accepted("b2", Accepted(ok=False, promised=ABOVE))
    else:
        core.on_promise("b1", refusal(NEWER))
        core.on_promise("b2", refusal())
    assert core.outcome == Burnt(ABOVE, frozenset())
    assert core.may_have_happened == (phase is Phase.ACCEPTING)


def test_a_promise_of_another_ballot_is_none() -> None:
    core = attempt()
    core.on_promise("b1", Promise(ok=True, promised=NEWER, accepted=None, value=None))
    core.on_promise("b2", promise())
    assert core.phase is Phase.PREPARING


def test_ballots_are_above_all_seen_and_never_given_twice() -> None:
    """Pitfalls 29 and 30: after whatever was seen, and not even by the next start of the same proposer."""
    first, second = Ballots(proposer="b1", start=b"s1"), Ballots(proposer="b1", start=b"s2")
    given = [first.next("k"), first.next("k")]
    first.on_seen("k", Ballot(7, "b9", b"x"))
    first.on_seen("k", Ballot(3, "b9", b"x"))
    first.on_seen("k", None)
    given += [first.next("k"), first.next("k")]
    assert [ballot.counter for ballot in given] == [1, 2, 8, 9]
    assert given[2] > Ballot(7, "b9", b"x")
    assert not {second.next("k"), second.next("k")} & set(given)
    assert first.next("other").counter == 1


def test_a_refusal_of_the_change_is_reported_with_the_value_made_certain() -> None:
    def refuse(value: bytes | None) -> bytes:
        raise NotFoundError("gone", code="unknown_topic")

    core = Attempt(key="k", ballot=MINE, voters=VOTERS, change=refuse)
    core.begin()
    core.on_promise("b1", promise(OLD, b"old"))
    asks = core.on_promise("b2", promise())
    assert [ask.message for ask in asks] == [Accept(number=1, key="k", ballot=MINE, value=b"old")] * 3, "one acceptor alone proves nothing"
    core.on_accepted("b1", ACCEPTED)
    core.on_accepted("b2", ACCEPTED)
    assert isinstance(core.outcome, Chosen)
    assert core.outcome.refusal is not None
    assert not core.may_have_happened


def test_a_read_needs_a_majority_of_one_ballot() -> None:
    """P-4, pitfall 34: neither the highest nor the most frequent value that is less than that."""
    read = QuorumRead(key="k", voters=VOTERS)
    read.begin()
    read.on_promise("b1", promise(NEWER, b"newer"))
    read.on_promise("b1", promise(NEWER, b"newer"))
    assert read.outcome is None
    read.on_promise("b2", promise(OLD, b"old"))
    assert read.is_split
    read.on_promise("b3", promise(OLD, b"old"))
    assert read.outcome == Chosen(OLD, b"old")


def test_a_read_of_three_ballots_is_over_without_a_value() -> None:
    read = QuorumRead(key="k", voters=VOTERS)
    for broker, ballot in (("b1", OLD), ("b2", NEWER), ("b3", ABOVE)):
        assert not read.is_over
        read.on_promise(broker, promise(ballot, b"v"))
    assert read.is_over
    assert read.outcome is None
    assert read.highest == ABOVE


def test_who_is_defeated_waits_longer_each_time_and_never_for_long() -> None:
    """P-5: the first defeat only taught which ballot to exceed; then the pauses grow with jitter, up to a bound."""
    assert backoff_s(1, 0.99) == 0
    pauses = [backoff_s(failures, 0.5) for failures in range(2, 40)]
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.01
    assert pauses[-1] == pytest.approx(0.125)
    assert backoff_s(9, 0.0) == 0
