"""Journal files that are gone, damaged, foreign, short or unreadable: a loss where something may be lost, none where nothing is."""

import os

import pytest

from streamq.storage.interface import LostUnknown, StorageFailedError
from streamq.storage.journal import Journal
from streamq.storage.journal_files import FileReader
from streamq.storage.journal_format import JournalEntry, JournalPosition, StateEntry
from tests.sim.disk import HostCrashError
from tests.unit.storage.journal_lab import (
    DIRECTORY,
    FILE_BYTES,
    INCARNATION,
    LIMBO,
    Lab,
    Read,
    batch_of,
    expected_loss,
    flat,
    three_groups,
)


def long_journal(lab: Lab) -> list[JournalEntry]:
    written: list[JournalEntry] = [batch_of(1, i, os.urandom(90_000)) for i in range(40)]
    for entry in written:
        lab.journal.write_group([entry])
    lab.journal.write_mark()
    assert lab.journal.position.file == 4
    return written


@pytest.mark.parametrize("sequence", [1, 2, 3, 4])
def test_a_missing_file_is_an_unknown_loss_until_limbo_is_recorded(sequence: int) -> None:
    """The last file too, though nothing behind it could prove it: the manifest counts the files."""
    lab = Lab()
    written = long_journal(lab)
    lab.disk.remove(lab.path(sequence))
    for _ in range(2):
        read = lab.restart()
        assert LostUnknown in {type(lost) for lost in read.lost}
        assert read.entries == [entry for entry in written if entry in read.entries]
        lab.disk.crash()
    lab.restart(limbo=[LIMBO])
    lab.journal.release(lab.journal.position)
    for i in range(60):
        lab.journal.write_group([batch_of(2, i, os.urandom(90_000))])
    checkpoint = lab.journal.position
    lab.journal.release(checkpoint)
    lab.journal.write_group([StateEntry("after", b"1")])
    read = lab.read(checkpoint)
    assert read.lost == ()
    assert read.entries == [StateEntry("after", b"1")]


@pytest.mark.parametrize("sequence", [1, 2, 3, 4])
@pytest.mark.parametrize("damage", ["flip", "wiped"])
def test_a_damaged_file_header_loses_nothing(sequence: int, damage: str) -> None:
    lab = Lab()
    written = long_journal(lab)
    content = lab.disk.content(lab.path(sequence))
    if damage == "flip":
        content[60] ^= 1
    else:
        content[:4096] = bytes(4096)
    read = lab.restart()
    assert read.entries == written
    assert read.lost == ()
    lab.journal.write_group([LIMBO])
    assert lab.read().entries == [*written, LIMBO]


@pytest.mark.parametrize("sequence", [2, 4])
def test_a_file_with_damaged_header_and_first_group_is_still_known_by_its_other_groups(sequence: int) -> None:
    lab = Lab()
    written = long_journal(lab)
    lab.disk.content(lab.path(sequence))[:8192] = bytes(8192)
    read = lab.read()
    assert len(read.entries) >= len(written) - 1
    assert len(read.lost) >= (len(read.entries) < len(written))


def test_a_wiped_file_is_an_unknown_loss() -> None:
    lab = Lab()
    long_journal(lab)
    for sequence in (4, 2):
        lab.disk.content(lab.path(sequence))[:] = bytes(FILE_BYTES)
        assert LostUnknown in {type(lost) for lost in lab.read().lost}


def test_a_file_of_another_directory_is_never_read_and_is_set_aside() -> None:
    """P-31: its groups are whole, and even its sequence fits."""
    other = Lab(seed=2)
    foreign = long_journal(other)
    lab = Lab()
    written = long_journal(lab)
    lab.disk.content(lab.path(2))[:] = other.disk.content(other.path(2))
    read = lab.read()
    assert not [entry for entry in read.entries if entry in foreign]
    assert read.entries == [entry for entry in written if entry in read.entries]
    assert LostUnknown in {type(lost) for lost in read.lost}
    lab.restart(limbo=[LIMBO])
    while not any(path.suffix == ".foreign" for path in lab.disk.paths()):
        lab.journal.write_group([batch_of(2, lab.journal.position.offset, os.urandom(90_000))])
        assert lab.journal.position.file < 9


def test_a_journal_of_another_incarnation_is_never_read() -> None:
    lab = Lab()
    long_journal(lab)
    read = lab.read(incarnation=b"another one here")
    assert read.entries == []
    assert LostUnknown in {type(lost) for lost in read.lost}


def test_no_journal_at_all_is_an_unknown_loss() -> None:
    lab = Lab()
    long_journal(lab)
    for path in lab.disk.paths():
        lab.disk.remove(path)
    for replay_from in (None, JournalPosition(7, 4096)):
        read = lab.read(replay_from)
        assert LostUnknown in {type(lost) for lost in read.lost}
    lab.restart(JournalPosition(7, 4096), limbo=[LIMBO])
    assert lab.journal.position.file == 8
    assert lab.read(lab.journal.position).lost == ()


def test_a_lost_manifest_alone_loses_nothing_and_is_written_again() -> None:
    lab = Lab()
    written = long_journal(lab)
    lab.disk.remove(lab.folder / "manifest")
    read = lab.restart()
    assert read.entries == written
    assert read.lost == ()
    lab.journal.write_group([LIMBO])
    assert lab.folder / "manifest" in lab.disk.paths()


def test_a_file_cut_short_is_no_torn_tail() -> None:
    """No crash shortens a preallocated file: synced groups, and what proved them, may have been cut off."""
    lab = Lab()
    groups, ends = three_groups(lab)
    del lab.disk.content(lab.path(1))[ends[2].offset :]
    read = lab.read()
    assert read.entries == flat(groups[:2])
    assert LostUnknown in {type(lost) for lost in read.lost}
    lab.restart(limbo=[LIMBO])
    assert lab.read().entries == [*flat(groups[:2]), LIMBO]


def test_a_crash_between_taking_a_file_and_its_first_group_is_harmless_time_and_again() -> None:
    lab = Lab()
    written: list[JournalEntry] = []
    for i in range(11):
        written.append(batch_of(1, i, os.urandom(90_000)))
        lab.journal.write_group(written[-1:])
    assert lab.journal.position.file == 1
    syncs = 0

    def crash_at_second_write(operation: str) -> None:
        nonlocal syncs
        syncs += operation == "sync"
        if syncs == 1 and operation == "write":
            raise HostCrashError

    lab.disk.before = crash_at_second_write
    with pytest.raises(HostCrashError):
        lab.journal.write_group([batch_of(1, 11, os.urandom(90_000))])
    lab.disk.crash()
    for _ in range(3):
        read = lab.restart()
        assert read.entries == written
        assert read.lost == ()
        assert lab.journal.position == JournalPosition(2, 4096)
    lab.journal.write_group([LIMBO])
    assert lab.read().entries == [*written, LIMBO]
    assert lab.read().lost == ()


def test_a_damaged_spare_is_a_loss_once_and_not_at_every_start() -> None:
    """Found by tier 2 (seed 1107): a broker that had recorded its limbo was in limbo for everything again after each restart."""
    lab = Lab(files=3)
    groups, _ = three_groups(lab)
    spare = DIRECTORY / "journal" / "000003.journal"
    lab.disk.content(spare)[:4096] = bytes(4096)
    assert [type(lost) for lost in lab.restart(limbo=[LIMBO]).lost] == [LostUnknown]
    assert lab.journal.spare_needed()
    assert lab.journal.prepare_spare()
    assert not lab.journal.spare_needed()
    read = lab.restart()
    assert read.lost == ()
    assert read.entries == [*flat(groups), LIMBO]


def test_unreadable_sectors_are_damage_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    groups, ends = three_groups(lab)
    lab.journal.write_mark()
    bad = ends[1].offset + 1000
    pread = lab.disk.ops.pread

    def failing(fd: int, length: int, offset: int) -> bytes:
        if offset <= bad < offset + length:
            raise OSError(5, "input/output error")
        return pread(fd, length, offset)

    monkeypatch.setattr(lab.disk.ops, "pread", failing)
    read = lab.read()
    assert flat(groups[:1]) + groups[2] == [entry for entry in read.entries if entry not in groups[1]]
    assert set(read.lost) <= {expected_loss(entry) for entry in groups[1]}
    assert read.lost


def test_a_count_of_starts_that_went_back_is_an_unknown_loss() -> None:
    """P-31: the directory's parts are not of one time."""
    lab = Lab()
    for _ in range(3):
        lab.restart(limbo=[LIMBO])
    lab.starts = 1
    read = lab.restart()
    assert [type(lost) for lost in read.lost] == [LostUnknown]
    assert lab.journal.start == 5


def test_a_group_that_the_disk_does_not_hold_is_cut_though_the_cache_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sync that failed, the cache holds what the disk lacks, and no later sync says so: the last group is read from the disk."""
    lab = Lab()
    groups, ends = three_groups(lab)
    path = lab.path(1)
    monkeypatch.setattr(lab.disk.ops, "drop_cache", lambda fd, offset, length: lab.disk.flip(path, ends[2].offset + 1000))
    read = lab.read()
    assert read.entries == flat(groups[:2])
    assert read.recovered.end == ends[2]


def test_a_payload_cannot_pose_as_a_group() -> None:
    """A producer that sends the bytes of a group, for the very place they will lie at, is not believed: it cannot know the key."""
    lab = Lab()
    lab.journal.write_group([StateEntry("a", b"1")])
    lab.journal.write_group([StateEntry("b", b"2")])
    other = Lab(seed=2)
    other.journal.write_group([StateEntry("a", b"1")])
    for _ in range(3):
        other.journal.write_group([StateEntry("forged", b"!")])
    forged = bytes(other.disk.content(other.path(1))[4096 * 3 : 4096 * 5])
    content = lab.disk.content(lab.path(1))
    content[4096 * 3 : 4096 * 5] = forged
    read = lab.read()
    assert read.entries == [StateEntry("a", b"1"), StateEntry("b", b"2")]


def test_resume_makes_durable_what_was_read() -> None:
    """What a killed process has written and not synced is whole in the cache: once read it counts, so it must survive a power cut."""
    lab = Lab()
    lab.journal.write_group([StateEntry("a", b"1")])

    def killed(operation: str) -> None:
        if operation == "sync":
            raise HostCrashError

    lab.disk.before = killed
    with pytest.raises(HostCrashError):
        lab.journal.write_group([StateEntry("b", b"2")])
    lab.disk.before = lambda operation: None
    read: Read = lab.restart()
    assert read.entries == [StateEntry("a", b"1"), StateEntry("b", b"2")]
    lab.disk.crash()
    assert lab.read().entries == read.entries


def test_a_failed_sync_at_resume_is_final() -> None:
    lab = Lab()
    three_groups(lab)

    def fail(operation: str) -> None:
        raise OSError(5, "input/output error")

    read = lab.read()
    lab.disk.before = fail
    with pytest.raises(StorageFailedError):
        Journal.resume(DIRECTORY, read.recovered, incarnation=INCARNATION, file_bytes=FILE_BYTES, ops=lab.disk.ops)


def test_a_reader_gives_zeros_behind_the_end() -> None:
    lab = Lab()
    three_groups(lab)
    reader = FileReader(lab.disk.ops, lab.path(1), FILE_BYTES + 8192)
    assert reader.read(FILE_BYTES, 100) == bytes(100)
    reader.close()


def test_damage_that_comes_and_goes_does_not_bring_back_what_was_cut() -> None:
    """P-28: sectors that could not be read are readable again after the cut; the groups there are of an earlier start."""
    lab = Lab()
    ends = [lab.journal.position]
    ends += [lab.journal.write_group([StateEntry(name, b"1")]) for name in "abc"]
    path = lab.path(1)
    for end in ends[1:3]:
        lab.disk.flip(path, end.offset + 50)
    assert lab.restart(limbo=[LIMBO]).entries == [StateEntry("a", b"1")]
    assert lab.journal.position == ends[2]
    lab.disk.flip(path, ends[2].offset + 50)
    assert lab.restart().entries == [StateEntry("a", b"1"), LIMBO]


def test_a_tail_that_cannot_be_read_is_no_torn_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash leaves wrong bytes, never unreadable ones: what was there may have been acknowledged."""
    lab = Lab()
    groups, ends = three_groups(lab)
    pread = lab.disk.ops.pread

    def failing(fd: int, length: int, offset: int) -> bytes:
        if offset < ends[3].offset and offset + length > ends[1].offset:
            raise OSError(5, "input/output error")
        return pread(fd, length, offset)

    monkeypatch.setattr(lab.disk.ops, "pread", failing)
    read = lab.read()
    assert read.entries == groups[0]
    assert LostUnknown in {type(lost) for lost in read.lost}


def test_a_missing_file_is_not_made_again_before_its_loss_is_on_record() -> None:
    """P-29: a spare prepared meanwhile must not hide that a file is gone."""
    lab = Lab()
    long_journal(lab)
    lab.disk.remove(lab.path(4))
    lab.restart()
    assert lab.journal.prepare_spare()
    lab.disk.crash()
    assert LostUnknown in {type(lost) for lost in lab.restart().lost}


@pytest.mark.parametrize("was_used", [True, False])
def test_a_header_torn_when_its_file_was_to_be_used_loses_nothing(was_used: bool) -> None:
    """The file is what it was: a spare, with the groups of its last use or none."""
    lab = Lab()
    checkpoint = lab.journal.position
    entries: list[JournalEntry] = []
    if was_used:
        long_journal(lab)
        checkpoint = lab.journal.position
        lab.journal.release(checkpoint)
    lab.journal.write_group([StateEntry("a", b"1")])
    entries.append(StateEntry("a", b"1"))
    spare = next(file for file in lab.read(checkpoint).recovered.files if file.state == "spare")
    assert (spare.sequence > 0) == was_used
    lab.disk.flip(DIRECTORY / spare.name, 52)
    read = lab.restart(checkpoint)
    assert read.entries == entries
    assert read.lost == ()


def test_a_file_made_again_is_there_after_a_crash() -> None:
    """Its directory was synced before anything was written to it."""
    lab = Lab()
    long_journal(lab)
    lab.file_bytes = 2 * FILE_BYTES
    lab.restart()
    lab.journal.write_group([])
    checkpoint = lab.journal.position
    lab.journal.release(checkpoint)
    written: list[JournalEntry] = [batch_of(2, i, os.urandom(90_000)) for i in range(30)]
    for entry in written:
        lab.journal.write_group([entry])
    lab.disk.crash(keeps_names=False)
    read = lab.restart(checkpoint)
    assert read.entries == written
    assert read.lost == ()
