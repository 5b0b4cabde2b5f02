"""A batch is bound to its contents, its partition and its place; no damage of any bit passes for a good one."""

import contextlib

import msgpack
import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from streamq.model.batches import (
    BATCH_HEADER_BYTES,
    COMPRESSION_NONE,
    COMPRESSION_ZSTD,
    FLAG_CONDITIONAL,
    FLAG_CONTROL,
    FLAG_FENCED,
    FLAG_IDENTIFIED,
    FLAG_TRANSACTIONAL,
    Batch,
    BatchHeader,
)
from streamq.model.errors import CorruptDataError
from streamq.model.ids import NO_PRODUCER
from streamq.model.limits import BATCH_PAYLOAD_BYTES_MAX, BATCH_RAW_BYTES_MAX, BATCH_RECORDS_MAX
from streamq.wire.batch_format import BadBatchError, decode_header, encode_batch, encode_header, split_batches, stamp
from streamq.wire.compression import compress, decompress
from streamq.wire.records import Row, pack_rows, unpack_rows

HEADER = BatchHeader(b"p" * 16, 3, 0, 11, 0, b"q" * 16, 2, 5, 1_700_000_000_000, 1_700_000_000_009, 0, 0, 0, mark=70_000)


IDENTIFIED = {"records": 1, "producer_epoch": 0, "sequence": 0, "mark": 0}


def batch(payload: bytes = b"payload") -> Batch:
    return encode_batch(HEADER, payload)


def test_stamping_changes_the_place_and_nothing_else() -> None:
    before = batch()
    after = stamp(before, epoch=4, base=100, append_time=1_700_000_000_050)
    assert after.payload is before.payload
    assert msgspec.structs.replace(after.header, epoch=0, base=0, append_time=0) == before.header
    assert (after.header.epoch, after.base, after.end) == (4, 100, 103)
    assert decode_header(after.head) == after.header


def test_a_control_batch_has_one_record() -> None:
    header = msgspec.structs.replace(HEADER, records=1, flags=FLAG_CONTROL)
    assert decode_header(encode_header(header)).is_control
    assert not decode_header(encode_header(HEADER)).is_control


def test_a_record_with_an_id_has_the_window_that_the_sequencer_gave_it() -> None:
    header = msgspec.structs.replace(HEADER, flags=FLAG_IDENTIFIED, **IDENTIFIED)
    after = stamp(encode_batch(header, b"x"), epoch=4, base=100, append_time=5, window_ms=60_000)
    assert decode_header(after.head) == after.header
    assert (after.header.is_identified, after.header.mark) == (True, 60_000)


def test_a_stored_batch_has_its_token_and_wants_no_offset_any_more() -> None:
    header = msgspec.structs.replace(HEADER, flags=FLAG_FENCED | FLAG_CONDITIONAL, base=9)
    after = stamp(encode_batch(header, b"x"), epoch=4, base=9, append_time=5)
    assert (decode_header(after.head).flags, after.header.mark) == (FLAG_FENCED, HEADER.mark)


def test_every_flipped_bit_is_noticed() -> None:
    whole = stamp(batch(b"some bytes"), epoch=1, base=7, append_time=3)
    good = whole.head + whole.payload
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            with pytest.raises(BadBatchError):
                list(split_batches(bytes(bad)))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.data())
@settings(max_examples=100)
def test_batches_back_to_back_come_apart_again_and_a_cut_is_noticed(payloads: list[bytes], data: st.DataObject) -> None:
    batches = [batch(payload) for payload in payloads]
    joined = b"".join(b.head + b.payload for b in batches)
    assert list(split_batches(joined)) == batches
    cut = data.draw(st.integers(1, len(joined) - 1))
    ends = {sum(b.size for b in batches[:i]) for i in range(len(batches) + 1)}
    if cut not in ends:
        with pytest.raises(BadBatchError):
            list(split_batches(joined[:cut]))


@pytest.mark.parametrize(
    "change",
    [
        {"records": 0},
        {"records": BATCH_RECORDS_MAX + 1},
        {"payload_bytes": BATCH_PAYLOAD_BYTES_MAX + 1},
        {"raw_bytes": BATCH_RAW_BYTES_MAX + 1},
        {"base": (1 << 63) - 1},
        {"record_format": 9},
        {"compression": 7},
        {"append_time": -1},
        {"sequence": 1 << 63},
        {"mark": 1 << 63},
        {"flags": FLAG_CONTROL},
        {"flags": FLAG_TRANSACTIONAL, "mark": 0},
        {"flags": FLAG_TRANSACTIONAL | FLAG_CONTROL, "mark": 1, "records": 1},
        {"flags": FLAG_TRANSACTIONAL, "mark": 1, "producer": NO_PRODUCER},
        {"flags": 1 << 15},
        {"flags": FLAG_CONTROL | FLAG_CONDITIONAL, "records": 1},
        {"flags": FLAG_CONTROL | FLAG_FENCED, "records": 1},
        {"flags": FLAG_IDENTIFIED | FLAG_FENCED, **IDENTIFIED},
        {"flags": FLAG_IDENTIFIED | FLAG_CONDITIONAL, **IDENTIFIED},
        {"flags": FLAG_IDENTIFIED, **IDENTIFIED, "records": 2},
        {"flags": FLAG_IDENTIFIED, **IDENTIFIED, "producer": bytes(16)},
        {"flags": FLAG_IDENTIFIED, **IDENTIFIED, "producer_epoch": 1},
        {"flags": FLAG_IDENTIFIED, **IDENTIFIED, "sequence": 1},
        {"flags": FLAG_IDENTIFIED, **IDENTIFIED, "mark": 1},
        {"flags": FLAG_IDENTIFIED, **IDENTIFIED, "epoch": 1},
    ],
)
def test_a_header_out_of_bounds_is_refused_even_with_a_right_checksum(change: dict[str, object]) -> None:
    with pytest.raises(BadBatchError):
        decode_header(encode_header(msgspec.structs.replace(HEADER, **change)))


@given(st.binary(min_size=BATCH_HEADER_BYTES, max_size=BATCH_HEADER_BYTES))
def test_no_bytes_crash_the_header_decoder(head: bytes) -> None:
    with pytest.raises(BadBatchError):
        decode_header(head)


# --- compression and records


@given(st.binary(max_size=5_000), st.sampled_from([1, 3, 9]))
@settings(max_examples=50)
def test_compression_gives_back_what_it_got(raw: bytes, level: int) -> None:
    assert decompress(compress(raw, level=level), compression=COMPRESSION_ZSTD, raw_bytes=len(raw)) == raw
    assert decompress(raw, compression=COMPRESSION_NONE, raw_bytes=len(raw)) == raw


def test_a_bomb_costs_what_its_header_admits_to_and_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(bytes(1 << 28))
    assert len(bomb) < 40_000
    for announced in (10, 1 << 20):
        with pytest.raises(CorruptDataError):
            decompress(bomb, compression=COMPRESSION_ZSTD, raw_bytes=announced)
    with pytest.raises(CorruptDataError, match="over the limit"):
        decompress(bomb, compression=COMPRESSION_ZSTD, raw_bytes=1 << 28)
    honest = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(CorruptDataError):
        decompress(honest, compression=COMPRESSION_ZSTD, raw_bytes=100)


@given(st.binary(max_size=200), st.integers(0, 1_000))
def test_no_bytes_crash_decompression(payload: bytes, raw_bytes: int) -> None:
    with contextlib.suppress(CorruptDataError):
        assert len(decompress(payload, compression=COMPRESSION_ZSTD, raw_bytes=raw_bytes)) == raw_bytes


@given(st.binary(max_size=200), st.integers(1, 100))
@settings(max_examples=300)
def test_no_bytes_crash_the_record_decoder(raw: bytes, records: int) -> None:
    with contextlib.suppress(CorruptDataError):
        assert len(unpack_rows(raw, records=records)) == records


ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**40), 2**40),
        st.none() | st.binary(max_size=300),
        st.none() | st.binary(max_size=300),
        st.none() | st.dictionaries(st.text(max_size=40), st.binary(max_size=40), max_size=4),
    ),
    min_size=1,
    max_size=30,
)


@given(ROWS)
@settings(max_examples=100)
def test_records_are_what_any_messagepack_library_writes_and_reads(rows: list[Row]) -> None:
    packed = pack_rows(rows)
    assert packed == msgpack.packb(rows)
    assert [tuple(row) for row in msgpack.unpackb(packed)] == rows
    assert [astuple(row) for row in unpack_rows(packed, records=len(rows))] == rows


@pytest.mark.parametrize("row", [[], [None, b"k", b"v"], [None, b"k", b"v", None, None], [None, "k", b"v", None], {}, None])
def test_what_is_not_four_fields_of_the_right_types_is_no_record(row: object) -> None:
    with pytest.raises(CorruptDataError):
        unpack_rows(msgpack.packb([row]), records=1)


def test_records_come_back_as_they_were() -> None:
    rows = [(None, b"k", b"v", {"h": b"1"}), (5, None, None, None), (0, b"", b"", {})]
    assert [astuple(row) for row in unpack_rows(pack_rows(rows), records=3)] == rows
    with pytest.raises(CorruptDataError):
        unpack_rows(pack_rows(rows), records=2)
