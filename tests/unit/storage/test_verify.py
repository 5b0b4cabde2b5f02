"""`verify` names exactly what is damaged and nothing else; `files` and `dump` show what is there. None of them changes a byte."""

import random
import shutil
from pathlib import Path

import msgspec
import pytest

from streamq.model.errors import NotFoundError, UnavailableError
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.verify import Finding, dump, files, verify
from tests.support.stored_batches import P1, P2, SMALL, batch, batches, make_directory, read_all, running, store

SIZE = batch(0, size=500).size


async def filled(tmp_path: Path) -> Path:
    """Some batches in several log files of two epochs, some in the journal only: what a kill leaves."""
    directory = make_directory(tmp_path / "data")
    storage = DiskStorage.open(directory, settings=SMALL)
    async with running(storage) as tokens:
        storage.append(batches(0, 400, size=500), [("a", b"1")], 1)
        storage.append(batches(400, 410, epoch=2, size=500), [], 2)
        await storage.flush()
        storage.append([*batches(410, 420, epoch=2, size=500), batch(0, partition=P2)], [("b", b"value of b")], 3)
        await tokens.until(3)
        storage.append([batch(2, partition=P2)], [], 4)
        await tokens.until(4)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    return copy


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


async def test_a_whole_directory_has_no_findings_and_is_not_changed(tmp_path: Path) -> None:
    directory = await filled(tmp_path)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "lock"}
    report = verify(directory)
    assert report.findings == ()
    assert (report.batches, report.records) == (212, 424)
    assert len(report.files) == len(set(report.files)) >= 10
    assert len(list(dump(directory))) > 200
    assert len(list(files(directory, entries=True))) > 8
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "lock"}


async def test_every_flipped_byte_of_a_log_file_is_found_where_it_is(tmp_path: Path) -> None:
    directory = await filled(tmp_path)
    (row,) = [row for row in files(directory) if row["kind"] == "log" and row["base"] == 0]
    path = directory / str(row["path"])
    whole = path.read_bytes()
    for position in [0, 50, 128, 128 + SIZE - 1, *random.Random(1).sample(range(len(whole)), 25)]:
        flip(path, position)
        (finding,) = verify(directory).findings
        assert finding.file == row["path"]
        assert finding.first_byte <= position <= finding.last_byte
        assert finding.last_byte - finding.first_byte < (SIZE if position >= 128 else 128)
        path.write_bytes(whole)


async def test_several_damages_are_found_apart_and_are_gone_after_the_repair(tmp_path: Path) -> None:
    directory = await filled(tmp_path)
    rows = [row for row in files(directory) if row["kind"] == "log"]
    first, second = directory / str(rows[0]["path"]), directory / str(rows[1]["path"])
    flip(first, 128 + 3 * SIZE + 200)
    flip(first, 128 + 9 * SIZE + 20)
    second.unlink()
    (first.with_name(first.name + ".index")).write_bytes(b"nonsense")
    found = verify(directory).findings
    assert [(finding.file, finding.first_byte, finding.last_byte) for finding in found] == [
        (rows[0]["path"], 128 + 3 * SIZE, 128 + 4 * SIZE - 1),
        (rows[0]["path"], 128 + 9 * SIZE, 128 + 10 * SIZE - 1),
        (f"{rows[0]['path']}.index", 0, 7),
        (rows[1]["path"], 0, rows[1]["size"] - 1),  # type: ignore[operator]
    ]
    storage = DiskStorage.open(directory, settings=SMALL)
    end = int(str(rows[1]["end"]))
    await storage.restore(P1, 1, batches(0, end, size=500))
    assert await read_all(storage, P1, 1, 0) == batches(0, 400, size=500)
    await storage.close()
    assert verify(directory).findings == ()


@pytest.mark.parametrize("name", ["checkpoint.a", "checkpoint.b", "identity", "starts", "journal/manifest"])
async def test_damage_in_small_files_is_found(tmp_path: Path, name: str) -> None:
    directory = await filled(tmp_path)
    flip(directory / name, 10)
    (finding,) = verify(directory).findings
    assert finding.file == name
    assert (finding.first_byte, finding.last_byte) == (0, (directory / name).stat().st_size - 1)


async def test_damage_in_the_journal_is_found_and_entries_tell_where_they_lie(tmp_path: Path) -> None:
    directory = await filled(tmp_path)
    rows = [row for row in files(directory, entries=True) if row["kind"] == "journal"]
    entries = [(row["path"], entry) for row in rows for entry in row["entries"]]  # type: ignore[attr-defined]
    assert {
        (entry["base"], entry["checkpointed"]) for _, entry in entries if entry.get("partition") == P1.hex() and entry["epoch"] == 2
    } == {
        *((base, True) for base in range(400, 410, 2)),
        *((base, False) for base in range(410, 420, 2)),
    }
    (path, entry), *_ = [(p, e) for p, e in entries if e["kind"] == "state" and e["key"] == "b"]
    content = (directory / str(path)).read_bytes()
    assert content[entry["first_byte"] : entry["last_byte"] + 1] == b"value of b"
    assert entry["synced"]
    flip(directory / str(path), entry["first_byte"] + 2)
    assert verify(directory).findings == (Finding(str(path), entry["first_byte"], entry["last_byte"], "the body of the state b"),)


async def test_files_tell_closed_from_active_and_unnamed(tmp_path: Path) -> None:
    directory = await filled(tmp_path)
    stray = directory / "logs" / P1.hex() / "9-9.log"
    stray.write_bytes(b"what a flush left that was broken off")
    rows = [row for row in files(directory) if row["kind"] == "log"]
    assert [(row["epoch"], row["state"]) for row in rows if "epoch" in row] == [(1, "closed")] * (len(rows) - 2) + [(2, "active")]
    assert [(row["path"], row["state"]) for row in rows if "epoch" not in row] == [(f"logs/{P1.hex()}/9-9.log", "unnamed")]
    assert verify(directory).findings == ()
    small = {row["path"]: row["state"] for row in files(directory) if row["kind"] in ("identity", "starts", "checkpoint", "journal")}
    assert small == {
        "identity": "whole",
        "starts": "whole",
        "checkpoint.a": "newest",
        "checkpoint.b": "newest",
        "journal/000001.journal": "active",
        "journal/000002.journal": "spare",
    }


async def test_dump_shows_batches_where_they_are(tmp_path: Path) -> None:
    directory = await filled(tmp_path)
    rows = list(dump(directory))
    assert rows[0]["kind"] == "identity"
    held = [row for row in rows if row["kind"] == "batch" and row["partition"] == P1.hex() and str(row["file"]).startswith("logs/")]
    assert [row["base"] for row in held] == list(range(0, 410, 2))
    for row in held[::20]:
        content = (directory / str(row["file"])).read_bytes()[row["first_byte"] : row["last_byte"] + 1]  # type: ignore[index]
        stored = batch(int(str(row["base"])), epoch=int(str(row["epoch"])), size=500)
        assert content == stored.head + stored.payload
    assert {"kind": "state", "file": "checkpoint", "key": "a", "bytes": 1} in rows


async def test_a_running_broker_and_a_directory_of_nobody_are_refused(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "data")
    assert verify(directory).findings == (), "a directory that was never started"
    storage = DiskStorage.open(directory, settings=msgspec.structs.replace(SMALL))
    await store(storage, batch(0))
    for look in (verify, lambda path: list(files(path)), lambda path: list(dump(path))):
        with pytest.raises(UnavailableError):
            look(directory)
    await storage.close()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        verify(tmp_path / "empty")
