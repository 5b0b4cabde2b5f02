"""A data directory belongs to one cluster, one broker and one incarnation, counts its starts, and is open in one process (P-31)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamq.model.errors import AlreadyExistsError, CorruptDataError, NotFoundError, UnavailableError
from streamq.model.registers import Voter, Voters
from streamq.storage.file_ops import FileOps
from streamq.storage.identity import DirectoryLock, count_start, create_identity, expect, load_identity, new_incarnation
from streamq.storage.interface import Identity

CLUSTER = b"c" * 16
VOTERS = Voters(1, (Voter("b1", b"1" * 16, "localhost", 7700), Voter("b2", b"2" * 16, "localhost", 7701)))


def create(directory: Path, *, broker: str = "b1", ops: FileOps | None = None) -> Identity:
    return create_identity(directory, cluster=CLUSTER, broker=broker, first_voters=VOTERS, ops=ops)


def test_what_was_created_is_loaded(tmp_path: Path) -> None:
    made = create(tmp_path / "new" / "b1")
    assert made == Identity(CLUSTER, "b1", made.incarnation, VOTERS, 0)
    assert len(made.incarnation) == 16
    assert load_identity(tmp_path / "new" / "b1") == made


def test_the_incarnation_may_be_given_since_the_first_voters_name_it(tmp_path: Path) -> None:
    made = create_identity(tmp_path, cluster=CLUSTER, broker="b1", first_voters=VOTERS, incarnation=b"1" * 16)
    assert made.incarnation == load_identity(tmp_path).incarnation == b"1" * 16


def test_each_start_is_counted(tmp_path: Path) -> None:
    identity = create(tmp_path)
    for starts in (1, 2, 3):
        identity = count_start(tmp_path, identity)
        assert identity.starts == starts
        assert load_identity(tmp_path) == identity


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_directory_is_nobodys_and_says_what_to_do(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path if exists else tmp_path / "missing"
    with pytest.raises(NotFoundError) as raised:
        load_identity(directory)
    assert raised.value.code == "unknown_broker"
    assert "cluster start" in raised.value.hint
    assert "broker rejoin" in raised.value.hint
    assert directory.exists() == exists


def test_a_directory_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(AlreadyExistsError) as created:
        create(tmp_path)
    with pytest.raises(AlreadyExistsError) as loaded:
        load_identity(tmp_path)
    assert created.value.code == loaded.value.code == "wrong_directory"
    assert os.listdir(tmp_path) == ["photos"]


def test_an_existing_identity_is_never_written_over(tmp_path: Path) -> None:
    made = create(tmp_path)
    with pytest.raises(AlreadyExistsError):
        create(tmp_path, broker="b2")
    assert load_identity(tmp_path) == made


def test_the_operators_files_do_not_count(tmp_path: Path) -> None:
    for name in ("broker.toml", "broker.pid", "broker.log", "lock"):
        (tmp_path / name).touch()
    with pytest.raises(NotFoundError):
        load_identity(tmp_path)
    assert create(tmp_path) == load_identity(tmp_path)


@pytest.mark.parametrize("name", ["identity", "starts"])
def test_a_flip_anywhere_is_told_and_never_believed(tmp_path: Path, name: str) -> None:
    create(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    for offset in range(len(content)):
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CorruptDataError) as raised:
            load_identity(tmp_path)
        assert name in raised.value.message
        assert "rejoin" in raised.value.hint
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptDataError):
            load_identity(tmp_path)


def test_a_missing_or_foreign_count_is_told(tmp_path: Path) -> None:
    create(tmp_path / "a")
    create(tmp_path / "b")
    (tmp_path / "b" / "starts").replace(tmp_path / "a" / "starts")
    for name, why in (("a", "another incarnation"), ("b", "missing")):
        with pytest.raises(CorruptDataError, match=why):
            load_identity(tmp_path / name)


def test_a_creation_broken_off_at_any_operation_can_be_repeated(tmp_path: Path) -> None:
    """The identity is written last: before that the directory is nobody's."""

    class Broken(FileOps):
        def __init__(self, left: int) -> None:
            self.left = left

        def _tick(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        def open(self, path: Path, *, create: bool = False) -> int:
            self._tick()
            return super().open(path, create=create)

        def fsync(self, fd: int) -> None:
            self._tick()
            super().fsync(fd)

        def rename(self, source: Path, target: Path) -> None:
            self._tick()
            super().rename(source, target)

        def sync_directory(self, directory: Path) -> None:
            self._tick()
            super().sync_directory(directory)

    for left in range(20):
        directory = tmp_path / str(left)
        try:
            create(directory, ops=Broken(left))
        except KeyboardInterrupt:
            if not (directory / "identity").exists():
                with pytest.raises(NotFoundError):
                    load_identity(directory)
                create(directory)
        assert load_identity(directory).starts == 0


def test_expectations(tmp_path: Path) -> None:
    identity = create(tmp_path)
    expect(identity, tmp_path, broker="b1", cluster=CLUSTER)
    expect(identity, tmp_path)
    with pytest.raises(AlreadyExistsError, match="belongs to broker b1, not to b2") as raised:
        expect(identity, tmp_path, broker="b2", cluster=CLUSTER)
    assert raised.value.code == "wrong_directory"
    with pytest.raises(AlreadyExistsError, match="belongs to cluster") as raised:
        expect(identity, tmp_path, broker="b1", cluster=b"d" * 16)
    assert raised.value.code == "wrong_cluster"


def test_a_new_incarnation_sets_everything_aside_and_begins_at_zero(tmp_path: Path) -> None:
    old = count_start(tmp_path, create(tmp_path))
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "000001.journal").write_bytes(b"records")
    (tmp_path / "broker.toml").touch()
    new, aside = new_incarnation(tmp_path, cluster=CLUSTER, broker="b1", first_voters=VOTERS)
    assert aside == tmp_path / "set-aside-1"
    assert sorted(path.name for path in aside.iterdir()) == ["identity", "journal", "starts"]
    assert (aside / "journal" / "000001.journal").read_bytes() == b"records"
    assert load_identity(aside) == old
    assert new.incarnation != old.incarnation
    assert new.starts == 0
    assert load_identity(tmp_path) == new
    again, aside = new_incarnation(tmp_path, cluster=CLUSTER, broker="b1", first_voters=VOTERS)
    assert aside == tmp_path / "set-aside-2"
    assert again.incarnation not in (old.incarnation, new.incarnation)


def test_a_new_incarnation_in_an_empty_directory_sets_nothing_aside(tmp_path: Path) -> None:
    _, aside = new_incarnation(tmp_path, cluster=CLUSTER, broker="b1", first_voters=VOTERS)
    assert aside is None
    assert sorted(os.listdir(tmp_path)) == ["identity", "starts"]


def test_a_rejoin_broken_off_leaves_no_directory_that_passes_for_the_old_one(tmp_path: Path) -> None:
    old = create(tmp_path)
    (tmp_path / "journal").mkdir()

    class Broken(FileOps):
        def rename(self, source: Path, target: Path) -> None:
            if source.name == "journal":
                raise KeyboardInterrupt
            super().rename(source, target)

    with pytest.raises(KeyboardInterrupt):
        new_incarnation(tmp_path, cluster=CLUSTER, broker="b1", first_voters=VOTERS, ops=Broken())
    with pytest.raises(AlreadyExistsError):
        load_identity(tmp_path)
    new, _ = new_incarnation(tmp_path, cluster=CLUSTER, broker="b1", first_voters=VOTERS)
    assert new.incarnation != old.incarnation
    assert (tmp_path / "set-aside-2" / "journal").exists()


def test_two_processes_never_open_one_directory(tmp_path: Path) -> None:
    create(tmp_path)
    lock = DirectoryLock(tmp_path)
    with pytest.raises(UnavailableError, match=str(os.getpid())) as raised:
        DirectoryLock(tmp_path)
    assert raised.value.code == "busy"
    script = "import sys, pathlib; from streamq.storage.identity import DirectoryLock; DirectoryLock(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(__file__).parents[3]
    other = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert other.returncode != 0
    assert "is open in another process" in other.stderr
    lock.release()
    assert subprocess.run(command, capture_output=True, cwd=root, check=False).returncode == 0


def test_a_lock_in_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        DirectoryLock(tmp_path / "missing")
