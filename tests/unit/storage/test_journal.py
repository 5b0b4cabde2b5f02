"""The journal on a whole disk: what is written comes back in order, files are reused, failures are final."""

import errno
import os
import threading
from pathlib import Path

import pytest

from streamq.storage.file_ops import FileOps, write_fully
from streamq.storage.interface import StorageFailedError
from streamq.storage.journal import Journal
from streamq.storage.journal_format import JournalEntry, JournalPosition, StateEntry
from streamq.storage.journal_recovery import recover
from tests.unit.storage.journal_lab import FILE_BYTES, INCARNATION, Lab, batch_of


def test_everything_written_comes_back_in_order_over_many_files() -> None:
    lab = Lab()
    written: list[JournalEntry] = []
    for i in range(60):
        entries: list[JournalEntry] = [batch_of(1, 2 * i, os.urandom(40_000)), StateEntry(f"k{i % 3}", b"%d" % i), batch_of(2, i, b"x")]
        entries.append(StateEntry("forgotten", None))
        lab.journal.write_group(entries)
        written += entries
    read = lab.read()
    assert read.entries == written
    assert read.lost == ()
    assert read.recovered.end == lab.journal.position
    assert read.recovered.torn is None
    assert read.recovered.damage == ()
    assert lab.journal.position.file > 2


def test_real_files_and_real_syncs(tmp_path: Path) -> None:
    """The same on the operating system's files: write, resume, write, read from a position."""
    journal = Journal.create(tmp_path, incarnation=INCARNATION, start_number=1, file_bytes=FILE_BYTES)
    first = batch_of(1, 0, b"first" * 1000)
    middle = journal.write_group([first])
    journal.close()
    got: list[object] = []
    recovered = recover(
        tmp_path, incarnation=INCARNATION, replay_from=None, start_number=2, deliver=lambda entries, end: got.extend(entries)
    )
    assert got == [first]
    journal = Journal.resume(tmp_path, recovered, incarnation=INCARNATION, file_bytes=FILE_BYTES)
    end = journal.write_group([StateEntry("a", b"1")])
    journal.write_mark()
    journal.close()
    got.clear()
    recovered = recover(
        tmp_path, incarnation=INCARNATION, replay_from=middle, start_number=3, deliver=lambda entries, end: got.extend(entries)
    )
    assert got == [StateEntry("a", b"1")]
    assert middle < end < recovered.end
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["000001.journal", "000002.journal", "manifest"]


def test_reading_begins_at_any_end_of_a_group() -> None:
    lab = Lab()
    ends = [lab.journal.position]
    written = [batch_of(1, i, os.urandom(100_000)) for i in range(25)]
    ends += [lab.journal.write_group([batch]) for batch in written]
    for at, end in enumerate(ends):
        read = lab.read(end)
        assert read.entries == written[at:]
        assert read.lost == ()


def test_more_entries_than_a_group_holds_go_into_several_groups_in_order() -> None:
    lab = Lab()
    written: list[JournalEntry] = [batch_of(1, i, os.urandom(300_000)) for i in range(7)]
    written += [StateEntry(f"key/{i}", b"") for i in range(20_000)]
    lab.journal.write_group(written)
    assert lab.read().entries == written


def test_an_entry_beyond_the_bounds_is_refused_and_nothing_is_written() -> None:
    lab = Lab()
    before = lab.journal.position
    with pytest.raises(ValueError, match="does not fit"):
        lab.journal.write_group([StateEntry("a", b"1"), batch_of(1, 0, bytes(FILE_BYTES))])
    with pytest.raises(ValueError, match="does not fit"):
        lab.journal.write_group([StateEntry("a" * 2000, b"1")])
    assert lab.journal.position == before
    lab.journal.write_group([StateEntry("b", b"2")])
    assert lab.read().entries == [StateEntry("b", b"2")]


def test_released_files_are_used_again_and_what_lay_in_them_never_comes_back() -> None:
    """Stale groups of a reused file name another sequence. The number of files stays at what is needed at a time."""
    lab = Lab()
    checkpoint = lab.journal.position
    since: list[JournalEntry] = []
    for i in range(120):
        batch = batch_of(1, i, os.urandom(90_000))
        lab.journal.write_group([batch])
        since.append(batch)
        if i % 10 == 9:
            checkpoint = lab.journal.position
            since.clear()
            lab.journal.release(checkpoint)
        elif i % 7 == 3:
            read = lab.restart(checkpoint)
            assert read.entries == since
            assert read.lost == ()
    assert lab.journal.position.file > 8
    assert lab.journal.files <= 4
    assert lab.journal.bytes_in_use <= 2 * FILE_BYTES


def test_files_of_another_size_are_read_and_then_replaced() -> None:
    lab = Lab()
    written: list[JournalEntry] = [batch_of(1, i, os.urandom(90_000)) for i in range(30)]
    for entry in written[:25]:
        lab.journal.write_group([entry])
    lab.file_bytes = 2 * FILE_BYTES
    assert lab.restart().entries == written[:25]
    for entry in written[25:]:
        lab.journal.write_group([entry])
    assert lab.read().entries == written
    position = lab.journal.position
    lab.journal.release(position)
    assert lab.journal.prepare_spare()
    for i in range(60):
        lab.journal.write_group([batch_of(2, i, os.urandom(90_000))])
        lab.journal.release(lab.journal.position)
    sizes = [len(lab.disk.content(path)) for path in lab.disk.paths() if path.suffix == ".journal"]
    assert 2 * FILE_BYTES in sizes
    assert len(sizes) <= 4


def test_a_mark_is_written_once_and_proves_the_last_group() -> None:
    lab = Lab()
    lab.journal.write_group([StateEntry("a", b"1")])
    end = lab.journal.position
    lab.journal.write_mark()
    marked = lab.journal.position
    lab.journal.write_mark()
    assert lab.journal.position == marked > end
    lab.disk.flip(lab.path(1), 4096 + 8)  # the head of the group: its repeat in the mark makes it good
    read = lab.read()
    assert read.entries == [StateEntry("a", b"1")]
    assert read.lost == ()


def test_everything_is_written_before_the_sync_that_makes_it_durable() -> None:
    """P-37: who is content with memory is answered in between; who is not waits for a sync that began after the last byte was written."""
    lab = Lab()
    operations: list[str] = []
    lab.disk.before = operations.append
    before = lab.journal.position
    lab.journal.write([batch_of(1, i, bytes(400_000)) for i in range(3)])
    assert lab.journal.position.file > before.file, "several groups, all but the last of them synced"
    written = len(operations)
    position = lab.journal.sync()
    assert operations[written:] == ["sync"]
    assert lab.journal.position == position


def test_one_group_is_synced_before_the_next_is_written() -> None:
    """Otherwise a group would not prove the one before it."""
    lab = Lab()
    lab.journal.write([StateEntry("a", b"1")])
    with pytest.raises(AssertionError):
        lab.journal.write([StateEntry("b", b"2")])
    lab.journal.sync()
    with pytest.raises(AssertionError):
        lab.journal.sync()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_failed_write_or_sync_is_final(operation: str) -> None:
    """P-15: the error comes once, and everything afterwards is refused without another attempt."""
    lab = Lab()
    lab.journal.write_group([StateEntry("a", b"1")])
    position = lab.journal.position

    def fail(which: str) -> None:
        if which == operation:
            raise OSError(errno.EIO, "input/output error")

    lab.disk.before = fail
    with pytest.raises(StorageFailedError, match="input/output error"):
        lab.journal.write_group([StateEntry("b", b"2")])
    asked: list[str] = []
    lab.disk.before = asked.append
    with pytest.raises(StorageFailedError):
        lab.journal.write_group([StateEntry("c", b"3")])
    with pytest.raises(StorageFailedError):
        lab.journal.write_mark()
    with pytest.raises(StorageFailedError):
        lab.journal.prepare_spare()
    assert asked == []
    assert lab.journal.position == position
    assert not lab.journal.spare_needed()


def test_a_full_disk_while_preparing_is_said_and_survived() -> None:
    lab = Lab(files=1)
    lab.journal.write_group([StateEntry("a", b"1")])

    def full(operation: str) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, "no space left on device")

    assert lab.journal.spare_needed()
    lab.disk.before = full
    assert not lab.journal.prepare_spare()
    lab.disk.before = lambda operation: None
    assert not [path for path in lab.disk.paths() if path.suffix == ".new"]
    lab.journal.write_group([StateEntry("b", b"2")])
    assert lab.journal.prepare_spare()
    assert not lab.journal.spare_needed()
    assert lab.read().entries == [StateEntry("a", b"1"), StateEntry("b", b"2")]


def test_spares_are_prepared_beside_the_writing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, incarnation=INCARNATION, start_number=1, file_bytes=FILE_BYTES)
    stop = threading.Event()

    def prepare() -> None:
        while not stop.is_set():
            journal.prepare_spare()

    thread = threading.Thread(target=prepare)
    thread.start()
    written = [batch_of(1, i, os.urandom(200_000)) for i in range(40)]
    for batch in written:
        journal.write_group([batch])
        if batch.base == 20:
            journal.release(JournalPosition(2, 4096))
    stop.set()
    thread.join()
    got: list[object] = []
    recovered = recover(
        tmp_path,
        incarnation=INCARNATION,
        replay_from=JournalPosition(2, 4096),
        start_number=2,
        deliver=lambda entries, end: got.extend(entries),
    )
    assert got == written[len(written) - len(got) :]
    assert len(got) > 30
    assert recovered.lost == ()


def test_creating_again_begins_anew() -> None:
    """Before the first start is counted nothing can have been acknowledged, so what lies there is removed."""
    lab = Lab()
    lab.journal.write_group([StateEntry("a", b"1")])
    lab.journal = Journal.create(lab.folder.parent, incarnation=INCARNATION, start_number=1, file_bytes=FILE_BYTES, ops=lab.disk.ops)
    assert lab.read().entries == []
    assert lab.read().lost == ()


def test_short_writes_are_completed(tmp_path: Path) -> None:
    class Short(FileOps):
        def pwritev(self, fd: int, buffers: object, offset: int) -> int:
            return os.pwrite(fd, b"".join(buffers)[:7], offset)  # type: ignore[call-overload, no-any-return]

    path = tmp_path / "file"
    ops = Short()
    fd = ops.open(path, create=True)
    buffers = [bytes([i % 251]) * (i % 13) for i in range(1200)]
    assert write_fully(ops, fd, buffers, 3) == 3 + sum(map(len, buffers))
    ops.close(fd)
    assert path.read_bytes() == bytes(3) + b"".join(buffers)


def test_a_bug_in_the_middle_of_a_write_stops_the_journal() -> None:
    for broken in ("write", "sync"):
        lab = Lab()

        def bug(operation: str, broken: str = broken) -> None:
            if operation == broken:
                raise RuntimeError("a bug")

        lab.disk.before = bug
        with pytest.raises(RuntimeError, match="a bug"):
            lab.journal.write_group([StateEntry("a", b"1")])
        lab.disk.before = lambda operation: None
        with pytest.raises(StorageFailedError):
            lab.journal.write_group([])
