"""Change functions: applied twice they do what they do once, and they compare what they depend on (P-5)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.metadata import changes, transactions
from streamq.model.errors import AlreadyExistsError, FencedError, NotFoundError, RefusedError, UnavailableError
from streamq.model.ids import Member
from streamq.model.limits import CHAIN_SEGMENTS_MAX, PRODUCER_EPOCH_MAX
from streamq.model.registers import BrokerRegister, ClusterRegister, PartitionRegister, Segment, TopicRegister, Voters

P1, P2, T1, T2, T3 = (name * 16 for name in (b"p", b"q", b"t", b"u", b"v"))
MEMBERS = tuple(Member(broker, broker.encode() * 8) for broker in ("b1", "b2", "b3"))


def topic(topic_id: bytes) -> TopicRegister:
    return TopicRegister("t", topic_id, (P1,), 3, 2, 2, "fsync", 0)


def segment(epoch: int, base: int, end: int | None = None, *, attempt: bytes = b"a") -> Segment:
    return Segment(epoch, base, end, MEMBERS, 2, 2, "fsync", "b1", attempt)


def partition(*chain: Segment, partition_id: bytes = P1, start_offset: int = 0) -> PartitionRegister:
    return PartitionRegister(partition_id, "t", 0, ("b1", "b2", "b3"), 2, 2, "fsync", start_offset, chain or (segment(1, 0),))


def deleted(register: PartitionRegister) -> PartitionRegister:
    return changes.delete_partition(msgspec.structs.replace(register, deleted=True, chain=()))(register)


# --- topics ----------------------------------------------------------------------------------------------------------------


def test_a_topic_is_created_once_and_its_creator_may_ask_again() -> None:
    create = changes.create_topic(topic(T1), over=None)
    created = create(None)
    assert create(created) == created
    with pytest.raises(AlreadyExistsError) as raised:
        changes.create_topic(topic(T2), over=None)(created)
    assert raised.value.code == "topic_exists"


def test_a_deleted_topic_leaves_its_name_free_and_its_id_gone() -> None:
    """A late retry of the first creation does not bring the topic back, whatever happened since (P-6)."""
    first = changes.create_topic(topic(T1), over=None)
    tombstone = changes.delete_topic("t", topic_id=T1)(first(None))
    assert tombstone.deleted
    assert first(tombstone) == tombstone
    second = changes.create_topic(topic(T2), over=T1)(tombstone)
    assert second == topic(T2)
    gone = changes.delete_topic("t", topic_id=T2)(second)
    with pytest.raises(AlreadyExistsError):
        first(gone)
    assert changes.delete_topic("t", topic_id=T1)(second) == second
    with pytest.raises(NotFoundError):
        changes.delete_topic("t", topic_id=T1)(None)


def test_the_first_creation_of_a_partition_stays() -> None:
    mine, other = partition(), partition(segment(1, 0, attempt=b"other"))
    assert changes.create_partition(other, over=None)(mine) == mine
    assert changes.create_partition(mine, over=None)(deleted(mine)) == deleted(mine)
    again = partition(partition_id=P2)
    assert changes.create_partition(again, over=P1)(deleted(mine)) == again
    with pytest.raises(AlreadyExistsError):
        changes.create_partition(again, over=None)(mine)


def test_a_partition_that_was_never_written_gets_a_tombstone_too() -> None:
    tombstone = msgspec.structs.replace(partition(), deleted=True, chain=())
    assert changes.delete_partition(tombstone)(None) == tombstone
    assert changes.create_partition(partition(), over=None)(tombstone) == tombstone
    assert changes.delete_partition(tombstone)(partition(partition_id=P2)) == partition(partition_id=P2)


# --- partitions ------------------------------------------------------------------------------------------------------------


def takeover(epoch: int, end: int, attempt: bytes, holders: tuple[Member, ...] | None = None) -> changes.Change[PartitionRegister]:
    opened = segment(epoch + 1, end, attempt=attempt)
    return changes.close_and_open("t", 0, partition=P1, epoch=epoch, end=end, opened=opened, holders=holders)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 50), st.binary(min_size=1, max_size=1)), max_size=30), st.integers(0, 60))
def test_takeovers_in_any_order_keep_the_chain(attempts: list[tuple[int, int, bytes]], start: int) -> None:
    """I-8, P-8, P-9: epochs are consecutive, an end never changes, an epoch has one attempt; each change is idempotent."""
    register = partition()
    ends: dict[int, int | None] = {}
    opened: dict[int, bytes] = {}
    for epoch, end, attempt in attempts:
        if epoch == register.last.epoch and end < register.last.base:
            continue  # no takeover finds a tail below its epoch's base
        change = takeover(epoch, end, attempt)
        register = change(register)
        assert change(register) == register
        register = changes.trim("t", 0, partition=P1, start_offset=min(start, register.last.base))(register)
        assert register.fault() is None
        for each in register.chain:
            assert ends.setdefault(each.epoch, each.end) in (None, each.end)
            ends[each.epoch] = each.end
            assert opened.setdefault(each.epoch, each.attempt) == each.attempt


def test_an_unrelated_change_is_no_defeat() -> None:
    trimmed = changes.trim("t", 0, partition=P1, start_offset=7)(partition())
    assert takeover(1, 10, b"mine")(trimmed).last.attempt == b"mine"


def test_who_lost_sees_the_winner() -> None:
    won = takeover(1, 10, b"theirs")(partition())
    assert takeover(1, 20, b"mine")(won) == won


def test_a_takeover_of_another_partition_of_that_name_fails() -> None:
    for current in (None, deleted(partition()), partition(partition_id=P2)):
        with pytest.raises(NotFoundError):
            takeover(1, 10, b"mine")(current)


def test_replacements_are_named_as_holders_of_the_closed_segment() -> None:
    holders = (*MEMBERS[:2], Member("b3", b"new"))
    assert takeover(1, 10, b"mine", holders)(partition()).chain[0].replicas == holders


def test_a_full_chain_is_refused_unless_it_can_be_trimmed() -> None:
    chain = tuple(segment(epoch, epoch, epoch + 1) for epoch in range(1, CHAIN_SEGMENTS_MAX))
    full = partition(*chain, segment(CHAIN_SEGMENTS_MAX, CHAIN_SEGMENTS_MAX))
    with pytest.raises(RefusedError):
        takeover(CHAIN_SEGMENTS_MAX, CHAIN_SEGMENTS_MAX + 5, b"mine")(full)
    trimmed = changes.trim("t", 0, partition=P1, start_offset=100)(full)
    assert takeover(CHAIN_SEGMENTS_MAX, CHAIN_SEGMENTS_MAX + 5, b"mine")(trimmed).last.attempt == b"mine"


def test_the_start_offset_only_grows_and_trimmed_segments_leave() -> None:
    register = partition(segment(1, 0, 10), segment(2, 10, 20), segment(3, 20, 30), segment(4, 30))
    trimmed = changes.trim("t", 0, partition=P1, start_offset=20)(register)
    assert [each.epoch for each in trimmed.chain] == [3, 4]
    assert changes.trim("t", 0, partition=P1, start_offset=5)(trimmed) == trimmed


def test_a_holder_is_renamed_in_closed_segments_only_and_no_broker_twice() -> None:
    register = partition(segment(1, 0, 10), segment(2, 10))
    new = Member("b3", b"new")
    rename = changes.name_holders("t", 0, partition=P1, gone={1: MEMBERS[2]}, holder=new)
    renamed = rename(register)
    assert renamed.chain[0].replicas == (*MEMBERS[:2], new)
    assert renamed.chain[1] == register.chain[1]
    assert rename(renamed) == renamed
    for epoch, holder in ((2, new), (9, new), (1, Member("b1", b"new"))):
        assert changes.name_holders("t", 0, partition=P1, gone={epoch: MEMBERS[2]}, holder=holder)(register) == register


def test_one_change_names_a_holder_of_all_segments_that_it_holds_by_then() -> None:
    """Of the others, the trimmed ones among them, nothing changes."""
    register = partition(segment(4, 0, 10), segment(5, 10, 20), segment(6, 20, 30), segment(7, 30))
    new = Member("b3", b"new")
    renamed = changes.name_holders("t", 0, partition=P1, gone=dict.fromkeys((3, 4, 6, 7), MEMBERS[2]), holder=new)(register)
    assert [new in each.replicas for each in renamed.chain] == [True, False, True, False]
    assert renamed.fault() is None


# --- brokers and voters ----------------------------------------------------------------------------------------------------


def broker(number: int, starts: int) -> BrokerRegister:
    return BrokerRegister("b1", bytes([number]) * 16, "host", 1, "", starts)


def test_a_broker_registers_each_start_and_an_older_copy_cannot() -> None:
    register = changes.register_broker(broker(1, 3), replaces=b"")
    assert register(None) == register(broker(1, 2)) == register(broker(1, 3)) == broker(1, 3)
    with pytest.raises(AlreadyExistsError, match="older copy"):
        register(broker(1, 4))


def test_a_directory_takes_only_the_place_that_it_set_out_to_take() -> None:
    assert changes.register_broker(broker(2, 1), replaces=broker(1, 1).incarnation)(broker(1, 9)) == broker(2, 1)
    for replaces in (b"", broker(1, 1).incarnation):
        with pytest.raises(AlreadyExistsError, match="place"):
            changes.register_broker(broker(2, 1), replaces=replaces)(broker(3, 1))


def test_this_start_unwritten_means_its_number_is_anothers() -> None:
    known, mine = broker(1, 3), broker(1, 3)
    assert changes.directory_fault(known, mine=mine, replaces=b"") is None
    assert changes.directory_fault(known, mine=mine, replaces=b"", is_this_start_unknown=True) is not None


def test_brokers_join_one_cluster() -> None:
    one = changes.join(b"c", "b2")(None)
    both = changes.join(b"c", "b1")(one)
    assert both == ClusterRegister(b"c", ("b1", "b2"))
    assert changes.join(b"c", "b1")(both) == both
    with pytest.raises(AlreadyExistsError):
        changes.join(b"d", "b1")(both)


def test_a_configuration_is_written_once() -> None:
    assert changes.decide_voters(Voters(2, ()))(None) == Voters(2, ())
    assert changes.decide_voters(Voters(2, ()))(Voters(3, ())) == Voters(3, ())


# --- settings --------------------------------------------------------------------------------------------------------------


def test_an_alteration_is_made_once_and_one_that_comes_in_between_is_noticed() -> None:
    before = topic(T1)
    mine = msgspec.structs.replace(before, write=3, settings=1)
    assert changes.alter_topic(mine)(before) == mine
    assert changes.alter_topic(mine)(mine) == mine
    other = msgspec.structs.replace(before, retention_ms=5_000, settings=1)
    with pytest.raises(UnavailableError) as conflict:
        changes.alter_topic(mine)(other)
    assert conflict.value.code == "conflict"
    for gone in (None, topic(T2), msgspec.structs.replace(before, deleted=True)):
        with pytest.raises(NotFoundError):
            changes.alter_topic(mine)(gone)


def test_partitions_end_with_the_newest_settings_in_whatever_order_they_come() -> None:
    """Each applied any number of times; the chain keeps its own quorums (P-36)."""
    first = msgspec.structs.replace(topic(T1), write=3, read=1, settings=1)
    second = msgspec.structs.replace(first, retention_bytes=1 << 20, settings=2)
    for order in ((first, second), (second, first), (first, first, second, second, first)):
        register = partition()
        for settings in order:
            register = changes.take_settings(settings, 0)(register)
        assert (register.write, register.read, register.retention_bytes, register.settings) == (3, 1, 1 << 20, 2)
        assert register.chain == partition().chain
    with pytest.raises(NotFoundError):
        changes.take_settings(first, 0)(partition(partition_id=P2))


# --- named producers -------------------------------------------------------------------------------------------------------


def test_each_attempt_raises_a_producers_epoch_once_and_the_id_stays() -> None:
    first = changes.open_producer("n", fresh=P1, attempt=T1)
    opened = first(None)
    assert (opened.id, opened.epoch) == (P1, 1)
    assert first(opened) == opened
    second = changes.open_producer("n", fresh=P2, attempt=T2)(opened)
    assert (second.id, second.epoch) == (P1, 2)
    with pytest.raises(FencedError):
        first(second)
    with pytest.raises(RefusedError):
        changes.open_producer("n", fresh=P2, attempt=T3)(msgspec.structs.replace(second, epoch=PRODUCER_EPOCH_MAX))


def test_an_opening_that_comes_late_leaves_the_transactions_of_the_next_producer_alone() -> None:
    """It lay in the socket of a broker that stood still; its producer was opened by another broker, and is gone."""
    late = changes.open_producer("n", fresh=P1, attempt=T1, timeout_ms=1000)
    register = changes.open_producer("n", fresh=P1, attempt=T2, timeout_ms=1000)(late(None))
    with pytest.raises(FencedError):
        late(register)
    committed = transactions.end("n", register.decided + 1, epoch=register.epoch, commits=True)(register)
    assert committed.decided not in committed.aborted
    for i in range(100):
        kept = transactions.forget("n", committed.aborted)(committed)
        committed = changes.open_producer("n", fresh=P1, attempt=i.to_bytes(16), timeout_ms=1000)(kept)
    assert len(committed.past) == changes.PAST_ATTEMPTS_MAX
