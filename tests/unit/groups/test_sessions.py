"""Sessions: nobody is given up too early, and nobody for ever."""

from hypothesis import given
from hypothesis import strategies as st

from streamq.groups.sessions import CONFIRMED_WITHIN, GRACE, Sessions


def test_who_is_not_heard_for_a_session_is_over() -> None:
    sessions = Sessions({b"a": 2.0, b"b": 5.0}, now=0.0)
    sessions.on_heard(b"a", 2.9)
    assert sessions.expired(3.0) == frozenset()
    assert sessions.expired(4.9) == {b"a"}
    assert sessions.expired(7.5) == {b"a", b"b"}
    assert sessions.next_deadline == 4.9


def test_members_that_are_gone_are_forgotten_and_new_ones_begin_now() -> None:
    sessions = Sessions({b"a": 1.0}, now=0.0)
    sessions.on_members({b"b": 1.0}, now=5.0)
    sessions.on_heard(b"a", 5.0)
    assert sessions.expired(5.9) == frozenset()
    assert sessions.expired(6.0) == {b"b"}


def test_what_could_not_be_heard_is_not_held_against_anybody() -> None:
    sessions = Sessions({b"a": 1.0}, now=0.0)
    sessions.on_stall(3.0)
    assert sessions.expired(4.4) == frozenset()


@given(session=st.floats(1, 100), took_over=st.floats(0, 100), staleness=st.floats(0, 1), travel=st.floats(0, 1))
def test_who_takes_over_never_gives_away_what_a_member_may_still_handle(
    session: float, took_over: float, staleness: float, travel: float
) -> None:
    """The one before answered last at a moment when its look at the register, before the take-over, was as old as it may be. The member
    asked before that, and stops a session after it asked."""
    answered = took_over + staleness * CONFIRMED_WITHIN * session
    asked = answered - travel
    stops = asked + session
    after = Sessions({b"a": session}, now=took_over)
    assert not after.expired(min(stops, took_over + GRACE * session) - 1e-9)
    assert stops <= took_over + GRACE * session + 1e-9
