"""The first frames of a connection, from both sides: preamble, `Hello`, then `Welcome` or the `Failure` that says why not."""

from typing import Final

import trio

from streamq.model.errors import ProtocolError
from streamq.model.messages import Failure, Hello, Message, Welcome
from streamq.net.channel import failure_error
from streamq.wire.framing import PREAMBLE, PROTOCOL_VERSIONS, Frame, FrameReader, encode_frame

__all__ = ["FEATURES", "Greeting", "agree_version", "answer", "greet", "receive_hello"]

FEATURES: Final[tuple[str, ...]] = ()
"""Optional parts of the protocol that this build knows; none yet: everything so far is version 1."""
HELLO_REQUEST: Final = 1
HANDSHAKE_BYTES: Final = 4096
HELLO_BYTES_MAX: Final = 64 * 1024
"""Who has not said who it is can make the other side hold no more than this."""


class Greeting:
    """What `receive_hello` found: the message, and the reader with whatever came behind it."""

    __slots__ = ("hello", "reader", "request", "rest")

    def __init__(self, hello: Hello, request: int, reader: FrameReader, rest: list[Frame]) -> None:
        self.hello = hello
        self.request = request
        self.reader = reader
        self.rest = rest


async def greet(stream: trio.abc.Stream, hello: Hello) -> tuple[Welcome, FrameReader]:
    """Says hello on a new stream and returns the welcome. Raises the error that the other side answered, or ProtocolError."""
    await stream.send_all(b"".join([PREAMBLE, *encode_frame(hello, request=HELLO_REQUEST)]))
    reader = FrameReader()
    while data := await stream.receive_some(HANDSHAKE_BYTES):
        # To its end: a reader that is left in the middle of what it was fed waits for the wrong number of bytes.
        for frame in list(reader.feed(bytes(data)))[:1]:
            if isinstance(frame.message, Failure):
                raise failure_error(frame.message)
            if not isinstance(frame.message, Welcome):
                raise ProtocolError(f"a {type(frame.message).__name__} came instead of a welcome", code="protocol")
            return frame.message, reader
    raise ProtocolError("the connection was closed during the handshake", code="protocol")


async def receive_hello(stream: trio.abc.Stream) -> Greeting:
    """Waits for preamble and hello; the caller bounds the time. Raises ProtocolError for anything else."""
    begun = b""
    while len(begun) < len(PREAMBLE):
        data = await stream.receive_some(HANDSHAKE_BYTES)
        if not data:
            raise ProtocolError("closed before it said anything", code="protocol")
        begun += bytes(data)
        if not begun.startswith(PREAMBLE[: len(begun)]):
            raise ProtocolError(f"does not speak this protocol: it began with {begun[:16]!r}", code="protocol")
    reader, begun = FrameReader(), begun[len(PREAMBLE) :]
    while True:
        frames = list(reader.feed(begun)) if begun else []
        if frames:
            first = frames[0]
            if not isinstance(first.message, Hello):
                raise ProtocolError(f"began with a {type(first.message).__name__} instead of a hello", code="protocol")
            return Greeting(first.message, first.request, reader, frames[1:])
        if reader.missing > HELLO_BYTES_MAX:
            raise ProtocolError(f"began with a frame that lacks {reader.missing} bytes", code="protocol")
        begun = bytes(await stream.receive_some(HANDSHAKE_BYTES))
        if not begun:
            raise ProtocolError("closed during the handshake", code="protocol")


def agree_version(offered: tuple[int, int]) -> int | None:
    """The highest version that both sides speak, None if there is none."""
    low, high = max(offered[0], PROTOCOL_VERSIONS[0]), min(offered[1], PROTOCOL_VERSIONS[1])
    return high if low <= high else None


async def answer(stream: trio.abc.Stream, message: Message, request: int) -> None:
    await stream.send_all(b"".join(encode_frame(message, request=request, is_answer=True)))
