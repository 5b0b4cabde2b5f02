"""The counterexamples of tests/spec/README.md, played against the real cores: a test bears the name of the configuration that found it."""

import msgspec
import pytest

from streamq.log.replica import Readable, Unreadable
from streamq.log.replica_state import ReplicaState
from streamq.log.sequencer import Phase as SequencerPhase
from streamq.log.takeover import Phase
from streamq.log.tip import TipRead
from streamq.model.batches import Batch
from streamq.model.ids import Member
from streamq.model.messages import Message, Opened, Repair, Repaired, Seal, Sealed, Stored, StoredRun, StoreRun, TipAnswer
from streamq.model.quorum import Quorum
from streamq.model.registers import Segment
from tests.support.log_chaos import Chaos, TipRun, header
from tests.support.log_world import PARTITION, Assigned, Broker, Disk, World

P = (b"P" * 16, 0, 0)
P2 = (b"P" * 16, 1, 0)
Q = (b"Q" * 16, 0, 0)


class Answers(list[Message]):
    """A reply handle that keeps what it is told."""

    def __call__(self, message: Message, _batches: object = ()) -> None:
        self.append(message)


@pytest.fixture
def world() -> World:
    return World(faults=0)


def batch(world: World, ticket: tuple[bytes, int, int], *, epoch: int = 1, base: int = 0) -> Batch:
    return world.stamp(header(ticket), Assigned(epoch, base, 1))


def store(broker: Broker, *batches: Batch, epoch: int = 1, mark: int = 0) -> list[Message]:
    """The sequencer's store, durable at once; what was answered."""
    answers = Answers()
    broker.carry_out(broker.replica.on_store(StoreRun(PARTITION, epoch, mark, len(batches)), batches, answers))
    broker.settle(9)
    return answers


def seal(broker: Broker, epoch: int = 1, base: int = 0) -> Sealed:
    answers = Answers()
    broker.carry_out(broker.replica.on_seal(Seal(PARTITION, epoch, base), answers))
    broker.settle(9)
    [answer] = answers
    assert isinstance(answer, Sealed)
    return answer


def repair(broker: Broker, segment: Segment, *batches: Batch) -> Repaired:
    answers = Answers()
    broker.carry_out(broker.replica.on_repair(Repair(PARTITION, "t", 0, segment), batches, answers))
    broker.settle(9)
    [answer] = answers
    assert isinstance(answer, Repaired)
    return answer


def stored(tail: int, state: str = "stored", epoch: int = 1) -> Stored:
    return Stored((StoredRun(PARTITION, epoch, state, tail),))  # type: ignore[arg-type]


def move_on(world: World, *ends: int) -> None:
    """The register as it is after takeovers that closed the epochs at these ends."""
    for end in ends:
        last = world.register.last
        opened = msgspec.structs.replace(last, epoch=last.epoch + 1, base=end, sequencer="b3", attempt=world.token())
        world.register = msgspec.structs.replace(
            world.register, chain=(*world.register.chain[:-1], msgspec.structs.replace(last, end=end), opened)
        )


def open_newest(world: World, broker: Broker) -> None:
    answers = Answers()
    broker.carry_out(broker.replica.on_open(world.register, answers))
    broker.settle(9)
    assert answers == [Opened(world.register.last.epoch)]


# --- literal readings --------------------------------------------------------------------------------------------------------


def test_lit_skip_chain(world: World) -> None:
    """Told of epoch 3 only, a replica cuts epoch 1 at its own end, not at the base of epoch 3."""
    b1 = world.brokers["b1"]
    store(b1, batch(world, Q))
    move_on(world, 0, 1)
    open_newest(world, b1)
    assert b1.disk.view == {}
    assert store(b1, epoch=3, mark=1) == []
    assert b1.replica.readable(0) is Unreadable.LACKING


def test_lit_skip_chain_survives_a_replay_of_the_journal(world: World) -> None:
    b1 = world.brokers["b1"]
    store(b1, batch(world, Q))
    move_on(world, 0, 1)
    open_newest(world, b1)
    b1.crash(0)
    assert b1.disk.view != {}
    b1.start()
    assert b1.disk.view == {}


def test_lit_open_without_seal(world: World) -> None:
    """A replica that opened epoch 2 takes no late store of epoch 1, although nobody sealed it there."""
    b3 = world.brokers["b3"]
    move_on(world, 0)
    open_newest(world, b3)
    assert store(b3, batch(world, Q)) == [stored(0, "sealed")]
    assert b3.disk.view == {}


def test_lit_late_repair(world: World) -> None:
    """The loser's repair reaches a broker that knows the end: refused, and answered with it."""
    b3 = world.brokers["b3"]
    first = world.register.last
    move_on(world, 0)
    open_newest(world, b3)
    assert repair(b3, first, batch(world, Q)) == Repaired(epoch=1, local_tail=0, end=0)
    assert b3.disk.view == {}


def test_lit_sealed_duplicate_stored(world: World) -> None:
    """A sealed replica that holds the batch, by repair, answers its store with the rejection and no tail."""
    b1, b2 = world.brokers["b1"], world.brokers["b2"]
    b1.produce(header(P), P)
    world.deliver_all("store ", to="b1")
    world.deliver_all("stored")
    seal(b2)
    assert repair(b2, world.register.last, batch(world, P)).local_tail == 1
    world.deliver_all("store ", to="b2")
    world.deliver_all("stored")
    assert world.acked == {}
    assert b1.sequencer is not None
    assert b1.sequencer.phase is SequencerPhase.STOPPED


def test_a_store_on_its_way_to_the_disk_is_not_reported_after_a_seal(world: World) -> None:
    """4.4: it is counted in the seal's answer, and only there."""
    b2 = world.brokers["b2"]
    reports, answers = Answers(), Answers()
    b2.carry_out(b2.replica.on_store(StoreRun(PARTITION, 1, 0, 1), [batch(world, P)], reports))
    b2.carry_out(b2.replica.on_seal(Seal(PARTITION, 1, 0), answers))
    assert answers == []
    b2.settle(9)
    assert reports == []
    assert answers == [Sealed(epoch=1, local_tail=1, high_watermark=0, limbo=False, end=None)]


def test_lit_watermark_without_epoch(world: World) -> None:
    """A high watermark of epoch 2 says nothing to a replica that has not opened it: it keeps q of epoch 1 to itself."""
    b1 = world.brokers["b1"]
    store(b1, batch(world, Q))
    assert store(b1, epoch=2, mark=1) == [stored(0, "not_opened", epoch=2)]
    assert b1.replica.readable(0) is Unreadable.AHEAD
    seal(b1, epoch=2, base=0)
    assert b1.replica.readable(0) is Unreadable.LACKING


def test_a_high_watermark_counts_only_when_the_cuts_are_durable(world: World) -> None:
    b1 = world.brokers["b1"]
    store(b1, batch(world, Q))
    move_on(world, 1)
    b1.carry_out(b1.replica.on_learn(world.register))
    b1.carry_out(b1.replica.on_store(StoreRun(PARTITION, 2, 1, 0), [], Answers()))
    assert b1.replica.high_watermark == (1, 0)
    assert b1.replica.readable(0) is Unreadable.AHEAD
    b1.settle(1)
    assert b1.replica.high_watermark == (2, 1)
    assert b1.replica.readable(0) == Readable(1, 0, 1)


def lose(world: World, name: str, *, limbo: bool = True) -> Broker:
    Chaos(world).lose(world.brokers[name], limbo=limbo)
    broker = world.brokers[name]
    broker.disk.raw.clear()
    broker.disk.crash(0)
    broker.start()
    return broker


def test_lit_limbo_stores(world: World) -> None:
    """After losing its journal, mark included, a replica takes no store of an epoch that the register named then."""
    seal(world.brokers["b2"])
    b2 = lose(world, "b2")
    assert store(b2, batch(world, P)) == [stored(0, "limbo")]
    b2.carry_out(b2.replica.on_limbo_read(world.register))
    b2.settle(9)
    assert store(b2, batch(world, P)) == [stored(0, "limbo")]
    assert seal(b2).limbo


def test_lit_limbo_copy(world: World) -> None:
    """Copying does not end limbo while the epoch is open; its closing, with all of it held, does. No restart does."""
    for name in ("b1", "b2"):
        store(world.brokers[name], batch(world, P))
    b1 = lose(world, "b1")
    b1.carry_out(b1.replica.on_limbo_read(world.register))
    repair(b1, world.register.last, batch(world, P))
    assert b1.replica.in_limbo(1)
    b1.crash(0)
    b1.start()
    assert seal(b1) == Sealed(epoch=1, local_tail=1, high_watermark=0, limbo=True, end=None)
    move_on(world, 1)
    open_newest(world, b1)
    assert not b1.replica.in_limbo(1)
    assert b1.replica.accepts_epoch == 2


def test_limbo_lasts_until_all_below_the_end_is_held(world: World) -> None:
    b1 = lose(world, "b1")
    b1.carry_out(b1.replica.on_limbo_read(world.register))
    move_on(world, 2)
    open_newest(world, b1)
    assert b1.replica.accepts_epoch == 2
    wanted = b1.replica.wanted()
    assert wanted is not None
    assert (wanted.epoch, wanted.offset, wanted.end) == (1, 0, 2)
    b1.carry_out(b1.replica.on_copied(1, [batch(world, P), batch(world, P2, base=1), batch(world, Q, base=2)]))
    assert b1.replica.in_limbo(1)
    b1.settle(1)
    assert not b1.replica.in_limbo(1)
    assert b1.replica.wanted() is None


def test_lit_memory_ack() -> None:
    """P-37: after a start that follows no clean stop, the open epoch that answers from memory is in limbo."""
    world = World(faults=0)
    segment = msgspec.structs.replace(world.register.last, durability="memory")
    world.register = msgspec.structs.replace(world.register, durability="memory", chain=(segment,))
    b1 = world.brokers["b1"]
    b1.disk = Disk(b1.disk.incarnation)
    b1.disk.state = ReplicaState(PARTITION, "t", chain=(segment,))
    b1.start()
    [epoch] = b1.replica.memory_epochs()
    b1.carry_out(b1.replica.enter_limbo_of([epoch]))
    assert store(b1, batch(world, P)) == [stored(0, "limbo")]


def test_lit_tip_mixes_epochs(world: World) -> None:
    """Answers about another epoch than the one asked for are not counted."""
    core = TipRead(register=world.register, now=0.0)
    core.start()
    answer = TipAnswer(epoch=1, local_tail=1, sealed=False, high_watermark=0, limbo=False)
    core.on_answer(world.members["b1"], answer, 0.0)
    core.on_answer(world.members["b2"], msgspec.structs.replace(answer, epoch=2), 0.0)
    assert core.result is None
    core.on_answer(world.members["b2"], msgspec.structs.replace(answer, local_tail=0), 0.0)
    assert core.result is None
    core.on_answer(world.members["b2"], answer, 0.0)
    assert core.result is not None
    assert core.result.high_watermark == 1


def test_lit_replace_without_seal(world: World) -> None:
    """P-22: the sequencer's own takeover, to replace a replica, seals the others like any."""
    lose(world, "b3", limbo=False)
    core = world.take_over("b1")
    assert core.phase is Phase.DONE
    assert world.register.last.member("b3") == world.members["b3"]
    assert world.brokers["b2"].replica.state.sealed >= 1


def test_lit_avail_n3w3r1() -> None:
    """With W = N and one disk lost, the tail is repaired on the broker that came back, and the closed segment names it."""
    world = World(write=3, faults=0)
    b1 = world.brokers["b1"]
    b1.produce(header(P), P)
    world.deliver_all("store ", to="b1")
    lose(world, "b3", limbo=False)
    assert world.take_over("b1").phase is Phase.DONE
    closed = world.register.chain[0]
    assert (closed.end, closed.member("b3")) == (1, world.members["b3"])
    assert world.brokers["b3"].disk.view[1] == b1.disk.view[1]
    b1.produce(header(P), P)
    world.deliver_all()
    assert world.acked == {P: 0}


def test_lit_avail_n3w1r3() -> None:
    """W = 1, R = N cannot take over while any broker is lost, and says why."""
    world = World(write=1, faults=0)
    world.brokers["b1"].crash(0)
    core = world.take_over("b2")
    assert core.phase is Phase.STUCK
    assert "2 of the 3 seals" in core.reason


# --- mutants -----------------------------------------------------------------------------------------------------------------


def test_mut_ack_below_w(world: World) -> None:
    b1 = world.brokers["b1"]
    b1.produce(header(P), P)
    world.deliver_all("store ", to="b1")
    world.deliver_all("stored")
    assert world.acked == {}
    world.deliver_all("store ", to="b3")
    world.deliver_all("stored")
    assert world.acked == {P: 0}


def test_mut_count_sealed_tails(world: World) -> None:
    """Two sealed replicas hold p; a tip reader counts neither towards the high watermark, and waits for the register."""
    core = TipRead(register=world.register, now=0.0)
    core.start()
    answer = TipAnswer(epoch=1, local_tail=1, sealed=True, high_watermark=0, limbo=False)
    for name in ("b1", "b2", "b3"):
        core.on_answer(world.members[name], answer, 0.0)
    core.on_register(world.register, 0.0)
    assert core.result is None
    move_on(world, 0)
    core.on_register(world.register, 0.0)
    assert core.result is not None
    assert core.result.high_watermark == 0


def test_mut_no_repair(world: World) -> None:
    """P-18: the register is changed only when W brokers hold everything below L."""
    world.brokers["b1"].produce(header(P), P)
    world.deliver_all("store ", to="b1")
    world.drop("store ")
    world.brokers["b3"].crash(0)
    run = world.begin_takeover("b1")
    world.deliver_all("takeover read")
    world.deliver_all("takeover register")
    world.deliver_all("takeover unreachable")
    world.deliver_all("takeover seal")
    assert run.core.phase is Phase.REPAIR
    assert run.core.tail == 1
    world.deliver_all("takeover repair", to="b2")
    assert world.register.last.epoch == 1
    world.deliver_all("takeover")
    assert run.core.phase is Phase.DONE
    assert world.register.chain[0].end == 1
    assert world.brokers["b2"].disk.view[1] == world.brokers["b1"].disk.view[1]


def test_mut_volatile_seal(world: World) -> None:
    """P-16: no answer before the mark is durable, and no restart forgets it."""
    b2 = world.brokers["b2"]
    answers = Answers()
    b2.carry_out(b2.replica.on_seal(Seal(PARTITION, 1, 0), answers))
    assert answers == []
    b2.settle(1)
    assert len(answers) == 1
    b2.crash(0)
    b2.start()
    assert store(b2, batch(world, P)) == [stored(0, "sealed")]


def test_an_epoch_that_a_replica_never_heard_of_is_sealed_all_the_same(world: World) -> None:
    """Pitfall 4, and finding 16: the base that was carried is the answer."""
    b2 = world.brokers["b2"]
    assert seal(b2, epoch=7, base=40) == Sealed(epoch=7, local_tail=40, high_watermark=40, limbo=False, end=None)
    assert b2.disk.state is not None
    assert b2.disk.state.sealed == 7


def test_mut_r_too_small_w2r1() -> None:
    """P-36: a register that says R = 1 with W = 2 is refused, and were it not, a seal would still need N - W + 1 answers."""
    assert Quorum(3, 2, 1).fault() is not None
    world = World(write=2, read=1, faults=0)
    for name in ("b1", "b2"):
        store(world.brokers[name], batch(world, P))
        world.brokers[name].crash(0)
    core = world.take_over("b3")
    assert core.phase is Phase.STUCK
    assert "1 of the 2 seals" in core.reason


def test_mut_r_too_small_w1r2() -> None:
    """The same with W = 1, acked by 1 alone: 2 and 3 are not enough."""
    assert Quorum(3, 1, 2).fault() is not None
    world = World(write=1, read=2, faults=0)
    store(world.brokers["b1"], batch(world, P))
    world.brokers["b1"].crash(0)
    core = world.take_over("b3")
    assert core.phase is Phase.STUCK
    assert "2 of the 3 seals" in core.reason


def test_mut_wrong_incarnation(world: World) -> None:
    """p was acked by 1 and 2; 1 came back with an empty disk; its seal and 3's are not enough."""
    for name in ("b1", "b2"):
        store(world.brokers[name], batch(world, P))
    lose(world, "b1", limbo=False)
    world.brokers["b2"].crash(0)
    core = world.take_over("b3")
    assert core.phase is Phase.STUCK
    assert "1 of the 2 seals" in core.reason
    world.brokers["b2"].start()
    assert world.take_over("b3").phase is Phase.DONE
    assert world.register.chain[0].end == 1


def test_mut_resume_own_epoch(world: World) -> None:
    """P-8: a broker that restarts finds its epoch open, and takes over into a new one."""
    b1 = world.brokers["b1"]
    b1.produce(header(Q), Q)
    world.deliver_all("store ", to="b2")
    b1.crash(0)
    b1.start()
    core = world.take_over("b1")
    assert core.phase is Phase.DONE
    assert b1.sequencer is not None
    assert b1.sequencer.epoch == 2


def test_mut_sequencer_incomplete(world: World) -> None:
    """B copies what it lacks below L before it closes the epoch, so it recognises the retry."""
    for name in ("b1", "b2"):
        store(world.brokers[name], batch(world, P))
    world.brokers["b1"].crash(0)
    assert world.take_over("b3").phase is Phase.DONE
    b3 = world.brokers["b3"]
    b3.produce(header(P), P)
    b3.produce(header(P2), P2)
    world.deliver_all()
    assert world.acked == {P: 0, P2: 1}


def test_mut_stale_table(world: World) -> None:
    """q, assigned by broker 1 and void, is not in the table with which broker 1 sequences epoch 3."""
    b1 = world.brokers["b1"]
    b1.produce(header(Q), Q)
    world.deliver_all("store ", to="b1")
    world.drop("store")
    b1.crash(0)
    assert world.take_over("b2").phase is Phase.DONE
    world.brokers["b2"].produce(header(P), P)
    world.deliver_all()
    b1.start()
    assert world.take_over("b1").phase is Phase.DONE
    b1.produce(header(Q), Q)
    world.deliver_all()
    assert world.acked == {P: 0, Q: 1}


def test_mut_no_gap_check(world: World) -> None:
    b1 = world.brokers["b1"]
    b1.produce(header(P2), P2)
    b1.produce(header(P), P)
    b1.produce(header(P2), P2)
    world.deliver_all()
    assert world.acked == {P: 0, P2: 1}


def test_mut_blind_write(world: World) -> None:
    """Two takeovers with L = 1 and L = 0: the second to reach the register is lost, and follows the first."""
    store(world.brokers["b1"], batch(world, P))
    first, second = world.begin_takeover("b1"), world.begin_takeover("b2")
    b1_sealed, b3_sealed = seal(world.brokers["b1"]), seal(world.brokers["b3"])
    b2_sealed = seal(world.brokers["b2"])
    for run, answers in ((first, {"b1": b1_sealed, "b2": b2_sealed}), (second, {"b2": b2_sealed, "b3": b3_sealed})):
        world.mail.clear()
        run.carry_out(run.core.on_register(world.register, 0.0))
        world.mail.clear()
        for name, answer in answers.items():
            run.carry_out(run.core.on_sealed(world.members[name], answer, 0.0))
        run.carry_out(run.core.on_deadline(0.1))
    assert (first.core.phase, second.core.phase) == (Phase.REPAIR, Phase.CLOSE)
    assert (first.core.tail, second.core.tail) == (1, 0)
    late = list(world.mail)
    repair(world.brokers["b2"], world.register.last, batch(world, P))
    world.mail.clear()
    first.carry_out(first.core.on_repaired(world.members["b2"], Repaired(epoch=1, local_tail=1, end=None), 0.2))
    world.deliver_all("takeover")
    assert first.core.phase is Phase.DONE
    world.mail = late
    world.deliver_all("takeover")
    assert second.core.phase is Phase.LOST
    assert world.register.chain[0].end == 1


def test_mut_tip_unconfirmed(world: World) -> None:
    """A hint that names epoch 1, sealed replicas with nothing in it, and p acked in epoch 2: the register puts the reader right."""
    hint = world.register
    assert world.take_over("b2").phase is Phase.DONE
    world.brokers["b2"].produce(header(P), P)
    world.deliver_all()
    tip = TipRun(world, hint)
    for _ in range(5):
        world.deliver_all()
        world.now_ms += 50
        tip.carry_out(tip.core.on_deadline(world.now_ms / 1000))
    assert tip.core.result is not None
    assert (tip.core.result.epoch, tip.core.result.high_watermark) == (2, 1)


def test_mut_tip_counts_lost(world: World) -> None:
    """p was acked by 1 and 2; 1 lost its disk; 1 and 3 are no R answers, in whatever way 1 came back."""
    for name in ("b1", "b2"):
        store(world.brokers[name], batch(world, P))
    core = TipRead(register=world.register, now=0.0)
    core.start()
    empty = TipAnswer(epoch=1, local_tail=0, sealed=False, high_watermark=0, limbo=False)
    core.on_answer(Member("b1", b"n" * 16), empty, 0.0)
    core.on_answer(world.members["b1"], msgspec.structs.replace(empty, limbo=True), 0.0)
    core.on_answer(world.members["b3"], empty, 0.0)
    core.on_register(world.register, 0.0)
    assert core.result is None
    assert "1 of the 2" in core.missing()
