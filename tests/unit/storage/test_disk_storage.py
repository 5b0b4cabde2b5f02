"""What is special about a storage on a disk: flushes beside everything else, crashes at any moment, damage, full and failing disks."""

import errno
import random
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from streamq.model.batches import Batch
from streamq.model.errors import UnavailableError
from streamq.storage.disk_storage import DiskSettings, DiskStorage
from streamq.storage.file_ops import FileOps
from streamq.storage.flush import FlushOrder, FlushResult
from streamq.storage.interface import DamagedRangeError, LostBatches, LostState, LostUnknown, Run, StorageFailedError
from tests.support.stored_batches import P1, P2, SMALL, batch, batches, make_directory, read_all, running, store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "data")


def opened(directory: Path, **settings: object) -> DiskStorage:
    return DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL, **settings))


def crashed(directory: Path, **settings: object) -> DiskStorage:
    """Opens a copy of the directory as it is now: what a process leaves that is killed."""
    copy = directory.with_name(f"{directory.name}+")
    shutil.copytree(directory, copy)
    return opened(copy, **settings)


async def stopped(directory: Path, stored: Sequence[Batch], **settings: object) -> None:
    """Stores the batches, and stops cleanly: they lie in log files."""
    storage = opened(directory, **settings)
    await store(storage, *stored)
    await storage.close()


def log_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("logs/*/*.log"), key=lambda path: int(path.stem.split("-")[1]))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


# --- flushes -------------------------------------------------------------------------------------------------------------------


async def test_a_directory_is_opened_once(directory: Path) -> None:
    storage = opened(directory)
    with pytest.raises(UnavailableError):
        opened(directory)
    await storage.close()
    await opened(directory).close()


async def test_a_flush_moves_batches_to_log_files_and_frees_journal_and_memory(directory: Path) -> None:
    """A steady stream neither grows the journal nor memory, and all of it can be read while it flows."""
    storage = opened(directory, flush_bytes=200_000, cache_bytes=400_000)
    stored = batches(0, 2000, size=3000)
    async with running(storage) as tokens:
        for held in stored:
            storage.append([held], [], held.base)
            if held.base % 100 == 0:
                await tokens.until(held.base)
                assert storage._runs.memory_cost < 400_000 + 5 * 50 * 4000
                assert storage._journal.bytes_in_use < 4 << 20
                at = held.base // 2
                assert (await storage.read(P1, 1, at, max_bytes=1))[0].base == at // 2 * 2
        await tokens.until(stored[-1].base)
    assert storage.recent(P1, 1, 0, max_bytes=1) is None
    assert await read_all(storage, P1, 1, 0, max_bytes=50_000) == stored
    assert len(log_files(directory)) > 10
    assert await read_all(crashed(directory), P1, 1, 0) == stored


async def test_a_restart_reads_no_log_file_and_only_the_journal_since_the_checkpoint(directory: Path) -> None:
    storage = opened(directory)
    await store(storage, *batches(0, 1000))
    async with running(storage) as tokens:
        await storage.flush()
        storage.append([batch(1000)], [], "behind the checkpoint")
        await tokens.until("behind the checkpoint")
    for path in log_files(directory):
        path.unlink()
    after = crashed(directory)
    assert after._entries == 1
    assert dict(after.runs(P1)) == {1: Run(0, 1002)}


async def test_cuts_and_drops_beside_a_flush(directory: Path) -> None:
    """Whatever a flush under way writes of them, they hold, also after a crash."""
    storage = opened(directory)
    slow = storage._flusher.flush
    async with running(storage) as tokens:
        storage.append([*batches(0, 400), *batches(0, 400, partition=P2), *batches(400, 600, epoch=2)], [], 1)

        def flush_slowly(order: FlushOrder) -> FlushResult:
            trio.from_thread.run_sync(lambda: storage.cut(P1, 1, 300))
            trio.from_thread.run_sync(lambda: storage.drop(P2))
            result = slow(order)
            trio.from_thread.run_sync(lambda: storage.cut(P1, 1, 200))
            trio.from_thread.run_sync(lambda: storage.cut(P1, 2, 400))
            return result

        storage._flusher.flush = flush_slowly  # type: ignore[method-assign]
        await storage.flush()
        storage._flusher.flush = slow  # type: ignore[method-assign]
        storage.append(batches(700, 710, epoch=3), [], 2)
        await tokens.until(2)
        assert dict(crashed(directory).runs(P1)) == {1: Run(0, 200), 3: Run(700, 710)}
        await storage.flush()
        await storage.flush()
        assert dict(storage.runs(P1)) == {1: Run(0, 200), 3: Run(700, 710)}
        assert await read_all(storage, P1, 1, 0) == batches(0, 200)
        assert storage.partitions() == [P1]
    await storage.close()
    assert [path.name for path in log_files(directory)] == ["1-0.log", "3-700.log"]
    after = opened(directory)
    assert await read_all(after, P1, 1, 0) == batches(0, 200)
    assert await after.read(P1, 1, 200, max_bytes=1000) == []


async def test_a_reader_beside_a_flush_does_not_take_a_cut_for_damage(directory: Path) -> None:
    """Files are shortened only when nobody goes by what they held before."""
    storage = opened(directory)
    flush = storage._flusher.flush
    found: list[object] = []

    def flush_and_read(order: FlushOrder) -> FlushResult:
        result = flush(order)
        found.append(trio.from_thread.run(storage.find_time, P1, 1, 1000 + 300))
        found.append(trio.from_thread.run(read_all, storage, P1, 1, 60))
        return result

    async with running(storage):
        storage.append(batches(0, 800, size=4000), [], 1)
        await storage.flush()
        assert storage.recent(P1, 1, 60, max_bytes=1) is None
        storage.cut(P1, 1, 66)
        storage._flusher.flush = flush_and_read  # type: ignore[method-assign]
        await storage.flush()
    assert found == [None, batches(60, 66, size=4000)]


async def test_a_run_begun_anew_does_not_mix_with_its_former_files(directory: Path) -> None:
    storage = opened(directory)
    async with running(storage):
        storage.append(batches(0, 100), [], 1)
        await storage.flush()
        storage.drop(P1)
        storage.append(batches(0, 10), [], 2)
        await storage.flush()
        assert await read_all(storage, P1, 1, 0) == batches(0, 10)
        storage.append(batches(10, 20), [], 3)
        await storage.flush()
    await storage.close()
    assert [path.name for path in log_files(directory)] == ["1-0-1.log"]
    assert await read_all(opened(directory), P1, 1, 0) == batches(0, 20)


async def test_a_long_run_rolls_files_and_finds_its_way_in_them(directory: Path) -> None:
    stored = batches(0, 3000, size=1000)
    await stopped(directory, stored, flush_bytes=100_000)
    files = log_files(directory)
    assert len(files) > 10
    assert all(path.with_name(path.name + ".index").exists() for path in files)
    for leave in ("all", "none", "damaged"):
        for path in files:
            index = path.with_name(path.name + ".index")
            if leave == "none":
                index.unlink()
            elif leave == "damaged":
                index.write_bytes(random.Random(1).randbytes(200))
        after = opened(directory)
        for offset in range(0, 3000, 171):
            assert (await after.read(P1, 1, offset, max_bytes=1))[0].base == offset // 2 * 2
            assert (await after.headers(P1, 1, offset, max_batches=1))[0].base == offset // 2 * 2
            assert await after.find_time(P1, 1, 1000 + offset) == max(0, (offset - 1) // 2 * 2)
        await after.close()


class RecordingDisk(FileOps):
    """Notes what changes in which file; syncs of the journal wait for `may_sync`."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.may_sync = threading.Event()
        self.may_sync.set()
        self._paths: dict[int, Path] = {}

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        self._paths[fd] = path
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        self._note("write", self._paths[fd])
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        if self._paths[fd].suffix == ".journal":
            self.may_sync.wait()
        super().fdatasync(fd)
        self._note("sync", self._paths[fd])

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._note("rename", target)

    def sync_directory(self, directory: Path) -> None:
        super().sync_directory(directory)
        self._note("sync", directory)

    def _note(self, operation: str, path: Path) -> None:
        if path.suffix not in (".journal", ".new"):
            self.steps.append(f"{operation} {path.name}")


async def test_the_journal_is_released_after_both_checkpoints_and_these_after_the_log_files(directory: Path) -> None:
    ops = RecordingDisk()
    storage = DiskStorage.open(directory, settings=SMALL, ops=ops)
    storage._journal.release = lambda before: ops.steps.append("release")  # type: ignore[method-assign]
    ops.steps.clear()
    async with running(storage):
        storage.append(batches(0, 10), [], 1)
        await storage.flush()
    log, folder = "1-0.log", P1.hex()
    writes = [step for step in ops.steps if step == f"write {log}"]
    names = [f"sync {log}", f"sync {folder}", "sync logs", "sync data"]
    assert ops.steps[: len(writes)] == writes
    assert sorted(ops.steps[len(writes) : len(writes) + 4]) == sorted(names)
    assert ops.steps[len(writes) + 4 :] == ["rename checkpoint.a", "sync data", "rename checkpoint.b", "sync data", "release"]


async def test_a_checkpoint_holds_nothing_that_the_journal_does_not_hold_durably(directory: Path) -> None:
    """Otherwise a crash would keep what was appended later and lose what was appended before it."""
    ops = RecordingDisk()
    storage = DiskStorage.open(directory, settings=SMALL, ops=ops)
    await store(storage, batch(0))
    ops.may_sync.clear()
    ops.steps.clear()
    async with running(storage), trio.open_nursery() as nursery:
        storage.append([batch(2)], [("a", b"1")], 1)
        nursery.start_soon(storage.flush)
        await trio.sleep(0.1)
        assert ops.steps == []
        ops.may_sync.set()
    assert "rename checkpoint.b" in ops.steps
    assert crashed(directory)._entries == 0


# --- damage --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["first byte", "head", "payload", "last byte"])
async def test_damage_is_named_exactly_and_healed_by_good_copies(directory: Path, where: str) -> None:
    stored = batches(0, 200, size=500)
    await stopped(directory, stored)
    size = stored[0].size
    at = {"first byte": 0, "head": 60, "payload": 300, "last byte": size - 1}[where]
    (path,) = log_files(directory)[:1]
    flip(path, 128 + 7 * size + at)
    storage = opened(directory)
    assert await storage.read(P1, 1, 0, max_bytes=1 << 20) == stored[:7]
    for offset in (14, 15):
        with pytest.raises(DamagedRangeError) as raised:
            await storage.read(P1, 1, offset, max_bytes=1 << 20)
        error = raised.value
        assert (error.partition, error.epoch, error.base, error.end) == (P1, 1, 14, 16)
        assert f"bytes {128 + 7 * size} to {128 + 8 * size - 1} " in error.message
        assert error.message.startswith(f"logs/{P1.hex()}/1-0.log:")
    await storage.restore(P1, 1, stored[7:8])
    assert await read_all(storage, P1, 1, 0) == stored
    await storage.close()
    assert await read_all(opened(directory), P1, 1, 0) == stored


async def test_damage_of_several_batches_and_of_the_end_of_a_file(directory: Path) -> None:
    stored = batches(0, 400, size=500)
    await stopped(directory, stored)
    size = stored[0].size
    first, second = log_files(directory)[:2]
    content = bytearray(first.read_bytes())
    content[128 + 10 * size - 5 : 128 + 13 * size + 5] = bytes(3 * size + 10)
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[: 128 + 3 * size + 7])
    storage = opened(directory)
    healed: list[tuple[int, int]] = []
    found: list[Batch] = []
    while not found or found[-1].end < 400:
        try:
            found += await storage.read(P1, 1, found[-1].end if found else 0, max_bytes=1 << 20)
        except DamagedRangeError as error:
            healed.append((error.base, error.end))
            await storage.restore(P1, 1, [held for held in stored if error.base <= held.base < error.end])
    base = int(second.stem.split("-")[1])
    assert healed == [(18, 20), (20, 28), (base + 6, 400)]
    assert found == stored


async def test_a_whole_batch_in_the_wrong_place_is_damage(directory: Path) -> None:
    """P-28: its checksums hold, and it is still not the batch that was asked for."""
    stored = batches(0, 20, size=500)
    await stopped(directory, stored)
    (path,) = log_files(directory)
    raw = [held.head + held.payload for held in stored]
    raw[3], raw[4] = raw[4], raw[3]
    path.write_bytes(path.read_bytes()[:128] + b"".join(raw))
    storage = opened(directory)
    assert await storage.read(P1, 1, 0, max_bytes=1 << 20) == stored[:3]
    with pytest.raises(DamagedRangeError) as raised:
        await storage.read(P1, 1, 6, max_bytes=1 << 20)
    assert (raised.value.base, raised.value.end) == (6, 10)
    await storage.restore(P1, 1, stored[3:5])
    assert await read_all(storage, P1, 1, 0) == stored


async def test_a_log_file_that_is_gone_is_damage_and_can_be_restored(directory: Path) -> None:
    stored = batches(0, 200, size=500)
    await stopped(directory, stored)
    path = log_files(directory)[0]
    path.unlink()
    storage = opened(directory)
    with pytest.raises(DamagedRangeError) as raised:
        await storage.read(P1, 1, 10, max_bytes=1000)
    assert raised.value.base == 0
    await storage.restore(P1, 1, [held for held in stored if held.end <= raised.value.end])
    assert await read_all(storage, P1, 1, 0) == stored


async def test_a_damaged_file_header_heals_by_reading(directory: Path) -> None:
    await stopped(directory, batches(0, 20))
    (path,) = log_files(directory)
    whole = path.read_bytes()
    flip(path, 20)
    storage = opened(directory)
    assert await read_all(storage, P1, 1, 0) == batches(0, 20)
    assert path.read_bytes() == whole


async def test_headers_inside_a_payload_do_not_pass_for_batches(directory: Path) -> None:
    """A producer may store anything, log files included."""
    inner = b"".join(held.head + held.payload for held in batches(100, 140))
    evil = batch(2)
    evil = msgspec.structs.replace(batch(2), payload=inner)
    header = msgspec.structs.replace(evil.header, raw_bytes=len(inner))
    from streamq.wire.batch_format import encode_batch

    evil = encode_batch(header, inner)
    stored = [batch(0), evil, *batches(4, 20)]
    await stopped(directory, stored)
    (path,) = log_files(directory)
    flip(path, 128 + stored[0].size + 30)
    storage = opened(directory)
    with pytest.raises(DamagedRangeError) as raised:
        await storage.read(P1, 1, 2, max_bytes=1 << 20)
    assert raised.value.base == 2
    await storage.restore(P1, 1, [evil])
    assert await read_all(storage, P1, 1, 0) == stored


async def test_one_damaged_checkpoint_does_no_harm_and_two_are_not_survived_silently(directory: Path) -> None:
    await stopped(directory, batches(0, 20))
    flip(directory / "checkpoint.a", 40)
    storage = opened(directory)
    assert storage.lost == ()
    assert await read_all(storage, P1, 1, 0) == batches(0, 20)
    await store(storage, *batches(20, 30))
    after = crashed(directory)
    assert dict(after.runs(P1)) == {1: Run(0, 30)}
    flip(directory / "checkpoint.b", 40)
    copy = crashed(directory.rename(directory.with_name("other")))
    assert any(isinstance(loss, LostUnknown) for loss in copy.lost)


async def test_an_older_checkpoint_that_the_journal_does_not_reach_is_an_unknown_loss(directory: Path) -> None:
    storage = opened(directory, flush_bytes=100_000)
    old = (directory / "checkpoint.a").read_bytes()
    async with running(storage) as tokens:
        for held in batches(0, 4000, size=2000):
            storage.append([held], [], held.base)
            if held.base % 400 == 0:
                await tokens.until(held.base)
    await storage.close()
    for name in ("checkpoint.a", "checkpoint.b"):
        (directory / name).write_bytes(old)
    assert any(isinstance(loss, LostUnknown) for loss in opened(directory).lost)


async def test_damage_in_the_journal_is_pinned_and_what_follows_it_in_the_run_is_lost_too(directory: Path) -> None:
    storage = opened(directory)
    await store(storage, *batches(0, 6), states={"kept": b"1"})
    await store(storage, *batches(6, 8, size=777), *batches(0, 8, partition=P2))
    await store(storage, *batches(8, 12), states={"gone": b"x" * 333})
    await store(storage, *batches(12, 16), states={"last": b"1"})
    (path,) = [p for p in directory.glob("journal/*.journal") if batch(6, size=777).payload in p.read_bytes()]
    content = path.read_bytes()
    flip(path, content.index(batch(6, size=777).payload) + 400)
    flip(path, content.index(b"x" * 333) + 3)
    after = crashed(directory)
    assert set(after.lost) == {LostBatches(P1, 1, 6, 16), LostState("gone")}
    assert dict(after.runs(P1)) == {1: Run(0, 6)}
    assert dict(after.runs(P2)) == {1: Run(0, 8)}
    assert dict(after.states()) == {"kept": b"1", "last": b"1"}
    await after.close()
    again = crashed(directory.with_name(f"{directory.name}+"))
    assert set(again.lost) == set(after.lost), "a loss is not forgotten before it is recorded"
    await store(again, states={"limbo": b"recorded"})
    await again.close()
    copy = directory.with_name(f"{directory.name}++")
    assert opened(copy).lost == ()


async def test_a_run_whose_first_batch_is_lost_is_lost_as_a_whole(directory: Path) -> None:
    storage = opened(directory)
    first = batch(10, size=777)
    await store(storage, first)
    await store(storage, *batches(12, 20))
    await store(storage, states={"behind": b"1"})
    (path,) = [p for p in directory.glob("journal/*.journal") if first.payload in p.read_bytes()]
    flip(path, path.read_bytes().index(first.payload) + 5)
    after = crashed(directory)
    assert after.lost == (LostBatches(P1, 1, 10, 20),)
    assert dict(after.runs(P1)) == {}


async def test_a_checkpoint_of_another_directory_does_not_count(directory: Path, tmp_path: Path) -> None:
    other = make_directory(tmp_path / "other")
    await stopped(other, batches(0, 20))
    await stopped(directory, batches(0, 10))
    for name in ("checkpoint.a", "checkpoint.b"):
        shutil.copy(other / name, directory / name)
    storage = opened(directory)
    assert any(isinstance(loss, LostUnknown) for loss in storage.lost)
    assert dict(storage.runs(P1)) == {1: Run(0, 10)}, "what the journal still holds"
    before = {path: path.read_bytes() for path in log_files(directory)}
    await store(storage, states={"limbo": b"all"})
    await storage.close()
    assert len(log_files(directory)) == 2
    assert before.items() <= {path: path.read_bytes() for path in log_files(directory)}.items(), "nothing is removed or overwritten"


# --- disks that are full or fail -----------------------------------------------------------------------------------------------


class FaultyDisk(FileOps):
    """Fails writes below a path with an error number, as long as one is set."""

    def __init__(self) -> None:
        self.fault: int | None = None
        self.below = ""
        self._paths: dict[int, str] = {}

    def open(self, path: Path, *, create: bool = False) -> int:
        self._check(str(path))
        fd = super().open(path, create=create)
        self._paths[fd] = str(path)
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        self._check(self._paths[fd])
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._check(self._paths[fd])
        super().fdatasync(fd)

    def _check(self, path: str) -> None:
        if self.fault is not None and self.below in path:
            raise OSError(self.fault, "injected")


@pytest.mark.parametrize("below", ["logs", "checkpoint.a", "checkpoint.b"])
async def test_a_full_disk_refuses_batches_keeps_states_and_recovers_by_itself(directory: Path, below: str) -> None:
    ops = FaultyDisk()
    ops.below = below
    storage = DiskStorage.open(directory, settings=SMALL, ops=ops)
    async with running(storage) as tokens:
        storage.append(batches(0, 100), [], 1)
        await storage.flush()
        assert storage.refusal() is None
        ops.fault = errno.ENOSPC
        storage.append([*batches(100, 200), *batches(0, 10, partition=P2)], [], 2)
        for _ in range(3):
            await storage.flush()
            refusal = storage.refusal()
            assert refusal is not None
            assert "disk is full" in refusal
            assert below == "checkpoint.b" or not list(directory.glob(f"logs/{P2.hex()}/*.log")), "it takes no room"
        storage.append([], [("sealed", b"1")], 3)
        await tokens.until(3)
        after = crashed(directory)
        assert await read_all(after, P1, 1, 0) == batches(0, 200)
        assert after.states()["sealed"] == b"1"
        ops.fault = None
        await storage.flush()
        assert storage.refusal() is None
        assert storage._journal.bytes_in_use <= 4096, "all but an idle mark was released"
        assert await read_all(storage, P1, 1, 0) == batches(0, 200)
    await storage.close()
    assert await read_all(opened(directory), P1, 1, 0) == batches(0, 200)


async def test_little_free_space_refuses_batches(directory: Path) -> None:
    free = [10 << 20]
    ops = FileOps()
    ops.free_bytes = lambda directory: free[0]  # type: ignore[method-assign]
    storage = DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL, reserve_bytes=64 << 20), ops=ops)
    async with running(storage):
        storage._due.set()
        await trio.sleep(0.05)
        assert "10 MiB are free" in (storage.refusal() or "")
        free[0] = 100 << 20
        storage._due.set()
        await trio.sleep(0.05)
        assert storage.refusal() is None


@pytest.mark.parametrize("below", ["journal", "logs", "checkpoint.a", "checkpoint.b"])
async def test_a_failed_write_is_final(directory: Path, below: str) -> None:
    """P-15: nothing is given back any more, and what was given back is there after a restart."""
    ops = FaultyDisk()
    storage = DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL, flush_interval_s=0.0), ops=ops)
    await store(storage, *batches(0, 10))
    ops.below, ops.fault = below, errno.EIO
    tokens: list[object] = []
    storage.append(batches(10, 20), [], "unsure")
    storage._due.set()
    with trio.fail_after(5), pytest.raises(StorageFailedError, match="injected"):
        await storage.run(tokens.extend)
    ops.fault = None
    storage.append(batches(20, 30), [], "never")
    with pytest.raises(StorageFailedError):
        await storage.run(tokens.extend)
    assert tokens in ([], ["unsure"])
    await storage.close()
    after = opened(directory)
    assert not after.was_stopped_cleanly
    assert after.runs(P1)[1].tail in ((10, 20) if tokens == [] else (20,))


class SlowLogs(FileOps):
    """Nothing gets to log files while `may_write` is not set."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self._logs: set[int] = set()

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        (self._logs.add if path.suffix == ".log" else self._logs.discard)(fd)
        return fd

    def open_direct(self, path: Path) -> int | None:
        return None

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        if fd in self._logs:
            self.may_write.wait()
        return super().pwritev(fd, buffers, offset)


async def test_while_log_files_do_not_keep_up_others_wait_and_none_is_refused(directory: Path) -> None:
    """Whoever is acked by two other replicas would go on for ever, in memory and then in the journal, until batches were refused."""
    ops = SlowLogs()
    settings = DiskSettings(journal_file_bytes=1 << 20, cache_bytes=300_000, flush_bytes=100_000, journal_bytes=1 << 20)
    storage = DiskStorage.open(directory, settings=settings, ops=ops)
    async with running(storage):
        base = 0
        with trio.fail_after(5):
            while (room := storage.backlog()) is None:
                assert storage._runs.pinned_cost <= settings.cache_bytes
                storage.append([batch(base, 1, size=20_000)], [], base)
                base += 1
                await trio.sleep(0.001)
            assert storage.refusal() is None
            assert not room.is_set()
            ops.may_write.set()
            await room.wait()
            while storage.backlog() is not None:
                await room.wait()


async def test_what_is_refused_is_not_waited_for(directory: Path) -> None:
    """A client that is not read from would never be told why."""
    ops = FaultyDisk()
    ops.below = "logs"
    settings = DiskSettings(journal_file_bytes=1 << 20, cache_bytes=300_000, flush_bytes=100_000, journal_bytes=1 << 20)
    storage = DiskStorage.open(directory, settings=settings, ops=ops)
    async with running(storage):
        ops.fault = errno.ENOSPC
        storage.append([batch(i, 1, size=20_000) for i in range(20)], [], 1)
        await storage.flush()
        assert storage.refusal() is not None
        assert storage.backlog() is None
