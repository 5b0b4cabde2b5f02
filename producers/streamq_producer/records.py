"""A record on its way into a batch: what it may be, how large it counts, which partition its key means."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import google_crc32c

from streamq.model.errors import RefusedError
from streamq.model.limits import HEADERS_PER_RECORD_MAX, OFFSET_MAX, RECORD_BYTES_MAX, RECORD_ID_BYTES_MAX

__all__ = [
    "RECORD_OVERHEAD_BYTES",
    "check_values",
    "checked_headers",
    "checked_record",
    "checked_timestamp",
    "hash_of_id",
    "partition_of",
]

RECORD_OVERHEAD_BYTES: Final = 8
"""Counted for each record and each header besides its bytes, about what packing adds."""


def partition_of(key: bytes, *, partitions: int) -> int:
    """CRC-32C (Castagnoli) of the key, modulo the number of partitions; the same in every language."""
    crc: int = google_crc32c.value(key)
    return crc % partitions


def hash_of_id(id: bytes) -> bytes:
    """BLAKE2b of 16 bytes, which a batch has in place of a producer's id; the same in every language. Raises RefusedError or TypeError."""
    if not isinstance(id, bytes):
        raise TypeError(f"a record's id must be bytes, not {type(id).__name__}")
    if not 0 < len(id) <= RECORD_ID_BYTES_MAX:
        raise RefusedError(f"a record's id has 1 to {RECORD_ID_BYTES_MAX} bytes, not {len(id)}", code="bad_request")
    return hashlib.blake2b(id, digest_size=16).digest()


def as_bytes(value: object, what: str) -> bytes | None:
    """The slow path for what is not `bytes`: None stays, other buffers are copied. Raises TypeError, for text too."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a record's {what} must be bytes or None, not {type(value).__name__}")


def checked_headers(headers: Mapping[str, bytes]) -> tuple[dict[str, bytes], int]:
    """The headers and how large they count. Raises RefusedError or TypeError."""
    if len(headers) > HEADERS_PER_RECORD_MAX:
        message = f"a record has at most {HEADERS_PER_RECORD_MAX} headers, not {len(headers)}"
        raise RefusedError(message, code="record_too_large")
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, bytes):
            raise TypeError(f"a header maps text to bytes, not {type(name).__name__} to {type(value).__name__}")
        size += len(name.encode()) + len(value) + RECORD_OVERHEAD_BYTES
    return dict(headers), size


def checked_timestamp(timestamp: int) -> int:
    if not isinstance(timestamp, int) or not 0 <= timestamp <= OFFSET_MAX:
        raise RefusedError(f"a timestamp is milliseconds since 1970, not {timestamp!r}", code="bad_request")
    return timestamp


def record_bytes(key: bytes | None, value: bytes | None, headers_bytes: int) -> int:
    """How large the record counts. Raises RefusedError."""
    size = (len(value) if value is not None else 0) + (len(key) if key is not None else 0) + headers_bytes
    if size > RECORD_BYTES_MAX:
        raise too_large(size)
    return size + RECORD_OVERHEAD_BYTES


def too_large(size: int) -> RefusedError:
    hint = "split it, or store it elsewhere and send a reference"
    return RefusedError(f"a record of {size} bytes; {RECORD_BYTES_MAX} are allowed", code="record_too_large", hint=hint)


def checked_record(
    value: bytes | None, key: bytes | None, headers: Mapping[str, bytes] | None
) -> tuple[bytes | None, bytes | None, dict[str, bytes] | None, int]:
    """Key, value and headers as a row has them, and how large the record counts. Raises RefusedError or TypeError."""
    if value.__class__ is not bytes:
        value = as_bytes(value, "value")
    if key is not None and key.__class__ is not bytes:
        key = as_bytes(key, "key")
    own_headers, headers_bytes = checked_headers(headers) if headers else (None, 0)
    return key, value, own_headers, record_bytes(key, value, headers_bytes)


def check_values(values: list[bytes], keys: Sequence[bytes | None] | None, headers_bytes: int) -> None:
    """Before anything is taken: types, sizes, as many keys as values."""
    if not values:
        raise RefusedError("there is nothing to send: an empty list of values", code="bad_request")
    if set(map(type, values)) != {bytes}:
        raise TypeError("the values given to enqueue_many must be bytes")
    largest = max(map(len, values))
    if keys is not None:
        if len(keys) != len(values):
            raise RefusedError(f"{len(keys)} keys for {len(values)} values", code="bad_request")
        if not set(map(type, keys)) <= {bytes, type(None)}:
            raise TypeError("the keys given to enqueue_many must be bytes or None")
        largest = max(len(value) + (len(key) if key else 0) for value, key in zip(values, keys, strict=True))
    if largest + headers_bytes > RECORD_BYTES_MAX:
        raise too_large(largest + headers_bytes)
