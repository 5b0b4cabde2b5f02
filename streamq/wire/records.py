"""Records in a batch's payload: `[[time, key, value, headers], …]` in MessagePack. Producer and consumer use it, brokers never do.

`time` is milliseconds after the batch's first timestamp, nil for exactly that; `key` is bytes or nil, `value` bytes or nil,
`headers` a map of text to bytes, or nil. Types are checked while the bytes are decoded, so what comes out can be trusted to be records.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from streamq.model.errors import CorruptDataError

__all__ = ["Row", "UnpackedRow", "pack_rows", "unpack_rows"]

Row = tuple[int | None, bytes | None, bytes | None, dict[str, bytes] | None]


class UnpackedRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """As quickly made as a tuple, and the garbage collector does not count it: a batch holds many thousands."""

    time: int | None
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] | None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[UnpackedRow])


def pack_rows(rows: Sequence[Row]) -> bytes:
    return _encoder.encode(rows)


def unpack_rows(raw: bytes, *, records: int) -> list[UnpackedRow]:
    """As many rows as the header announced, or CorruptDataError."""
    try:
        rows = _decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CorruptDataError(f"a batch's records do not unpack: {error}", code="data_damaged") from None
    if len(rows) != records:
        raise CorruptDataError(f"a batch of {records} records holds {len(rows)}", code="data_damaged")
    return rows
