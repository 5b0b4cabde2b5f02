"""Frames survive any way of being cut into receives, and nothing but a whole, honest frame comes out."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.model.errors import ProtocolError
from streamq.model.limits import FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX
from streamq.model.messages import Credit, Hello, Metadata, Produce, Store, StoreRun
from streamq.wire.framing import FRAME_PREFIX_BYTES, FrameReader, encode_frame

MESSAGES = [
    (Hello((1, 1), ("a",), "test"), 1, False, b""),
    (Credit(7), 4_000_000_000, True, b""),
    (Produce((1, 2, 3)), 0, False, b"x" * 5_000),
    (Store((StoreRun(b"p" * 16, 3, 9, 0),)), 0, False, b""),
    (Metadata(("topic",)), 9, False, b"y"),
]


def wire() -> bytes:
    return b"".join(b"".join(encode_frame(m, request=r, is_answer=a, payload=[p])) for m, r, a, p in MESSAGES)


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=40))
@settings(max_examples=100)
def test_frames_survive_every_way_of_cutting(cuts: list[int]) -> None:
    data, reader, frames, start, i = wire(), FrameReader(), [], 0, 0
    while start < len(data):
        size = cuts[i % len(cuts)]
        frames += list(reader.feed(data[start : start + size]))
        start, i = start + size, i + 1
    assert [(f.message, f.request, f.is_answer, f.payload) for f in frames] == [(m, r, a, p) for m, r, a, p in MESSAGES]
    assert reader.missing == 0


def test_missing_tells_what_a_large_frame_still_needs() -> None:
    data = b"".join(encode_frame(Produce((1,)), payload=[b"z" * 100_000]))
    reader = FrameReader()
    assert list(reader.feed(data[:50])) == []
    assert reader.missing == len(data) - 50


@pytest.mark.parametrize("lengths", [(FRAME_HEADER_BYTES_MAX + 1, 0), (10, FRAME_PAYLOAD_BYTES_MAX + 1), (0xFFFF_FFFF, 0xFFFF_FFFF)])
def test_a_length_over_the_bound_is_refused_before_anything_is_received(lengths: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="at most"):
        list(FrameReader().feed(struct.pack("<IIIB3xI", *lengths, 1, 0, 0)))


def test_every_flipped_bit_of_prefix_and_header_is_noticed() -> None:
    good = b"".join(encode_frame(Metadata(("orders", "payments")), request=5))
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            reader = FrameReader()
            try:
                frames = list(reader.feed(bytes(bad)))
            except ProtocolError:
                continue
            # A longer length only makes the reader wait; the checksum is looked at when that much has come.
            assert frames == []
            assert position < FRAME_PREFIX_BYTES


def test_random_bytes_never_crash_the_reader() -> None:
    rng = random.Random(7)
    for _ in range(2_000):
        reader = FrameReader()
        try:
            for _ in range(4):
                list(reader.feed(rng.randbytes(rng.randrange(1, 200))))
        except ProtocolError:
            pass
