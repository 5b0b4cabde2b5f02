"""The register shells of a few brokers over storage in memory and a network of function calls, on trio's clock (use `autojump_clock`)."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from streamq.broker.local_acceptor import ACCEPTOR_MESSAGES, LocalAcceptor
from streamq.broker.readmission import Readmissions, join_cluster
from streamq.broker.registers import Registers
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.messages import AnyMessage, Failure, Message, Rejoin
from streamq.model.registers import BrokerRegister, Voter, Voters
from streamq.storage.interface import Identity, Lost
from streamq.storage.memory_storage import MemoryStorage

CLUSTER = b"cluster".ljust(16)
REQUEST_S = 0.001
"""One way of a message."""


def incarnation(broker: str, number: int = 1) -> bytes:
    return f"{broker}#{number}".encode().ljust(16)


def founders(count: int) -> Voters:
    return Voters(number=1, voters=tuple(Voter(f"b{i}", incarnation(f"b{i}"), "host", 7000 + i) for i in range(1, count + 1)))


class TestBroker:
    """One start of one broker: what the composition root would put together."""

    __test__ = False

    def __init__(self, world: "World", storage: MemoryStorage, nursery: trio.Nursery) -> None:
        identity = storage.identity
        self.world = world
        self.storage = storage
        self.nursery = nursery
        self.name = identity.broker
        self.local = LocalAcceptor(storage, new_incarnation=lambda: world.random.randbytes(16))
        self.registers = Registers(
            local=self.local,
            request=self._request,
            nursery=nursery,
            start=world.random.randbytes(16),
            jitter=world.random.random,
        )
        self.readmissions = Readmissions(registers=self.registers, local=self.local, nursery=nursery)
        self.joined: BrokerRegister | None = None
        self.refused: StreamqError | None = None

    async def _request(self, broker: str, message: Message, timeout_s: float) -> AnyMessage:
        return await self.world.request(self.name, broker, message)

    async def answer(self, message: Message) -> Message:
        try:
            if isinstance(message, Rejoin):
                return await self.readmissions.on_rejoin(message)
            assert isinstance(message, ACCEPTOR_MESSAGES)
            return await self.local.answer(message)
        except StreamqError as error:
            return Failure(code=error.code, message=error.message)

    async def join(self) -> None:
        identity = self.storage.identity
        register = BrokerRegister(self.name, identity.incarnation, "host", 7000, "", identity.starts)
        try:
            self.joined = await join_cluster(
                registers=self.registers, local=self.local, register=register, bootstrap=lambda: sorted(self.world.brokers)
            )
        except StreamqError as error:
            self.refused = error


class World:
    """Brokers that are up, what the network does to messages, and disks that outlive their broker."""

    def __init__(self, nursery: trio.Nursery, *, count: int, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.voters = founders(count)
        self.brokers: dict[str, TestBroker] = {}
        self.disks: dict[str, MemoryStorage] = {}
        self.paused: set[str] = set()
        self.lose: Callable[[str, str, Message], bool] = lambda source, target, message: False
        """Whether the answer to this request is lost."""
        self.block: Callable[[str, str, Message], bool] = lambda source, target, message: False
        """Whether the request itself is lost."""
        self.requests: Counter[str] = Counter()
        self._nursery = nursery

    async def request(self, source: str, target: str, message: Message) -> AnyMessage:
        self.requests[type(message).__name__] += 1
        await trio.sleep(REQUEST_S)
        if target in self.paused or self.block(source, target, message):
            await trio.sleep_forever()
        broker = self.brokers.get(target)
        if broker is None:
            raise UnavailableError(f"{target} refused the connection", code="unavailable")
        done = trio.Event()
        answers: list[Message] = []

        async def serve() -> None:
            answers.append(await broker.answer(message))
            done.set()

        broker.nursery.start_soon(serve)
        with trio.move_on_after(30):
            await done.wait()
        if not answers or self.lose(source, target, message):
            await trio.sleep_forever()
        await trio.sleep(REQUEST_S)
        return answers[0]  # type: ignore[return-value]

    def format(self, name: str, *, number: int = 1, voters: Voters | None = None) -> None:
        """A new data directory for this broker, in the incarnation of that number."""
        identity = Identity(CLUSTER, name, incarnation(name, number), voters or self.voters, 1)
        self.disks[name] = MemoryStorage(identity, sync_s=0.0002)

    async def start(self, name: str) -> TestBroker:
        """Starts the broker on its disk; it joins in the background."""
        broker: TestBroker = await self._nursery.start(self._run, name)
        self.brokers[name] = broker
        return broker

    async def _run(self, name: str, *, task_status: trio.TaskStatus[TestBroker]) -> None:
        async with trio.open_nursery() as nursery:
            storage = self.disks[name]
            broker = TestBroker(self, storage, nursery)
            nursery.start_soon(storage.run, lambda tokens: [token() for token in tokens])  # type: ignore[operator]
            nursery.start_soon(broker.join)
            task_status.started(broker)

    def kill(self, name: str, *, lost: Sequence[Lost] = ()) -> None:
        """SIGKILL; the disk keeps what was durable."""
        broker = self.brokers.pop(name)
        broker.nursery.cancel_scope.cancel()
        self.disks[name] = broker.storage.crash(lost=lost)

    async def until_joined(self, *names: str, within_s: float = 20.0) -> None:
        with trio.fail_after(within_s):
            for name in names:
                while self.brokers[name].joined is None:
                    refused = self.brokers[name].refused
                    if refused is not None:
                        raise refused
                    await trio.sleep(0.005)


@asynccontextmanager
async def cluster(count: int = 3, *, seed: int = 1) -> AsyncIterator[World]:
    """A cluster of so many founders, all joined."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, count=count, seed=seed)
        for voter in world.voters.voters:
            world.format(voter.broker)
            await world.start(voter.broker)
        await world.until_joined(*world.brokers)
        yield world
        nursery.cancel_scope.cancel()
