"""What a broker once said that ended a client with an exception of no streamq, found by fuzzing."""

from collections.abc import Callable
from contextlib import suppress
from itertools import count

import anyio
import anyio.abc
import pytest
import trio
import trio.testing

from streamq.client.cluster import Cluster
from streamq.client.connection import dial
from streamq.client.settings import Address, Timeouts
from streamq.model.errors import ProtocolError, StreamqError, UnavailableError
from streamq.model.limits import PARTITIONS_PER_TOPIC_MAX
from streamq.model.messages import BrokerAddress, Hello, Message, Metadata, MetadataView, Nack, PartitionView, TopicView, Welcome
from streamq.wire.codec import decode_message, encode_message
from streamq.wire.framing import PREAMBLE, FrameReader, encode_frame
from streamq_producer.effects import Entry, Open, Transmit
from streamq_producer.session import PartitionSession


@pytest.mark.parametrize("host", ["\U0001f600", "é" * 255, "xn--é"])
async def test_a_host_that_can_be_no_name_is_a_broker_that_cannot_be_reached(host: str) -> None:
    """Any broker's register may hold it, and metadata tells it to every client."""
    with pytest.raises(UnavailableError), trio.fail_after(5):
        await dial(Address(host, 7700), timeouts=Timeouts())
    with pytest.raises(UnavailableError), trio.fail_after(15):
        async with Cluster(f"{host}:7700"):
            pass


class Talker(anyio.abc.ByteStream):
    """A broker's end of a connection: answers each frame with what `answer` makes of it, until that is None."""

    def __init__(self, answer: Callable[[Message], Message | None]) -> None:
        self._answer = answer
        self._reader: FrameReader | None = None
        self._send, self._receive = trio.open_memory_channel[bytes](1_000)

    async def send(self, item: bytes) -> None:
        if self._reader is None:
            self._reader, item = FrameReader(), item[len(PREAMBLE) :]
        for frame in list(self._reader.feed(item)):
            answer = self._answer(frame.message)
            if answer is None:
                self._send.close()
                return
            self._send.send_nowait(b"".join(encode_frame(answer, request=frame.request, is_answer=True)))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise anyio.EndOfStream from None

    async def send_eof(self) -> None:
        self._send.close()

    async def aclose(self) -> None:
        self._send.close()


class Renamed:
    """At b1:1 is a broker that has another name at each connection, and tells of brokers that nobody has heard of and that do not exist."""

    def __init__(self, *, hangs_up: bool) -> None:
        self.hangs_up = hangs_up
        self.made_up = 0

    def _next(self) -> str:
        self.made_up += 1
        return f"made-up-{self.made_up}"

    def _answer(self, message: Message) -> Message | None:
        if isinstance(message, Hello):
            return Welcome(1, (), "", b"c", self._next(), b"i")
        if self.hangs_up:
            return None
        return MetadataView(b"c", tuple(BrokerAddress(name, name, 1, "", True) for name in (self._next(), self._next())), ())

    async def connect(self, address: Address) -> anyio.abc.ByteStream:
        await anyio.lowlevel.checkpoint()
        if address.host != "b1":
            raise ConnectionRefusedError
        return Talker(self._answer)

    def now_ms(self) -> int:
        return 0

    def token(self) -> bytes:
        return bytes(16)

    def below(self, limit: int) -> int:
        return 0


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_names_and_addresses_that_are_made_up_are_not_kept(hangs_up: bool, autojump_clock: trio.testing.MockClock) -> None:
    """Each was remembered for as long as the client lived."""
    host = Renamed(hangs_up=hangs_up)
    async with Cluster("b1:1", host=host, timeouts=Timeouts(request_s=0.5)) as cluster:
        for _ in range(200):
            with suppress(StreamqError):
                view = await cluster.metadata()
                with suppress(StreamqError):
                    await cluster.request(Metadata(()), MetadataView, broker=view.brokers[0].broker, timeout_s=0.05)
        assert host.made_up > 200
        assert len(cluster._dialled) + len(cluster._dials) + len(cluster._connections) < 20


def test_brokers_that_are_made_up_are_not_avoided_for_ever() -> None:
    """Each hint at another sequencer that cannot be reached was remembered for as long as the producer lived."""
    session = PartitionSession(replicas=("b1", "b2"), sequencer="b1", in_flight=1, tickets=count(1), producer=b"p" * 16)
    effects = session.add(Entry("token", records=1, deadline=1e9), 0.0)
    now = 0.0
    for i in range(20_000):
        now += 0.01
        for effect in effects:
            if isinstance(effect, Open) and effect.broker.startswith("b"):
                effects = session.on_opened(effect.broker, now)
            elif isinstance(effect, Open):
                effects = session.on_lost(effect.broker, UnavailableError("nobody", code="unavailable"), now)
            elif isinstance(effect, Transmit):
                nack = Nack(effect.entries[0].tickets[-1], "not_sequencer", "", f"made-up-{i}")
                effects = session.on_nack(nack, now)
        effects = effects if any(isinstance(effect, Open | Transmit) for effect in effects) else session.on_time(now)
    assert len(session._avoided) < 100


def test_a_topic_of_more_partitions_than_there_can_be_is_refused() -> None:
    """One answer of 4 MiB made a producer set up 180,000 partitions: 266 MiB, and seconds in which it did nothing else."""
    partition = PartitionView(bytes(16), 1, "b1", (), 0)

    def view(partitions: int) -> bytes:
        return encode_message(MetadataView(b"c", (), (TopicView("t", (partition,) * partitions),)))

    assert decode_message(view(PARTITIONS_PER_TOPIC_MAX))
    with pytest.raises(ProtocolError):
        decode_message(view(PARTITIONS_PER_TOPIC_MAX + 1))
