"""What a replica answers and holds, rule by rule (protocol sections 4 to 7)."""

import msgspec
import pytest

from streamq.log.effects import Advanced, Alarm, Cut, Persist
from streamq.log.idempotence import IdempotenceTable
from streamq.log.replica import Readable, Replica, Unreadable, Wanted
from streamq.log.replica_state import ReplicaState
from streamq.model.batches import Batch, BatchHeader
from streamq.model.errors import ProtocolError
from streamq.model.ids import Member
from streamq.model.messages import Opened, Repair, Seal, Stored, StoredRun, StoreRun, Tip, TipAnswer
from streamq.model.registers import PartitionRegister
from tests.support.log_lab import PARTITION, Answers, Lab, batch, members, register, segment

ME, OTHER, THIRD = members(3)


@pytest.fixture
def lab() -> Lab:
    """A replica that has opened epoch 1, from offset 0 on."""
    lab = Lab(ME)
    lab.learn(register(segment(1, 0, replicas=(ME, OTHER, THIRD))))
    return lab


def stored(tail: int, state: str = "stored", epoch: int = 1) -> Stored:
    return Stored((StoredRun(PARTITION, epoch, state, tail),))  # type: ignore[arg-type]


def test_a_batch_is_reported_when_it_is_durable_and_not_before(lab: Lab) -> None:
    answers = lab.store(batch(0, records=3), settle=False)
    assert answers == []
    lab.settle()
    assert answers == [stored(3)]
    assert lab.replica.local_tail(1) == 3


def test_a_gap_is_answered_with_the_end_of_what_was_taken_and_stores_nothing(lab: Lab) -> None:
    lab.store(batch(0), settle=False)
    assert lab.store(batch(2), settle=False) == [stored(1, "gap")]
    assert lab.replica.local_tail(1) == 0


def test_of_a_run_with_repeats_and_a_gap_only_what_continues_is_taken(lab: Lab) -> None:
    lab.store(batch(0), batch(1))
    assert lab.store(batch(1), batch(2), batch(4)) == [stored(3, "gap"), stored(3)]
    assert lab.tails() == {1: 3}


def test_a_repeat_is_answered_once_what_it_repeats_is_durable_to_whoever_repeated_it(lab: Lab) -> None:
    first = lab.store(batch(0), settle=False)
    again = lab.store(batch(0), settle=False)
    assert (first, again) == ([], [])
    lab.settle()
    assert (first, again) == ([stored(1)], [stored(1)])
    assert lab.store(batch(0)) == [stored(1)]


def test_a_store_without_batches_carries_the_high_watermark(lab: Lab) -> None:
    lab.store(batch(0), batch(1))
    assert lab.replica.readable(0) is Unreadable.AHEAD
    assert lab.replica.on_store(StoreRun(PARTITION, 1, 1, 0), [], None) == [Advanced(1, 1)]
    assert lab.replica.readable(0) == Readable(1, 0, 1)
    assert lab.replica.on_store(StoreRun(PARTITION, 1, 1, 0), [], None) == []


def test_what_is_below_the_high_watermark_becomes_readable_when_it_is_durable_here(lab: Lab) -> None:
    """The other replicas may be ahead; P-23: it stops at the first offset that it lacks."""
    lab.store(batch(0), mark=5)
    assert lab.replica.readable(0) == Readable(1, 0, 1)
    assert lab.replica.readable(1) is Unreadable.LACKING
    effects = lab.replica.on_store(StoreRun(PARTITION, 1, 5, 1), [batch(1)], None)
    [persist] = effects
    assert isinstance(persist, Persist)
    assert Advanced(1, 5) in lab.replica.on_durable(persist)
    assert lab.replica.readable(1) == Readable(1, 1, 2)
    assert lab.replica.readable(5) is Unreadable.AHEAD


def test_the_checks_are_made_in_the_order_of_the_protocol(lab: Lab) -> None:
    """Sealed before limbo before not opened: a rejection for a sealed epoch never looks like anything else."""
    assert lab.store(batch(0, epoch=2), epoch=2) == [stored(0, "not_opened", epoch=2)]
    lab.carry_out(lab.replica.enter_limbo())
    assert lab.store(batch(0)) == [stored(0, "limbo")]
    assert lab.store(batch(0, epoch=2), epoch=2) == [stored(0, "limbo", epoch=2)]
    lab.seal(1)
    assert lab.store(batch(0)) == [stored(0, "sealed")]
    assert lab.tails() == {}


def test_a_store_below_epoch_one_is_never_taken() -> None:
    lab = Lab(ME)
    assert lab.store(batch(0, epoch=0), epoch=0) == [stored(0, "sealed", epoch=0)]


def test_a_broker_that_is_named_in_another_incarnation_takes_no_stores() -> None:
    lab = Lab(Member(ME.broker, b"n" * 16))
    lab.learn(register(segment(1, 0, replicas=(ME, OTHER, THIRD))))
    assert lab.store(batch(0)) == [stored(0, "limbo")]


@pytest.mark.parametrize("wrong", [{"partition": b"x" * 16}, {"epoch": 2}])
def test_a_batch_of_another_partition_or_epoch_changes_nothing(lab: Lab, wrong: dict[str, object]) -> None:
    bad = Batch(msgspec.structs.replace(batch(0).header, **wrong), b"", b"")
    before = lab.replica.high_watermark
    with pytest.raises(ProtocolError):
        lab.replica.on_store(StoreRun(PARTITION, 1, 7, 1), [bad], None)
    with pytest.raises(ProtocolError):
        lab.replica.on_repair(Repair(PARTITION, "t", 0, segment(1, 0)), [bad], None)
    assert lab.replica.high_watermark == before
    assert lab.replica.state.sealed == 0


def test_another_base_than_the_one_told_is_a_broken_message(lab: Lab) -> None:
    with pytest.raises(ProtocolError):
        lab.replica.on_seal(Seal(PARTITION, 1, 3), None)
    lab.seal(4, base=10)
    with pytest.raises(ProtocolError):
        lab.replica.on_seal(Seal(PARTITION, 4, 11), None)


def test_a_seal_that_repeats_a_durable_one_is_answered_at_once(lab: Lab) -> None:
    lab.store(batch(0))
    first = lab.seal(1)
    effects = lab.replica.on_seal(Seal(PARTITION, 1, 0), Answers())
    assert not any(isinstance(e, Persist) for e in effects)
    assert lab.seal(1) == first
    assert first.local_tail == 1


def test_a_seal_that_repeats_one_on_its_way_waits_for_it(lab: Lab) -> None:
    answers = Answers()
    lab.carry_out(lab.replica.on_seal(Seal(PARTITION, 1, 0), answers))
    lab.carry_out(lab.replica.on_seal(Seal(PARTITION, 1, 0), answers))
    assert answers == []
    lab.settle()
    assert len(answers) == 2


def test_marks_never_fall(lab: Lab) -> None:
    lab.seal(5, base=9)
    lab.seal(1)
    assert lab.replica.state.sealed == 5


def test_a_repair_continues_the_own_tail_and_seals(lab: Lab) -> None:
    lab.store(batch(0))
    assert lab.repair(segment(1, 0), batch(2)).local_tail == 1
    assert lab.repair(segment(1, 0), batch(0), batch(1), batch(2)).local_tail == 3
    assert lab.replica.state.sealed == 1
    assert lab.store(batch(3)) == [stored(0, "sealed")]


def test_a_repair_stops_at_an_end_that_is_known(lab: Lab) -> None:
    lab.learn(register(segment(1, 0, end=1), segment(2, 1)))
    answer = lab.repair(segment(1, 0), batch(0), batch(1))
    assert (answer.local_tail, answer.end) == (1, 1)
    assert lab.tails() == {1: 1}


def test_a_repair_teaches_a_new_replica_where_its_partition_is_found() -> None:
    lab = Lab(ME)
    assert lab.repair(segment(3, 10), batch(10, epoch=3)).local_tail == 11
    assert (lab.replica.state.topic, lab.replica.state.sealed) == ("t", 3)
    assert lab.tails() == {3: 11}


def test_opening_cuts_every_earlier_epoch_at_its_own_end(lab: Lab) -> None:
    lab.store(batch(0), batch(1), batch(2))
    answers = Answers()
    effects = lab.replica.on_open(register(segment(1, 0, end=1), segment(2, 1, end=4), segment(3, 4)), answers)
    assert [type(e) for e in effects] == [Cut, Persist]
    lab.carry_out(effects)
    assert answers == []
    lab.settle()
    assert answers == [Opened(3)]
    assert lab.tails() == {1: 1}
    assert lab.replica.state.sealed == 2
    assert lab.replica.high_watermark == (3, 4)
    assert lab.replica.readable(0) == Readable(1, 0, 1)
    assert lab.replica.readable(1) is Unreadable.LACKING


def test_reading_goes_on_through_the_epochs_and_stops_at_a_hole(lab: Lab) -> None:
    lab.store(batch(0), batch(1), mark=2)
    lab.learn(register(segment(1, 0, end=2), segment(2, 2)))
    lab.store(batch(2, epoch=2), epoch=2, mark=3)
    assert [lab.replica.readable(o) for o in (0, 2, 3)] == [Readable(1, 0, 2), Readable(2, 2, 3), Unreadable.AHEAD]
    lab.learn(register(segment(1, 0, end=2), segment(2, 2, end=5), segment(3, 5)))
    lab.store(batch(5, epoch=3), epoch=3, mark=6)
    assert lab.replica.readable(3) is Unreadable.LACKING
    assert lab.replica.readable(5) == Readable(3, 5, 6)


def test_an_older_register_teaches_nothing(lab: Lab) -> None:
    newer = register(segment(1, 0, end=0), segment(2, 0))
    lab.learn(newer)
    answers = Answers()
    lab.carry_out(lab.replica.on_open(register(segment(1, 0)), answers))
    lab.settle()
    assert answers == [Opened(2)]
    assert lab.replica.state.chain == newer.chain


@pytest.mark.parametrize(
    "told",
    [
        register(segment(1, 0, end=0), segment(2, 0)),
        register(segment(1, 0, end=2), segment(2, 3)),
        register(segment(1, 5)),
        register(segment(1, 0), id=b"x" * 16),
        register(),
    ],
    ids=["below the high watermark", "broken chain", "another base", "another partition", "no chain"],
)
def test_a_register_that_cannot_be_raises_an_alarm_and_changes_nothing(lab: Lab, told: PartitionRegister) -> None:
    lab.store(batch(0), mark=1)
    before = lab.replica.state
    [effect] = lab.replica.on_open(told, None)
    assert isinstance(effect, Alarm)
    assert lab.replica.state is before


def test_a_tip_is_about_the_epoch_that_it_names(lab: Lab) -> None:
    lab.store(batch(0), mark=1)
    assert lab.tip(1) == TipAnswer(epoch=1, local_tail=1, sealed=False, high_watermark=1, limbo=False)
    assert lab.tip(2, base=7) == TipAnswer(epoch=2, local_tail=7, sealed=False, high_watermark=7, limbo=False)
    lab.learn(register(segment(1, 0, end=1), segment(2, 1)))
    assert lab.tip(1) == TipAnswer(epoch=1, local_tail=1, sealed=True, high_watermark=1, limbo=False)


def test_a_tip_makes_nothing_durable_and_nothing_is_sealed_by_it(lab: Lab) -> None:
    answers = Answers()
    lab.carry_out(lab.replica.on_tip(Tip(PARTITION, 1, 0), answers))
    assert len(answers) == 1
    assert lab.pending == []


def test_closed_segments_that_name_this_broker_are_wanted_oldest_first() -> None:
    lab = Lab(ME)
    lab.learn(register(segment(1, 0, end=2), segment(2, 2, end=3, replicas=(OTHER, THIRD)), segment(3, 3, end=4), segment(4, 4)))
    assert lab.replica.wanted() == Wanted(1, 0, 2, ("b2", "b3"))
    lab.copied(1, batch(0), batch(1), batch(2))
    assert lab.tails() == {1: 2}
    assert lab.replica.wanted() == Wanted(3, 3, 4, ("b2", "b3"))
    lab.copied(3, batch(3, epoch=3))
    assert lab.replica.wanted() is None
    lab.copied(4, batch(4, epoch=4))
    assert lab.tails() == {1: 2, 3: 4}


def test_a_broker_that_came_back_is_renamed_where_it_holds_everything() -> None:
    back = Member(ME.broker, b"n" * 16)
    lab = Lab(back)
    chain = (segment(1, 0, end=1), segment(2, 1, end=1), segment(3, 1, replicas=(back, OTHER, THIRD)))
    lab.learn(register(*chain))
    assert lab.replica.renames() == (chain[1],)
    lab.copied(1, batch(0))
    assert lab.replica.renames() == chain[:2]


def test_damage_puts_the_epoch_in_limbo_until_it_is_restored_and_lowers_no_tail(lab: Lab) -> None:
    lab.store(batch(0), batch(1), batch(2))
    lab.carry_out(lab.replica.on_damaged(1, 0, 2))
    lab.settle()
    assert lab.store(batch(3)) == [stored(0, "limbo")]
    assert lab.replica.local_tail(1) == 3
    assert lab.tip(1).limbo
    lab.restart()
    lab.carry_out(lab.replica.on_restored(1, 0, 1))
    assert lab.replica.in_limbo(1)
    lab.carry_out(lab.replica.on_restored(1, 1, 2))
    assert lab.store(batch(3))[-1] == stored(4)


def test_a_damaged_range_counts_for_nothing_in_a_repair(lab: Lab) -> None:
    lab.store(batch(0), batch(1), batch(2))
    lab.carry_out(lab.replica.on_damaged(1, 1, 2))
    assert lab.repair(segment(1, 0), batch(3)).local_tail == 1


def test_limbo_belongs_to_the_epochs_that_the_register_named(lab: Lab) -> None:
    lab.store(batch(0))
    lab.carry_out(lab.replica.enter_limbo())
    lab.restart()
    told = register(segment(1, 0, end=2), segment(2, 2, end=2, replicas=(OTHER, THIRD)), segment(3, 2))
    lab.carry_out(lab.replica.on_limbo_read(told))
    lab.settle()
    assert lab.replica.state.limbo == (1, 3)
    lab.learn(register(*told.chain[:2], segment(3, 2, end=2), segment(4, 2)))
    assert lab.replica.state.limbo == (1,)
    assert lab.replica.accepts_epoch == 4
    lab.copied(1, batch(1))
    lab.settle()
    assert lab.replica.state.limbo == ()


def test_data_below_the_start_offset_counts_as_held_and_what_left_the_chain_is_dropped(lab: Lab) -> None:
    """P-41."""
    lab.store(batch(0), batch(1))
    lab.learn(register(segment(1, 0, end=5), segment(2, 5)))
    lab.learn(register(segment(1, 0, end=5), segment(2, 5), start_offset=3))
    assert lab.tails() == {}
    assert lab.replica.wanted() == Wanted(1, 3, 5, ("b2", "b3"))
    lab.copied(1, batch(2, records=3))
    assert lab.replica.wanted() is None
    assert lab.replica.readable(2) is Unreadable.TRIMMED
    assert lab.replica.readable(3) == Readable(1, 3, 5)
    lab.learn(register(segment(2, 5), start_offset=5))
    assert lab.tails() == {}
    assert lab.replica.readable(4) is Unreadable.TRIMMED


def test_a_replica_behind_the_start_offset_goes_on_from_the_table_of_another(lab: Lab) -> None:
    """P-34, P-41: headers below it are nowhere any more, and the fold goes on from any committed position."""
    batches = [batch(i, producer=b"P" * 16, sequence=i) for i in range(8)]
    other = IdempotenceTable()
    for each in batches[:4]:
        other.fold(each.header)
    assert not lab.replica.table_needed()
    lab.learn(register(segment(1, 0), start_offset=3))
    assert lab.replica.table_needed()
    lab.store(*batches[3:6], mark=6)
    assert (lab.replica.fold_needed(), lab.replica.table.position) == (None, 0)
    assert lab.replica.on_table(other)
    assert lab.replica.table.position == 6
    assert not lab.replica.table_needed()
    behind = IdempotenceTable()
    behind.fold(batches[0].header)
    assert not lab.replica.on_table(behind)
    lab.store(*batches[6:], mark=8)
    assert lab.replica.table.position == 8


def test_a_broker_that_holds_the_headers_or_is_no_replica_needs_no_table(lab: Lab) -> None:
    lab.store(batch(0), batch(1), mark=2)
    lab.learn(register(segment(1, 0), start_offset=2))
    assert not lab.replica.table_needed()
    stranger = Lab(Member("b9", b"9" * 16))
    stranger.learn(register(segment(1, 0), start_offset=2))
    assert not stranger.replica.table_needed()


def test_storage_may_forget_what_lies_below_a_durable_start_offset_and_the_table_has_seen(lab: Lab) -> None:
    lab.store(*(batch(i) for i in range(6)), mark=4)
    lab.carry_out(lab.replica.on_learn(register(segment(1, 0), start_offset=3)))
    assert lab.replica.trimmable == 0  # it is not durable yet
    lab.settle()
    assert lab.replica.trimmable == 3
    anew = Lab(ME)
    anew.learn(register(segment(1, 0), start_offset=3))
    assert anew.replica.trimmable == 0


def test_a_tip_tells_the_start_offset_and_how_far_the_durable_table_has_come(lab: Lab) -> None:
    lab.store(batch(0), batch(1), mark=2)
    lab.learn(register(segment(1, 0), start_offset=1))
    assert (lab.tip(1).start_offset, lab.tip(1).table) == (1, 0)
    lab.carry_out(lab.replica.on_table_kept(2))
    assert lab.tip(1).table == 2


def test_who_lacks_the_table_at_the_start_offset_durably_holds_nothing_below_it(lab: Lab) -> None:
    """P-41: it leaves no limbo and is named as no holder; the table may be the last one."""
    wiped = Lab(Member("b1", b"new"))
    told = register(segment(1, 0, end=3), segment(2, 3), start_offset=3)
    wiped.carry_out(wiped.replica.enter_limbo())
    wiped.carry_out(wiped.replica.on_limbo_read(told))
    wiped.settle()
    assert (wiped.replica.state.limbo, wiped.replica.renames()) == ((1, 2), ())
    table = IdempotenceTable()
    table.fold(batch(0, records=3).header)
    assert wiped.replica.on_table(table)
    assert wiped.replica.state.limbo == (1, 2)
    wiped.carry_out(wiped.replica.on_table_kept(3))
    wiped.settle()
    assert wiped.replica.state.limbo == (2,)
    assert [each.epoch for each in wiped.replica.renames()] == [1]


def test_damage_below_the_start_offset_is_no_damage(lab: Lab) -> None:
    """Nobody could give it any more (P-41)."""
    lab.store(*(batch(i) for i in range(6)), mark=6)
    lab.carry_out(lab.replica.on_damaged(1, 1, 5))
    lab.learn(register(segment(1, 0), start_offset=3))
    assert lab.replica.state.damaged == ((1, 3, 5),)
    lab.learn(register(segment(1, 0), start_offset=5))
    assert lab.replica.state.damaged == ()


def test_memory_durability_spares_the_sync_of_batches_but_never_overtakes_one() -> None:
    """P-37; what the journal gives back keeps its order."""
    lab = Lab(ME)
    effects = lab.replica.on_open(register(segment(1, 0, durability="memory")), None)
    persists = [e for e in (*effects, *lab.replica.on_store(StoreRun(PARTITION, 1, 0, 1), [batch(0)], None)) if isinstance(e, Persist)]
    assert [p.sync for p in persists] == [True, True]
    lab.carry_out(persists)
    lab.settle()
    [persist] = lab.replica.on_store(StoreRun(PARTITION, 1, 0, 1), [batch(1)], None)
    assert isinstance(persist, Persist)
    assert not persist.sync
    assert lab.replica.memory_epochs() == (1,)


def test_the_table_after_a_restart_is_fed_from_storage(lab: Lab) -> None:
    batches = [batch(i, producer=b"P" * 16, sequence=i) for i in range(5)]
    lab.store(*batches, mark=3)
    assert lab.replica.table.position == 3
    lab.learn(register(segment(1, 0, end=4), segment(2, 4)))
    assert lab.replica.is_complete(4)
    lab.restart()
    assert lab.replica.fold_needed() == (1, 0)
    lab.replica.on_headers(1, [b.header for b in batches[:2]])
    assert lab.replica.fold_needed() == (1, 2)
    lab.replica.on_headers(1, [b.header for b in batches[2:]])
    assert lab.replica.fold_needed() is None
    assert lab.replica.is_complete(4)


def test_a_replica_that_lacks_the_past_is_not_complete() -> None:
    """P-34: a sequencer must be complete before it serves."""
    lab = Lab(ME)
    lab.learn(register(segment(1, 0, end=2), segment(2, 2)))
    assert lab.replica.fold_needed() is None
    assert not lab.replica.is_complete(2)
    lab.copied(1, batch(0), batch(1))
    assert lab.replica.fold_needed() is None
    assert lab.replica.is_complete(2)


def test_headers_past_the_bound_are_read_from_storage_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamq.log.fold.UNFOLDED_HEADERS_MAX", 4)
    headers: list[BatchHeader] = []
    for i in range(10):
        headers.append(batch(i).header)
        lab.store(batch(i))
    lab.store(mark=10)
    assert lab.replica.fold_needed() == (1, 0)
    lab.replica.on_headers(1, headers[:6])
    assert lab.replica.table.position == 10


def test_state_survives_its_encoding(lab: Lab) -> None:
    lab.carry_out(lab.replica.on_damaged(1, 0, 1))
    state = lab.replica.state
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=ReplicaState) == state


def test_a_new_replica_is_in_no_epoch() -> None:
    replica = Replica(ME, ReplicaState(PARTITION), {})
    assert replica.high_watermark == (0, 0)
    assert replica.readable(0) is Unreadable.LACKING
    assert replica.wanted() is None


def test_a_chain_without_an_open_epoch_is_refused(lab: Lab) -> None:
    """Step 5: one change closes an epoch and opens the next. Folding goes from segment to segment, and would find no end to this chain."""
    [alarm] = lab.replica.on_learn(register(segment(1, 0, end=0, replicas=(ME, OTHER, THIRD))))
    assert isinstance(alarm, Alarm)
