"""Every decoder, by name. What comes over the wire is here; what lies on disk in `disk_targets`, what clients decode in `client_targets`.

A checksum keeps out damage, not forgers: targets with a `seal` are also tried with checksums that hold.
"""

import random
import struct
import typing
import zlib
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import astuple

from streamq.broker.registers import _decoded
from streamq.metadata.acceptor import AcceptorRecord, Cell
from streamq.model.batches import BATCH_HEADER_BYTES
from streamq.model.errors import CorruptDataError, ProtocolError
from streamq.model.ids import Member
from streamq.model.limits import BATCH_RAW_BYTES_MAX, OFFSET_MAX
from streamq.model.messages import AnyMessage, Message
from streamq.model.registers import BrokerRegister, ClusterRegister, PartitionRegister, Segment, TopicRegister, Voters
from streamq.wire.batch_format import BadBatchError, decode_header, encode_header, payload_is_whole, split_batches, stamp
from streamq.wire.codec import decode_message, decode_value, encode, encode_message
from streamq.wire.compression import compress, decompress
from streamq.wire.framing import Frame, FrameReader, encode_frame
from streamq.wire.records import pack_rows, unpack_rows
from tests.fuzz.client_targets import CLIENT_TARGETS
from tests.fuzz.disk_targets import DISK_TARGETS
from tests.fuzz.seals import seal_batches, seal_frames, seal_head
from tests.fuzz.target import Target
from tests.fuzz.wild import Wild
from tests.fuzz.wild_batches import wild_batches, wild_rows

__all__ = ["MESSAGES", "TARGETS"]

MESSAGES: Final[tuple[type[Message], ...]] = typing.get_args(AnyMessage)
PLAIN_REGISTERS: Final = (BrokerRegister, ClusterRegister, Voters)


# --- messages and frames -------------------------------------------------------------------------------------------------------


def message(data: bytes) -> None:
    decoded = decode_message(data)
    assert decode_message(encode_message(decoded)) == decoded


def frames(data: bytes) -> None:
    """However the bytes are cut into pieces, the same frames come out, and the same error."""
    whole, error = _read(FrameReader(), [data])
    rng = random.Random(zlib.crc32(data))
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(6))
    reader = FrameReader()
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert _read(reader, pieces) == (whole, error)
    again = b"".join(b"".join(encode_frame(f.message, request=f.request, is_answer=f.is_answer, payload=[f.payload])) for f in whole)
    assert _read(FrameReader(), [again]) == (whole, "")
    if error:
        raise ProtocolError(error, code="protocol")


def _read(reader: FrameReader, pieces: list[bytes]) -> tuple[list[Frame], str]:
    found: list[Frame] = []
    try:
        for piece in pieces:
            found.extend(reader.feed(piece))
    except ProtocolError as error:
        return found, error.message
    return found, ""


def _valid_frames(wild: Wild) -> bytes:
    parts: list[bytes] = []
    for _ in range(wild.rng.randrange(1, 4)):
        content = wild_batches(wild, wild.rng.randrange(3))
        request = wild.rng.choice((0, 1, (1 << 32) - 1))
        parts += encode_frame(wild.value(wild.rng.choice(MESSAGES)), request=request, is_answer=wild.rng.random() < 0.5, payload=[content])
    return b"".join(parts)


# --- batches and records -------------------------------------------------------------------------------------------------------


def batch_header(data: bytes) -> None:
    header = decode_header(data)
    assert encode_header(header) == data


def batches(data: bytes) -> None:
    """What comes out is what went in, and a sequencer can stamp it."""
    found = list(split_batches(data))
    assert b"".join(part for batch in found for part in (batch.head, batch.payload)) == data
    for batch in found:
        assert payload_is_whole(batch.header, batch.payload)
        stamped = stamp(batch, epoch=7, base=9, append_time=11)
        assert decode_header(stamped.head) == stamped.header
        assert stamped.payload is batch.payload


def compressed(data: bytes) -> None:
    """Four bytes of announced size, one of compression, then the payload."""
    if len(data) < 5:
        raise CorruptDataError("too short", code="data_damaged")
    (raw_bytes,) = struct.unpack_from("<I", data)
    raw = decompress(data[5:], compression=data[4], raw_bytes=raw_bytes)
    assert len(raw) == raw_bytes <= BATCH_RAW_BYTES_MAX
    assert decompress(compress(raw, level=1), compression=1, raw_bytes=raw_bytes) == raw


def records(data: bytes) -> None:
    """Four bytes of announced count, then the rows."""
    if len(data) < 4:
        raise CorruptDataError("too short", code="data_damaged")
    (count,) = struct.unpack_from("<I", data)
    rows = unpack_rows(data[4:], records=count)
    assert len(rows) == count
    assert unpack_rows(pack_rows([astuple(row) for row in rows]), records=count) == rows


def _valid_compressed(wild: Wild) -> bytes:
    rng = wild.rng
    raw = rng.choice((b"", rng.randbytes(rng.randrange(300)), bytes(rng.choice((1, 1 << 16, BATCH_RAW_BYTES_MAX)))))
    if len(raw) < 1_000 and rng.random() < 0.3:
        return struct.pack("<IB", len(raw), 0) + raw
    return struct.pack("<IB", len(raw), 1) + compress(raw, level=1)


def _valid_records(wild: Wild) -> bytes:
    rows = wild_rows(wild)
    return struct.pack("<I", len(rows)) + pack_rows(rows)


# --- values of registers -------------------------------------------------------------------------------------------------------


def _register(kind: type[msgspec.Struct]) -> Callable[[bytes], object]:
    """As a broker reads it after a quorum read: whole, and not one that no broker writes."""

    def decode(data: bytes) -> None:
        value = _decoded(kind, "a key", data)
        assert decode_value(kind, encode(value)) == value
        if isinstance(value, PartitionRegister) and not value.deleted:
            assert value.segment(value.last.epoch) == value.last
            assert value.last.quorum.replicas >= value.last.write

    return decode


def _state(kind: type[msgspec.Struct]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> None:
        value = decode_value(kind, data)
        assert decode_value(kind, encode(value)) == value

    return decode


def _value_of(kind: type[msgspec.Struct]) -> Callable[[Wild], bytes]:
    return lambda wild: encode(wild.value(kind))


def _valid_partition(wild: Wild) -> bytes:
    """A chain of one to three segments that follow each other, whatever else it says."""
    register: PartitionRegister = wild.value(PartitionRegister)
    count, last = wild.rng.randrange(1, 4), wild.value(Segment)
    epoch, base = min(last.epoch, OFFSET_MAX - count), min(last.base, OFFSET_MAX - count)
    replicas = last.replicas or (Member("b1", b""),)
    chain = tuple(
        msgspec.structs.replace(
            last, epoch=epoch + i, base=base + i, end=base + i + 1 if i < count - 1 else None, replicas=replicas, write=1
        )
        for i in range(count)
    )
    return encode(msgspec.structs.replace(register, replicas=register.replicas or ("b1",), chain=chain))


def _valid_topic(wild: Wild) -> bytes:
    return encode(msgspec.structs.replace(wild.value(TopicRegister), replicas=3, write=wild.rng.choice((2, 3)), read=2))


def _named(targets: list[Target]) -> dict[str, Target]:
    named = {target.name: target for target in targets}
    assert len(named) == len(targets)
    return named


TARGETS: Final[dict[str, Target]] = _named(
    [
        Target("frames", frames, _valid_frames, (ProtocolError,), seal=seal_frames),
        Target("batch_header", batch_header, lambda wild: wild_batches(wild, 1)[:BATCH_HEADER_BYTES], (BadBatchError,), seal=seal_head),
        Target("batches", batches, lambda wild: wild_batches(wild, wild.rng.randrange(1, 4)), (BadBatchError,), seal=seal_batches),
        Target("compressed", compressed, _valid_compressed, (CorruptDataError,), floor_bytes=4 * BATCH_RAW_BYTES_MAX),
        Target("records", records, _valid_records, (CorruptDataError,)),
        *(Target(f"message.{kind.__name__}", message, _value_of(kind), (ProtocolError,)) for kind in MESSAGES),
        Target("register.PartitionRegister", _register(PartitionRegister), _valid_partition, (ProtocolError,)),
        Target("register.TopicRegister", _register(TopicRegister), _valid_topic, (ProtocolError,)),
        *(Target(f"register.{kind.__name__}", _register(kind), _value_of(kind), (ProtocolError,)) for kind in PLAIN_REGISTERS),
        *(Target(f"acceptor.{kind.__name__}", _state(kind), _value_of(kind), (ProtocolError,)) for kind in (AcceptorRecord, Cell)),
        *DISK_TARGETS,
        *CLIENT_TARGETS,
    ]
)
