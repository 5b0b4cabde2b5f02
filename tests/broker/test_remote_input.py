"""What a remote side may send ends at most its own connection, and costs a bounded amount of memory."""

import logging
from contextlib import suppress

import pytest
import trio

from streamq.broker import server
from streamq.model.errors import StreamqError
from streamq.model.ids import Ballot
from streamq.model.messages import (
    Accept,
    AdoptVoters,
    Copy,
    Hello,
    Metadata,
    MetadataView,
    Produce,
    ReadTable,
    ReadVoters,
    Rejoin,
    Stop,
    VotersView,
)
from streamq.model.registers import BrokerRegister, Voters
from streamq.net.network import TcpNetwork
from streamq.testing.in_process import cluster
from streamq.wire.framing import FRAME_PREFIX_BYTES, PREAMBLE, encode_frame
from tests.broker.capture import peer_client
from tests.broker.test_cluster_in_process import Resender, create, to
from tests.broker.wire_client import wire_client

logging.getLogger("streamq").setLevel(logging.ERROR)


@pytest.mark.parametrize(
    "message",
    [
        Accept(1, "broker/b2", Ballot(1 << 61, "z", b"z" * 16), b"garbage"),
        AdoptVoters(Voters(1 << 40, ())),
        Rejoin(BrokerRegister("b2", b"x" * 16, "127.0.0.1", 1, "", 1)),
        Copy(b"p" * 16, 1, 0, 9),
        ReadTable(b"p" * 16),
    ],
)
async def test_clients_cannot_speak_as_brokers(message: object) -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        async with to(running, "b1") as client:
            with pytest.raises(StreamqError):
                await client.ask(message, 1)  # type: ignore[arg-type]
        async with to(running, "b1") as client:
            voters = await client.ask(ReadVoters())
            assert isinstance(voters, VotersView)
            assert voters.voters.number == 1
        await Resender(running, view).send(b"fine")


async def test_more_tickets_than_batches_could_be_are_no_reason_for_as_many_answers() -> None:
    async with cluster(1) as running:
        async with to(running, "b1") as client:
            client.channel.send(Produce(tuple([1] * 1_000_000)))
            with trio.fail_after(3):
                while not client.channel.is_closed:
                    await trio.sleep(0.01)
        assert running.brokers["b1"].is_running


async def test_outcomes_past_one_frame_come_in_several_and_all_arrive() -> None:
    async with cluster(1) as running, to(running, "b1") as client:
        tickets = tuple(range(60_000))
        client.channel.send(Produce(tickets))
        with trio.fail_after(5):
            while len(client.outcomes) < len(tickets):
                await trio.sleep(0.01)


async def test_one_topic_named_again_and_again_is_looked_up_once() -> None:
    async with cluster(1) as running:
        await create(running, partitions=50, replicas=1)
        async with to(running, "b1") as client:
            view = await client.ask(Metadata(("orders",) * 200_000))
            assert isinstance(view, MetadataView)
            assert len(view.topics) == 1
            with pytest.raises(StreamqError) as refused:
                await client.ask(Metadata(tuple(f"t{i}" for i in range(100_000))))
            assert refused.value.code == "bad_request"


async def test_a_hello_of_megabytes_is_not_waited_for() -> None:
    async with cluster(1) as running:
        stream = await TcpNetwork().connect(*running.brokers["b1"].config.address)
        first = encode_frame(Hello((1, 1), (), "x"), request=1, payload=[bytes(8 << 20)])
        await stream.send_all(PREAMBLE + b"".join(first)[: FRAME_PREFIX_BYTES + 4096])
        with trio.fail_after(1), suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


async def test_clients_leave_room_for_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1) as running:
        broker = running.brokers["b1"]
        monkeypatch.setattr(type(broker.config), "connections_max", 8, raising=False)
        async with trio.open_nursery() as nursery:

            async def idle() -> None:
                async with wire_client(broker.config.address):
                    await trio.sleep_forever()

            for _ in range(20):
                nursery.start_soon(idle)
            await trio.sleep(0.3)
            async with peer_client(running, "b1") as peer:
                assert isinstance(await peer.ask(ReadVoters()), VotersView)
            nursery.cancel_scope.cancel()


async def test_only_its_own_machine_stops_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1) as running:
        monkeypatch.setattr(server, "_is_local", lambda stream: False)
        async with to(running, "b1") as client:
            with pytest.raises(StreamqError) as refused:
                await client.ask(Stop())
            assert refused.value.code == "not_authorised"
        monkeypatch.undo()
        async with to(running, "b1") as client:
            await client.ask(Stop())


async def test_an_address_that_can_be_none_is_only_unreachable() -> None:
    for host, port in (("a..b", 7700), ("x" * 80, 7700), ("127.0.0.1", 1 << 20)):
        with pytest.raises(StreamqError):
            await TcpNetwork().connect(host, port)
