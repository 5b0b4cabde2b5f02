"""Valid encodings made wrong: bits, lengths, cuts, splices. What a coverage-guided fuzzer finds by itself is tried here by chance."""

import random
import struct
from collections.abc import Sequence
from typing import Final

__all__ = ["INPUT_BYTES_MAX", "mutate"]

INPUT_BYTES_MAX: Final = 64 << 10
EDGES: Final = (0, 1, 15, 16, 31, 32, 127, 128, 255, 256, 65_535, 65_536, (1 << 22) - 1, 1 << 22, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
MARKERS: Final = bytes([0x80, 0x8F, 0x90, 0x91, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xFF])
"""MessagePack's type bytes: lengths of every width, and what takes none."""


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes; `others` are what it may be spliced with."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        _change(rng, out, rng.choice(others) if others else data)
    return bytes(out[:INPUT_BYTES_MAX])


def _change(rng: random.Random, out: bytearray, other: bytes) -> None:
    at = rng.randrange(len(out) + 1)
    choice = rng.randrange(9)
    if choice == 0 and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif choice == 1 and at < len(out):
        out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif choice == 2:
        del out[at:]
    elif choice == 3:
        del out[at : at + rng.choice((1, 1, 2, 4, 16))]
    elif choice == 4 and at < len(out):
        out[at] = rng.choice(MARKERS)
    elif choice == 5:
        out[at : at + 4] = struct.pack(rng.choice(("<I", ">I")), rng.choice(EDGES))
    elif choice == 6:
        _insert_marker(rng, out, at)
    elif choice == 7:
        cut = rng.randrange(len(other) + 1)
        out[at : at + rng.choice((0, 8, len(out)))] = other[cut : cut + rng.choice((4, 32, 1 << 16))]
    else:
        out[at:at] = out[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 2, 200))


def _insert_marker(rng: random.Random, out: bytearray, at: int) -> None:
    """A length that announces more than comes, in any width."""
    marker = rng.choice((0xC6, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xCF, 0xD3))
    width = {0xDC: ">H", 0xDE: ">H", 0xCF: ">Q", 0xD3: ">q"}.get(marker, ">I")
    number = rng.choice(EDGES) & ((1 << (8 * struct.calcsize(width) - (width == ">q"))) - 1)
    out[at : at + rng.choice((0, 1))] = bytes([marker]) + struct.pack(width, number)
