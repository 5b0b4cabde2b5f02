"""The steps of a takeover, one by one, and what goes wrong on the way (section 5)."""

import msgspec
import pytest

from streamq.log.next_epoch import lack_of_replicas, next_replicas
from streamq.log.takeover import (
    AskTakeOver,
    ChangeRegister,
    OpenEpoch,
    Phase,
    ReadRegister,
    SendRepair,
    SendSeal,
    StartCopy,
    Takeover,
    TakeoverAlarm,
)
from streamq.model.ids import Member
from streamq.model.messages import Repaired, Seal, Sealed
from streamq.model.registers import PartitionRegister
from tests.support.log_lab import PARTITION, members, register, segment

B1, B2, B3 = members(3)
NEW_B3 = Member("b3", b"n" * 16)
ATTEMPT = b"a" * 16
OPEN = register(segment(4, 10))


def takeover(me: Member = B1, *, defer_above: int | None = None, not_to: tuple[str, ...] = (), told: PartitionRegister = OPEN) -> Takeover:
    """One that has read the register."""
    core = Takeover(me=me, partition=PARTITION, epoch=told.last.epoch, attempt=ATTEMPT, now=0.0, defer_above=defer_above, not_to=not_to)
    assert core.start() == [ReadRegister()]
    core.on_register(told, 0.0)
    return core


def sealed(tail: int, *, mark: int = 10, limbo: bool = False, end: int | None = None, epoch: int = 4) -> Sealed:
    return Sealed(epoch=epoch, local_tail=tail, high_watermark=mark, limbo=limbo, end=end)


def repaired(tail: int, *, end: int | None = None) -> Repaired:
    return Repaired(epoch=4, local_tail=tail, end=end)


def to_close(core: Takeover) -> ChangeRegister:
    """All three answer, with nothing to copy or repair."""
    effects = []
    for member in (B1, B2, B3):
        effects += core.on_sealed(member, sealed(12, mark=12), 0.0)
    [change] = effects
    assert isinstance(change, ChangeRegister)
    return change


def after(change: ChangeRegister) -> PartitionRegister:
    return register(change.closed, change.opened)


def test_everybody_is_asked_to_seal_with_the_base() -> None:
    core = Takeover(me=B1, partition=PARTITION, epoch=4, attempt=ATTEMPT, now=0.0)
    told = msgspec.structs.replace(OPEN, replicas=("b1", "b2", "b4"))
    effects = core.on_register(told, 0.0)
    assert effects == [SendSeal(b, Seal(PARTITION, 4, 10)) for b in ("b1", "b2", "b3", "b4")]


def test_the_plain_path_from_the_register_to_the_new_epoch() -> None:
    core = takeover()
    change = to_close(core)
    assert (change.closed.end, change.closed.replicas) == (12, (B1, B2, B3))
    assert change.opened == segment(5, 12, attempt=ATTEMPT)
    assert core.on_changed(after(change), 0.1) == [OpenEpoch(after(change))]
    assert core.phase is Phase.OPEN
    core.on_opened(0.2)
    assert core.phase is Phase.DONE
    assert core.next_deadline is None


@pytest.mark.parametrize("told", [register(segment(4, 10, end=12), segment(5, 12)), register(segment(4, 10, end=12))])
def test_a_register_that_is_past_the_epoch_ends_it(told: PartitionRegister) -> None:
    core = Takeover(me=B1, partition=PARTITION, epoch=4, attempt=ATTEMPT, now=0.0)
    assert core.on_register(told, 0.0) == []
    assert (core.phase, core.register) == (Phase.LOST, told)


def test_who_is_no_replica_does_not_take_over() -> None:
    core = takeover(Member("b7", b"7" * 16))
    assert core.phase is Phase.STUCK


def test_a_quorum_of_answers_is_enough_after_a_short_grace() -> None:
    """Pitfall 27: one hung replica blocks nothing."""
    core = takeover()
    core.on_sealed(B1, sealed(12), 0.0)
    assert core.on_sealed(B2, sealed(12), 0.1) == []
    assert core.next_deadline == pytest.approx(0.12)
    assert core.on_deadline(0.11) == []
    assert [type(e) for e in core.on_deadline(0.121)] == [ChangeRegister]


def test_no_grace_is_waited_when_the_rest_cannot_be_reached() -> None:
    core = takeover()
    core.on_unreachable("b3", 0.0)
    core.on_sealed(B1, sealed(12), 0.0)
    assert [type(e) for e in core.on_sealed(B2, sealed(12), 0.0)] == [ChangeRegister]


def test_without_a_quorum_of_seals_it_says_what_is_missing() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(12), 0.0)
    core.on_unreachable("b2", 0.0)
    core.on_unreachable("b3", 0.0)
    assert core.phase is Phase.STUCK
    assert "1 of the 2 seals" in core.reason


def test_silence_ends_at_the_deadline() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(12), 0.0)
    assert core.next_deadline is not None
    core.on_deadline(core.next_deadline)
    assert core.phase is Phase.STUCK


@pytest.mark.parametrize(("member", "limbo"), [(NEW_B3, False), (B3, True)])
def test_answers_of_another_incarnation_or_in_limbo_are_no_seals(member: Member, limbo: bool) -> None:
    """P-10, P-29: their tails do not count either."""
    core = takeover()
    core.on_sealed(B1, sealed(12), 0.0)
    core.on_sealed(member, sealed(50, limbo=limbo), 0.0)
    assert core.phase is Phase.SEAL
    core.on_unreachable("b2", 0.0)
    assert core.phase is Phase.STUCK


def test_a_broker_whose_own_replica_does_not_count_asks_one_that_does() -> None:
    core = takeover(B3)
    core.on_sealed(B1, sealed(11), 0.0)
    core.on_sealed(B3, sealed(10, limbo=True), 0.0)
    assert core.on_sealed(B2, sealed(12), 0.0) == [AskTakeOver("b2", 4)]
    assert (core.phase, core.successor) == (Phase.DEFERRED, "b2")


def test_the_tail_is_the_largest_and_what_is_lacking_is_copied_first() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(10), 0.0)
    core.on_sealed(B2, sealed(12), 0.0)
    assert core.on_sealed(B3, sealed(15), 0.0) == [StartCopy(OPEN.last, 10, 15, ("b3", "b2"))]
    assert core.on_copied(13, 0.0) == []
    assert core.tail == 15
    assert [type(e) for e in core.on_copied(15, 0.0)] == [ChangeRegister]


def test_repair_ends_with_w_holders() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(15), 0.0)
    core.on_sealed(B2, sealed(12), 0.0)
    assert core.on_sealed(B3, sealed(11), 0.0) == [SendRepair("b2", OPEN.last, 12, 15), SendRepair("b3", OPEN.last, 11, 15)]
    assert core.on_repaired(B3, repaired(14), 0.0) == []
    assert core.on_repaired(NEW_B3, repaired(15), 0.0) == []
    assert [type(e) for e in core.on_repaired(B2, repaired(15), 0.0)] == [ChangeRegister]


def test_nothing_below_the_high_watermark_is_repaired() -> None:
    core = takeover()
    core.on_unreachable("b3", 0.0)
    core.on_sealed(B1, sealed(15, mark=15), 0.0)
    assert [type(e) for e in core.on_sealed(B2, sealed(12), 0.0)] == [ChangeRegister]


def test_a_repair_that_does_not_fit_is_sent_again_a_few_times_only() -> None:
    core = takeover()
    core.on_unreachable("b3", 0.0)
    core.on_sealed(B1, sealed(15), 0.0)
    core.on_sealed(B2, sealed(12), 0.0)
    for _ in range(3):
        assert core.on_repaired(B2, repaired(11), 0.0) == [SendRepair("b2", OPEN.last, 11, 15)]
    assert core.on_repaired(B2, repaired(11), 0.0) == [ReadRegister()]
    assert core.phase is Phase.READ


def test_a_high_watermark_above_every_tail_stops_everything() -> None:
    """Step 2: that cannot be."""
    core = takeover()
    core.on_sealed(B1, sealed(12), 0.0)
    core.on_unreachable("b3", 0.0)
    [alarm] = core.on_sealed(B2, sealed(12, mark=13), 0.0)
    assert isinstance(alarm, TakeoverAlarm)
    assert core.phase is Phase.STUCK


def test_such_a_high_watermark_is_heeded_even_when_it_comes_late() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(15), 0.0)
    core.on_sealed(B2, sealed(10), 0.0)
    core.on_deadline(0.03)
    assert core.phase is Phase.REPAIR
    [alarm] = core.on_sealed(B3, sealed(10, mark=16), 0.04)
    assert isinstance(alarm, TakeoverAlarm)


def test_a_late_answer_helps_to_repair() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(15), 0.0)
    core.on_sealed(B2, sealed(10), 0.0)
    core.on_deadline(0.03)
    assert [type(e) for e in core.on_sealed(B3, sealed(15), 0.04)] == [ChangeRegister]


def test_who_lacks_a_lot_asks_the_most_complete_replica() -> None:
    core = takeover(defer_above=100)
    core.on_sealed(B1, sealed(10), 0.0)
    core.on_sealed(B2, sealed(111), 0.0)
    assert core.on_sealed(B3, sealed(112), 0.0) == [AskTakeOver("b3", 4)]
    assert core.phase is Phase.DEFERRED


def test_who_lacks_a_lot_copies_it_when_who_has_it_was_asked_in_vain() -> None:
    """The longest tail may be of a broker that does not hold what lies before the epoch, and cannot sequence."""
    core = takeover(defer_above=100, not_to=("b3",))
    core.on_sealed(B1, sealed(10), 0.0)
    core.on_sealed(B2, sealed(20), 0.0)
    [copy] = core.on_sealed(B3, sealed(112), 0.0)
    assert isinstance(copy, StartCopy)
    assert (copy.offset, copy.end, copy.sources) == (10, 112, ("b3", "b2"))


def test_who_does_not_count_asks_one_after_the_other() -> None:
    for not_to, asked in [((), "b3"), (("b3",), "b2"), (("b3", "b2"), "b3")]:
        core = takeover(not_to=not_to)
        core.on_sealed(B1, sealed(10, limbo=True), 0.0)
        core.on_sealed(B2, sealed(11), 0.0)
        assert core.on_sealed(B3, sealed(12), 0.0) == [AskTakeOver(asked, 4)]


@pytest.mark.parametrize("phase", [Phase.COPY, Phase.REPAIR])
def test_lost_holders_and_silence_begin_again_at_step_one(phase: Phase) -> None:
    core = takeover()
    tails = (10, 15) if phase is Phase.COPY else (15, 10)
    for round_ in range(10):
        now = float(round_ * 10)
        core.on_unreachable("b3", now)
        core.on_sealed(B1, sealed(tails[0]), now)
        core.on_sealed(B2, sealed(tails[1]), now)
        assert core.phase is phase
        if round_ % 2:
            assert core.next_deadline is not None
            effects = core.on_deadline(core.next_deadline)
        else:
            effects = core.on_copy_failed(now) if phase is Phase.COPY else core.on_unreachable("b2", now)
        if core.phase is Phase.STUCK:
            assert round_ == 3
            return
        assert effects == [ReadRegister()]
        core.on_register(OPEN, now + 10)
    pytest.fail("it never gives up")


def test_a_replica_that_knows_the_end_sends_it_back_to_the_register() -> None:
    core = takeover()
    assert core.on_sealed(B2, sealed(12, end=12), 0.0) == [ReadRegister()]
    core.on_register(register(segment(4, 10, end=12), segment(5, 12)), 0.0)
    assert core.phase is Phase.LOST


def test_a_refused_repair_sends_it_back_to_the_register() -> None:
    core = takeover()
    core.on_sealed(B1, sealed(15), 0.0)
    core.on_sealed(B2, sealed(12), 0.0)
    core.on_sealed(B3, sealed(12), 0.0)
    assert core.on_repaired(B2, repaired(12, end=12), 0.0) == [ReadRegister()]


def test_losing_the_compare_and_swap_drops_the_result() -> None:
    core = takeover()
    change = to_close(core)
    theirs = register(change.closed, msgspec.structs.replace(change.opened, sequencer="b2", attempt=b"o" * 16))
    assert core.on_changed(theirs, 0.0) == []
    assert (core.phase, core.register) == (Phase.LOST, theirs)


def test_another_attempt_of_its_own_is_somebody_else() -> None:
    core = takeover()
    change = to_close(core)
    core.on_changed(register(change.closed, msgspec.structs.replace(change.opened, attempt=b"e" * 16)), 0.0)
    assert core.phase is Phase.LOST


def test_an_epoch_that_is_over_already_is_not_served() -> None:
    core = takeover()
    change = to_close(core)
    core.on_changed(register(change.closed, msgspec.structs.replace(change.opened, end=12), segment(6, 12)), 0.0)
    assert core.phase is Phase.LOST


def test_an_unknown_outcome_is_looked_up_and_the_same_change_made_again() -> None:
    """P-5: with the same L, whatever came in since."""
    core = takeover()
    change = to_close(core)
    assert core.on_change_failed(0.0) == [ReadRegister()]
    assert core.on_sealed(B3, sealed(99), 0.0) == []
    assert core.on_register(OPEN, 0.0) == [change]
    core.on_change_failed(0.0)
    assert core.on_register(after(change), 0.0) == [OpenEpoch(after(change))]


def test_a_change_is_not_tried_for_ever() -> None:
    core = takeover()
    to_close(core)
    for _ in range(3):
        core.on_changed(OPEN, 0.0)
    assert core.phase is Phase.CLOSE
    core.on_changed(OPEN, 0.0)
    assert core.phase is Phase.STUCK


def test_late_outcomes_of_a_takeover_that_is_over_do_nothing() -> None:
    core = takeover()
    change = to_close(core)
    core.on_changed(after(change), 0.0)
    core.on_opened(0.0)
    for late in (
        core.on_sealed(B2, sealed(12), 0.0),
        core.on_repaired(B2, repaired(12), 0.0),
        core.on_copied(12, 0.0),
        core.on_copy_failed(0.0),
        core.on_unreachable("b2", 0.0),
        core.on_register(OPEN, 0.0),
        core.on_changed(OPEN, 0.0),
        core.on_read_failed("", 0.0),
        core.on_deadline(1e9),
    ):
        assert late == []
    assert core.phase is Phase.DONE


def test_new_settings_hold_from_the_next_epoch_on() -> None:
    """P-36."""
    core = takeover(told=msgspec.structs.replace(OPEN, write=3, read=1, durability="memory"))
    opened = to_close(core).opened
    assert (opened.write, opened.read, opened.durability) == (3, 1, "memory")


def test_the_next_epoch_names_who_answered_in_the_incarnation_that_did() -> None:
    core = takeover()
    core.on_sealed(NEW_B3, sealed(10), 0.0)
    core.on_sealed(B1, sealed(12, mark=12), 0.0)
    [change] = core.on_sealed(B2, sealed(12), 0.0)
    assert isinstance(change, ChangeRegister)
    assert change.opened.replicas == (B1, B2, NEW_B3)
    assert change.closed.replicas == (B1, B2, B3)


def test_a_replacement_counts_by_its_repair_and_is_named_as_holder() -> None:
    told = register(segment(4, 10, write=3), write=3)
    core = takeover(told=told)
    core.on_sealed(NEW_B3, sealed(20), 0.0)
    core.on_sealed(B1, sealed(12), 0.0)
    assert core.on_sealed(B2, sealed(12), 0.0) == [SendRepair("b3", told.last, 20, 12)]
    [change] = core.on_repaired(NEW_B3, repaired(12), 0.0)
    assert isinstance(change, ChangeRegister)
    assert change.closed.replicas == (B1, B2, NEW_B3)


def test_it_waits_for_as_many_as_the_next_epoch_needs() -> None:
    told = register(segment(4, 10, write=3), write=3)
    core = takeover(told=told)
    core.on_sealed(B1, sealed(10), 0.0)
    core.on_sealed(B2, sealed(10), 0.01)
    core.on_deadline(0.05)
    assert core.phase is Phase.SEAL
    assert core.next_deadline == pytest.approx(2.0)
    assert [type(e) for e in core.on_sealed(B3, sealed(10), 0.5)] == [ChangeRegister]


def test_replicas_of_the_next_epoch() -> None:
    preferring = msgspec.structs.replace(OPEN, replicas=("b1", "b2", "b4"))
    b4 = Member("b4", b"4" * 16)
    assert next_replicas(preferring, OPEN.last, me=B1, answered={"b1": B1, "b2": B2, "b4": b4}) == (B1, B2, b4)
    assert next_replicas(preferring, OPEN.last, me=B1, answered={"b1": B1, "b2": B2}) == (B1, B2, B3)
    assert next_replicas(preferring, OPEN.last, me=B3, answered={"b3": B3, "b2": B2}) == (B1, B2, B3)
    assert lack_of_replicas(OPEN, (B1, B2, B3), {"b1", "b2"}) is None
    assert "needs 2" in str(lack_of_replicas(OPEN, (B1, B2, B3), {"b1"}))
    assert lack_of_replicas(OPEN, (B1,), {"b1"}) is not None
