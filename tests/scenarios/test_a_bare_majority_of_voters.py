"""Found by tier 2 (seed 144): with three of five voters up that had accepted different values, no register could be read any more."""

from streamq.metadata.proposer import QuorumRead
from streamq.model.ids import Ballot
from streamq.model.messages import Promise
from tests.support.register_network import first_voters


def accepted(counter: int) -> Promise:
    ballot = Ballot(counter, "b1", b"s")
    return Promise(ok=True, promised=ballot, accepted=ballot, value=b"v%d" % counter)


def test_a_read_that_cannot_agree_waits_until_a_majority_has_answered() -> None:
    """P-4: only then can it be completed as an identity change, which is what happens next."""
    read = QuorumRead(key="k", voters=first_voters(5))
    read.on_failed("b4", code="unavailable", message="down")
    read.on_failed("b5", code="unavailable", message="down")
    read.on_promise("b1", accepted(2))
    read.on_promise("b2", accepted(3))
    assert not read.is_over
    read.on_promise("b3", accepted(3))
    assert read.is_over
    assert read.is_split


def test_a_read_without_a_majority_of_answers_is_over() -> None:
    read = QuorumRead(key="k", voters=first_voters(5))
    for broker in ("b3", "b4", "b5"):
        read.on_failed(broker, code="unavailable", message="down")
    assert read.is_over
    assert not read.is_split
