"""Batches and records whose checksums and counts hold, with anything else in them that fits."""

import random
from typing import Final

from streamq.model.batches import FLAG_CONTROL, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.limits import OFFSET_MAX
from streamq.wire.batch_format import encode_batch
from streamq.wire.compression import compress
from streamq.wire.records import Row, pack_rows
from tests.fuzz.wild import Wild

__all__ = ["PARTITION", "wild_batches", "wild_rows"]

PARTITION: Final = b"partition-of-all"
TIMES: Final = (None, None, 0, 1, -1, 1 << 40, -(1 << 63), (1 << 64) - 1)
TIME_MAX: Final = OFFSET_MAX


def wild_rows(wild: Wild, *, count: int | None = None) -> list[Row]:
    rng = wild.rng
    return [_row(wild) for _ in range(rng.choice((1, 1, 2, 5, 40)) if count is None else count)]


def _row(wild: Wild) -> Row:
    rng = wild.rng
    headers = {wild.value(str)[:40]: rng.randbytes(rng.randrange(4)) for _ in range(rng.randrange(3))} if rng.random() < 0.3 else None
    return (rng.choice(TIMES), _some(rng), _some(rng), headers)


def _some(rng: random.Random) -> bytes | None:
    return rng.choice((None, b"", rng.randbytes(rng.choice((1, 16, 200)))))


def wild_batches(wild: Wild, count: int, *, partition: bytes = PARTITION, epoch: int = 1, base: int = 0) -> bytes:
    """So many back to back in offset order, as a log holds them, compressed or not."""
    rng = wild.rng
    parts: list[bytes] = []
    for _ in range(count):
        rows = wild_rows(wild)
        raw = pack_rows(rows)
        is_small = rng.random() < 0.5
        payload = compress(raw, level=1) if is_small else raw
        producer = rng.choice((NO_PRODUCER, rng.randbytes(16)))
        header = BatchHeader(
            partition, len(rows), 0, len(raw), 0, producer, rng.choice((0, 1, (1 << 32) - 1)), rng.choice((0, 1, OFFSET_MAX)),
            rng.choice((0, 1, TIME_MAX)), rng.choice((0, 1, TIME_MAX)), epoch, base, rng.choice((0, 1, TIME_MAX)),
            compression=1 if is_small else 0, flags=FLAG_CONTROL if len(rows) == 1 and rng.random() < 0.2 else 0,
            mark=rng.choice((0, 1, OFFSET_MAX)),
        )  # fmt: skip
        batch = encode_batch(header, payload)
        parts += [batch.head, batch.payload]
        base += len(rows)
    return b"".join(parts)
