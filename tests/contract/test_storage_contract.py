"""What every storage promises (`streamq.storage.interface`), for each implementation."""

import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
import trio
import trio.testing

from streamq.model.files import StoredFile
from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import Identity, Run, Storage
from streamq.storage.memory_storage import MemoryStorage
from tests.sim.disk import SimulatedDisk
from tests.sim.simulated_storage import format_directory, open_storage
from tests.support.stored_batches import P1, P2, SMALL, batch, batches, make_directory, read_all, running, store


class Kind(Protocol):
    """How a kind of storage begins, crashes (all that was durable is kept, perhaps more) and starts again."""

    def first(self) -> Storage: ...
    def crashed(self, storage: Storage) -> Storage: ...
    def stopped(self, storage: Storage) -> Storage: ...


class InMemory:
    def first(self) -> Storage:
        return MemoryStorage(Identity(b"cluster.........", "b1", bytes(16), Voters(1, ()), 1))

    def crashed(self, storage: Storage) -> Storage:
        assert isinstance(storage, MemoryStorage)
        return storage.crash()

    stopped = crashed


class OnDisk:
    def __init__(self, directory: Path) -> None:
        self._directory = make_directory(directory / "0")
        self._copies = 0

    def first(self) -> Storage:
        return DiskStorage.open(self._directory, settings=SMALL)

    def crashed(self, storage: Storage) -> Storage:
        self._copies += 1
        copy = self._directory.with_name(str(self._copies))
        shutil.copytree(self._directory, copy)
        self._directory = copy
        return self.first()

    def stopped(self, storage: Storage) -> Storage:
        return self.first()


class OnSimulatedDisk:
    """The power goes at each crash."""

    def __init__(self) -> None:
        self._disk = SimulatedDisk(Random(1))
        format_directory(self._disk, cluster=b"cluster.........", broker="b1", first_voters=Voters(1, ()))

    def first(self) -> Storage:
        return open_storage(self._disk)

    def crashed(self, storage: Storage) -> Storage:
        self._disk.crash()
        return self.first()

    def stopped(self, storage: Storage) -> Storage:
        return self.first()


def in_virtual_time(main: Callable[[], Awaitable[None]], **options: Any) -> None:
    trio.run(main, **{**options, "clock": trio.testing.MockClock(autojump_threshold=0)})


simulated = pytest.param("simulated disk", marks=pytest.mark.trio(run=in_virtual_time))


@pytest.fixture(params=["memory", "disk", simulated])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "simulated disk":
        return OnSimulatedDisk()
    return InMemory() if request.param == "memory" else OnDisk(tmp_path)


async def test_tokens_come_back_once_and_in_order(kind: Kind) -> None:
    storage = kind.first()
    async with running(storage) as tokens:
        for number in range(300):
            storage.append([batch(2 * number)], [("newest", b"%d" % number)], number)
        await tokens.until(299)
    assert tokens.given == list(range(300))


async def test_a_token_without_sync_comes_back_too(kind: Kind) -> None:
    storage = kind.first()
    async with running(storage) as tokens:
        storage.append([batch(0)], [], "written", sync=False)
        storage.append([batch(2)], [], "synced")
        await tokens.until("synced")
        await tokens.until("written")
    assert kind.crashed(storage).runs(P1) == {1: Run(0, 4)}


async def test_what_was_appended_before_run_is_written_by_it(kind: Kind) -> None:
    storage = kind.first()
    storage.append([batch(0)], [], "early")
    async with running(storage) as tokens:
        await tokens.until("early")
    async with running(storage) as tokens:
        storage.append([batch(2)], [], "late")
        await tokens.until("late")
    assert kind.crashed(storage).runs(P1) == {1: Run(0, 4)}


async def test_runs_and_states_show_what_is_on_its_way(kind: Kind) -> None:
    storage = kind.first()
    storage.append([*batches(10, 14), batch(5, epoch=2), batch(0, partition=P2)], [("a", b"1"), ("b", b"2")], None)
    storage.append([], [("a", b"3"), ("b", None)], None)
    assert dict(storage.runs(P1)) == {1: Run(10, 14), 2: Run(5, 7)}
    assert dict(storage.runs(P2)) == {1: Run(0, 2)}
    assert dict(storage.states()) == {"a": b"3"}
    assert set(storage.partitions()) == {P1, P2}


@pytest.mark.parametrize("base", [0, 3, 5, 100])
async def test_a_batch_that_does_not_continue_its_run_is_a_bug(kind: Kind, base: int) -> None:
    storage = kind.first()
    storage.append(batches(0, 4), [], None)
    with pytest.raises(AssertionError):
        storage.append([batch(base)], [], None)


@pytest.mark.parametrize("cleanly", [False, True])
async def test_a_restart_sees_everything_durable(kind: Kind, cleanly: bool) -> None:
    storage = kind.first()
    starts = storage.identity.starts
    await store(storage, *batches(0, 100), *batches(7, 9, epoch=4, partition=P2), states={"a": b"1", "b": b"2"})
    await store(storage, *batches(100, 120), states={"a": None})
    if cleanly:
        await storage.close()
    after = kind.stopped(storage) if cleanly else kind.crashed(storage)
    assert after.identity == storage.identity._replace(starts=starts + 1)
    assert after.was_stopped_cleanly == cleanly
    assert after.lost == ()
    assert dict(after.runs(P1)) == {1: Run(0, 120)}
    assert dict(after.runs(P2)) == {4: Run(7, 9)}
    assert dict(after.states()) == {"b": b"2"}
    assert await read_all(after, P1, 1, 0) == batches(0, 120)
    await store(after, *batches(120, 122))
    assert await read_all(kind.crashed(after), P1, 1, 119) == batches(118, 122)


async def test_a_clean_stop_counts_for_the_next_start_only(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(0, 4))
    await storage.close()
    after = kind.stopped(storage)
    assert after.was_stopped_cleanly
    assert not kind.crashed(after).was_stopped_cleanly


async def test_close_writes_what_is_pending(kind: Kind) -> None:
    storage = kind.first()
    async with running(storage) as tokens:
        storage.append(batches(0, 4), [], "durable")
        await tokens.until("durable")
    storage.append(batches(4, 8), [("a", b"1")], "pending")
    await storage.close()
    after = kind.stopped(storage)
    assert dict(after.runs(P1)) == {1: Run(0, 8)}
    assert dict(after.states()) == {"a": b"1"}


async def test_cut_takes_what_lies_at_and_past_the_end(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(0, 20), *batches(4, 8, epoch=2))
    storage.cut(P1, 1, 12)
    storage.cut(P1, 1, 14)
    storage.cut(P1, 9, 0)
    assert dict(storage.runs(P1)) == {1: Run(0, 12), 2: Run(4, 8)}
    assert storage.recent(P1, 1, 12, max_bytes=1000) is None
    assert await storage.read(P1, 1, 12, max_bytes=1000) == []
    assert await storage.read(P1, 1, 10, max_bytes=1000) == batches(10, 12)
    storage.cut(P1, 2, 4)
    assert dict(storage.runs(P1)) == {1: Run(0, 12)}
    await store(storage, batch(12), states={"after": b"1"})
    after = kind.crashed(storage)
    assert dict(after.runs(P1)) == {1: Run(0, 14)}
    assert await read_all(after, P1, 1, 10) == batches(10, 14)


async def test_a_run_that_was_forgotten_may_begin_anew_elsewhere(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(0, 20))
    storage.cut(P1, 1, 0)
    await store(storage, *batches(100, 104))
    assert dict(kind.crashed(storage).runs(P1)) == {1: Run(100, 104)}


async def test_drop_forgets_the_whole_partition(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(0, 20), *batches(0, 4, epoch=2), *batches(0, 4, partition=P2))
    storage.drop(P1)
    storage.drop(b"never heard of..")
    assert storage.partitions() == [P2]
    assert dict(storage.runs(P1)) == {}
    assert await storage.read(P1, 1, 0, max_bytes=1000) == []
    await store(storage, states={"after": b"1"})
    after = kind.crashed(storage)
    assert after.partitions() == [P2]


async def test_recent_and_read_begin_with_the_batch_that_contains_the_offset(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(10, 40, records=5))
    size = batch(10, 5).size
    for offset in (10, 12, 14):
        assert storage.recent(P1, 1, offset, max_bytes=1) == [batch(10, 5)]
        assert await storage.read(P1, 1, offset, max_bytes=1) == [batch(10, 5)]
    for max_bytes, count in ((size, 1), (2 * size - 1, 1), (2 * size, 2), (1 << 20, 5)):
        expected = batches(15, 40, records=5)[:count]
        assert storage.recent(P1, 1, 15, max_bytes=max_bytes) == expected
        assert await storage.read(P1, 1, 15, max_bytes=max_bytes) == expected
    for offset in (0, 9, 40, 1000):
        assert storage.recent(P1, 1, offset, max_bytes=1000) is None
        assert await storage.read(P1, 1, offset, max_bytes=1000) == []
    assert await storage.read(P1, 2, 10, max_bytes=1000) == []
    assert await storage.read(P2, 1, 10, max_bytes=1000) == []


async def test_headers_are_those_of_the_batches(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(0, 40))
    expected = [held.header for held in batches(0, 40)]
    assert await storage.headers(P1, 1, 0, max_batches=1000) == expected
    assert await storage.headers(P1, 1, 5, max_batches=3) == expected[2:5]
    assert await storage.headers(P1, 1, 40, max_batches=3) == []
    assert await storage.headers(P2, 1, 0, max_batches=3) == []


async def test_find_time_finds_the_first_batch_that_reaches_the_time(kind: Kind) -> None:
    storage = kind.first()
    times = [100, 300, 200, 200, 400]
    stored = [batch(2 * number, time=time) for number, time in enumerate(times)]
    await store(storage, *stored)
    for storage_now in (storage, kind.crashed(storage)):
        for wanted in (0, 100, 101, 250, 300, 301, 400, 401):
            first = next((2 * number for number, time in enumerate(times) if time >= wanted), None)
            assert await storage_now.find_time(P1, 1, wanted) == first
        assert await storage_now.find_time(P2, 1, 0) is None


async def test_derived_values_come_back_with_the_checkpoint(kind: Kind) -> None:
    storage = kind.first()
    storage.at_checkpoint(lambda: [("table/1", b"at 4")])
    await store(storage, *batches(0, 4))
    await storage.close()
    after = kind.stopped(storage)
    assert after.states()["table/1"] == b"at 4"
    after.at_checkpoint(lambda: [("table/2", b"at 6")])
    await store(after, batch(4))
    await after.close()
    assert dict(kind.stopped(after).states()) == {"table/2": b"at 6"}


async def test_restoring_what_is_whole_changes_nothing(kind: Kind) -> None:
    storage = kind.first()
    await store(storage, *batches(0, 20))
    await storage.close()
    after = kind.stopped(storage)
    await after.restore(P1, 1, batches(4, 8))
    assert await after.read(P1, 1, 0, max_bytes=1 << 20) == batches(0, 20)


# --- trimming


async def flushed(storage: Storage) -> None:
    """Everything so far lies in files, if the storage has any."""
    if isinstance(storage, DiskStorage):
        await storage.flush()


async def checkpointed(storage: Storage, position: int) -> None:
    """Until a checkpoint that begins from now on is durable; it holds a table at `position`."""
    done = trio.Event()
    storage.at_checkpoint(lambda: [("table", b"%d" % position)], done.set)
    storage.trim(P1, 0)
    await flushed(storage)
    with trio.fail_after(10):
        await done.wait()


async def test_files_tell_what_lies_where_and_since_when(kind: Kind) -> None:
    """They are contiguous; all but the newest are closed, and that one too once it is to be."""
    storage = kind.first()
    async with running(storage) as tokens:
        for first in (0, 200, 400):
            storage.append(batches(first, first + 200, size=1000), [], first)
            await tokens.until(first)
            await flushed(storage)
        files = storage.files(P1)
        assert [file.is_closed for file in files] == [True] * (len(files) - 1) + [False]
        assert (files[0].base, files[-1].end) == (0, 600)
        assert [file.base for file in files[1:]] == [file.end for file in files[:-1]]
        assert all(file.size > 1000 * (file.end - file.base) / 2 for file in files)
        assert [(file.first_append, file.last_append) for file in files] == [(1002 + f.base, 1000 + f.end) for f in files]
        storage.roll(P1)
        assert all(file.is_closed for file in storage.files(P1))
        storage.append([batch(600)], [], "more")
        await tokens.until("more")
        await flushed(storage)
        assert [(file.base, file.end, file.is_closed) for file in storage.files(P1)][-2:] == [
            (files[-1].base, 600, True),
            (600, 602, False),
        ]


async def trimmed(storage: Storage, epochs: int) -> tuple[int, Sequence[StoredFile]]:
    """600 records in so many epochs, of which the first 250 and some go. Returns the start offset, and what is left then."""
    async with running(storage) as tokens:
        for epoch in range(1, epochs + 1):
            base = 600 // epochs * (epoch - 1)
            storage.append(batches(base, base + 600 // epochs, epoch=epoch, size=1000), [], epoch)
            await tokens.until(epoch)
            await flushed(storage)
        before = storage.files(P1)
        start = next(file.end for file in before if file.end > 250)
        storage.trim(P1, start)
        left = storage.files(P1)
        assert left == [file for file in before if file.end > start]
        await checkpointed(storage, start)
        assert storage.files(P1) == left
    return start, left


@pytest.mark.parametrize("epochs", [1, 3])
async def test_a_trim_takes_whole_files_below_the_start_and_nothing_else(kind: Kind, epochs: int) -> None:
    """Of each epoch; a restart after the next checkpoint finds the same, with the table that was there then."""
    storage = kind.first()
    start, left = await trimmed(storage, epochs)
    restarted = kind.crashed(storage)
    assert restarted.states()["table"] == b"%d" % start
    assert restarted.files(P1) == left
    for epoch, run in restarted.runs(P1).items():
        assert run.base == min(file.base for file in left if file.epoch == epoch)
        for offset in (max(run.base, start), run.tail - 1):
            assert (await restarted.read(P1, epoch, offset, max_bytes=1))[0].base == offset // 2 * 2
        assert await restarted.read(P1, epoch, run.base - 1, max_bytes=1) == []


async def test_a_trim_that_no_checkpoint_holds_may_be_undone_and_is_repeated(kind: Kind) -> None:
    storage = kind.first()
    async with running(storage) as tokens:
        storage.append(batches(0, 600, size=1000), [], "stored")
        await tokens.until("stored")
        await flushed(storage)
        storage.trim(P1, 600)
    restarted = kind.crashed(storage)
    assert restarted.runs(P1) in ({}, {1: Run(0, 600)})
    restarted.trim(P1, 600)
    assert restarted.runs(P1) == {}


async def test_a_run_that_is_trimmed_to_its_end_goes_on_there(kind: Kind) -> None:
    storage = kind.first()
    async with running(storage) as tokens:
        storage.append(batches(0, 100), [], "first")
        await tokens.until("first")
        await flushed(storage)
        storage.roll(P1)
        storage.trim(P1, 100)
        assert storage.runs(P1) == {}
        storage.append([batch(100)], [], "next")
        await tokens.until("next")
        await checkpointed(storage, 100)
        storage.append([batch(102)], [], "last")
        await tokens.until("last")
    assert kind.crashed(storage).runs(P1) == {1: Run(100, 104)}


async def test_a_trim_of_one_partition_leaves_the_others(kind: Kind) -> None:
    storage = kind.first()
    async with running(storage) as tokens:
        storage.append(batches(0, 100) + batches(0, 100, partition=P2), [], "stored")
        await tokens.until("stored")
        await flushed(storage)
        storage.trim(P1, 1000)
        await checkpointed(storage, 100)
    restarted = kind.crashed(storage)
    assert list(restarted.partitions()) == [P2]
    assert restarted.runs(P2) == {1: Run(0, 100)}


async def test_a_partition_that_is_dropped_after_it_was_trimmed_does_not_come_back(kind: Kind) -> None:
    """Found by the simulation (storage seed 1552): without a run left nothing of the drop was written."""
    storage = kind.first()
    async with running(storage) as tokens:
        storage.append(batches(0, 100), [], "stored")
        await tokens.until("stored")
        await checkpointed(storage, 0)
        storage.trim(P1, 100)
        storage.drop(P1)
        storage.append([], [("state", b"later")], "later")
        await tokens.until("later")
    assert kind.crashed(storage).runs(P1) == {}
