"""The types of fields in messages and registers, with bounds that are checked when bytes are decoded.

Whatever comes from a remote side has passed them, so nothing behind the boundary has to ask whether an epoch is negative, a port a port,
or a name a megabyte long.
"""

from typing import Annotated, Final

import msgspec

from streamq.model.limits import FRAME_PAYLOAD_BYTES_MAX, KEY_CHARS_MAX, OFFSET_MAX, REPLICAS_MAX

__all__ = ["U63", "Copies", "Epoch", "Id16", "Identity", "Key", "Name", "Number", "Port", "Text", "Value"]

IDENTITY_BYTES_MAX: Final = 64

U63 = Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]
Number = U63 | Annotated[float, msgspec.Meta(ge=0, le=float(OFFSET_MAX))]
"""What is measured: neither infinite nor "not a number"."""
Epoch = Annotated[int, msgspec.Meta(ge=1, le=OFFSET_MAX)]
"""Of a segment: epoch 0 never exists."""
Copies = Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)]
"""N, W and R."""
Port = Annotated[int, msgspec.Meta(ge=0, le=(1 << 16) - 1)]
Id16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Identity = Annotated[bytes, msgspec.Meta(max_length=IDENTITY_BYTES_MAX)]
"""An incarnation, or what else is drawn at random and compared whole; empty where there is none."""
Key = Annotated[str, msgspec.Meta(max_length=KEY_CHARS_MAX)]
"""Of a register, or the beginning of such keys."""
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Value = Annotated[bytes, msgspec.Meta(max_length=FRAME_PAYLOAD_BYTES_MAX)]
