"""P-29: a broker whose damage cannot be pinned to partitions is in limbo for all of them, also those whose very name it lost."""

import trio

from streamq.broker.app import load_partitions
from streamq.broker.config import BrokerConfig
from streamq.broker.node import Node, SystemClock
from streamq.broker.partition import Partition
from streamq.broker.refills import Refills
from streamq.broker.successions import Successions
from streamq.model.ids import Member
from streamq.model.messages import Message, Seal, Sealed
from streamq.model.registers import PartitionRegister, Segment, Voter, Voters
from streamq.storage.interface import Identity, LostUnknown
from streamq.storage.memory_storage import MemoryStorage
from streamq.wire.codec import decode_value, encode

ME = Member("b1", b"1" * 16)
OTHERS = (Member("b2", b"2" * 16), Member("b3", b"3" * 16))
PARTITION = b"p" * 16


def empty_storage() -> MemoryStorage:
    voters = Voters(1, tuple(Voter(m.broker, m.incarnation, "127.0.0.1", 7700) for m in (ME, *OTHERS)))
    return MemoryStorage(Identity(b"c" * 16, ME.broker, ME.incarnation, voters, 1))


def started(storage: MemoryStorage, nursery: trio.Nursery) -> Node:
    config = BrokerConfig(broker=ME.broker, data_directory="/memory/b1")
    node = Node(config, storage, SystemClock(), nursery)
    load_partitions(node)
    nursery.start_soon(storage.run, node.on_durable)
    return node


async def seal(node: Node, epoch: int = 1) -> Sealed:
    answers: list[Message] = []
    partition = Successions(node).partition(PARTITION)
    partition.carry_out(partition.replica.on_seal(Seal(PARTITION, epoch, 0), lambda message, batches=(): answers.append(message)))
    with trio.fail_after(1):
        while not answers:
            await trio.sleep(0.001)
    assert isinstance(answers[0], Sealed)
    return answers[0]


class FakeRegisters:
    def __init__(self, *registers: PartitionRegister) -> None:
        self.values = {f"partition/{r.topic}/{r.index}": encode(r) for r in registers}

    async def list(self, prefix: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        return sorted(self.values)

    async def get_as(self, kind: type[PartitionRegister], key: str) -> PartitionRegister | None:
        await trio.lowlevel.checkpoint()
        return decode_value(kind, self.values[key]) if key in self.values else None


def register(partition: bytes, topic: str) -> PartitionRegister:
    segment = Segment(1, 0, None, (ME, *OTHERS), 2, 2, "fsync", "b2", b"a" * 16)
    return PartitionRegister(partition, topic, 0, ("b1", "b2", "b3"), 2, 2, "fsync", 0, (segment,))


async def test_what_was_forgotten_is_in_limbo_at_this_start_and_the_next() -> None:
    storage = empty_storage().crash(lost=[LostUnknown("the checkpoint is gone")])
    async with trio.open_nursery() as nursery:
        node = started(storage, nursery)
        assert (await seal(node)).limbo
        nursery.cancel_scope.cancel()
    storage = storage.crash()
    async with trio.open_nursery() as nursery:
        node = started(storage, nursery)
        assert (await seal(node)).limbo
        nursery.cancel_scope.cancel()


async def test_limbo_is_pinned_to_the_partitions_that_the_registers_name_and_not_to_later_ones() -> None:
    storage = empty_storage().crash(lost=[LostUnknown("the checkpoint is gone")])
    async with trio.open_nursery() as nursery:
        node = started(storage, nursery)
        node.registers = FakeRegisters(register(PARTITION, "old"))  # type: ignore[assignment]
        await Refills(node).pin_limbo()
        assert (await seal(node)).limbo
        new: Partition = Successions(node).partition(b"n" * 16)
        new.learn(register(b"n" * 16, "new"))
        assert not new.replica.in_limbo(1)
        await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        node = started(storage.crash(), nursery)
        assert (await seal(node)).limbo
        assert not node.has_forgotten
        nursery.cancel_scope.cancel()


async def test_a_start_without_losses_is_in_limbo_for_nothing() -> None:
    async with trio.open_nursery() as nursery:
        node = started(empty_storage(), nursery)
        assert not (await seal(node)).limbo
        nursery.cancel_scope.cancel()
