"""What the values of a topic mean: codecs between objects and bytes, for producers and consumers alike.

A codec is anything with `encode` and `decode`; these are the usual ones. Bytes need none.
"""

from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import msgspec

__all__ = ["Codec", "Json", "MsgPack", "Structs", "Text"]

T = TypeVar("T")


class Codec(Protocol[T]):
    def encode(self, value: T) -> bytes:
        """Raises any exception for what it cannot encode."""

    def decode(self, data: bytes) -> T:
        """Raises any exception for what is no encoding."""


class _Text:
    """UTF-8."""

    def encode(self, value: str) -> bytes:
        return value.encode("utf-8")

    def decode(self, data: bytes) -> str:
        return data.decode("utf-8")


class _Json:
    """Whatever JSON can say."""

    def encode(self, value: Any) -> bytes:
        return msgspec.json.encode(value)

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data)


class _MsgPack:
    """Whatever MessagePack can say."""

    def encode(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def decode(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data)


Text: Final = _Text()
Json: Final = _Json()
MsgPack: Final = _MsgPack()


class Structs(Generic[T]):
    """Values of one type that msgspec knows (a Struct, a dataclass, …), checked when they are decoded: `Structs(Order)`."""

    def __init__(self, kind: type[T], *, encoding: Literal["json", "msgpack"] = "json") -> None:
        self.kind: Final = kind
        self._encode = msgspec.json.Encoder().encode if encoding == "json" else msgspec.msgpack.Encoder().encode
        self._decode = msgspec.json.Decoder(kind).decode if encoding == "json" else msgspec.msgpack.Decoder(kind).decode

    def encode(self, value: T) -> bytes:
        """Raises TypeError for another type: it would not come back."""
        if not isinstance(value, self.kind):
            raise TypeError(f"a {type(value).__name__} is no {self.kind.__name__}")
        return self._encode(value)

    def decode(self, data: bytes) -> T:
        return self._decode(data)
