"""Records whose values are objects, decoded one by one: one that cannot be is told with its place, and those behind it come."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Generic, Self, TypeVar

import msgspec

from streamq.client.codecs import Codec
from streamq.model.errors import DecodeError
from streamq_consumer.records import NO_HEADERS, Record

__all__ = ["Decoded", "TypedRecord", "decode", "decoding"]

T = TypeVar("T")


class TypedRecord(msgspec.Struct, Generic[T], frozen=True):
    """A record with its value decoded; None (a tombstone) stays None."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: T | None
    headers: Mapping[str, bytes] = NO_HEADERS


def decode(record: Record, codec: Codec[T]) -> TypedRecord[T]:
    """Raises DecodeError, which has the record and its place."""
    value: T | None = None
    if record.value is not None:
        try:
            value = codec.decode(record.value)
        except Exception as error:
            where = f"{record.topic}/{record.partition}@{record.offset}"
            hint = "the error has the record as it is; go on with the next one, or put it into a dead-letter topic"
            raise DecodeError(f"the value of {where} could not be decoded: {error}", record=record, hint=hint) from error
    return TypedRecord(record.topic, record.partition, record.offset, record.timestamp, record.key, value, record.headers)


def decoding(codec: Codec[T], handler: Callable[[TypedRecord[T]], Awaitable[object]]) -> Callable[[Record], Awaitable[object]]:
    """A handler for `Consumer.run` out of one for typed records. What cannot be decoded is not tried again: it is a dead letter at once."""

    async def handle(record: Record) -> None:
        await handler(decode(record, codec))

    handle.__qualname__ = getattr(handler, "__qualname__", type(handler).__name__)
    return handle


class Decoded(Generic[T]):
    """Typed records as they come. After a DecodeError another loop goes on with the record behind it."""

    def __init__(self, records: AsyncIterator[Record], codec: Codec[T]) -> None:
        self._records = records
        self._codec = codec

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TypedRecord[T]:
        return decode(await self._records.__anext__(), self._codec)
