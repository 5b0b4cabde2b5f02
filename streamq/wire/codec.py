"""Messages and register values as MessagePack, checked against their types while they are decoded.

msgspec does both in C: a message is an array that begins with its number; missing trailing fields take their defaults, additional ones are
ignored, so fields can be added at the end. Anything else that does not fit the type is a `ProtocolError`, never a crash.
"""

from typing import Final, TypeVar

import msgspec

from streamq.model.errors import ProtocolError
from streamq.model.messages import AnyMessage, Message

__all__ = ["decode_message", "decode_value", "encode", "encode_message"]

REASON_CHARS_MAX: Final = 200
T = TypeVar("T")
_encoder: Final = msgspec.msgpack.Encoder()
_messages: Final = msgspec.msgpack.Decoder(AnyMessage)
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


def encode_message(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_message(header: bytes) -> AnyMessage:
    """Raises ProtocolError for bytes that are no message of this version."""
    try:
        message: AnyMessage = _messages.decode(header)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProtocolError(f"a frame's header is no message: {_reason(error)}", code="protocol") from None
    return message


def encode(value: object) -> bytes:
    """Registers and other state, as stored by acceptors, journals and checkpoints."""
    return _encoder.encode(value)


def decode_value(kind: type[T], data: bytes) -> T:
    """The inverse of `encode` for a value of the type `kind`; raises ProtocolError if it is none."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[return-value]
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProtocolError(f"stored bytes are no {kind.__name__}: {_reason(error)}", code="protocol") from None


def _reason(error: Exception) -> str:
    """What msgspec says, which may quote what was received: megabytes of it, in any characters."""
    text = str(error)
    return text[:REASON_CHARS_MAX] if text.isprintable() else ascii(text[:REASON_CHARS_MAX])
