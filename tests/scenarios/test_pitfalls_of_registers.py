"""Pitfalls of the metadata registers, against real acceptors and proposers on storages that crash; virtual clock."""

import msgspec
import pytest
import trio
import trio.testing

from streamq.metadata.changes import close_and_open, create_topic, delete_topic
from streamq.model.errors import AlreadyExistsError, UnknownOutcomeError
from streamq.model.ids import Ballot, Member
from streamq.model.limits import CHAIN_SEGMENTS_MAX, FRAME_HEADER_BYTES_MAX, OFFSET_MAX, REGISTER_BYTES_MAX, REPLICAS_MAX
from streamq.model.messages import Accept, Accepted, AnyMessage, ListKeys, Message, Open, Prepare, Promise, ReadAccepted
from streamq.model.registers import PartitionRegister, Segment, TopicRegister, partition_key, topic_key
from streamq.wire.codec import encode
from tests.support.register_brokers import TestBroker, World, cluster
from tests.support.register_network import append

Clock = trio.testing.MockClock
KEY = topic_key("t")
T1, T2 = b"1" * 16, b"2" * 16


def topic(identity: bytes) -> TopicRegister:
    return TopicRegister("t", identity, (b"p" * 16,), 3, 2, 2, "fsync", 0)


async def restart_all(world: World) -> None:
    """Each on what its checkpoint and journal have kept."""
    for name, broker in world.brokers.items():
        broker.storage.checkpoint()
        await broker.registers.change("other", append(name))
    for name in list(world.brokers):
        world.kill(name)
    for name in world.disks:
        await world.start(name)
    await world.until_joined(*world.brokers)


async def test_no_old_ballot_becomes_acceptable_again(autojump_clock: Clock) -> None:
    """P-6, pitfall 36: an acceptance of the first creation is under way for as long as it takes to delete the topic and to restart all."""
    async with cluster(3) as world:
        late: list[Accept] = []

        def hold(source: str, target: str, message: object) -> bool:
            if isinstance(message, Accept) and message.key == KEY and target == "b3" and not late:
                late.append(message)
                return True
            return False

        world.block = hold
        one = world.brokers["b1"].registers
        await one.change_as(TopicRegister, KEY, create_topic(topic(T1), over=None))
        await trio.sleep(0.1)
        world.block = lambda source, target, message: False
        [accept] = late
        await one.change_as(TopicRegister, KEY, delete_topic("t", topic_id=T1))
        for _ in range(2):
            await restart_all(world)
            for broker in world.brokers.values():
                cell = broker.local._core.cell(KEY)
                assert cell is not None, "a tombstone is kept for good"
                assert await broker.local.answer(accept) == Accepted(ok=False, promised=cell.promised)
                promise = await broker.local.answer(Prepare(number=1, key=KEY, ballot=accept.ballot))
                assert isinstance(promise, Promise)
                assert not promise.ok
            found = await world.brokers["b2"].registers.get_as(TopicRegister, KEY)
            assert found is not None
            assert found.deleted


async def test_a_creation_that_is_completed_late_does_not_bring_a_deleted_topic_back(autojump_clock: Clock) -> None:
    """P-6, pitfall 36: the creator never learned that it was done; it asks again when another topic of the name is deleted, too."""
    async with cluster(3) as world:
        one, two = world.brokers["b1"].registers, world.brokers["b2"].registers
        first = create_topic(topic(T1), over=None)
        world.lose = lambda source, target, message: isinstance(message, Accept) and source == "b1"
        with pytest.raises(UnknownOutcomeError):
            await one.change_as(TopicRegister, KEY, first, deadline_s=0.5)
        world.lose = lambda source, target, message: False
        await two.change_as(TopicRegister, KEY, delete_topic("t", topic_id=T1))
        await two.change_as(TopicRegister, KEY, create_topic(topic(T2), over=T1))
        await two.change_as(TopicRegister, KEY, delete_topic("t", topic_id=T2))
        await restart_all(world)
        with pytest.raises(AlreadyExistsError):
            await world.brokers["b1"].registers.change_as(TopicRegister, KEY, first)
        found = await world.brokers["b3"].registers.get_as(TopicRegister, KEY)
        assert found is not None
        assert (found.id, found.deleted) == (T2, True)


# --- what is told, and when ---------------------------------------------------------------------------------------------------------


async def test_an_acceptor_tells_nothing_that_a_crash_could_take_back(autojump_clock: Clock) -> None:
    """P-3, pitfall 32: neither its own promises nor, to whoever reads or lists meanwhile, what it is about to accept."""
    async with cluster(3) as world:
        one = world.brokers["b1"]
        ballot = Ballot(9, "b2", b"s" * 16)
        said: list[str] = []
        questions = [
            Prepare(number=1, key="k", ballot=ballot),
            Accept(number=1, key="k", ballot=ballot, value=b"v"),
            ReadAccepted(number=1, key="k"),
            ListKeys(number=1, prefix="k", after=""),
            Prepare(number=1, key="k", ballot=ballot),
        ]
        for question in questions:
            name = type(question).__name__
            one.local.submit(question, lambda _, name=name: said.append(name))  # type: ignore[misc]
            assert said == []
            assert one.storage.unsynced > 0
        while one.storage.unsynced:
            assert said == []
            await trio.sleep(0.00005)
        assert said == ["Prepare", "Accept", "ReadAccepted", "ListKeys", "Prepare"]


async def test_a_hint_never_goes_back(autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """P-1: a read that was slow returns what it saw, which was true during the read; the hint stays at what was learned since."""
    async with cluster(3) as world:
        one = world.brokers["b1"].registers
        await one.change("k", append("c1"))
        request = world.request

        async def slow(source: str, target: str, message: Message) -> AnyMessage:
            answer = await request(source, target, message)
            await trio.sleep(0.3 if isinstance(message, ReadAccepted) else 0.0)
            return answer

        monkeypatch.setattr(world, "request", slow)
        told: list[bytes] = []
        one.subscribe("k", lambda key, value: told.append(value))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.get, "k")
            await trio.sleep(0.1)
            await one.change("k", append("c2"))
            assert one.cached("k") == b"c1,c2"
        assert one.cached("k") == b"c1,c2"
        assert told == [b"c1,c2"]


# --- changes of unknown outcome ----------------------------------------------------------------------------------------------------

MEMBERS = tuple(Member(f"b{i}", bytes([i]) * 16) for i in (1, 2, 3))


def segment(epoch: int, base: int, *, attempt: bytes, sequencer: str = "b1") -> Segment:
    return Segment(epoch, base, None, MEMBERS, 2, 2, "fsync", sequencer, attempt)


PARTITION = PartitionRegister(b"p" * 16, "t", 0, ("b1", "b2", "b3"), 2, 2, "fsync", 0, (segment(1, 0, attempt=b"0" * 16),))


async def take_over(broker: TestBroker, end: int, *, deadline_s: float = 5.0) -> PartitionRegister:
    opened = segment(2, end, attempt=broker.name.encode() * 8, sequencer=broker.name)
    change = close_and_open("t", 0, partition=PARTITION.id, epoch=1, end=end, opened=opened)
    return await broker.registers.change_as(PartitionRegister, partition_key("t", 0), change, deadline_s=deadline_s)


@pytest.mark.parametrize("reached", ["one acceptor", "all"])
async def test_a_change_whose_outcome_is_unknown_opens_one_epoch_whoever_completes_it(reached: str, autojump_clock: Clock) -> None:
    """Pitfall 33: b1 hears nothing of its acceptances; b2 comes with a change of its own; both end with the same winner, and so does a
    third look."""
    async with cluster(3) as world:
        one, two, three = world.brokers.values()
        await one.registers.change_as(PartitionRegister, partition_key("t", 0), lambda _: PARTITION)
        await trio.sleep(0.1)
        world.lose = lambda source, target, message: source == "b1" and isinstance(message, Accept)
        world.block = lambda source, target, message: source == "b1" and isinstance(message, Accept) and reached != "all"
        with pytest.raises(UnknownOutcomeError):
            await take_over(one, 7, deadline_s=0.3)
        world.lose = world.block = lambda source, target, message: False
        seen = [await take_over(two, 5), await take_over(one, 7), await take_over(two, 5)]
        found = await three.registers.get_as(PartitionRegister, partition_key("t", 0))
        assert found is not None
        assert seen == [found] * 3
        assert found.last.epoch == 2
        won = (found.last.sequencer, found.last.base, found.chain[0].end)
        assert won == ("b1", 7, 7) or (won == ("b2", 5, 5) and reached != "all")


async def test_a_ballot_that_a_crash_left_behind_is_not_used_by_the_next_start(autojump_clock: Clock) -> None:
    """Pitfall 30: b1 dies with its acceptance on one disk, and its next start proposes another value from a counter that begins anew."""
    async with cluster(3) as world:
        one = world.brokers["b1"]
        used: list[Ballot] = []

        def note(source: str, target: str, message: object) -> bool:
            if source == "b1" and isinstance(message, Prepare | Accept) and message.key == "k":
                used.append(message.ballot)
            return isinstance(message, Accept) and message.key == "k" and source == "b1" and target != "b1"

        world.block = note
        with pytest.raises(UnknownOutcomeError):
            await one.registers.change("k", append("left behind"), deadline_s=0.05)
        before = set(used)
        world.kill("b1")
        await world.start("b1")
        await world.until_joined("b1")
        used.clear()
        world.block = lambda source, target, message: note(source, target, message) and False
        assert b"next" in await world.brokers["b1"].registers.change("k", append("next"))
        assert before
        assert not before & set(used)


# --- size --------------------------------------------------------------------------------------------------------------------------


def full(name_chars: int) -> PartitionRegister:
    """As many segments as a chain may have, of as many replicas as a partition may have, with numbers as large as they get."""
    members = tuple(Member(f"b{i}".ljust(name_chars, "x"), bytes([i]) * 16) for i in range(REPLICAS_MAX))
    chain = tuple(
        Segment(OFFSET_MAX // 2 + i, OFFSET_MAX // 2 + i, OFFSET_MAX // 2 + i + 1, members, 5, 5, "memory", members[0].broker, b"a" * 16)
        for i in range(CHAIN_SEGMENTS_MAX)
    )
    return PartitionRegister(b"p" * 16, "t" * 200, 1, tuple(m.broker for m in members), 5, 5, "memory", OFFSET_MAX, chain)


def test_a_full_chain_fits_into_a_register_and_a_frame() -> None:
    """Pitfall 38: with names of brokers of up to 16 letters; longer ones meet the register's own limit before the chain is full."""
    register = full(16)
    assert len(encode(register)) <= REGISTER_BYTES_MAX
    assert len(encode(Open(register))) <= FRAME_HEADER_BYTES_MAX
    assert len(encode(msgspec.structs.replace(register, chain=register.chain[:-1]))) < len(encode(register))
