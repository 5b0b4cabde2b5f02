"""Values of any wire type, well-formed and wild: fields at their extremes, or close to what a test's cluster really has.

The types themselves say what may stand in a field, so a message that is added tomorrow is made here tomorrow. A `random.Random` decides,
which may be Hypothesis's own: then failures shrink.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec.inspect import (
    BoolType,
    BytesType,
    CustomType,
    DictType,
    EnumType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NamedTupleType,
    NoneType,
    StrType,
    StructType,
    TupleType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from streamq.model.limits import OFFSET_MAX

__all__ = ["INT_MAX", "INT_MIN", "Pool", "Wild"]

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 64) - 1
"""MessagePack's range."""
EDGES: Final = (0, 1, 2, 3, 127, 128, 255, 256, 65_535, 65_536, 1 << 31, (1 << 32) - 1, 1 << 53, 1 << 62, OFFSET_MAX - 1, OFFSET_MAX)
BEYOND: Final = (-1, -2, INT_MIN, 1 << 63, INT_MAX)
TEXTS: Final = ("", "a", "b1", ".", "\0", "\n", "é", "\U0001f600", "x" * 31, "x" * 32, "y" * 200, "z" * 256, "%s%n", "../..", "\x1b[31m")


class Pool:
    """What is close to the truth: numbers, texts and bytes that mean something to the receiver."""

    def __init__(self, *, numbers: Sequence[int] = (), texts: Sequence[str] = (), identities: Sequence[bytes] = ()) -> None:
        self.numbers = list(numbers)
        self.texts = list(texts)
        self.identities = list(identities)


class Wild:
    """`value(kind)` makes one value of the type; `share` is how often it is taken from the pool where something there fits."""

    def __init__(self, rng: random.Random, pool: Pool | None = None, *, share: float = 0.7, length_max: int = 4) -> None:
        self.rng = rng
        self.pool = pool or Pool()
        self.share = share
        self.length_max = length_max
        self._makers: dict[type[Type], Callable[[Any], object]] = {
            BoolType: lambda _: rng.random() < 0.5,
            NoneType: lambda _: None,
            IntType: self._int,
            FloatType: self._float,
            StrType: self._str,
            BytesType: self._bytes,
            LiteralType: lambda kind: rng.choice(kind.values),
            EnumType: lambda kind: rng.choice(list(kind.cls)),
            UnionType: lambda kind: self._of(rng.choice(kind.types)),
            TupleType: lambda kind: tuple(self._of(each) for each in kind.item_types),
            VarTupleType: lambda kind: tuple(self._items(kind.item_type, kind.min_length or 0)),
            ListType: lambda kind: self._items(kind.item_type),
            DictType: self._dict,
            NamedTupleType: lambda kind: kind.cls(*(self._of(field.type) for field in kind.fields)),
            StructType: lambda kind: kind.cls(*(self._of(field.type) for field in kind.fields)),
            Metadata: lambda kind: self._of(kind.type),
            CustomType: self._unknown,
        }

    def value(self, kind: object) -> Any:
        return self._of(type_info(kind))

    def _of(self, kind: Type) -> object:
        return self._makers[type(kind)](kind)

    def _unknown(self, kind: Type) -> object:
        raise NotImplementedError(f"no values of {kind} are made yet")

    def _int(self, kind: IntType) -> int:
        low = INT_MIN if kind.ge is None else kind.ge
        high = INT_MAX if kind.le is None else kind.le
        rng = self.rng
        if self.pool.numbers and rng.random() < self.share:
            number = rng.choice(self.pool.numbers) + rng.choice((0, 0, 0, 1, -1))
        elif rng.random() < 0.9:
            number = rng.choice(EDGES) if rng.random() < 0.7 else rng.choice(BEYOND)
        else:
            number = rng.getrandbits(64) + INT_MIN * (rng.random() < 0.5)
        return int(min(max(number, low), high))

    def _float(self, kind: FloatType) -> float:
        low = float(INT_MIN) if kind.ge is None else kind.ge
        high = float(INT_MAX) if kind.le is None else kind.le
        number = self.rng.choice((0.0, 1e-300, 0.5, 1.5, 1e9, -1.5, low, high))
        return float(min(max(number, low), high))

    def _str(self, kind: StrType) -> str:
        rng = self.rng
        high = kind.max_length
        if self.pool.texts and rng.random() < self.share:
            text = rng.choice(self.pool.texts)
        elif rng.random() < 0.95:
            text = rng.choice(TEXTS)
        else:
            text = rng.choice("xé") * rng.choice((255, 1_100, 4_096, 20_000))
        return text if high is None else text[:high]

    def _bytes(self, kind: BytesType) -> bytes:
        rng = self.rng
        low, high = kind.min_length or 0, kind.max_length
        if self.pool.identities and rng.random() < self.share:
            content = rng.choice(self.pool.identities)
        else:
            content = rng.randbytes(rng.choice((0, 1, 15, 16, 16, 16, 17, 64)))
        content = content.ljust(low, b"\0")
        return content if high is None else content[:high]

    def _items(self, kind: Type, low: int = 0) -> list[object]:
        return [self._of(kind) for _ in range(max(low, self.rng.randrange(self.length_max + 1)))]

    def _dict(self, kind: DictType) -> dict[object, object]:
        return {self._of(kind.key_type): self._of(kind.value_type) for _ in range(self.rng.randrange(self.length_max + 1))}


def unruly(rng: random.Random, depth: int = 4) -> object:
    """Any MessagePack value, of no type in particular."""
    choice = rng.randrange(8 if depth else 5)
    if choice == 0:
        return rng.choice((None, True, False, 1.5, float("nan")))
    if choice == 1:
        return rng.choice((*EDGES, *BEYOND))
    if choice == 2:
        return rng.choice(TEXTS)
    if choice == 3:
        return rng.randbytes(rng.choice((0, 1, 16, 40)))
    if choice == 4:
        return msgspec.msgpack.Ext(rng.randrange(-128, 128), rng.randbytes(3))
    if choice == 5:
        return {rng.choice(TEXTS): unruly(rng, depth - 1) for _ in range(rng.randrange(3))}
    return [unruly(rng, depth - 1) for _ in range(rng.randrange(5))]
