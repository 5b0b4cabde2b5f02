"""A topic whose values are objects: encoded before anything is taken."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from streamq.client.codecs import Codec
from streamq.model.errors import RefusedError
from streamq_producer.delivery import Delivery, Receipt

if TYPE_CHECKING:
    from streamq_producer.producer import Producer

__all__ = ["TypedTopic", "encoded", "encoded_many"]

T = TypeVar("T")


def encoded(codec: Codec[T], value: T | None) -> bytes | None:
    """None stays None. Raises RefusedError for a value that the codec cannot encode."""
    if value is None:
        return None
    try:
        return codec.encode(value)
    except Exception as error:
        raise RefusedError(f"a {type(value).__name__} could not be encoded: {error}", code="bad_value") from error


def encoded_many(codec: Codec[T], values: Iterable[T]) -> list[bytes]:
    """All of them, or RefusedError."""
    data: list[bytes] = []
    for value in values:
        one = encoded(codec, value)
        if one is None:
            raise RefusedError("None among many values", code="bad_value", hint="send a tombstone by itself")
        data.append(one)
    return data


class TypedTopic(Generic[T]):
    """One topic of a producer, with a codec. Its methods are the producer's, with objects for values, and raise what those raise;
    RefusedError (`bad_value`) for a value that cannot be encoded, of which nothing was taken then."""

    def __init__(self, producer: "Producer", topic: str, codec: Codec[T]) -> None:
        self.topic: Final = topic
        self._producer = producer
        self._codec = codec

    async def send(
        self,
        value: T | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        id: bytes | None = None,
    ) -> Receipt:
        data = encoded(self._codec, value)
        return await self._producer.send(self.topic, data, key=key, headers=headers, timestamp=timestamp, partition=partition, id=id)

    async def enqueue(
        self,
        value: T | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
        id: bytes | None = None,
    ) -> Delivery:
        data = encoded(self._codec, value)
        return await self._producer.enqueue(self.topic, data, key=key, headers=headers, timestamp=timestamp, partition=partition, id=id)

    async def enqueue_many(
        self,
        values: Iterable[T],
        *,
        keys: Sequence[bytes | None] | None = None,
        headers: Mapping[str, bytes] | None = None,
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> list[Delivery]:
        data = encoded_many(self._codec, values)
        return await self._producer.enqueue_many(self.topic, data, keys=keys, headers=headers, timestamp=timestamp, partition=partition)
