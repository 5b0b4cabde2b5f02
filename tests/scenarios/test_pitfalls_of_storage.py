"""Pitfalls of storage: what a sync covers, values that look like markers, cuts, and derived files that lie. On real files and real threads,
or on a simulated disk where the power fails."""

import errno
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import msgspec
import pytest
import trio

from streamq.model.batches import Batch
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.file_ops import FileOps, replace_file
from streamq.storage.interface import Run, StorageFailedError
from streamq.storage.log_index import FileIndex, save_index
from streamq.wire.batch_format import encode_batch
from tests.sim.disk import DATA, HostCrashError
from tests.support.simulated_storage import formatted_disk, opened_on
from tests.support.stored_batches import P1, P2, SMALL, Tokens, batch, batches, make_directory, read_all, running, store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "data")


# --- what a sync covers ------------------------------------------------------------------------------------------------------------


class SlowJournal(FileOps):
    """Syncs of the journal take their time; `covered` is what was written before the beginning of one that has ended."""

    def __init__(self) -> None:
        self.covered = b""
        self.overlapped = 0
        self._written: list[bytes] = []
        self._lock = threading.Lock()
        self._random = random.Random(41)
        self._journals: set[int] = set()

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        if path.suffix == ".journal":
            self._journals.add(fd)
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        done = super().pwritev(fd, buffers, offset)
        if fd in self._journals:
            with self._lock:
                self._written.append(b"".join(buffers)[:done])
        return done

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            begun, self._written = self._written, []
        time.sleep(self._random.random() * 0.003)
        super().fdatasync(fd)
        with self._lock:
            self.covered += b"".join(begun)


async def test_what_is_given_back_was_written_before_its_sync_began(directory: Path) -> None:
    """Pitfall 41: batches arrive while a sync is under way; that sync says nothing about them."""
    ops = SlowJournal()
    storage = DiskStorage.open(directory, settings=SMALL, ops=ops)
    waiting: set[bytes] = set()
    given = 0

    def take(tokens: list[object]) -> None:
        nonlocal given
        ops.overlapped += len(waiting) > len(tokens)
        for token in tokens:
            assert isinstance(token, bytes)
            assert token in ops.covered
            waiting.discard(token)
            given += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.run, take)
        for held in batches(0, 400):
            waiting.add(held.payload)
            storage.append([held], [], held.payload)
            await trio.sleep(0.0005)
        with trio.fail_after(10):
            while waiting:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert given == 200
    assert ops.overlapped > 10, "nothing was appended while a sync was under way"


# --- values that look like markers -------------------------------------------------------------------------------------------------


def root_of(f: Callable[[int], int]) -> int:
    """The 32-bit number of which `f`, a checksum over it, is zero: f(x) ^ f(0) is linear in the bits of x."""
    rows = [(f(1 << bit) ^ f(0), 1 << bit) for bit in range(32)]
    wanted, x = f(0), 0
    for bit in reversed(range(32)):
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        assert pivot is not None
        rows = [(row[0] ^ pivot[0], row[1] ^ pivot[1]) if row[0] >> bit & 1 else row for row in rows if row is not pivot]
        if wanted >> bit & 1:
            wanted, x = wanted ^ pivot[0], x ^ pivot[1]
    assert f(x) == 0
    return x


def with_zero_checksums(base: int) -> Batch:
    """A batch whose payload and whose header both have the checksum 0."""
    plain = batch(base).header
    last = root_of(lambda x: google_crc32c.value(b"payload of " + x.to_bytes(4, "little")))
    payload = b"payload of " + last.to_bytes(4, "little")

    def made(x: int) -> Batch:
        times = {"first_timestamp": x, "max_timestamp": 1 << 40, "raw_bytes": len(payload)}
        return encode_batch(msgspec.structs.replace(plain, **times), payload)

    found = made(root_of(lambda x: int.from_bytes(made(x).head[4:8], "little")))
    assert found.head[4:8] == found.head[24:28] == bytes(4)
    return found


async def test_checksums_of_zero_and_bytes_of_zero_are_ordinary(directory: Path) -> None:
    """Pitfall 43: neither passes for room that was never written, in the journal or in a log file, at the end of either or before it."""
    nothing = encode_batch(msgspec.structs.replace(batch(4).header, raw_bytes=12_288), bytes(12_288))
    stored = [batch(0), with_zero_checksums(2), nothing, batch(6), with_zero_checksums(8)]
    states: dict[str, bytes | None] = {"zeros": bytes(9_000), "empty": b""}
    storage = DiskStorage.open(directory, settings=SMALL)
    for held in stored:
        await store(storage, held, states=states)
    copy = directory.with_name("killed")
    shutil.copytree(directory, copy)
    await storage.close()
    for place in (copy, directory):
        after = DiskStorage.open(place, settings=SMALL)
        assert after.lost == ()
        assert dict(after.states()) == states
        assert await read_all(after, P1, 1, 0) == stored
        await after.close()


# --- cuts --------------------------------------------------------------------------------------------------------------------------


class CutAndGoOn:
    """Epoch 1 is cut at 12 of 20, epoch 2 goes on there; then another partition is dropped and begun anew. `given`: what came back."""

    def __init__(self) -> None:
        self.given = Tokens()

    async def live(self, storage: DiskStorage) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.run, self.given.take)
            storage.append([*batches(0, 20), *batches(0, 20, partition=P2)], [], "written")
            await self.given.until("written")
            storage.cut(P1, 1, 12)
            storage.append([batch(12, epoch=2)], [], "gone on")
            await self.given.until("gone on")
            await storage.flush()
            storage.drop(P2)
            storage.append([batch(40, partition=P2, epoch=3)], [], "begun anew")
            await self.given.until("begun anew")
            await storage.flush()
            nursery.cancel_scope.cancel()

    async def check(self, storage: DiskStorage) -> None:
        assert storage.lost == ()
        mine, others = dict(storage.runs(P1)), dict(storage.runs(P2))
        if 2 in mine or "gone on" in self.given.given:
            assert mine == {1: Run(0, 12), 2: Run(12, 14)}
        if 3 in others or "begun anew" in self.given.given:
            assert others == {3: Run(40, 42)}
        for partition, runs in ((P1, mine), (P2, others)):
            for epoch, run in runs.items():
                assert await read_all(storage, partition, epoch, run.base) == batches(run.base, run.tail, partition=partition, epoch=epoch)


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_cut_never_comes_back_behind_what_followed_it(seed: int) -> None:
    """Pitfall 45: the power fails before each operation in turn. Once something of the next epoch is there, the cut before it holds."""
    for operations in range(400):
        disk = formatted_disk(random.Random(f"{seed} {operations}"))
        storage = opened_on(disk)
        disk.crash_after(operations)
        life = CutAndGoOn()
        try:
            await life.live(storage)
        except* (HostCrashError, StorageFailedError):
            pass
        has_ended = "begun anew" in life.given.given
        disk.crash()
        await life.check(opened_on(disk))
        if has_ended:
            assert operations > 20
            return
    raise AssertionError("it never comes to its end")


@pytest.mark.parametrize("keeps_names", [True, False])
def test_a_replaced_file_is_the_old_or_the_new_one_and_then_the_new(keeps_names: bool) -> None:
    """Pitfall 46: at whichever operation the power fails; once it is replaced, no crash brings the old one back."""
    path, old, new = DATA / "checkpoint.a", b"old" * 500, b"new" * 700
    for operations in range(20):
        disk = formatted_disk(random.Random(operations))
        replace_file(disk.ops, path, old)
        disk.crash_after(operations)
        has_failed = False
        try:
            replace_file(disk.ops, path, new)
        except HostCrashError:
            has_failed = True
        disk.crash(keeps_names=keeps_names)
        found = bytes(disk.content(path))
        assert found == new or (has_failed and found == old)
        if not has_failed:
            assert operations > 3
            return
    raise AssertionError("it never comes to its end")


class NoRoomFor(FileOps):
    """A disk that is full as soon as a file of that name is written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._full: set[int] = set()

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        (self._full.add if path.name.startswith(self.name) else self._full.discard)(fd)
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        if fd in self._full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().pwritev(fd, buffers, offset)


async def test_the_journal_is_kept_until_both_checkpoints_are_written(directory: Path) -> None:
    """P-27: there was room for one copy only; when that rots, the older one and the whole journal behind it are all there is."""
    await store(first := DiskStorage.open(directory, settings=SMALL), *batches(0, 20))
    await first.close()
    storage = DiskStorage.open(directory, settings=SMALL, ops=NoRoomFor("checkpoint.b"))
    async with running(storage) as tokens:
        for base in range(20, 800, 20):
            storage.append(batches(base, base + 20, size=4_000), [], base)
            await tokens.until(base)
            await storage.flush()
        copy = directory.with_name("killed")
        shutil.copytree(directory, copy)
    damaged = bytearray((copy / "checkpoint.a").read_bytes())
    damaged[40] ^= 1
    (copy / "checkpoint.a").write_bytes(damaged)
    after = DiskStorage.open(copy, settings=SMALL)
    assert after.lost == ()
    assert await read_all(after, P1, 1, 0) == [*batches(0, 20), *batches(20, 800, size=4_000)]


# --- derived files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["positions", "offsets", "covers too much"])
async def test_an_index_that_lies_misleads_nobody(directory: Path, lie: str) -> None:
    """Pitfall 47: its own checksum holds, it names the right file, and what it says is wrong."""
    stored = batches(0, 2_000, size=1_000)
    storage = DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL, log_file_bytes=1 << 20, flush_bytes=1 << 19))
    async with running(storage) as tokens:
        for held in stored:
            storage.append([held], [], held.base)
        await tokens.until(stored[-1].base)
    await storage.close()
    files = sorted(directory.glob("logs/*/*.log"), key=lambda path: int(path.stem.split("-")[1]))
    incarnation = storage.identity.incarnation
    rows = 0
    for path in files:
        index = FileIndex(int(path.stem.split("-")[1]), 128)
        position = index.covered.position
        for held in stored[index.covered.offset // 2 :]:
            if position + held.size > path.stat().st_size:
                break
            index.note(held.header, position)
            position += held.size
        for row in range(1, len(index)):
            index._positions[row] += {"positions": 7}.get(lie, 0)
            index._offsets[row] += {"offsets": 2}.get(lie, 0)
        if lie == "covers too much":
            index._covered = index._covered._replace(offset=index._covered.offset + 40, position=index._covered.position + 4_000)
        save_index(FileOps(), path, index, incarnation=incarnation)
        rows += len(index) - 1
    assert rows > 5
    after = DiskStorage.open(directory, settings=SMALL)
    for offset in range(0, 2_000, 77):
        found = await after.read(P1, 1, offset, max_bytes=1)
        assert found == [stored[offset // 2]]
        assert await after.find_time(P1, 1, 1000 + offset) == max(0, (offset - 1) // 2 * 2)
    assert await read_all(after, P1, 1, 0) == stored
    await after.close()
