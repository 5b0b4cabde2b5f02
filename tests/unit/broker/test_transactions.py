"""What questions about transactions cost a broker, over registers in memory."""

from types import SimpleNamespace
from typing import cast

import trio
import trio.testing

from streamq.broker.node import Node
from streamq.broker.transactions import Transactions
from streamq.model.registers import ProducerRegister, producer_key
from streamq.model.transactions import Transaction, TransactionalRegister, transactional_key

P = b"p" * 16
OPEN = ProducerRegister(P, 1, b"a" * 16, 60_000)
COMMITTED = ProducerRegister(P, 1, b"a" * 16, 60_000, 1)


class _Registers:
    """Each read takes a second; it sees what is there when it begins."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {producer_key("p"): OPEN, transactional_key(P): TransactionalRegister("p")}
        self.reads = 0

    async def get_as(self, kind: type, key: str) -> object:
        value = self.values.get(key)
        self.reads += 1
        await trio.sleep(1)
        return value

    def cached_as(self, kind: type, key: str) -> object:
        return self.values.get(key)


def _made() -> tuple[Transactions, _Registers]:
    registers = _Registers()
    clock = SimpleNamespace(now_ms=lambda: 1_000)
    return Transactions(cast(Node, SimpleNamespace(registers=registers, clock=clock))), registers


async def test_all_that_ask_for_an_open_one_share_a_read(autojump_clock: trio.testing.MockClock) -> None:
    transactions, registers = _made()

    async def ask() -> None:
        found = await transactions.outcomes(Transaction(P, 1), began_ms=1_000, wait_s=0)
        assert found.of(1) is None

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert registers.reads <= 3, "its name, what was read when most had not asked yet, and once more for these"


async def test_a_read_that_began_before_the_question_does_not_answer_it(autojump_clock: trio.testing.MockClock) -> None:
    transactions, registers = _made()
    told: list[bool | None] = []

    async def ask() -> None:
        told.append((await transactions.look(Transaction(P, 1))).of(1))

    await ask()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        registers.values[producer_key("p")] = COMMITTED
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    assert told == [None, None, True, True]


async def test_who_is_cancelled_in_the_read_takes_no_others_along(autojump_clock: trio.testing.MockClock) -> None:
    transactions, _ = _made()
    told: list[bool | None] = []

    async def ask() -> None:
        told.append((await transactions.look(Transaction(P, 1))).of(1))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(ask)
                await trio.sleep(0.5)
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.sleep(0.2)
                scope.cancel()
    assert told == [None, None]
