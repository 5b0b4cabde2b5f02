"""Trims on a disk, beside flushes and readers; what is left of them after a crash is the contract's and the simulation's."""

import threading
from pathlib import Path

import msgspec
import pytest
import trio

from streamq.model.batches import Batch
from streamq.storage.checkpoint import load_checkpoints
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.file_ops import FileOps
from streamq.storage.interface import Run
from tests.support.stored_batches import P1, SMALL, batches, make_directory, running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "data")


def checkpoints(storage: DiskStorage, directory: Path) -> set[int]:
    """The numbers of both copies."""
    copies = load_checkpoints(FileOps(), directory, incarnation=storage.identity.incarnation)
    return {copy.checkpoint.number if copy.checkpoint is not None else -1 for copy in copies}


def log_names(directory: Path) -> set[str]:
    return {path.name for path in (directory / "logs").rglob("*.log")}


async def test_a_file_is_removed_after_both_checkpoints_without_it_and_beside_the_event_loop(directory: Path) -> None:
    """P-34: a crash before leaves it, and with it all that the older checkpoint's table does not know."""
    unlinked: list[tuple[str, int, set[int]]] = []

    class Watching(FileOps):
        def unlink(self, path: Path) -> None:
            unlinked.append((path.name, threading.get_ident(), checkpoints(storage, directory)))
            super().unlink(path)

    storage = DiskStorage.open(directory, settings=SMALL, ops=Watching())
    async with running(storage) as tokens:
        storage.append(batches(0, 400, size=1000), [], "stored")
        await tokens.until("stored")
        await storage.flush()
        [before] = checkpoints(storage, directory)
        names = log_names(directory)
        storage.trim(P1, storage.files(P1)[1].end)
        assert log_names(directory) == names
        assert unlinked == []
        await storage.flush()
    gone = names - log_names(directory)
    assert len(gone) == 2
    assert {name for name, _, _ in unlinked if name.endswith(".log")} == gone
    assert all(thread != threading.get_ident() and numbers == {before + 1} for _, thread, numbers in unlinked)


async def test_a_run_that_is_trimmed_while_it_is_flushed_is_trimmed_after_that(directory: Path) -> None:
    """The flush goes on in the very file that would have gone."""
    ops = Gate()
    storage = DiskStorage.open(directory, settings=SMALL, ops=ops)
    async with running(storage) as tokens, trio.open_nursery() as nursery:
        storage.append(batches(0, 40), [], "first")
        await tokens.until("first")
        await storage.flush()
        storage.append(batches(40, 80), [], "second")
        await tokens.until("second")
        ops.close_gate()
        nursery.start_soon(storage.flush)
        await ops.entered.wait()
        storage.trim(P1, 40)
        assert storage.runs(P1) == {1: Run(0, 80)}
        ops.gate.set()
    async with running(storage):
        await storage.flush()
        assert storage.runs(P1) == {1: Run(0, 80)}  # one file holds it all by now
        storage.trim(P1, 80)
        assert storage.runs(P1) == {}
        await storage.flush()
    assert log_names(directory) == set()


async def test_a_reader_beside_a_trim_has_what_it_began_with_or_nothing(directory: Path) -> None:
    """Never damage: what is gone was removed on purpose."""
    ops = Gate()
    storage = DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL, cache_bytes=1, flush_bytes=1), ops=ops)
    found: list[list[Batch]] = []
    async with running(storage) as tokens, trio.open_nursery() as nursery:
        storage.append(batches(0, 400, size=1000), [], "stored")
        await tokens.until("stored")
        await storage.flush()

        async def read() -> None:
            found.append(await storage.read(P1, 1, 0, max_bytes=1))

        ops.hold_reads()
        nursery.start_soon(read)
        await ops.entered.wait()
        storage.trim(P1, storage.files(P1)[1].end)
        await storage.flush()
        ops.gate.set()
    assert found == [[]]


class Gate(FileOps):
    """Holds a worker up at the next log file that is written, or opened to be read."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._holds = ""

    def close_gate(self) -> None:
        self.gate.clear()
        self._holds = "write"

    def hold_reads(self) -> None:
        self.gate.clear()
        self._holds = "read"

    def _wait(self, what: str, path: Path) -> None:
        if self._holds == what and path.suffix == ".log":
            self._holds = ""
            self._token.run_sync_soon(self.entered.set)
            assert self.gate.wait(10)

    def open(self, path: Path, *, create: bool = False) -> int:
        self._wait("write", path)
        return super().open(path, create=create)

    def open_to_read(self, path: Path) -> int:
        self._wait("read", path)
        return super().open_to_read(path)
