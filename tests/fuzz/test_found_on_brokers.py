"""Messages that once ended a broker or filled its log, found by fuzzing: now they end the connection that they came on, at most."""

import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio

from streamq.metadata.voters import voters_key
from streamq.model.errors import StreamqError
from streamq.model.ids import Ballot, Member
from streamq.model.messages import Accept, Failure, Hello, Message, Open, Prepare, ReadTip, Rejoin, Repair, Stored, StoredRun
from streamq.model.registers import BrokerRegister, PartitionRegister, Segment, Voters
from streamq.net.handshake import greet
from streamq.wire.codec import encode
from streamq.wire.framing import FrameReader, encode_frame
from tests.broker.wire_client import wire_client
from tests.fuzz.live import PORT, Live, live_cluster, run_virtual

REPLICAS = tuple(Member(f"b{i}", b"i" * 16) for i in (1, 2, 3))
SEGMENT = Segment(1, 0, None, REPLICAS, 2, 2, "fsync", "b1", b"a" * 16)
REGISTER = PartitionRegister(b"p" * 16, "t", 0, ("b1", "b2", "b3"), 2, 2, "fsync", 0, (SEGMENT,))


def segment(**changes: object) -> Segment:
    return msgspec.structs.replace(SEGMENT, **changes)


def register(**changes: object) -> PartitionRegister:
    return msgspec.structs.replace(REGISTER, **changes)


async def peer(live: Live, target: str = "b1") -> trio.abc.Stream:
    stream = await live.network.of("wild").connect(target, PORT)
    await greet(stream, Hello((1, 1), (), "wild", live.identity(target).cluster, "stranger", b"s" * 16))
    return stream


def in_a_live_cluster(main: Callable[[Live], Awaitable[None]]) -> None:
    async def run() -> None:
        async with live_cluster(random.Random(1)) as live:
            await main(live)
            await trio.sleep(5)
            await live.check_alive()
            live.meter.check(200)

    run_virtual(run, seed=1)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Repair(b"p" * 16, "t", 0, segment(epoch=0)), id="a repair of epoch 0, which never exists"),
        pytest.param(Repair(b"p" * 16, "t", 0, segment(epoch=-7)), id="a repair of a negative epoch"),
        pytest.param(Open(register(chain=(segment(epoch=-7),))), id="a chain that opens a negative epoch"),
        pytest.param(
            Open(register(chain=(segment(end=9), segment(epoch=2, base=9, replicas=())))), id="an epoch with fewer than W replicas"
        ),
        pytest.param(Open(register(chain=(segment(base=9, end=3), segment(epoch=2, base=3)))), id="an epoch that ends before it begins"),
        pytest.param(Open(register(id=b"p" * 600)), id="a partition whose id makes a key that no journal takes"),
        pytest.param(Open(register(topic="t" * 1_000_000)), id="a partition whose name fills the log"),
        pytest.param(Prepare(1, "k" * 2_000, Ballot(9, "b2", b"s")), id="a register's key that no journal takes"),
        pytest.param(Accept(1, "\U0001f600" * 400, Ballot(9, "b2", b"s"), b""), id="a key of a few characters and many bytes"),
        pytest.param(Prepare(1, "k", Ballot(-1, "b2", b"s" * 100_000)), id="a ballot beyond all bounds"),
    ],
)
def test_what_no_broker_sends_ends_its_connection(message: Message) -> None:
    async def main(live: Live) -> None:
        stream = await peer(live)
        await stream.send_all(b"".join(encode_frame(message, request=7)))
        with trio.fail_after(5):
            while await stream.receive_some(1 << 20):
                pass

    in_a_live_cluster(main)


def test_a_voter_configuration_that_no_broker_decides_is_refused_to_who_would_join_by_it() -> None:
    """Voters that accepted a forged one for the next number: it ended the broker that was to carry a re-admission out."""
    forged = Accept(1, voters_key(2), Ballot(0, "a", b"s"), encode(Voters(0, ())))
    rejoin = Rejoin(BrokerRegister("b3", b"n" * 16, "b3", PORT, "", 1))

    async def main(live: Live) -> None:
        for target in ("b1", "b2", "b3"):
            stream = await peer(live, target)
            await stream.send_all(b"".join(encode_frame(forged, request=7)))
            assert await stream.receive_some(1 << 20)
        stream = await peer(live)
        await stream.send_all(b"".join(encode_frame(rejoin, request=8)))
        reader, answers = FrameReader(), []
        with trio.fail_after(5):
            while not answers:
                data = await stream.receive_some(1 << 20)
                assert data, "the broker hung up"
                answers = [frame.message for frame in reader.feed(data) if frame.request == 8]
        assert isinstance(answers[0], Failure)
        assert answers[0].code == "protocol", answers[0]

    in_a_live_cluster(main)


def test_an_error_quotes_little_of_what_was_received() -> None:
    async def main(live: Live) -> None:
        stream = await peer(live)
        forged = "x\nINFO all is well" + "y" * 1_000_000
        await stream.send_all(b"".join(encode_frame(Stored((StoredRun(b"p" * 16, 1, forged, 0),)))))  # type: ignore[arg-type]
        with trio.fail_after(5):
            assert await stream.receive_some(1 << 20) == b""
        assert "\n" not in live.meter.longest

    in_a_live_cluster(main)


def test_a_clients_long_name_is_refused_and_breaks_no_connection_between_brokers() -> None:
    async def main(live: Live) -> None:
        async with wire_client(("b1", PORT), live.network.of("client")) as client:
            with pytest.raises(StreamqError) as refused:
                await client.ask(ReadTip("\U0001f600" * 256, 0))
            assert refused.value.code == "bad_name"

    in_a_live_cluster(main)


def test_an_alarm_that_a_peer_can_raise_at_will_is_logged_at_a_bounded_rate() -> None:
    async def main(live: Live) -> None:
        stream = await peer(live)
        contradiction = Open(register(id=live.partitions[0], chain=(segment(base=5),)))
        lines = live.meter.lines
        await stream.send_all(b"".join(encode_frame(contradiction)) * 1_000)
        await trio.sleep(3)
        assert 1 <= live.meter.lines - lines <= 5

    in_a_live_cluster(main)
