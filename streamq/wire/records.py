"""Records in a batch's payload: `[[time, key, value, headers], …]` in MessagePack. Producer and consumer use it, brokers never do.

`time` is milliseconds after the batch's first timestamp, nil for exactly that; `key` is bytes or nil, `value` bytes or nil,
`headers` a map of text to bytes, or nil.
"""

from collections.abc import Sequence
from typing import Final

import msgpack

from streamq.model.errors import CorruptDataError

__all__ = ["Row", "pack_rows", "unpack_rows"]

Row = tuple[int | None, bytes | None, bytes | None, dict[str, bytes] | None]
_packer: Final = msgpack.Packer(autoreset=True)


def pack_rows(rows: Sequence[Row]) -> bytes:
    return _packer.pack(rows)  # type: ignore[no-any-return]


def unpack_rows(raw: bytes, *, records: int) -> list[list[object]]:
    """As many rows as the header announced, or CorruptDataError."""
    try:
        rows = msgpack.unpackb(raw, max_map_len=1024, max_array_len=records if records > 4 else 4, strict_map_key=True)
    except Exception as error:  # msgpack raises several unrelated classes for bad bytes
        raise CorruptDataError(f"a batch's records do not unpack: {error}", code="data_damaged") from None
    if not isinstance(rows, list) or len(rows) != records:
        raise CorruptDataError(f"a batch of {records} records holds something else", code="data_damaged")
    return rows
