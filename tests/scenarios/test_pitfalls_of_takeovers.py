"""Pitfalls of seals, takeovers and epochs, each played once against the real cores in the world of `log_world`."""

import msgspec
import pytest

from streamq.log.effects import Alarm
from streamq.log.replica import Readable
from streamq.log.sequencer import Assigned, Refused
from streamq.log.takeover import Phase, SendSeal, Takeover
from streamq.model.ids import Member
from streamq.model.messages import Sealed, StoreRun
from streamq.model.registers import Segment
from tests.scenarios.test_log_counterexamples import P2, Answers, P, Q, batch, move_on, open_newest, repair, seal, store, stored
from tests.support.log_chaos import header
from tests.support.log_world import PARTITION, World

NEWER_P = (b"P" * 16, 0, 1)
"""The first batch of the next epoch of producer P."""


@pytest.fixture
def world() -> World:
    return World(faults=0)


def acked(world: World, *tickets: tuple[bytes, int, int]) -> None:
    """Each of them, in order, by whoever sequences the newest epoch."""
    for ticket in tickets:
        world.brokers[world.register.last.sequencer].produce(header(ticket), ticket)
        world.deliver_all()
        assert ticket in world.acked


def ends(world: World) -> list[int | None]:
    return [segment.end for segment in world.register.chain]


# --- seals ---------------------------------------------------------------------------------------------------------------------


def test_a_seal_of_an_epoch_never_heard_of_keeps_out_its_first_store(world: World) -> None:
    """Pitfalls 2 and 4: "nothing here" is a promise, though the epoch is opened afterwards."""
    b3 = world.brokers["b3"]
    assert seal(b3, epoch=2, base=0) == Sealed(epoch=2, local_tail=0, high_watermark=0, limbo=False, end=None)
    move_on(world, 0)
    open_newest(world, b3)
    assert store(b3, batch(world, P, epoch=2), epoch=2) == [stored(0, "sealed", epoch=2)]
    b3.crash(0)
    b3.start()
    assert store(b3, batch(world, P, epoch=2), epoch=2) == [stored(0, "sealed", epoch=2)]
    assert b3.disk.view == {}


def test_brokers_of_the_next_epoch_alone_are_no_quorum_of_this_one(world: World) -> None:
    """Pitfall 16: b4 and b5, which the settings name since, are asked for their incarnations; that they have nothing means nothing."""
    told = msgspec.structs.replace(world.register, replicas=("b1", "b4", "b5"))
    core = Takeover(me=world.members["b1"], partition=PARTITION, epoch=1, attempt=b"a" * 16, now=0.0)
    asked = [effect.broker for effect in core.on_register(told, 0.0) if isinstance(effect, SendSeal)]
    assert asked == ["b1", "b2", "b3", "b4", "b5"]
    nothing = Sealed(epoch=1, local_tail=0, high_watermark=0, limbo=False, end=None)
    for member in (world.members["b1"], Member("b4", b"4" * 16), Member("b5", b"5" * 16)):
        assert core.on_sealed(member, nothing, 0.0) == []
    assert core.on_deadline(1.0) == []
    core.on_unreachable("b2", 1.0)
    core.on_unreachable("b3", 1.0)
    assert core.phase is Phase.STUCK
    assert "1 of the 2 seals" in core.reason


def test_an_epoch_of_which_nobody_has_anything_is_closed_at_its_base(world: World) -> None:
    """Pitfall 17: b2 and b3 were never told of epoch 2. Their answer is its base, not 0 and not the end of what they hold of epoch 1."""
    acked(world, P, P2)
    world.drop("store")
    run = world.begin_takeover("b1")
    while not run.core.is_over:
        world.deliver_all("takeover")
        if (deadline := run.core.next_deadline) is not None:
            run.carry_out(run.core.on_deadline(deadline))
    assert run.core.phase is Phase.DONE
    world.drop("open")
    world.brokers["b1"].crash(0)
    store(world.brokers["b2"], batch(world, Q, base=2))
    assert world.take_over("b3").phase is Phase.DONE
    assert ends(world) == [2, 2, None]
    acked(world, Q)
    assert world.acked == {P: 0, P2: 1, Q: 2}


def test_a_seal_needs_what_the_segment_says_and_no_more() -> None:
    """P-36: N - W + 1 answers, however large R is; settings that have changed since hold from the next epoch on, and there they do."""
    world = World(write=2, read=3, faults=0)
    world.brokers["b1"].crash(0)
    assert world.take_over("b2").phase is Phase.DONE
    world.register = msgspec.structs.replace(world.register, write=3, read=1)
    acked(world, P)
    assert world.take_over("b3").phase is Phase.STUCK
    world.brokers["b1"].start()
    assert world.take_over("b3").phase is Phase.DONE
    assert [(s.write, s.read) for s in world.register.chain[-2:]] == [(2, 3), (3, 1)]
    b3 = world.brokers["b3"]
    b3.produce(header(Q), Q)
    for name in ("b3", "b2"):
        world.deliver_all("store ", to=name)
    world.deliver_all("stored")
    assert Q not in world.acked
    world.deliver_all()
    assert Q in world.acked


# --- ends ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0, 2])
def test_an_end_that_was_told_never_moves(world: World, end: int) -> None:
    """P-9: a register in which a closed epoch ends elsewhere cannot be; it is an alarm and changes nothing."""
    b1 = world.brokers["b1"]
    store(b1, batch(world, P), batch(world, P2, base=1), batch(world, Q, base=2))
    other = msgspec.structs.replace(world.register)
    move_on(world, 1)
    open_newest(world, b1)
    before = b1.replica.state
    true, world.register = world.register, other
    move_on(world, end, end)
    [alarm] = b1.replica.on_open(world.register, Answers())
    assert isinstance(alarm, Alarm)
    assert f"now at {end}" in alarm.reason
    assert b1.replica.state is before
    world.register = true
    assert seal(b1, epoch=1).end == 1


def test_a_void_batch_is_not_the_batch_of_a_later_epoch_at_its_offset(world: World) -> None:
    """Pitfall 14: what lies at offset 0 is told apart by its epoch, by readers and by those who copy."""
    b1 = world.brokers["b1"]
    store(b1, batch(world, Q))
    move_on(world, 0)
    open_newest(world, b1)
    store(b1, batch(world, P, epoch=2), epoch=2, mark=1)
    world.read_all("b1")
    assert world.seen == {0: P}
    assert b1.copied(1, 0, 9)[1] == []
    assert [x.header.producer for x in b1.copied(2, 0, 9)[1]] == [P[0]]
    assert store(b1, batch(world, Q, epoch=1)) == [stored(0, "sealed")]


def test_no_part_of_a_batch_is_recovered(world: World) -> None:
    """Pitfall 56: a batch that only the dead sequencer and b2 hold is kept whole; one that an end would cut in two is not taken at all."""
    b1, b2, b3 = world.brokers.values()
    b1.produce(header(P, records=3), P)
    world.deliver_all("store ", to="b2")
    b1.crash(0)
    assert world.take_over("b3").phase is Phase.DONE
    assert ends(world) == [3, None]
    assert b3.disk.view[1] == b2.disk.view[1]
    first: Segment = world.register.chain[0]
    b1.start()
    b1.carry_out(b1.replica.on_learn(world.register))
    b1.settle(9)
    torn = world.stamp(header(Q, records=4), Assigned(1, 0, 1))
    assert repair(b1, first, torn).local_tail == 0
    b1.carry_out(b1.replica.on_copied(1, [torn]))
    assert b1.disk.view == {}
    b1.carry_out(b1.replica.on_copied(1, b3.disk.view[1]))
    b1.settle(9)
    assert b1.replica.readable(0) == Readable(1, 0, 3)


# --- epochs --------------------------------------------------------------------------------------------------------------------


def test_an_epoch_is_served_by_nobody_before_the_register_has_it(world: World) -> None:
    """Pitfall 23, P-18: whatever has arrived and been written by then, one event at a time."""
    acked(world, P)
    b1, b2 = world.brokers["b1"], world.brokers["b2"]
    b1.produce(header(P2), P2)
    world.deliver_all("store ", to="b1")
    world.drop("store")
    b1.sequencer = None
    run = world.begin_takeover("b1")
    early = [store(b2, batch(world, Q, epoch=2, base=base), epoch=2) for base in (1, 2)]
    assert early == [[stored(0, "not_opened", epoch=2)]] * 2
    while not run.core.is_over:
        is_open = world.register.last.epoch == 2
        for broker in world.brokers.values():
            assert is_open or broker.replica.accepts_epoch in (None, 1)
            assert is_open or broker.replica.high_watermark[0] == 1
        assert b1.sequencer is None
        if world.mail:
            world.deliver(0)
        elif not world.settle_all():
            deadline = run.core.next_deadline
            assert deadline is not None
            run.carry_out(run.core.on_deadline(deadline))
    assert run.core.phase is Phase.DONE
    assert b1.sequencer is not None
    assert b1.replica.high_watermark == (2, 2)
    assert b1.replica.table.position == world.register.last.base == 2


def test_a_watermark_of_the_new_epoch_shows_nothing_before_the_cut_of_the_old_one_is_durable(world: World) -> None:
    """P-23: b1 holds void q. The watermark of epoch 2 is above it, and arrives while the cut is still on its way to the disk."""
    b1 = world.brokers["b1"]
    store(b1, batch(world, Q))
    move_on(world, 0)
    b1.carry_out(b1.replica.on_learn(world.register))
    b1.carry_out(b1.replica.on_store(StoreRun(PARTITION, 2, 1, 1), [batch(world, P, epoch=2)], Answers()))
    assert b1.replica.high_watermark == (1, 0)
    assert world.read_all("b1") == 0
    b1.crash(0)
    b1.start()
    assert b1.replica.high_watermark == (1, 0)
    assert world.read_all("b1") == 0
    open_newest(world, b1)
    store(b1, batch(world, P, epoch=2), epoch=2, mark=1)
    assert b1.replica.high_watermark == (2, 1)
    world.read_all("b1")
    assert world.seen == {0: P}


def test_empty_epochs_close_like_any_and_the_log_goes_on_behind_them(world: World) -> None:
    """Pitfall 24: each is in the chain; the next append, its retry and readers find their way over all of them."""
    acked(world, P)
    for name in ("b2", "b3", "b1", "b2", "b2"):
        assert world.take_over(name).phase is Phase.DONE
        closed = world.register.chain[-2]
        assert seal(world.brokers["b3"], epoch=closed.epoch, base=closed.base).end == 1
    assert ends(world) == [1, 1, 1, 1, 1, None]
    acked(world, P2)
    b2 = world.brokers["b2"]
    assert b2.sequencer is not None
    b2.produce(header(P), P)
    assert world.acked == {P: 0, P2: 1}
    for member in world.register.last.replicas:
        b2.store(member, [])
    world.deliver_all()
    assert [world.read_all(name) for name in world.brokers] == [2, 2, 2]


def test_the_next_sequencer_fences_the_older_epoch_of_a_producer_too(world: World) -> None:
    """P-33: the fence lies in the log, in each partition from the newer epoch's first batch on."""
    acked(world, P)
    b1 = world.brokers["b1"]
    b1.produce(header(NEWER_P, producer_epoch=1), NEWER_P)
    world.deliver_all()
    assert world.acked == {P: 0, NEWER_P: 1}
    for name in ("b2", "b3"):
        assert world.take_over(name).phase is Phase.DONE
        sequencer = world.brokers[name].sequencer
        assert sequencer is not None
        refused = sequencer.on_produce(header(P2), P2, 1)
        assert isinstance(refused, Refused)
        assert refused.code == "fenced"
    assert isinstance(sequencer.on_produce(header(P2, producer_epoch=1), P2, 1), Assigned)


def test_what_was_void_is_forgotten_by_who_never_restarted(world: World) -> None:
    """P-34, pitfall 55: void q lies behind what b1 knows to be committed when it hears of that. b1's table never had it."""
    b1 = world.brokers["b1"]
    acked(world, P)
    b1.produce(header(Q), Q)
    world.deliver_all("store ", to="b1")
    world.drop("store")
    b1.store(b1.me, [])
    world.deliver_all("store ", to="b1")
    assert b1.replica.high_watermark == (1, 1)
    b1.is_up = False  # paused: it hears nothing until the takeover is over
    assert world.take_over("b2").phase is Phase.DONE
    b1.is_up = True
    open_newest(world, b1)
    world.deliver_all()
    assert ends(world) == [1, None]
    acked(world, P2)
    assert world.take_over("b1").phase is Phase.DONE
    acked(world, Q)
    assert world.acked == {P: 0, P2: 1, Q: 2}


def test_a_run_begins_where_its_epoch_does(world: World) -> None:
    """Pitfall 9, P-13: what comes first and is not the first of its epoch is a gap like any other, by a store, a repair or a copy."""
    b1, b2 = world.brokers["b1"], world.brokers["b2"]
    assert store(b1, batch(world, P2, base=1)) == [stored(0, "gap")]
    assert repair(b2, world.register.last, batch(world, P2, base=1)).local_tail == 0
    move_on(world, 2)
    open_newest(world, b1)
    b1.carry_out(b1.replica.on_copied(1, [batch(world, P2, base=1)]))
    b1.settle(9)
    assert b1.disk.view == b2.disk.view == {}


# --- register changes of unknown outcome -----------------------------------------------------------------------------------------


def test_a_change_that_was_given_up_and_took_effect_after_all_is_ones_own() -> None:
    """Pitfall 33: b2 is told of a failure; by the time it looks, its change was completed. One epoch, and b2 serves it."""
    world = World(faults=1.0)
    acked(world, P)
    run = world.begin_takeover("b2")
    while not world.late_changes:
        world.deliver_all("takeover r")
        world.deliver_all("takeover s")
    [late] = world.late_changes
    late()
    late()
    world.deliver_all("takeover change failed")
    world.deliver_all("takeover read")
    world.deliver_all("takeover register")
    world.deliver_all()
    assert run.core.phase is Phase.DONE
    assert ends(world) == [1, None]
    assert world.register.last.sequencer == "b2"
    acked(world, P2)


def test_a_change_that_takes_effect_after_another_takeover_does_nothing() -> None:
    """Pitfall 33: b2's change, given up long ago, reaches the register when b3 has opened the epoch and acked in it."""
    world = World(faults=1.0)
    acked(world, P)
    world.begin_takeover("b2")
    while not world.late_changes:
        world.deliver_all("takeover r")
        world.deliver_all("takeover s")
    world.brokers["b2"].crash(0)
    world.faults = 0.0
    assert world.take_over("b3").phase is Phase.DONE
    acked(world, P2)
    before = world.register
    world.late_changes.pop()()
    assert world.register == before
    assert world.register.last.sequencer == "b3"
