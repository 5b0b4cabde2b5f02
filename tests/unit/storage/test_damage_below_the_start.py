"""P-41, P-30: rot in what was trimmed, in a log file that also holds what was not, takes nothing from anybody.

No other replica could mend it: there the files begin elsewhere."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from streamq.model.batches import Batch
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import DamagedRangeError
from streamq.wire.batch_format import encode_batch
from tests.support.stored_batches import P1, SMALL, batch, batches, make_directory, read_all, store

HEADER = 128
"""Of a log file."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "data")


async def stored(directory: Path, *held: Batch, start: int) -> DiskStorage:
    """Everything lies in one file that has no index yet, as after a restart."""
    settings = msgspec.structs.replace(SMALL, log_file_bytes=8 << 20)
    storage = DiskStorage.open(directory, settings=settings)
    await store(storage, *held)
    await storage.close()
    for sidecar in directory.glob("logs/*/*.index"):
        sidecar.unlink()
    storage = DiskStorage.open(directory, settings=settings)
    storage.trim(P1, start)
    return storage


def rot(directory: Path, held: Sequence[Batch], *indexes: int, at: int = 30, size: int = 1) -> None:
    """In the headers of these batches."""
    (path,) = directory.glob("logs/*/*.log")
    content = bytearray(path.read_bytes())
    for index in indexes:
        position = HEADER + sum(each.size for each in held[:index]) + at
        content[position : position + size] = bytes(byte ^ 0x55 for byte in content[position : position + size])
    path.write_bytes(content)


@pytest.mark.parametrize("size", [60, 50_000])  # the index has no entry, or many
async def test_what_is_wanted_is_read_past_it_and_again_after_a_restart(directory: Path, size: int) -> None:
    held = batches(0, 80, size=size)
    storage = await stored(directory, *held, start=60)
    rot(directory, held, 0, 10, 11, 25)
    assert await read_all(storage, P1, 1, 60) == held[30:]
    assert await read_all(storage, P1, 1, 70) == held[35:]
    assert [header.base for header in await storage.headers(P1, 1, 64, max_batches=2)] == [64, 66]
    assert await storage.find_time(P1, 1, 1000 + 72) == 70
    await storage.close()
    storage = DiskStorage.open(directory)
    storage.trim(P1, 60)
    assert await read_all(storage, P1, 1, 60) == held[30:]


async def test_a_read_that_begins_below_is_given_no_gap(directory: Path) -> None:
    """A peer that is behind may ask for it, or the fold of a table."""
    held = batches(0, 80)
    storage = await stored(directory, *held, start=60)
    rot(directory, held, 10)
    assert await storage.read(P1, 1, 0, max_bytes=1 << 20) == held[:10]
    with pytest.raises(DamagedRangeError) as raised:
        await storage.read(P1, 1, 20, max_bytes=1 << 20)
    assert (raised.value.base, raised.value.end) == (20, 22)
    assert await read_all(storage, P1, 1, 60) == held[30:]  # from now on the index begins behind the damage
    for offset in (0, 2, 20, 21):
        with pytest.raises(DamagedRangeError) as raised:
            await read_all(storage, P1, 1, offset)
        assert (raised.value.base, raised.value.end) == (offset, 22)


@pytest.mark.parametrize(("bad", "end"), [((28, 29, 30, 31), 64), ((28, 29, 30, 31, 45), 92), ((10, 45), 92), ((29, 79), 160)])
async def test_damage_across_the_start_is_restored_from_there_on(directory: Path, bad: Sequence[int], end: int) -> None:
    """Only up to the end of the damage is known what lies where: it takes all of it."""
    held = batches(0, 160)
    storage = await stored(directory, *held, start=60)
    rot(directory, held, *bad)
    with pytest.raises(DamagedRangeError) as raised:
        await storage.read(P1, 1, 60, max_bytes=1 << 20)
    assert (raised.value.base, raised.value.end) == (60, end)
    with pytest.raises(DamagedRangeError):
        await storage.restore(P1, 1, held[30:31])
    await storage.restore(P1, 1, held[30 : end // 2])
    assert await read_all(storage, P1, 1, 60) == held[30:]
    assert await read_all(storage, P1, 1, 120) == held[60:]


async def test_a_file_that_is_gone_is_restored_from_the_start_on(directory: Path) -> None:
    held = batches(0, 80)
    storage = await stored(directory, *held, start=60)
    (path,) = directory.glob("logs/*/*.log")
    path.unlink()
    with pytest.raises(DamagedRangeError):
        await storage.read(P1, 1, 60, max_bytes=1 << 20)
    await storage.restore(P1, 1, held[30:])
    assert await read_all(storage, P1, 1, 60) == held[30:]
    assert await read_all(storage, P1, 1, 70) == held[35:]


async def test_headers_inside_a_payload_below_it_lead_nowhere(directory: Path) -> None:
    """They look as they should, and those behind them too; only they do not lead to the end of the file."""
    inner = b"".join(each.head + each.payload for each in batches(40, 80, size=200))
    evil = encode_batch(msgspec.structs.replace(batch(20).header, raw_bytes=len(inner)), inner)
    held = [*batches(0, 20), evil, *batches(22, 80)]
    storage = await stored(directory, *held, start=60)
    rot(directory, held, 10)
    assert await read_all(storage, P1, 1, 60) == held[30:]
