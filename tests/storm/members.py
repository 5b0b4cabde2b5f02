"""What runs in the storm's processes: members that join, leave and hang, and the load. Each tells the judge what it sees and does.

Events: `joined name token`, `handed name token {partition: (since, offsets)}`, `handled name token {partition: offsets}`, `leaves name
token [partitions]`, `ends name token how`, `acked {partition: end}`, `fault why`; each with the monotonic time behind its kind.
"""

import os
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from streamq.model.errors import GroupLostError, StreamqError
from streamq_consumer import Consumer
from streamq_producer import Producer
from tests.storm.prefork import Phase, Teller

__all__ = ["CALM", "GROUP", "OVER", "PROCESSING_S", "SESSION_S", "STORM", "TOPIC", "be_load", "be_members"]

TOPIC: Final = "storm"
GROUP: Final = "storm"
CALM, STORM, OVER = "c", "s", "o"
SESSION_S: Final = 3.0
PROCESSING_S: Final = 4.0
LIFE_S: Final = 30.0
"""How long a member lives on average, while there is a storm."""
FETCH_MAX: Final = 100
FIRST_JOINS_S: Final = 5.0


def be_members(teller: Teller, phase: Phase, arguments: Sequence[Any]) -> None:
    """`arguments`: bootstrap, a name, how many, a seed, and whether they come at once."""
    bootstrap, name, count, seed, at_once = arguments
    members = _Members(teller, phase, bootstrap, name, random.Random(seed))

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(members.live, number, 0.0 if at_once else FIRST_JOINS_S)

    _run(teller, live)


def be_load(teller: Teller, phase: Phase, arguments: Sequence[Any]) -> None:
    """`arguments`: bootstrap, partitions, records a second."""
    bootstrap, partitions, rate = arguments

    async def live() -> None:
        async with Producer(bootstrap) as producer:
            batch = max(1, int(rate / 50))
            partition = 0
            while phase.now != OVER:
                began = trio.current_time()
                deliveries = []
                for _ in range(batch):
                    partition = (partition + 1) % partitions
                    deliveries.append((partition, await producer.enqueue(TOPIC, b"x" * 100, partition=partition)))
                acked: dict[int, int] = {}
                for place, delivery in deliveries:
                    acked[place] = max(acked.get(place, 0), (await delivery.receipt()).offset + 1)
                teller.tell("acked", time.monotonic(), acked)
                await trio.sleep(max(0.0, began + batch / rate - trio.current_time()))

    _run(teller, live)


def _run(teller: Teller, live: Callable[[], Awaitable[None]]) -> None:
    try:
        trio.run(live)
    except BaseException:
        teller.tell("fault", time.monotonic(), "a process has ended: " + traceback.format_exc()[-3000:])
    os._exit(0)


class _Members:
    def __init__(self, teller: Teller, phase: Phase, bootstrap: str, name: str, choose: random.Random) -> None:
        self._teller = teller
        self._phase = phase
        self._bootstrap = bootstrap
        self._name = name
        self._random = choose
        self._lives = 0

    async def live(self, number: int, joins_within_s: float) -> None:
        """Lives one after the other, without a pause between, so that as many live in a storm as in a calm."""
        await trio.sleep(self._random.random() * joins_within_s)
        async with trio.open_nursery() as nursery:
            while True:
                self._lives += 1
                end = self._random.choice(("leave", "leave", "leave", "leave", "hang"))
                over = trio.Event()
                nursery.start_soon(self._life, f"{self._name}.{number}.{self._lives}", end, over)
                await over.wait()

    async def _life(self, name: str, end: str, over: trio.Event) -> None:
        """`over` is set when the next one may begin: one that hangs is of no use any more, and only later no member."""
        try:
            await self._be_member(name, end, over)
        except GroupLostError:
            self._teller.tell("ends", time.monotonic(), name, "", "lost")
        except StreamqError as error:
            self._teller.tell("fault", time.monotonic(), f"{name} was told {error.code}: {error}")
        over.set()

    async def _be_member(self, name: str, end: str, over: trio.Event) -> None:
        choose = self._random
        async with Consumer(
            self._bootstrap, topics=[TOPIC], group=GROUP, session_s=SESSION_S, processing_s=PROCESSING_S, leave_s=3.0
        ) as consumer:
            assert consumer._group is not None
            token = consumer._group._token.hex()
            self._teller.tell("joined", time.monotonic(), name, token)
            left_s = choose.expovariate(1 / LIFE_S)
            while left_s > 0:
                began = trio.current_time()
                await self._fetch(name, consumer)
                if self._phase.now == STORM:
                    left_s -= trio.current_time() - began
            self._teller.tell("ends", time.monotonic(), name, token, end)
            if end == "hang":
                over.set()
                await self._fetch(name, consumer, takes_s=2 * PROCESSING_S)
            else:
                self._teller.tell("leaves", time.monotonic(), name, token, [partition for _, partition in consumer.partitions])

    async def _fetch(self, name: str, consumer: Consumer, *, takes_s: float = 0.0) -> None:
        group = consumer._group
        assert group is not None
        records = await consumer.fetch(FETCH_MAX, timeout=0.5)
        offsets: dict[int, list[int]] = {}
        for record in records:
            offsets.setdefault(record.partition, []).append(record.offset)
        token = group._token.hex()
        if offsets:
            holds = group.membership.holds
            handed = {partition: (holds[TOPIC, partition].since, of_it) for partition, of_it in offsets.items()}
            self._teller.tell("handed", time.monotonic(), name, token, handed)
        if takes_s or records:
            await trio.sleep(takes_s or self._random.random() * 0.01)
        if offsets:
            self._teller.tell("handled", time.monotonic(), name, token, offsets)
