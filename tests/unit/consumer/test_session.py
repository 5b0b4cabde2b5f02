"""The consumer's session, one situation at a time; tests/property/clients has the rest."""

from streamq.model.errors import CorruptDataError, NotFoundError, OffsetError, StreamqError, UnavailableError, error_of
from streamq_consumer.session import (
    DAMAGED_TRIES,
    FIRST_WINDOW_BYTES,
    Credit,
    Effect,
    Fail,
    Leave,
    Locate,
    PartitionSession,
    ReadTip,
    Route,
    Span,
    Subscribe,
    Take,
    Tuning,
)

TUNING = Tuning(window_bytes=1_000, stall_s=1.0, tip_check_s=1.0, patience_s=float("inf"))
WIDE = Tuning(window_bytes=1_000_000, stall_s=1.0, tip_check_s=1.0, patience_s=float("inf"))


def make_session(
    *, offset: int = 0, from_earliest: bool = False, only: str = "", tuning: Tuning = TUNING, is_streaming: bool = True
) -> PartitionSession:
    session = PartitionSession(offset=offset, from_earliest=from_earliest, replicas=("b1", "b2", "b3"), only=only, spread=0, tuning=tuning)
    assert session.start(0.0) == [Subscribe(only or "b1", 1)]
    if is_streaming:
        session.on_subscribed(1, 0.0)
    return session


def finish(session: PartitionSession, end: int, size: int) -> list[Effect]:
    """The application takes a batch, and comes for more."""
    session.on_handed_out(end, size)
    return session.on_finished()


def error(effects: list[Effect]) -> StreamqError | None:
    return next((effect.error for effect in effects if isinstance(effect, Fail)), None)


def test_a_batch_that_begins_before_the_place_asked_for_is_taken_without_its_first_records() -> None:
    session = make_session(offset=7)
    assert session.on_records(1, [Span(0, 5, 10), Span(5, 10, 10)], 10, 0.0) == [Take(1, 2)]
    assert session.expected == 10


def test_a_repeat_is_dropped_and_a_hole_leaves_the_replica() -> None:
    session = make_session()
    assert session.on_records(1, [Span(0, 5, 10)], 20, 0.0) == [Take(0, 0)]
    assert session.on_records(1, [Span(0, 5, 10)], 20, 0.0) == []
    effects = session.on_records(1, [Span(5, 8, 10), Span(9, 12, 10)], 20, 0.0)
    assert effects == [Take(0, 0), Leave(), Subscribe("b2", 3)]
    assert session.expected == 8
    assert session.on_records(1, [Span(8, 9, 10)], 20, 0.0) == [], "what comes of the old subscription counts no more"


def test_what_lies_past_the_high_watermark_told_is_not_taken() -> None:
    session = make_session()
    assert session.on_records(1, [Span(0, 5, 10)], 4, 0.0) == [Leave(), Subscribe("b2", 3)]


def test_credit_goes_back_when_a_share_of_the_window_was_handed_out() -> None:
    session = make_session()
    assert session.credit == 1_000
    session.on_records(1, [Span(i, i + 1, 100) for i in range(5)], 5, 0.0)
    assert finish(session, 1, 100) == []
    assert finish(session, 2, 100) == []
    assert finish(session, 3, 100) == [Credit(300)]
    effects = session.on_ended(1, UnavailableError("lost", code="unavailable"), 1.0)
    assert Subscribe("b2", 3) in effects
    assert session.credit == 800, "what is still buffered is not granted again"


def test_what_is_sent_ahead_grows_by_what_the_application_has_done_with() -> None:
    session = make_session(tuning=WIDE)
    assert session.credit == FIRST_WINDOW_BYTES
    session.on_records(1, [Span(0, 9, 100_000)], 9, 0.0)
    session.on_handed_out(9, 100_000)
    assert session.position == 9
    assert session.on_finished() == [Credit(200_000)], "what it gives back, and as much again"
    assert session.on_finished() == [], "once"


def test_the_window_ends_at_what_was_configured_and_begins_anew_at_another_place() -> None:
    session = make_session(tuning=WIDE)
    granted = session.credit
    for i in range(20):
        session.on_records(session.attempt, [Span(i, i + 1, 100_000)], i + 1, 0.0)
        granted += sum(effect.size for effect in finish(session, i + 1, 100_000) if isinstance(effect, Credit)) - 100_000
        assert granted <= WIDE.window_bytes
    assert granted > WIDE.window_bytes * 3 / 4
    session.on_ended(session.attempt, UnavailableError("lost", code="unavailable"), 0.0)
    assert session.credit == WIDE.window_bytes, "another replica, the same place"
    session.seek(1_000, 0.0)
    assert session.credit == FIRST_WINDOW_BYTES


def test_what_was_overdrawn_is_worked_off_with_the_next_replica_too() -> None:
    session = make_session()
    session.on_records(1, [Span(0, 1, 900), Span(1, 2, 900)], 2, 0.0)
    assert Subscribe("b2", 3) in session.on_ended(1, UnavailableError("lost", code="unavailable"), 0.0)
    assert session.credit == 0
    session.on_subscribed(3, 0.0)
    assert finish(session, 1, 900) == []
    assert finish(session, 2, 900) == [Credit(1_000)]


def test_what_is_being_handed_out_when_a_seek_comes_is_not_given_back() -> None:
    session = make_session(tuning=WIDE)
    session.on_records(1, [Span(0, 9, 60_000)], 9, 0.0)
    session.on_handed_out(9, 60_000)
    session.seek(100, 0.0)
    session.on_subscribed(session.attempt, 0.0)
    assert session.on_finished() == []


def test_a_replica_that_does_not_deliver_what_is_known_to_be_there_is_left() -> None:
    session = make_session()
    assert session.next_deadline == 1.0
    assert session.on_time(1.0) == [ReadTip("b1")]
    session.on_tip(10, 0, 1.1)
    assert session.next_deadline <= 2.1
    assert session.on_time(2.1) == [Leave(), Subscribe("b2", 3)]


def test_an_idle_partition_is_asked_about_ever_more_seldom() -> None:
    session = make_session()
    asked = []
    for _ in range(6):
        now = session.next_deadline
        assert session.on_time(now) == [ReadTip("b1")]
        session.on_tip(0, 0, now)
        asked.append(now)
    assert asked == [1.0, 3.0, 7.0, 12.0, 17.0, 22.0]


def test_when_all_replicas_were_tried_there_is_a_pause() -> None:
    session = make_session(is_streaming=False)
    lost = UnavailableError("refused", code="unavailable")
    assert Subscribe("b2", 3) in session.on_ended(1, lost, 0.0)
    assert Subscribe("b3", 5) in session.on_ended(3, lost, 0.0)
    assert session.on_ended(5, lost, 0.0) == [Leave()]
    assert session.route is Route.PAUSING
    assert session.trouble is lost
    effects = session.on_time(session.next_deadline)
    assert effects == [Subscribe("b1", 7), Locate()]


def test_patience_ends() -> None:
    tuning = Tuning(window_bytes=1_000, stall_s=1.0, tip_check_s=1.0, patience_s=3.0)
    session = make_session(tuning=tuning, is_streaming=False)
    now = 0.0
    while (failed := error(session.on_time(now))) is None:
        now = session.next_deadline
    assert isinstance(failed, UnavailableError)
    assert now == 3.0


def test_only_the_named_broker_is_read_from() -> None:
    session = make_session(only="b2")
    session.on_ended(1, UnavailableError("lost", code="unavailable"), 0.0)
    assert Subscribe("b2", 3) in session.on_time(session.next_deadline)


def test_a_trimmed_offset_is_an_error_unless_the_earliest_was_wanted() -> None:
    trimmed = error_of("offset_trimmed", "trimmed")
    assert error(make_session(offset=3).on_ended(1, trimmed, 0.0)) is trimmed
    session = make_session(from_earliest=True)
    assert session.on_ended(1, trimmed, 0.0) == [Leave(), ReadTip("")]
    assert session.on_tip(90, 40, 0.1) == [Subscribe("b1", 3)]
    assert session.position == 40


def test_ahead_is_the_replicas_fault_when_the_offset_is_known_to_exist() -> None:
    ahead = error_of("offset_ahead", "past the tip")
    session = make_session(offset=5)
    session.on_tip(5, 0, 0.0)
    assert session.on_ended(1, ahead, 0.0) == [Leave(), Subscribe("b2", 3)]
    assert isinstance(error(make_session(offset=5).on_ended(1, ahead, 0.0)), OffsetError)


def test_a_watermark_once_told_is_not_forgotten_at_a_replica_that_knows_less() -> None:
    """Pitfall 51: it says 4 where another one said 10. What is known to be there is waited for, and then looked for elsewhere."""
    session = make_session()
    assert session.on_records(1, [Span(0, 5, 10)], 10, 0.0) == [Take(0, 0)]
    assert session.on_ended(1, UnavailableError("lost", code="unavailable"), 0.1) == [Leave(), Subscribe("b2", 3)]
    session.on_subscribed(3, 0.1)
    for now in (0.2, 0.5, 1.0):
        assert session.on_records(3, [], 4, now) == []
        assert session.on_records(3, [Span(0, 4, 10)], 4, now) == [], "a repeat"
    assert session.expected == 5
    assert session.on_time(1.1) == [Leave(), Subscribe("b3", 5)]


def test_damage_is_an_error_when_no_replica_has_the_data_whole() -> None:
    session = make_session()
    damage = CorruptDataError("does not unpack", code="data_damaged")
    effects: list[Effect] = []
    for turn in range(DAMAGED_TRIES):
        assert error(effects) is None
        session.on_subscribed(session.attempt, 0.0)
        session.on_records(session.attempt, [Span(0, 5, 10)], 5, 0.0)
        effects = session.on_damaged(damage, 0.0)
        assert session.expected == 0
        if session.route is Route.PAUSING:
            session.on_time(session.next_deadline)
        assert turn < DAMAGED_TRIES
    assert error(effects) is damage


def test_a_partition_is_gone_when_metadata_and_a_replica_say_so() -> None:
    gone = NotFoundError("no such topic", code="unknown_topic")
    session = make_session()
    assert session.on_gone(gone) == []
    assert Locate() in session.on_ended(1, error_of("unknown_partition", "unknown"), 0.0)
    assert error(session.on_gone(gone)) is gone


def test_a_seek_begins_anew_even_after_a_failure() -> None:
    session = make_session(offset=3)
    session.on_ended(1, error_of("offset_trimmed", "trimmed"), 0.0)
    effects = session.seek(50, 1.0)
    assert effects == [Leave(), Subscribe("b1", session.attempt)]
    session.on_subscribed(session.attempt, 1.0)
    assert session.on_records(session.attempt, [Span(50, 51, 1)], 51, 1.0) == [Take(0, 0)]
