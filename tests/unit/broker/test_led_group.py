"""The one task of a group that is coordinated here, over a register in memory."""

from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import cast

import trio
import trio.testing

from streamq.broker.led_group import LedGroup
from streamq.broker.node import Node
from streamq.groups.changes import Joining, TopicSeen, commit, coordinate, join
from streamq.model.errors import StreamqError
from streamq.model.groups import Entry, GroupRegister
from streamq.model.transactions import Transaction

SEEN = [TopicSeen("t", b"t1", 1)]
A = b"a" * 16
P = b"p" * 16


class _Register:
    def __init__(self, value: GroupRegister) -> None:
        self.value = value
        self.changes = 0

    async def change_as(self, kind: type, key: str, change: Callable[[GroupRegister | None], GroupRegister]) -> GroupRegister:
        await trio.lowlevel.checkpoint()
        self.value = change(self.value)
        self.changes += 1
        return self.value

    async def get_as(self, kind: type, key: str) -> GroupRegister:
        await trio.lowlevel.checkpoint()
        return self.value


async def _seen(names: tuple[str, ...]) -> Sequence[TopicSeen]:
    return SEEN


async def _all_are_committed(transactions: Collection[Transaction]) -> dict[Transaction, bool]:
    await trio.lowlevel.checkpoint()
    return dict.fromkeys(transactions, True)


async def test_positions_of_very_many_transactions_at_once_cost_a_bounded_number_of_changes() -> None:
    """Each is in the way of the next; deciding them one in the other would end in the depth of the stack, and with it the broker."""
    count = 600
    register, _ = join(Joining(A, "", ("t",), 60_000), SEEN)(coordinate("g", by="b1", fresh_id=b"g" * 16)(None))
    store = _Register(register)
    led = LedGroup(cast(Node, SimpleNamespace(broker="b1", registers=store)), register, _seen, _all_are_committed)
    got = register.topics[0].partitions[0].since
    outcomes: list[object] = []

    async def ask(number: int) -> None:
        try:
            outcomes.append(await led.carry_out(commit(A, [Entry("t", 0, got, number)], Transaction(P, number))))
        except StreamqError as error:
            outcomes.append(error.code)

    async with trio.open_nursery() as nursery:
        for number in range(1, count + 1):
            nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(led.run)
        with trio.fail_after(5):
            while len(outcomes) < count:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert outcomes.count(()) == 2
    assert outcomes.count("not_ready") == count - 2, "to be asked for again"
    assert store.changes < 5
