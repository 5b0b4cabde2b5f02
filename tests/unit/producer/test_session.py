"""The producer's session, one situation at a time; tests/property/clients has the rest."""

from itertools import count

import pytest

from streamq.model.errors import AlreadyExistsError, FencedError, NotFoundError, RefusedError, UnavailableError, UnknownOutcomeError
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import Ack, Nack
from streamq_producer.effects import Acked, Effect, Entry, Failed, Locate, Open, Transmit
from streamq_producer.session import GAPS_MAX, REACH_S, PartitionSession, Route

LOST = UnavailableError("connection lost", code="unavailable")


def make_session(
    *, sequencer: str = "b1", in_flight: int = 4, is_idempotent: bool = True, name: str = "", are_identified: bool = False
) -> PartitionSession:
    return PartitionSession(
        replicas=("b1", "b2", "b3"),
        sequencer=sequencer,
        in_flight=in_flight,
        tickets=count(1),
        producer=b"P" * 16 if is_idempotent else NO_PRODUCER,
        producer_epoch=7 if name else 0,
        name=name,
        are_identified=are_identified,
    )


def entries(number: int, *, deadline: float = 30.0) -> list[Entry]:
    return [Entry(i, records=1, deadline=deadline) for i in range(number)]


def sending(session: PartitionSession, added: list[Entry], now: float = 0.0) -> list[int]:
    """Adds the entries and lets them go out; their tickets."""
    effects: list[Effect] = []
    for entry in added:
        effects += session.add(entry, now)
    effects += session.on_opened(session.target, now)
    assert transmitted(effects) == [entry.token for entry in added]
    return [entry.tickets[-1] for entry in added]


def transmitted(effects: list[Effect]) -> list[object]:
    return [entry.token for effect in effects if isinstance(effect, Transmit) for entry in effect.entries]


def failed(effects: list[Effect]) -> dict[object, type[Exception]]:
    return {effect.entry.token: type(effect.error) for effect in effects if isinstance(effect, Failed)}


def ack(ticket: int, base: int = 0) -> Ack:
    return Ack(ticket, base, 0, 2, 3, True)


def test_the_hinted_sequencer_gets_the_whole_window_at_once() -> None:
    session = make_session(in_flight=2)
    first = entries(3)
    assert session.add(first[0], 0.0) == [Open("b1")]
    assert session.add(first[1], 0.0) == session.add(first[2], 0.0) == []
    assert transmitted(session.on_opened("b1", 0.0)) == [0, 1]
    assert transmitted(session.on_ack(ack(first[0].tickets[-1]), 0.0)) == [2]


def test_a_broken_connection_leads_to_the_next_replica_with_the_oldest_batch_alone() -> None:
    session = make_session()
    tickets = sending(session, batches := entries(3))
    effects = session.on_lost("b1", LOST, 1.0)
    assert effects == [Open("b2")]
    assert transmitted(session.on_opened("b2", 1.0)) == [0]
    assert session.route is Route.PROBING
    assert transmitted(session.on_ack(ack(batches[0].tickets[-1]), 1.0)) == [1, 2]
    assert [entry.sequence for entry in batches] == [0, 1, 2]
    assert tickets[0] != batches[1].tickets[-1]


def test_a_hint_is_followed_at_once_unless_it_names_the_broker_that_was_just_lost() -> None:
    session = make_session()
    sending(session, batches := entries(1))
    session.on_lost("b1", LOST, 1.0)
    session.on_opened("b2", 1.0)
    nack = Nack(batches[0].tickets[-1], "not_sequencer", "it is b1", "b1")
    assert not any(isinstance(effect, Open) for effect in session.on_nack(nack, 1.0))
    assert session.route is Route.PAUSING
    effects = session.on_time(session.next_deadline)
    assert Open("b3") in effects
    session.on_opened("b3", 1.1)
    assert session.on_nack(Nack(batches[0].tickets[-1], "not_sequencer", "it is b2", "b2"), 1.1) == [Open("b2")]


def test_a_broker_that_cannot_be_reached_in_time_is_passed_over() -> None:
    session = make_session()
    session.add(entries(1)[0], 0.0)
    assert session.next_deadline == REACH_S
    assert session.on_time(REACH_S) == [Open("b2")]
    assert session.on_opened("b1", REACH_S) == []


def test_an_ack_counts_whoever_it_comes_from() -> None:
    session = make_session()
    (ticket,) = sending(session, entries(1))
    session.on_nack(Nack(99, "busy", "", ""), 0.0)
    session.on_lost("b3", LOST, 0.0)
    effects = session.on_ack(ack(ticket, base=7), 0.0)
    assert isinstance(effects[0], Acked)
    assert effects[0].ack.base == 7
    assert session.is_idle


def test_after_a_refusal_what_follows_goes_on_in_order_under_a_higher_producer_epoch() -> None:
    session = make_session()
    tickets = sending(session, batches := entries(4))
    session.on_ack(ack(tickets[0]), 0.0)
    effects = session.on_nack(Nack(tickets[1], "record_too_large", "too large", ""), 0.0)
    assert failed(effects) == {1: RefusedError}
    effects = session.on_nack(Nack(tickets[2], "sequence_gap", "gap", ""), 0.0)
    assert transmitted(effects) == []
    session.on_nack(Nack(tickets[3], "sequence_gap", "gap", ""), 0.0)
    effects = session.on_time(session.next_deadline)
    effects += session.on_opened(session.target, 1.0)
    effects += session.on_ack(ack(batches[2].tickets[-1]), 1.0)
    assert transmitted(effects) == [2, 3]
    assert session.producer_epoch == 1
    assert [batches[2].sequence, batches[3].sequence] == [0, 1]


def test_behind_a_failed_batch_a_named_producer_sends_nothing_more() -> None:
    """Its answers are awaited, and its epoch stays: the one above is another instance's."""
    session = make_session(in_flight=3, name="n")
    tickets = sending(session, batches := entries(3))
    waiting, late = Entry(3, records=1, deadline=30.0), Entry(4, records=1, deadline=30.0)
    session.add(waiting, 0.0)
    effects = session.on_nack(Nack(tickets[0], "bad_batch", "bad", ""), 0.0)
    assert failed(effects) == {0: RefusedError, 3: UnavailableError}
    assert failed(session.on_nack(Nack(tickets[1], "sequence_gap", "gap", ""), 0.0)) == {1: UnavailableError}
    assert failed(session.on_lost("b1", LOST, 0.0)) == {2: UnknownOutcomeError}
    assert failed(session.add(late, 0.0)) == {4: UnavailableError}
    assert session.is_idle
    assert session.producer_epoch == 7
    assert not batches[2].tickets


def test_a_named_producer_that_another_followed_is_told_so_at_once() -> None:
    session = make_session(name="n")
    tickets = sending(session, entries(2))
    effects = session.on_nack(Nack(tickets[0], "fenced", "epoch 7 was followed by 8", ""), 0.0)
    effects += session.on_nack(Nack(tickets[1], "fenced", "epoch 7 was followed by 8", ""), 0.0)
    effects += session.add(Entry(2, records=1, deadline=30.0), 0.0)
    assert failed(effects) == {0: FencedError, 1: FencedError, 2: FencedError}
    assert {effect.error.message for effect in effects if isinstance(effect, Failed)} == {"another producer named 'n' was opened"}


def test_a_gap_that_is_real_ends_a_named_producer() -> None:
    session = make_session(name="n")
    sending(session, [entry := Entry(0, records=1, deadline=30.0)])
    effects: list[Effect] = []
    for now in range(GAPS_MAX):
        effects += session.on_nack(Nack(entry.tickets[-1], "sequence_gap", "gap", ""), float(now))
        if not session.is_idle:
            session.on_time(session.next_deadline)
            session.on_opened(session.target, float(now))
    assert failed(effects) == {0: UnavailableError}
    assert session.producer_epoch == 7


def test_what_is_in_doubt_when_the_chain_breaks_is_unknown() -> None:
    session = make_session()
    sending(session, batches := entries(2))
    session.on_lost("b1", LOST, 0.0)
    session.on_opened("b2", 0.0)
    effects = session.on_nack(Nack(batches[0].tickets[-1], "bad_batch", "bad", ""), 0.0)
    assert failed(effects) == {0: UnknownOutcomeError, 1: UnknownOutcomeError}
    assert session.is_idle


def test_a_gap_behind_a_batch_that_is_retried_breaks_nothing() -> None:
    session = make_session()
    tickets = sending(session, batches := entries(2))
    session.on_nack(Nack(tickets[0], "busy", "", ""), 0.0)
    session.on_nack(Nack(tickets[1], "sequence_gap", "", ""), 0.0)
    session.on_time(session.next_deadline)
    assert transmitted(session.on_opened("b1", 0.1)) == [0]
    assert transmitted(session.on_ack(ack(batches[0].tickets[-1]), 0.1)) == [1]
    assert session.producer_epoch == 0


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_time_over_means_unknown_if_sent_and_not_stored_if_not(is_idempotent: bool) -> None:
    session = make_session(in_flight=1, is_idempotent=is_idempotent)
    batches = entries(2, deadline=5.0)
    for entry in batches:
        session.add(entry, 0.0)
    session.on_opened("b1", 0.0)
    assert session.next_deadline == 5.0
    assert failed(session.on_time(5.0)) == {0: UnknownOutcomeError, 1: UnavailableError}


def test_without_numbers_a_broken_connection_means_unknown_and_a_refusal_a_retry() -> None:
    session = make_session(is_idempotent=False)
    tickets = sending(session, batches := entries(3))
    effects = session.on_nack(Nack(tickets[0], "stopping", "", ""), 0.0)
    effects += session.on_opened("b2", 0.0)
    assert transmitted(effects) == []
    effects = session.on_lost("b1", LOST, 0.0)
    assert failed(effects) == {1: UnknownOutcomeError, 2: UnknownOutcomeError}
    effects += session.on_time(session.next_deadline)
    effects += session.on_opened(session.target, 1.0)
    assert transmitted(effects) == [0]
    assert batches[0].sequence == 0


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_records_with_ids_are_sent_again_and_none_waits_for_another(is_idempotent: bool) -> None:
    """One that is refused breaks no order, since there is none; one in doubt is sent again, whatever else the producer does not number."""
    session = make_session(are_identified=True, is_idempotent=is_idempotent)
    tickets = sending(session, batches := entries(4))
    assert {entry.sequence for entry in batches} == {0}
    assert failed(session.on_nack(Nack(tickets[1], "limit_reached", "", ""), 0.0)) == {1: RefusedError}
    assert session.on_ack(ack(tickets[2]), 0.0)
    assert failed(session.on_lost("b1", LOST, 0.0)) == {}
    effects = session.on_opened(session.target, 0.1)
    assert transmitted(effects) == [0]
    effects = session.on_ack(ack(batches[0].tickets[-1]), 0.1)
    assert transmitted(effects) == [3]
    assert failed(session.on_nack(Nack(batches[3].tickets[-1], "bad_request", "", ""), 0.2)) == {3: UnknownOutcomeError}
    assert session.is_idle


def test_a_lower_fencing_token_is_refused_for_certain_even_after_a_broken_connection() -> None:
    """Who says so has all that is stored; of a named producer, fenced by its own epoch, that is not so."""
    for name, expected in (("", FencedError), ("n", UnknownOutcomeError)):
        session = make_session(name=name)
        sending(session, batches := entries(1))
        session.on_lost("b1", LOST, 0.0)
        session.on_opened(session.target, 0.1)
        assert failed(session.on_nack(Nack(batches[0].tickets[-1], "fenced", "", ""), 0.2)) == {0: expected}


def test_an_offset_past_the_end_is_refused_for_certain_only_if_nothing_else_of_the_batch_is_on_its_way() -> None:
    """The end moves, and an earlier try that comes late may find its offset. What is taken stays taken."""
    for code, in_doubt in (("past_the_end", UnknownOutcomeError), ("precondition_failed", AlreadyExistsError)):
        session = make_session()
        (ticket,) = sending(session, entries(1))
        (refused,) = session.on_nack(Nack(ticket, code, "", ""), 0.0)
        assert isinstance(refused, Failed)
        assert refused.error.code == "precondition_failed"
        session = make_session()
        sending(session, batches := entries(1))
        session.on_lost("b1", LOST, 0.0)
        session.on_opened(session.target, 0.1)
        assert failed(session.on_nack(Nack(batches[0].tickets[-1], code, "", ""), 0.2)) == {0: in_doubt}


def test_a_topic_is_gone_when_metadata_and_a_broker_say_so() -> None:
    session = make_session()
    gone = NotFoundError("no such topic", code="unknown_topic")
    (ticket,) = sending(session, entries(1))
    assert session.on_gone(gone) == []
    assert Locate() in session.on_nack(Nack(ticket, "unknown_partition", "", ""), 0.0)
    assert failed(session.on_gone(gone)) == {0: NotFoundError}


def test_without_any_hint_metadata_is_asked_for() -> None:
    session = PartitionSession(replicas=(), sequencer="", in_flight=1, tickets=count(1), producer=NO_PRODUCER)
    assert session.add(entries(1)[0], 0.0) == [Locate()]
    assert session.on_view(("b1",), "b1", 0.0) == [Open("b1")]


def test_closing_settles_everything_as_it_stands() -> None:
    session = make_session(in_flight=1)
    sending(session, entries(1))
    session.add(Entry("later", records=1, deadline=9.0), 0.0)
    assert failed(session.give_up()) == {0: UnknownOutcomeError, "later": UnavailableError}
