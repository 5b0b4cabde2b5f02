"""Whole programs under fuzz: a live cluster whose client and peer are hostile, and the client libraries among hostile brokers.

The input is the seed of a run on a virtual clock, so an input that found something finds it again.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Final

import anyio.abc
import trio

from streamq.client.settings import Address
from streamq.model.errors import StreamqError
from streamq_consumer import Consumer, Record
from streamq_producer import Delivery, Producer, Receipt
from tests.fuzz.hostile_broker import PORT, TOPIC, HostileBrokers
from tests.fuzz.hostile_peer import HostilePeer
from tests.fuzz.live import Live, live_cluster, run_virtual
from tests.fuzz.target import Target
from tests.fuzz.wild import Wild
from tests.fuzz.wild_peer import KINDS, WildSender
from tests.sim.tier2.network import ClientHost, SimulatedNetwork

__all__ = ["LIVE_TARGETS"]

FRAMES: Final = 150
LINES_PER_S_MAX: Final = 40
"""Of all brokers together, of virtual time."""
BOOTSTRAP: Final = f"b1:{PORT},b2:{PORT},b3:{PORT}"
LIES_S: Final = 10.0
RECOVERS_S: Final = 60.0
MEMORY_BYTES: Final = 32 << 20
T0_MS: Final = 1_700_000_000_000


# --- a broker ------------------------------------------------------------------------------------------------------------------


def broker(data: bytes) -> None:
    """Clients and peers say what they like to a live cluster; in half of the runs a broker's place is taken by a liar, too."""
    rng = random.Random(data)

    async def main() -> None:
        async with live_cluster(rng) as live, trio.open_nursery() as nursery:
            if rng.random() < 0.5:
                await live.running.kill("b3")
                nursery.start_soon(HostilePeer(live, "b3", rng).run)
            for _ in range(rng.randrange(1, 3)):
                kinds = rng.choice((KINDS, rng.sample(KINDS, 4)))
                sender = WildSender(live, rng, kinds, as_broker=rng.random() < 0.7)
                await sender.send(FRAMES, nursery)
                await trio.sleep(rng.choice((0.1, 3.0)))
            await trio.sleep(5)
            await live.check_alive()
            live.meter.check(200 + LINES_PER_S_MAX * (trio.current_time() - live.began))
            check_bounded(live)
            nursery.cancel_scope.cancel()

    run_virtual(main, seed=rng.getrandbits(32))


def check_bounded(live: Live) -> None:
    """Nothing that was said keeps memory: each broker's storage has what was stored, and little else."""
    for each in live.running.brokers.values():
        states = sum(len(key) + len(value) for key, value in each.storage.states().items())
        assert states < 8 << 20, f"{each.name} keeps {states} bytes of states"


# --- clients -------------------------------------------------------------------------------------------------------------------


class Liars:
    """The brokers of one run, and what a client of theirs is made with."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        network = SimulatedNetwork(rng)
        self.brokers = HostileBrokers(rng, network, truth=1.0)
        self.host = StrictHost(network, "client", rng, epoch_ms=T0_MS)

    def lie(self) -> None:
        self.brokers.truth = self.rng.choice((0.0, 0.3, 0.7, 0.9))

    def be_replaced(self) -> None:
        """By honest ones: connections on which half a frame was announced are gone, too."""
        self.brokers.truth = 1.0
        for name in self.brokers.names:
            self.brokers.network.reset(name)


class StrictHost(ClientHost):
    """Refuses names as the operating system's resolver does."""

    async def connect(self, address: Address) -> anyio.abc.ByteStream:
        if not address.host.isascii():
            raise UnicodeError(f"{address.host!r} is no name")
        return await super().connect(address)


def producer(data: bytes) -> None:
    """Each record has an outcome in time, leaving the block ends, and once the brokers tell the truth the same producer stores records."""
    rng = random.Random(data)

    async def use(liars: Liars) -> None:
        is_late = rng.random() < 0.5
        if is_late:
            liars.lie()
        try:
            async with Producer(BOOTSTRAP, host=liars.host, delivery_timeout_s=3.0, close_timeout_s=3.0, linger_s=0.01) as made:
                if not is_late:
                    await made.send(TOPIC, b"first")
                    liars.lie()
                with trio.fail_after(20 * LIES_S):
                    for _ in range(10):
                        await _send_some(made, rng)
                        await trio.sleep(rng.choice((0.0, 0.1, 1.0)))
                liars.be_replaced()
                await _until_stored(made, liars)
        except StreamqError:
            assert liars.brokers.lies

    _run(rng, use)


async def _send_some(made: Producer, rng: random.Random) -> None:
    deliveries: list[Delivery] = []
    for _ in range(rng.randrange(1, 5)):
        try:
            deliveries.append(await made.enqueue(TOPIC, rng.randbytes(5), key=rng.choice((None, b"k", b"l"))))
        except StreamqError:
            break
    for delivery in deliveries:
        outcome = await delivery.outcome()
        assert isinstance(outcome, Receipt | StreamqError)


def _knows_the_truth(made: Producer, liars: Liars) -> bool:
    """A client stays with the cluster that it met first, and waits in vain for partitions that are a lie and that no broker has refused."""
    known = made._known.get(TOPIC)
    if made._cluster._cluster != liars.brokers.cluster:
        return False
    return known is None or [lane.view.id for lane in known.lanes] == liars.brokers.partitions[: len(known.lanes)]


async def _until_stored(made: Producer, liars: Liars) -> None:
    with trio.fail_after(RECOVERS_S):
        while _knows_the_truth(made, liars):
            try:
                receipt = await made.send(TOPIC, b"last")
            except StreamqError:
                await trio.sleep(0.5)
            else:
                assert receipt.copies == 2
                return


def consumer(data: bytes) -> None:
    """What is handed out is consecutive whatever comes, and once the brokers tell the truth the same consumer reads what they have."""
    rng = random.Random(data)

    async def use(liars: Liars) -> None:
        async with Producer(BOOTSTRAP, host=liars.host) as made:
            for i in range(8):
                await made.send(TOPIC, b"%d" % i, partition=i % 2)
        is_late = rng.random() < 0.5
        if is_late:
            liars.lie()
        try:
            async with Consumer(BOOTSTRAP, topics=[TOPIC], host=liars.host, start="earliest", patience_s=5.0) as made_too:
                liars.lie()
                with trio.move_on_after(LIES_S):
                    await _read_some(made_too, rng)
                liars.be_replaced()
                if not is_late:
                    await _until_read(made_too)
        except StreamqError:
            assert liars.brokers.lies

    _run(rng, use)


async def _read_some(made: Consumer, rng: random.Random) -> None:
    expected: dict[tuple[str, int], int] = {}
    while True:
        try:
            for record in await made.fetch(rng.choice((1, 3, 500)), timeout=1.0):
                _check_place(record, expected)
            if rng.random() < 0.2:
                await made.tip(TOPIC, 0)
        except StreamqError:
            await trio.sleep(0.2)
        if made.partitions and rng.random() < 0.2:
            topic, partition = rng.choice(made.partitions)
            made.seek(topic, partition, rng.choice(("earliest", 0, 1, 1 << 62)))
            expected.pop((topic, partition), None)
        await trio.sleep(0.05)


def _check_place(record: Record, expected: dict[tuple[str, int], int]) -> None:
    place = (record.topic, record.partition)
    assert record.offset == expected.get(place, record.offset), f"offset {record.offset} came instead of {expected[place]}"
    expected[place] = record.offset + 1


async def _until_read(made: Consumer) -> None:
    for topic, partition in made.partitions:
        made.seek(topic, partition, 0)
    found: set[bytes] = set()
    with trio.fail_after(RECOVERS_S):
        while not {b"%d" % i for i in range(8)} <= found:
            try:
                found |= {record.value for record in await made.fetch(timeout=1.0) if record.value}
            except StreamqError:
                await trio.sleep(0.5)
                for topic, partition in made.partitions:
                    made.seek(topic, partition, 0)


def _run(rng: random.Random, use: Callable[[Liars], Awaitable[None]]) -> None:
    async def main() -> None:
        liars = Liars(rng)
        async with trio.open_nursery() as nursery:
            await nursery.start(liars.brokers.run)
            await use(liars)
            nursery.cancel_scope.cancel()

    run_virtual(main, seed=rng.getrandbits(32))


def _seed(wild: Wild) -> bytes:
    return wild.rng.randbytes(8)


LIVE_TARGETS: Final = (
    Target("broker", broker, _seed, (), floor_bytes=MEMORY_BYTES),
    Target("producer", producer, _seed, (), floor_bytes=MEMORY_BYTES),
    Target("consumer", consumer, _seed, (), floor_bytes=MEMORY_BYTES),
)
