"""Checksums made to hold: a forger computes them as easily as an honest sender, so what lies behind them has to be tried, too."""

import struct
from collections.abc import Callable
from typing import Final

import google_crc32c

from streamq.model.batches import BATCH_HEADER_BYTES
from streamq.wire.batch_format import MAGIC
from streamq.wire.framing import FRAME_PREFIX_BYTES

__all__ = ["seal_batches", "seal_frames", "seal_head", "sealed_behind"]

PAYLOAD_BYTES_AT: Final = 16
PAYLOAD_CRC_AT: Final = 24
PREFIX_CRC_AT: Final = 16


def _crc(data: bytes | bytearray) -> bytes:
    return struct.pack("<I", google_crc32c.value(bytes(data)))


def seal_head(head: bytes) -> bytes:
    """A batch header's magic and checksum."""
    return MAGIC + _crc(head[8:]) + head[8:] if len(head) > 8 else head


def seal_batches(data: bytes) -> bytes:
    """Batches back to back, as far as their lengths lead; the last one is cut to what there is."""
    sealed = bytearray(data)
    start = 0
    while start + BATCH_HEADER_BYTES < len(sealed):
        body = start + BATCH_HEADER_BYTES
        (size,) = struct.unpack_from("<I", sealed, start + PAYLOAD_BYTES_AT)
        if body + size > len(sealed):
            size = len(sealed) - body
            struct.pack_into("<I", sealed, start + PAYLOAD_BYTES_AT, size)
        sealed[start + PAYLOAD_CRC_AT : start + PAYLOAD_CRC_AT + 4] = _crc(sealed[body : body + size])
        sealed[start:body] = seal_head(bytes(sealed[start:body]))
        start = body + size
    return bytes(sealed)


def seal_frames(data: bytes) -> bytes:
    """Frames back to back, as far as their lengths lead."""
    sealed = bytearray(data)
    start = 0
    while start + FRAME_PREFIX_BYTES <= len(sealed):
        header_bytes, payload_bytes = struct.unpack_from("<II", sealed, start)
        body = start + FRAME_PREFIX_BYTES
        if body + header_bytes > len(sealed):
            break
        prefix = sealed[start : start + PREFIX_CRC_AT]
        sealed[start + PREFIX_CRC_AT : body] = _crc(prefix + sealed[body : body + header_bytes])
        start = body + header_bytes + payload_bytes
    return bytes(sealed)


def sealed_behind(magic: bytes, *, end: int | None = None) -> Callable[[bytes], bytes]:
    """For formats that begin with four bytes of magic and the checksum of the rest (up to `end`)."""

    def seal(data: bytes) -> bytes:
        return magic + _crc(data[8:end]) + data[8:] if len(data) > 8 else data

    return seal
