"""Frames: what goes over a connection after its preamble.

    prefix   <I header bytes> <I payload bytes> <I request id> <B flags> <3 zero bytes> <I crc>   little endian, 20 bytes
    header   a message (`wire.codec`)
    payload  whole batches, opaque

The CRC-32C covers the first 16 bytes of the prefix and the header; batches carry their own. A request id is chosen by who asks, above 0 and
unique among the requests in flight on the connection; the answer repeats it, with the flag ANSWER. 0 marks a one-way message.
Before the first frame, who connected sends `PREAMBLE`: a name and the version of the framing itself.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import google_crc32c

from streamq.model.errors import ProtocolError
from streamq.model.limits import FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX
from streamq.model.messages import AnyMessage, Message
from streamq.wire.codec import decode_message, encode_message

__all__ = ["ANSWER", "FRAME_PREFIX_BYTES", "PREAMBLE", "PROTOCOL_VERSIONS", "Frame", "FrameReader", "encode_frame"]

PREAMBLE: Final = b"streamq\x01"
PROTOCOL_VERSIONS: Final = (1, 1)
ANSWER: Final = 1

_prefix: Final = struct.Struct("<IIIB3x")
_crc: Final = struct.Struct("<I")
FRAME_PREFIX_BYTES: Final = _prefix.size + _crc.size


class Frame(NamedTuple):
    message: AnyMessage
    request: int
    is_answer: bool
    payload: bytes


def encode_frame(message: Message, *, request: int = 0, is_answer: bool = False, payload: Iterable[bytes] = ()) -> list[bytes]:
    """The frame as buffers to send in order; the payload's buffers are passed through, never copied."""
    header = encode_message(message)
    buffers = list(payload)
    prefix = _prefix.pack(len(header), sum(map(len, buffers)), request, ANSWER if is_answer else 0)
    crc = google_crc32c.value(prefix + header)
    return [prefix + _crc.pack(crc) + header, *buffers]


class FrameReader:
    """Bytes in, frames out. Holds at most one incomplete frame; a length over the bounds raises before anything is allocated for it."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = FRAME_PREFIX_BYTES

    @property
    def missing(self) -> int:
        """Bytes still lacking for the frame under way, as far as known; 0 between frames."""
        return max(0, self._need - self._have) if self._have else 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Takes what was received and yields each frame that is complete. Raises ProtocolError; the connection is then of no more use."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        buffer = b"".join(self._chunks) if len(self._chunks) > 1 else data
        start, size = 0, len(buffer)
        try:
            while size - start >= FRAME_PREFIX_BYTES:
                header_bytes, payload_bytes, request, flags = _prefix.unpack_from(buffer, start)
                if header_bytes > FRAME_HEADER_BYTES_MAX or payload_bytes > FRAME_PAYLOAD_BYTES_MAX or flags > ANSWER:
                    raise ProtocolError(
                        f"a frame announces {header_bytes} + {payload_bytes} bytes (flags {flags}); "
                        f"at most {FRAME_HEADER_BYTES_MAX} + {FRAME_PAYLOAD_BYTES_MAX} are allowed",
                        code="protocol",
                    )
                head = start + FRAME_PREFIX_BYTES
                body = head + header_bytes
                end = body + payload_bytes
                if end > size:
                    self._need = end - start
                    break
                header = buffer[head:body]
                (crc,) = _crc.unpack_from(buffer, start + _prefix.size)
                if google_crc32c.value(buffer[start : start + _prefix.size] + header) != crc:
                    raise ProtocolError("a frame's header fails its checksum", code="protocol")
                start = end
                yield Frame(decode_message(header), request, flags == ANSWER, buffer[body:end])
            else:
                self._need = FRAME_PREFIX_BYTES
        finally:
            rest = buffer[start:] if start < size else b""
            self._chunks = [rest] if rest else []
            self._have = len(rest)
