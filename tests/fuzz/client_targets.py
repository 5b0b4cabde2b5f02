"""What the two sides of a connection make of its first bytes, and what a client makes of anything that a broker may answer."""

from collections.abc import Coroutine
from typing import Final, TypeVar

import anyio
import anyio.abc
import google_crc32c
import trio
import trio.testing

from streamq.client.connection import Connection, dial
from streamq.client.settings import Address, Timeouts
from streamq.model.errors import CODES, CorruptDataError, ProtocolError, StreamqError, error_of
from streamq.model.limits import BATCH_RAW_BYTES_MAX
from streamq.model.messages import Failure, Heartbeat, Hello, Metadata, MetadataView, Produced, Records, Subscribe, Welcome
from streamq.net.handshake import greet, receive_hello
from streamq.wire.batch_format import BadBatchError, split_batches
from streamq.wire.codec import decode_value, encode
from streamq.wire.export_format import MAGIC, ExportHead, ExportReader, ExportWriter
from streamq.wire.framing import PREAMBLE, Frame, encode_frame
from streamq_consumer.records import Record, records_of
from tests.fuzz.seals import seal_batches, seal_frames
from tests.fuzz.target import Target
from tests.fuzz.wild import Wild
from tests.fuzz.wild_batches import wild_batches

__all__ = ["CLIENT_TARGETS"]

PIECE_BYTES: Final = 97
LOOP_FLOOR_BYTES: Final = 1 << 20
"""What an event loop of its own takes."""
TIMEOUTS: Final = Timeouts()
T = TypeVar("T")


class Scripted(trio.abc.Stream):
    """Receives `said`, in pieces, then the end; what is sent to it is dropped. Never waits, so what uses it runs without a loop."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = min(PIECE_BYTES, max_bytes or PIECE_BYTES)
        piece, self._said = self._said[:size], self._said[size:]
        return piece

    async def send_all(self, data: object) -> None:
        pass

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


# --- handshakes ----------------------------------------------------------------------------------------------------------------


def hello(data: bytes) -> None:
    """As a broker hears whoever connects."""
    assert isinstance(_result(receive_hello(Scripted(data))).hello, Hello)


def welcome(data: bytes) -> None:
    """As a broker hears the broker that it dialled."""
    assert isinstance(_result(greet(Scripted(data), Hello((1, 1), (), "fuzzed")))[0], Welcome)


def _result(coroutine: Coroutine[object, None, T]) -> T:
    """Of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("it waits for more than was said")


def _valid_hello(wild: Wild) -> bytes:
    return PREAMBLE + b"".join(encode_frame(wild.value(Hello), request=1))


def _seal_hello(data: bytes) -> bytes:
    return PREAMBLE + seal_frames(data[len(PREAMBLE) :])


def _valid_welcome(wild: Wild) -> bytes:
    return b"".join(encode_frame(wild.value(Welcome), request=1, is_answer=True))


# --- a connection of a client --------------------------------------------------------------------------------------------------


class _ByteStream(anyio.abc.ByteStream):
    def __init__(self, said: bytes) -> None:
        self._said = said

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._said:
            raise anyio.EndOfStream
        piece, self._said = self._said[:PIECE_BYTES], self._said[PIECE_BYTES:]
        return piece

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class _Host:
    def __init__(self, said: bytes) -> None:
        self._said = said

    async def connect(self, address: Address) -> anyio.abc.ByteStream:
        return _ByteStream(self._said)

    def now_ms(self) -> int:
        return 0

    def token(self) -> bytes:
        return bytes(16)

    def below(self, limit: int) -> int:
        return 0


class _Heard:
    """Sink of a stream and listener to everything else."""

    def __init__(self) -> None:
        self.ended: list[StreamqError] = []

    def on_frame(self, frame: Frame) -> None:
        assert not self.ended

    def on_end(self, error: StreamqError) -> None:
        self.ended.append(error)

    def on_message(self, connection: Connection, frame: Frame) -> None:
        assert not frame.is_answer

    def on_lost(self, connection: Connection, error: StreamqError) -> None:
        pass


def connection(data: bytes) -> None:
    """Everything a broker says to a client with a question and a stream: both end, each once, with an error of streamq's."""

    async def main() -> None:
        dialled = await dial(Address("b1", 1), timeouts=TIMEOUTS, host=_Host(data))
        heard = _Heard()
        dialled.listener = heard
        outcomes: list[object] = []

        async def ask() -> None:
            try:
                outcomes.append(await dialled.request(Metadata(()), MetadataView))
            except StreamqError as error:
                outcomes.append(error)

        async with anyio.create_task_group() as tasks:
            dialled.open_stream(Subscribe(bytes(16), 0, 1), heard)
            tasks.start_soon(ask)
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(dialled.run)
        assert dialled.failure is not None
        assert len(outcomes) == len(heard.ended) == 1, (outcomes, heard.ended)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def _valid_connection(wild: Wild) -> bytes:
    rng = wild.rng
    said = encode_frame(Welcome(1, (), "fuzzed", b"c", "b1", b"i"), request=1, is_answer=True)
    for _ in range(rng.randrange(4)):
        kind = rng.choice((Heartbeat, MetadataView, Produced, Records, Failure, Welcome))
        request = rng.choice((0, 1, 2, 3))
        said += encode_frame(
            wild.value(kind), request=request, is_answer=rng.random() < 0.7, payload=[wild_batches(wild, rng.randrange(2))]
        )
    return b"".join(said)


# --- what comes in the answers -------------------------------------------------------------------------------------------------


def opened_batches(data: bytes) -> None:
    """As a consumer opens what a stream brought."""
    for batch in split_batches(data):
        for skip in {0, 1, batch.header.records}:
            records = records_of("t", 0, batch, skip=skip)
            assert len(records) == max(0, batch.header.records - skip)
            assert [record.offset for record in records] == list(range(batch.base + skip, batch.end))


def failure(data: bytes) -> None:
    """Whatever a broker gives as its reason becomes an error of the class that its code stands for."""
    told = decode_value(Failure, data)
    error = error_of(told.code, told.message, hint=told.hint, sequencer=told.sequencer)
    assert type(error) is CODES.get(told.code, StreamqError)
    assert (error.code, error.message, error.hint) == (told.code, told.message, told.hint)


def _valid_failure(wild: Wild) -> bytes:
    told: Failure = wild.value(Failure)
    return encode(Failure(wild.rng.choice([*CODES, told.code]), told.message, told.hint, told.sequencer))


def export(data: bytes) -> None:
    """However the bytes are cut into pieces the same records come out; written again, they are the same."""
    reader = ExportReader()
    blocks = [block for at in range(0, len(data), 4096) for block in reader.feed(data[at : at + 4096])]
    reader.end()
    assert reader.head is not None
    writer = ExportWriter()
    records = [Record("", b.partition, r.offset, r.timestamp, r.key, r.value, r.headers or {}) for b in blocks for r in b.records]
    again = ExportReader()
    copy = list(again.feed(b"".join([writer.begin(reader.head), writer.add(records), writer.end()])))
    again.end()
    assert again.counts == {partition: count for partition, count in reader.counts.items() if count}
    for partition in again.counts:
        offsets = [[r.offset for b in read if b.partition == partition for r in b.records] for read in (blocks, copy)]
        assert offsets[0] == offsets[1]


def _valid_export(wild: Wild) -> bytes:
    rng, writer = wild.rng, ExportWriter()
    out = [writer.begin(ExportHead("t", 3))]
    for offset in range(rng.randrange(20)):
        headers = {"h": rng.randbytes(3)} if rng.random() < 0.3 else {}
        value, at_ms = rng.randbytes(rng.randrange(30)), rng.randrange(1 << 40)
        out.append(writer.add([Record("t", rng.randrange(3), offset, at_ms, None, value, headers)]))
    return b"".join([*out, writer.end()])


def _seal_export(data: bytes) -> bytes:
    """Checksums and numbers of blocks that hold, as far as their lengths lead."""
    out, at, number = bytearray(data), len(MAGIC), 0
    while at + 24 <= len(out):
        size = int.from_bytes(out[at + 4 : at + 8], "little")
        out[at + 12 : at + 16] = number.to_bytes(4, "little")
        out[at + 16 : at + 20] = google_crc32c.value(bytes(out[at + 24 : at + 24 + size])).to_bytes(4, "little")
        out[at + 20 : at + 24] = google_crc32c.value(bytes(out[at : at + 20])).to_bytes(4, "little")
        at, number = at + 24 + size, number + 1
    return bytes(out)


CLIENT_TARGETS: Final = (
    Target("hello", hello, _valid_hello, (ProtocolError,), seal=_seal_hello),
    Target("welcome", welcome, _valid_welcome, (StreamqError,), seal=seal_frames),
    Target("client_connection", connection, _valid_connection, (StreamqError,), seal=seal_frames, floor_bytes=LOOP_FLOOR_BYTES),
    Target(
        "client_batches",
        opened_batches,
        lambda wild: wild_batches(wild, wild.rng.randrange(1, 3)),
        (BadBatchError, CorruptDataError),
        seal=seal_batches,
        floor_bytes=4 * BATCH_RAW_BYTES_MAX,
        growth=512,
    ),
    Target(
        "export",
        export,
        _valid_export,
        (CorruptDataError,),
        seal=_seal_export,
        floor_bytes=16 * BATCH_RAW_BYTES_MAX,
        growth=512,
    ),
    Target("failure", failure, _valid_failure, (ProtocolError,)),
)
