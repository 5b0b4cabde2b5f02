"""When a peer counts as down (P-20)."""

from hypothesis import given
from hypothesis import strategies as st

from streamq.metadata.failure_detector import FailureDetector, Opinion


def test_silence_for_the_timeout_is_down_and_a_word_is_up() -> None:
    detector = FailureDetector(now=0.0, timeout_s=0.5)
    now = 0.0
    while detector.next_deadline < 0.5:
        now = detector.next_deadline
        assert not detector.suspect(now)
    assert detector.next_deadline == 0.5
    assert detector.suspect(0.5)
    detector.on_heard(0.6)
    assert not detector.suspect(0.61)


def test_a_refused_probe_is_down_at_once_and_a_reset_alone_is_not() -> None:
    detector = FailureDetector(now=0.0, timeout_s=0.5)
    detector.on_reset(0.1)
    assert detector.opinion(0.1) is Opinion.DOUBTED
    assert not detector.suspect(0.1)
    detector.on_probe_refused(0.101)
    assert detector.suspect(0.101)
    detector.on_heard(0.2)
    assert detector.opinion(0.2) is Opinion.UP


def test_a_loop_that_was_held_up_blames_nobody() -> None:
    """SIGSTOP for 5 s, then SIGCONT: the peers have half a timeout to be heard again."""
    detector = FailureDetector(now=0.0, timeout_s=0.5)
    assert not detector.suspect(0.1)
    assert not detector.suspect(5.1)
    assert not detector.suspect(5.2)
    assert detector.suspect(5.1 + 0.25)


@given(st.floats(0.05, 5), st.lists(st.floats(0, 0.4), max_size=40))
def test_whoever_is_heard_within_the_timeout_is_never_suspected(timeout: float, pauses: list[float]) -> None:
    detector = FailureDetector(now=0.0, timeout_s=timeout)
    now = 0.0
    for pause in pauses:
        now += pause * timeout * 2
        assert not detector.suspect(now) or pause * 2 >= 1
        detector.on_heard(now)


@given(st.floats(0.05, 5), st.floats(0, 100))
def test_silence_is_noticed_in_time_when_ticked_at_the_deadline(timeout: float, begun: float) -> None:
    """… and never busily: ticks are at least a little apart."""
    detector = FailureDetector(now=begun, timeout_s=timeout)
    ticks = 0
    now = begun
    while not detector.suspect(now):
        assert detector.next_deadline > now
        now = detector.next_deadline
        ticks += 1
        assert ticks < 20
    assert now - begun <= timeout * 1.01
