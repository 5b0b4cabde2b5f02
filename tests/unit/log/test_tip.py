"""What a set of tip answers proves (P-24)."""

import msgspec
import pytest

from streamq.log.tip import AskTakeOver, ReadRegister, SendTip, TipRead, TipResult
from streamq.model.ids import Member
from streamq.model.messages import Tip, TipAnswer
from streamq.model.registers import PartitionRegister
from tests.support.log_lab import PARTITION, members, register, segment

B1, B2, B3 = members(3)
HINT = register(segment(2, 5))


def begun(hint: PartitionRegister | None = HINT) -> TipRead:
    core = TipRead(register=hint, now=0.0)
    core.start()
    return core


def answer(tail: int, *, mark: int = 5, sealed: bool = False, limbo: bool = False, epoch: int = 2) -> TipAnswer:
    return TipAnswer(epoch=epoch, local_tail=tail, sealed=sealed, high_watermark=mark, limbo=limbo)


def test_every_replica_is_asked_about_the_epoch_and_told_its_base() -> None:
    core = TipRead(register=HINT, now=0.0)
    assert core.start() == [SendTip(b, Tip(PARTITION, 2, 5)) for b in ("b1", "b2", "b3")]


def test_equal_tails_of_r_and_w_unsealed_replicas_are_the_tip() -> None:
    core = begun()
    assert core.on_answer(B1, answer(9), 0.0) == []
    core.on_answer(B3, answer(9), 0.0)
    assert core.result == TipResult(2, 9, ("b1", "b3"))


def test_a_high_watermark_that_was_told_settles_it_as_well() -> None:
    core = begun()
    core.on_answer(B1, answer(9, mark=9), 0.0)
    core.on_answer(B2, answer(7), 0.0)
    assert core.result is not None
    assert core.result.high_watermark == 9


def test_the_start_offset_is_the_largest_that_anybody_told() -> None:
    """P-41: a hint may be older than the last trim, and so may the replicas that were counted."""
    core = begun(register(segment(2, 5), start_offset=2))
    core.on_answer(B1, msgspec.structs.replace(answer(9), start_offset=4), 0.0)
    core.on_answer(B2, msgspec.structs.replace(answer(9), start_offset=1), 0.0)
    assert core.result is not None
    assert core.result.start_offset == 4


def test_it_waits_for_the_high_watermark_and_asks_again() -> None:
    core = begun()
    core.on_answer(B1, answer(9), 0.0)
    core.on_answer(B2, answer(7), 0.0)
    assert core.result is None
    assert "stays at 7, below 9" in core.missing()
    effects = core.on_deadline(0.01)
    assert {e.broker for e in effects if isinstance(e, SendTip)} == {"b1", "b2"}
    core.on_answer(B2, answer(12), 0.02)
    assert core.result is not None
    assert core.result.high_watermark == 9


def test_a_watermark_that_stays_behind_has_a_replica_take_over() -> None:
    core = begun()
    core.on_answer(B1, answer(9), 0.0)
    core.on_answer(B2, answer(7), 0.0)
    effects = core.on_deadline(0.31)
    assert AskTakeOver(2, ("b1", "b2")) in effects
    core.on_deadline(0.4)
    core.on_register(register(segment(2, 5, end=8), segment(3, 8)), 0.5)
    assert core.result == TipResult(2, 8, ("b1", "b2"))


def test_a_closed_epoch_bounds_the_tip_with_its_end() -> None:
    """U may lie past the end."""
    core = begun()
    core.on_answer(B1, answer(9), 0.0)
    core.on_answer(B2, answer(7), 0.0)
    effects = core.on_answer(B2, answer(7, sealed=True), 0.1)
    assert effects == [ReadRegister()]
    core.on_register(register(segment(2, 5, end=20), segment(3, 20)), 0.2)
    assert core.result == TipResult(2, 9, ("b1", "b2"))


def test_sealed_replicas_bound_the_tip_but_do_not_confirm_the_epoch() -> None:
    core = begun()
    core.on_answer(B1, answer(9, mark=9, sealed=True), 0.0)
    assert core.on_answer(B2, answer(9, mark=9, sealed=True), 0.0) == [ReadRegister()]
    assert core.result is None
    core.on_register(HINT, 0.1)
    assert core.result == TipResult(2, 9, ("b1", "b2"))


def test_an_old_hint_is_put_right_by_the_register() -> None:
    core = begun()
    core.on_answer(B1, answer(5, sealed=True), 0.0)
    assert core.on_answer(B2, answer(5, sealed=True), 0.0) == [ReadRegister()]
    newer = register(segment(2, 5, end=5), segment(3, 5))
    assert core.on_register(newer, 0.1) == [SendTip(b, Tip(PARTITION, 3, 5)) for b in ("b1", "b2", "b3")]
    core.on_answer(B3, answer(5), 0.1)
    core.on_answer(B1, answer(8, epoch=3), 0.1)
    core.on_answer(B2, answer(8, epoch=3), 0.1)
    assert core.result == TipResult(3, 8, ("b1", "b2"))


def test_without_a_hint_the_register_comes_first_and_confirms() -> None:
    core = TipRead(register=None, now=0.0)
    assert core.start() == [ReadRegister()]
    assert core.next_deadline is None
    assert len(core.on_register(HINT, 0.0)) == 3
    core.on_answer(B1, answer(9, mark=9, sealed=True), 0.0)
    core.on_answer(B2, answer(9, sealed=True), 0.0)
    assert core.result == TipResult(2, 9, ("b1", "b2"))


@pytest.mark.parametrize(("member", "limbo"), [(Member("b2", b"n" * 16), False), (B2, True), (Member("b9", b"9" * 16), False)])
def test_who_does_not_count_is_not_counted(member: Member, limbo: bool) -> None:
    core = begun()
    core.on_answer(B1, answer(9, mark=9), 0.0)
    core.on_answer(member, answer(9, mark=50, limbo=limbo), 0.0)
    assert core.result is None
    core.on_answer(B3, answer(9), 0.0)
    assert core.result == TipResult(2, 9, ("b1", "b3"))


def test_one_replica_that_cannot_be_reached_costs_nothing() -> None:
    core = begun()
    assert core.on_unreachable("b3", 0.0) == []
    core.on_answer(B1, answer(5), 0.0)
    core.on_answer(B2, answer(5), 0.0)
    assert core.result == TipResult(2, 5, ("b1", "b2"))


def test_too_few_unsealed_replicas_are_made_up_for_by_the_register() -> None:
    hint = register(segment(2, 5, write=3), write=3)
    core = begun(hint)
    core.on_answer(B1, answer(9, mark=9), 0.0)
    assert core.on_unreachable("b3", 0.0) == [ReadRegister()]
    core.on_register(hint, 0.1)
    assert core.result == TipResult(2, 9, ("b1",))


def test_a_register_that_cannot_be_read_is_read_again_later() -> None:
    core = begun()
    core.on_answer(B1, answer(9, mark=9, sealed=True), 0.0)
    assert core.on_answer(B2, answer(9, sealed=True), 0.0) == [ReadRegister()]
    assert not any(isinstance(e, ReadRegister) for e in core.on_deadline(0.06))
    core.on_read_failed(0.07)
    assert core.next_deadline is not None
    assert any(isinstance(e, ReadRegister) for e in core.on_deadline(0.2))


def test_less_than_r_answers_prove_nothing_and_it_says_so() -> None:
    core = begun()
    core.on_answer(B1, answer(9, mark=9), 0.0)
    core.on_unreachable("b2", 0.0)
    core.on_unreachable("b3", 0.0)
    core.on_register(HINT, 0.1)
    assert core.result is None
    assert "1 of the 2 replicas" in core.missing()


def test_the_pauses_between_questions_grow_and_nobody_is_asked_twice_at_once() -> None:
    core = begun()
    asked, now = 0, 0.0
    while now < 1.0:
        assert core.next_deadline is not None
        now = max(core.next_deadline, now + 1e-6)
        asked += sum(isinstance(e, SendTip) for e in core.on_deadline(now))
    assert asked <= 3 * 6
