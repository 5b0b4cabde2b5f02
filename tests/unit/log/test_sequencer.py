"""Who gets which offset, and when a batch is acked (P-11 to P-14, P-21, P-33 to P-36)."""

import msgspec
import pytest

from streamq.log import sequencer as module
from streamq.log.idempotence import IdempotenceTable
from streamq.log.sequencer import Acked, Assigned, Duplicate, Phase, Progress, Refused, Sequencer, Waiting
from streamq.model.batches import FLAG_CONDITIONAL, FLAG_CONTROL, FLAG_FENCED, FLAG_IDENTIFIED, BatchHeader
from streamq.model.errors import CODES, ProtocolError, UnavailableError
from streamq.model.ids import NO_PRODUCER, Member
from streamq.model.limits import DEDUP_BATCHES, IN_FLIGHT_BATCHES_MAX, OFFSET_MAX, PRODUCER_EXPIRY_MS
from streamq.model.messages import StoredRun, StoreState
from streamq.model.registers import Segment
from tests.support.log_lab import PARTITION, members, segment

B1, B2, B3 = members(3)
P = b"P" * 16


def sequencer(of: Segment | None = None, table: IdempotenceTable | None = None) -> Sequencer:
    of = of or segment(3, 100)
    return Sequencer(partition=PARTITION, segment=of, table=table or IdempotenceTable(of.base))


def sent(sequence: int, *, producer: bytes = P, records: int = 1, epoch: int = 0, mark: int = 0, flags: int = 0) -> BatchHeader:
    return BatchHeader(PARTITION, records, 0, 0, 0, producer, epoch, sequence, 0, 0, 0, 0, 0, mark=mark, flags=flags)


def report(tail: int, state: StoreState = "stored", *, epoch: int = 3) -> StoredRun:
    return StoredRun(PARTITION, epoch, state, tail)


def test_offsets_have_no_holes_and_append_times_never_fall() -> None:
    s = sequencer()
    assert s.on_produce(sent(0, records=3), "a", 500) == Assigned(3, 100, 500)
    assert s.on_produce(sent(1), "b", 400) == Assigned(3, 103, 500)
    assert s.on_produce(sent(0, producer=NO_PRODUCER), "c", 600) == Assigned(3, 104, 600)
    assert (s.next_offset, s.high_watermark, s.in_flight) == (105, 100, 3)


def test_append_times_go_on_from_those_of_the_log() -> None:
    table = IdempotenceTable()
    table.fold(BatchHeader(PARTITION, 1, 0, 0, 0, NO_PRODUCER, 0, 0, 0, 0, 1, 0, 9_000))
    assert sequencer(segment(2, 1), table).on_produce(sent(0), "a", 10) == Assigned(2, 1, 9_000)


def wants(offset: int, sequence: int = 0, producer: bytes = P) -> BatchHeader:
    return BatchHeader(PARTITION, 1, 0, 0, 0, producer, 0, sequence, 0, 0, 0, offset, 0, flags=FLAG_CONDITIONAL)


def test_a_batch_that_wants_an_offset_gets_it_or_none() -> None:
    s = sequencer()
    assert s.on_produce(wants(100), "a", 1) == Assigned(3, 100, 1)
    for member in (B1, B2):
        s.on_stored(member, report(101))
    refused = s.on_produce(wants(100, 0, b"Q" * 16), "b", 1)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.is_doubtful) == ("precondition_failed", False)
    assert isinstance(s.on_produce(wants(100), "again", 1), Duplicate), "its own repeat is no stranger's"


def test_what_is_in_flight_refuses_nobody_for_good() -> None:
    """It may be void: an append that is refused for its sake would be refused for nothing, and its writer believe in another one."""
    s = sequencer()
    s.on_produce(sent(0), "a", 1)
    refused = s.on_produce(wants(100, 0, b"Q" * 16), "b", 1)
    assert isinstance(refused, Refused)
    assert issubclass(CODES[refused.code], UnavailableError)


def test_an_offset_past_the_end_may_exist_at_a_newer_sequencer() -> None:
    refused = sequencer().on_produce(wants(101), "a", 1)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.is_doubtful) == ("past_the_end", True)


# --- ids of records

WINDOW = 600_000


def identified(id: int) -> BatchHeader:
    return sent(0, producer=bytes([id]) * 16, flags=FLAG_IDENTIFIED)


def stored(table: IdempotenceTable, header: BatchHeader, at: int, *, mark: int | None = None) -> None:
    mark = header.mark if mark is None else mark
    table.fold(msgspec.structs.replace(header, epoch=1, base=table.position, append_time=at, mark=mark))


def test_a_second_record_of_the_same_id_is_not_stored_and_is_told_where_the_first_one_is() -> None:
    """In flight it waits for the outcome; it never matters what else is in flight."""
    s = sequencer()
    assert s.on_produce(identified(1), "a", 5) == Assigned(3, 100, 5, WINDOW)
    assert s.on_produce(identified(2), "b", 5) == Assigned(3, 101, 5, WINDOW)
    assert s.on_produce(identified(1), "again", 6) == Waiting()
    for member in (B1, B2):
        acks = s.on_stored(member, report(102)).acks
    assert acks == (Acked("a", 100, 5, 2), Acked("again", 100, 5, 2, is_duplicate=True), Acked("b", 101, 5, 2))
    assert s.on_produce(identified(1), "later", 7) == Duplicate(100, 5, 2)
    assert s.next_offset == 102


def test_an_id_counts_for_as_long_as_the_topic_said_when_its_record_was_stored() -> None:
    """However much later the setting is altered, and wherever the record is known from: assigned here, or in the table."""
    table = IdempotenceTable()
    stored(table, identified(1), 1_000, mark=WINDOW)
    s = sequencer(segment(2, 1), table)
    assert s.on_produce(identified(2), "b", 1_000) == Assigned(2, 1, 1_000, WINDOW)
    s.dedup_ms = 7
    assert isinstance(s.on_produce(identified(1), "a", 1_000 + WINDOW), Duplicate)
    assert s.on_produce(identified(2), "b", 1_000 + WINDOW) == Waiting()
    late = 1_001 + WINDOW
    assert s.on_produce(identified(2), "b", late) == Assigned(2, 2, late, 7)
    assert s.on_produce(identified(1), "a", late) == Assigned(2, 3, late, 7)
    assert s.on_produce(identified(1), "again", late + 7) == Waiting()
    assert s.on_produce(identified(1), "again", late + 8) == Assigned(2, 4, late + 8, 7)


def test_without_a_window_new_ids_are_refused_and_known_ones_known() -> None:
    table = IdempotenceTable()
    stored(table, identified(1), 1_000, mark=WINDOW)
    s = Sequencer(partition=PARTITION, segment=segment(2, 1), table=table, dedup_ms=0)
    assert isinstance(s.on_produce(identified(1), "a", 1_000), Duplicate)
    refused = s.on_produce(identified(2), "b", 1_000)
    assert isinstance(refused, Refused)
    assert refused.code == "bad_request"


def test_ids_are_bounded_and_those_that_expired_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing has been folded since: what is assigned and not in the table yet counts too, and none counts twice."""
    monkeypatch.setattr(module, "IDS_PER_PARTITION_MAX", 3)
    table = IdempotenceTable()
    stored(table, identified(1), 1_000, mark=WINDOW)
    s = sequencer(segment(2, 1), table)
    for id in (2, 3):
        assert isinstance(s.on_produce(identified(id), id, 1_001), Assigned)
    refused = s.on_produce(identified(4), 4, 1_001)
    assert isinstance(refused, Refused)
    assert refused.code == "limit_reached"
    assert s.on_produce(identified(3), "known", 1_001) == Waiting()
    assert isinstance(s.on_produce(sent(0), "another's", 1_001), Assigned)
    assert isinstance(s.on_produce(identified(4), 4, 1_001 + WINDOW), Assigned)
    for id in (2, 3):
        stored(table, identified(id), 1_001, mark=WINDOW)
    assert isinstance(s.on_produce(identified(5), 5, 1_001 + WINDOW), Refused)
    assert isinstance(s.on_produce(identified(5), 5, 1_002 + WINDOW), Assigned)


def test_ids_that_are_only_on_their_way_are_not_in_the_table_and_void_ones_are_forgotten() -> None:
    table = IdempotenceTable()
    s = sequencer(segment(2, 0), table)
    s.on_produce(identified(1), "a", 5)
    assert len(table.ids) == 0
    assert s.stop().unknown == ("a",)
    assert isinstance(sequencer(segment(3, 0), table).on_produce(identified(1), "a", 6), Assigned)
    stored(table, identified(1), 5, mark=WINDOW)
    assert sequencer(segment(3, 1), table).on_produce(identified(1), "a", 6) == Duplicate(0, 5, 2)


def test_flags_that_do_not_go_together_are_refused() -> None:
    for flags in (32, FLAG_IDENTIFIED | FLAG_CONDITIONAL, FLAG_FENCED | FLAG_CONTROL, FLAG_IDENTIFIED | FLAG_FENCED):
        refused = sequencer().on_produce(sent(0, flags=flags), "a", 1)
        assert isinstance(refused, Refused)
        assert refused.code == "bad_request"


# --- fencing tokens


def fenced(token: int, sequence: int = 0, *, producer: bytes = P, base: int | None = None) -> BatchHeader:
    header = sent(sequence, producer=producer, mark=token, flags=FLAG_FENCED if base is None else FLAG_FENCED | FLAG_CONDITIONAL)
    return msgspec.structs.replace(header, base=base or 0)


def test_a_lower_token_than_one_that_is_committed_is_refused_for_good() -> None:
    """Whoever sequences; appends without a token are not looked at, nor is a repeat of one that is stored."""
    s = sequencer()
    assert isinstance(s.on_produce(fenced(7), "a", 1), Assigned)
    assert isinstance(s.on_produce(fenced(9, 1), "b", 1), Assigned)
    for member in (B1, B2):
        s.on_stored(member, report(102))
    refused = s.on_produce(fenced(8, producer=b"Q" * 16), "c", 1)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.is_doubtful) == ("fenced", False)
    assert s.on_produce(fenced(7), "again", 1) == Duplicate(100, 1, 2)
    assert isinstance(s.on_produce(sent(0, producer=b"R" * 16), "d", 1), Assigned)
    assert isinstance(s.on_produce(fenced(9, producer=NO_PRODUCER), "e", 1), Assigned)

    table = IdempotenceTable()
    stored(table, fenced(9), 1)
    refused = sequencer(segment(2, 1), table).on_produce(fenced(8, 1), "c", 1)
    assert isinstance(refused, Refused)
    assert refused.code == "fenced"


def test_a_higher_token_that_is_in_flight_refuses_nobody_for_good() -> None:
    """It may be void, and then the lower one is the highest."""
    table = IdempotenceTable()
    s = sequencer(segment(3, 0), table)
    s.on_produce(fenced(9), "a", 1)
    refused = s.on_produce(fenced(8, producer=b"Q" * 16), "b", 1)
    assert isinstance(refused, Refused)
    assert refused.code == "conflict"
    assert issubclass(CODES[refused.code], UnavailableError)
    s.stop()
    assert isinstance(sequencer(segment(4, 0), table).on_produce(fenced(8, producer=b"Q" * 16), "b", 1), Assigned)


def test_a_token_and_an_offset_must_both_be_right() -> None:
    s = sequencer()
    assert isinstance(s.on_produce(fenced(5, base=100), "a", 1), Assigned)
    for member in (B1, B2):
        s.on_stored(member, report(101))
    wrong = [s.on_produce(fenced(token, 1, base=base), "b", 1) for token, base in ((4, 101), (5, 100))]
    assert [answer.code for answer in wrong if isinstance(answer, Refused)] == ["fenced", "precondition_failed"]
    assert isinstance(s.on_produce(fenced(5, 1, base=101), "c", 1), Assigned)


def test_a_token_is_no_position() -> None:
    """It makes nobody a named producer, which is remembered for a year."""
    table = IdempotenceTable()
    stored(table, fenced(9), 1)
    known = table.get(P, at=1)
    assert known is not None
    assert (known.mark, known.is_named, table.fencing_token) == (0, False, 9)


def test_a_sequencer_needs_the_table_at_its_base() -> None:
    with pytest.raises(AssertionError):
        sequencer(table=IdempotenceTable(99))


def test_acks_come_in_order_with_the_copies_that_there_are() -> None:
    s = sequencer()
    for i in range(3):
        s.on_produce(sent(i), i, 1)
    assert s.on_stored(B1, report(102)) == Progress()
    assert s.on_stored(B2, report(101)) == Progress(advanced=True, acks=(Acked(0, 100, 1, 2),))
    assert s.on_stored(B3, report(103)) == Progress(advanced=True, acks=(Acked(1, 101, 1, 2),))
    assert s.on_stored(B2, report(103)) == Progress(advanced=True, acks=(Acked(2, 102, 1, 2),))
    assert s.in_flight == 0
    s.check()


def test_a_report_counts_once_and_for_its_replica_only() -> None:
    s = sequencer()
    s.on_produce(sent(0), 0, 1)
    for _ in range(3):
        assert s.on_stored(B1, report(101)) == Progress()
    assert s.on_stored(Member("b9", b"9" * 16), report(101)) == Progress()
    assert s.on_stored(B2, report(101, epoch=2)) == Progress()
    assert s.high_watermark == 100


def test_another_incarnation_of_a_replica_counts_for_nothing_and_is_gone() -> None:
    """P-10, P-22; it is told once."""
    s = sequencer()
    s.on_produce(sent(0), 0, 1)
    s.on_stored(B1, report(101))
    assert s.on_stored(Member("b2", b"n" * 16), report(101)) == Progress(gone=True)
    assert s.on_stored(Member("b2", b"n" * 16), report(101)) == Progress()
    assert s.gone == (B2,)
    assert s.on_stored(B2, report(101)) == Progress()
    assert s.on_stored(B3, report(101)).acks


def test_a_replica_in_limbo_is_gone_and_what_it_reported_counts_no_more() -> None:
    s = sequencer()
    s.on_produce(sent(0), 0, 1)
    s.on_stored(B2, report(101))
    assert s.on_stored(B2, report(0, "limbo")) == Progress(gone=True)
    assert s.on_stored(B1, report(101)) == Progress()
    assert s.on_stored(B3, report(101)).advanced
    assert s.high_watermark == 101


def test_a_tail_past_all_that_was_sent_is_a_broken_message() -> None:
    with pytest.raises(ProtocolError):
        sequencer().on_stored(B1, report(101))


def test_gaps_and_unopened_epochs_are_for_the_runner_to_mend() -> None:
    s = sequencer()
    s.on_produce(sent(0), 0, 1)
    assert s.on_stored(B1, report(100, "gap")) == Progress(resend_from=100)
    assert s.on_stored(B1, report(0, "not_opened")) == Progress(open_again=True)
    assert s.tail_of(B1) == 100


@pytest.mark.parametrize("state", ["sealed", "past_end"])
def test_one_rejection_ends_the_reign(state: StoreState) -> None:
    """P-14: what was assigned is unknown, what comes is retriable, and nothing is acked any more."""
    s = sequencer()
    s.on_produce(sent(0), "a", 1)
    s.on_produce(sent(1), "b", 1)
    s.on_stored(B1, report(102))
    assert s.on_stored(B2, report(0, state)) == Progress(unknown=("a", "b"))
    assert s.phase is Phase.STOPPED
    assert s.on_stored(B3, report(102)) == Progress()
    refused = s.on_produce(sent(2), "c", 1)
    assert isinstance(refused, Refused)
    assert issubclass(CODES[refused.code], UnavailableError)


def test_a_repeat_waits_with_the_original_and_is_acked_with_it() -> None:
    s = sequencer()
    s.on_produce(sent(0), "a", 1)
    assert s.on_produce(sent(0), "again", 2) == Waiting()
    s.on_stored(B1, report(101))
    assert s.on_stored(B3, report(101)).acks == (Acked("a", 100, 1, 2), Acked("again", 100, 1, 2))
    assert s.on_produce(sent(0), "later", 3) == Duplicate(100, 1, 2)
    assert s.next_offset == 101


def test_repeats_of_one_batch_are_bounded() -> None:
    s = sequencer()
    answers = [s.on_produce(sent(0), i, 1) for i in range(module.TICKETS_PER_BATCH_MAX + 1)]
    assert isinstance(answers[-1], Refused)
    assert answers[-1].code == "busy"
    assert s.stop().unknown == tuple(range(module.TICKETS_PER_BATCH_MAX))


def test_a_repeat_of_an_earlier_epoch_is_known_from_the_log() -> None:
    table = IdempotenceTable()
    for i in range(DEDUP_BATCHES + 1):
        table.fold(BatchHeader(PARTITION, 2, 0, 0, 0, P, 0, i, 0, 0, 1, 2 * i, 7))
    s = sequencer(segment(2, table.position), table)
    assert s.on_produce(sent(1), "a", 8) == Duplicate(2, 7, 2)
    assert s.on_produce(sent(0), "a", 8) == Duplicate(None, 0, 2)
    assert s.on_produce(sent(DEDUP_BATCHES + 1), "b", 8) == Assigned(2, table.position, 8)


def test_the_table_is_read_and_never_changed() -> None:
    """What was only assigned may be void: it must not reach the replica's table (P-34)."""
    table = IdempotenceTable()
    table.fold(BatchHeader(PARTITION, 1, 0, 0, 0, P, 0, 0, 0, 0, 1, 0, 7))
    before = table.snapshot()
    s = sequencer(segment(2, 1), table)
    s.on_produce(sent(1), "a", 8)
    s.on_produce(sent(0, epoch=1), "b", 8)
    assert table.snapshot() == before


def test_gaps_are_refused_and_say_what_is_next() -> None:
    s = sequencer()
    for first in (sent(1), sent(5, epoch=1)):
        refused = s.on_produce(first, "a", 1)
        assert isinstance(refused, Refused)
        assert refused.code == "sequence_gap"
        assert "0 is next" in refused.message
    s.on_produce(sent(0), "a", 1)
    refused = s.on_produce(sent(2), "b", 1)
    assert isinstance(refused, Refused)
    assert "1 is next" in refused.message


def test_a_newer_producer_epoch_fences_the_older_from_its_first_batch_on() -> None:
    s = sequencer()
    assert isinstance(s.on_produce(sent(0), "a", 1), Assigned)
    assert isinstance(s.on_produce(sent(1), "b", 1), Assigned)
    assert isinstance(s.on_produce(sent(0, epoch=1), "c", 1), Assigned)
    refused = s.on_produce(sent(2), "d", 1)
    assert isinstance(refused, Refused)
    assert refused.code == "fenced"
    assert s.on_produce(sent(0), "a", 1) == refused.__class__("fenced", refused.message)
    assert isinstance(s.on_produce(sent(1, epoch=1), "e", 1), Assigned)


def test_the_ack_of_an_opening_tells_the_mark_of_what_lies_before_it_and_so_do_its_repeats() -> None:
    """Also where that is not committed yet, and after a takeover, of which only what it kept counts."""
    table = IdempotenceTable()
    table.fold(BatchHeader(PARTITION, 2, 0, 0, 0, P, 1, 0, 0, 0, 1, 0, 1, mark=40))
    s = sequencer(segment(2, 2), table)
    assert isinstance(s.on_produce(sent(1, epoch=1, mark=50), "a", 1), Assigned)
    opening = sent(0, epoch=2, flags=FLAG_CONTROL)
    assert isinstance(s.on_produce(opening, "b", 1), Assigned)
    assert s.on_produce(opening, "again", 1) == Waiting()
    assert isinstance(s.on_produce(sent(2, epoch=1, mark=60), "late", 1), Refused)
    s.on_stored(B1, report(4, epoch=2))
    acks = s.on_stored(B2, report(4, epoch=2)).acks
    assert [(ack.ticket, ack.mark) for ack in acks] == [("a", 50), ("b", 50), ("again", 50)]
    assert s.on_produce(opening, "c", 1) == Duplicate(3, 1, 2, 50)

    nothing_kept = sequencer(segment(3, 2), table)
    assert isinstance(nothing_kept.on_produce(opening, "b", 1), Assigned)
    nothing_kept.on_stored(B1, report(3))
    assert [ack.mark for ack in nothing_kept.on_stored(B2, report(3)).acks] == [40]

    table.fold(BatchHeader(PARTITION, 1, 0, 0, 0, P, 1, 1, 0, 0, 2, 2, 1, mark=50))
    table.fold(BatchHeader(PARTITION, 1, 0, 0, 0, P, 2, 0, 0, 0, 2, 3, 1, flags=FLAG_CONTROL))
    all_kept = sequencer(segment(3, 4), table)
    assert all_kept.on_produce(opening, "b", 1) == Duplicate(3, 1, 2, 50)


def test_a_producer_that_expired_begins_again() -> None:
    s = sequencer()
    s.on_produce(sent(0), "a", 1)
    assert isinstance(s.on_produce(sent(1), "b", 1 + PRODUCER_EXPIRY_MS), Assigned)
    late = s.on_produce(sent(2), "c", 2 + 2 * PRODUCER_EXPIRY_MS)
    assert isinstance(late, Refused)
    assert late.code == "sequence_gap"


def test_one_producer_has_no_more_in_flight_than_the_table_remembers() -> None:
    s = sequencer()
    for i in range(IN_FLIGHT_BATCHES_MAX):
        assert isinstance(s.on_produce(sent(i), i, 1), Assigned)
    refused = s.on_produce(sent(IN_FLIGHT_BATCHES_MAX), "x", 1)
    assert isinstance(refused, Refused)
    assert refused.code == "busy"
    s.on_stored(B1, report(101))
    s.on_stored(B2, report(101))
    assert isinstance(s.on_produce(sent(IN_FLIGHT_BATCHES_MAX), "x", 1), Assigned)


def test_new_producers_are_bounded_and_old_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCERS_PER_PARTITION_MAX", 3)
    table = IdempotenceTable()
    table.fold(BatchHeader(PARTITION, 1, 0, 0, 0, b"0" * 16, 0, 0, 0, 0, 1, 0, 1_000))
    s = sequencer(segment(2, 1), table)
    for name in (b"1", b"2"):
        assert isinstance(s.on_produce(sent(0, producer=name * 16), name, 1_000), Assigned)
    refused = s.on_produce(sent(0, producer=b"3" * 16), "3", 1_000)
    assert isinstance(refused, Refused)
    assert refused.code == "limit_reached"
    assert isinstance(s.on_produce(sent(1, producer=b"1" * 16), "1", 1_000), Assigned)
    assert isinstance(s.on_produce(sent(0, producer=NO_PRODUCER), "n", 1_000 + PRODUCER_EXPIRY_MS + 1), Assigned)
    assert isinstance(s.on_produce(sent(0, producer=b"3" * 16), "3", 1_000), Assigned)


def test_batches_of_other_partitions_and_past_the_last_offset_are_refused() -> None:
    s = sequencer(segment(1, OFFSET_MAX - 1), IdempotenceTable(OFFSET_MAX - 1))
    assert isinstance(s.on_produce(sent(0, records=2), "a", 1), Refused)
    assert isinstance(s.on_produce(BatchHeader(b"x" * 16, 1, 0, 0, 0, P, 0, 0, 0, 0, 0, 0, 0), "a", 1), Refused)
    assert isinstance(s.on_produce(sent(0), "a", 1), Assigned)


def test_a_handoff_refuses_what_is_new_and_acks_what_is_in_flight() -> None:
    """P-21: one retriable answer and no error."""
    s = sequencer()
    s.on_produce(sent(0), "a", 1)
    s.begin_handoff()
    assert not s.is_drained
    refused = s.on_produce(sent(1), "b", 1)
    assert isinstance(refused, Refused)
    assert refused.code == "not_sequencer"
    s.on_stored(B1, report(101))
    assert s.on_stored(B2, report(101)).acks == (Acked("a", 100, 1, 2),)
    assert s.is_drained
    s.stop()
    s.begin_handoff()
    assert s.phase is Phase.STOPPED


def test_write_quorums_of_one_and_of_all() -> None:
    one = sequencer(segment(1, 0, write=1))
    one.on_produce(sent(0), "a", 1)
    assert one.on_stored(B3, report(1, epoch=1)).acks == (Acked("a", 0, 1, 1),)
    every = sequencer(segment(1, 0, write=3))
    every.on_produce(sent(0), "a", 1)
    assert not every.on_stored(B1, report(1, epoch=1)).acks
    assert not every.on_stored(B2, report(1, epoch=1)).acks
    assert every.on_stored(B3, report(1, epoch=1)).acks == (Acked("a", 0, 1, 3),)
