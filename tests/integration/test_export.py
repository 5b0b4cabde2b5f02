"""Topics that are altered, trimmed, exported and imported, through the real command line."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.local import LocalCluster, local_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(3, flush_interval_s=0.2) as running:
        yield running


RECORDS = [
    {"key": f"k{i % 7}" if i % 3 else None, "value": f"value {i}" if i % 11 else None, "timestamp": 1_700_000_000_000 + 1000 * i}
    | ({"headers": {"n": str(i)}, "headers_base64": {"raw": "AP8="}} if i % 5 == 0 else {})
    | ({"value_base64": "AP8KDQ=="} if i % 13 == 0 else {})
    for i in range(600)
]


def fill(cluster: LocalCluster, topic: str, partitions: int) -> None:
    cluster.run("topic", "create", topic, "--partitions", str(partitions))
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    cluster.run("produce", topic, "--format", "json", stdin=lines.encode())


def records(cluster: LocalCluster, topic: str, *words: str) -> list[dict[str, object]]:
    out = cluster.run("tail", topic, "--from", "start", "-o", "json", *words).stdout
    rows = [json.loads(line) for line in out.splitlines()]
    return sorted(({k: v for k, v in row.items() if k != "topic"} for row in rows), key=lambda row: (row["partition"], row["offset"]))


def test_export_and_import_give_an_equal_topic(cluster: LocalCluster, tmp_path: Path) -> None:
    """Every byte of key, value and headers, times, partitions, and the order within them."""
    fill(cluster, "whole", 3)
    done = cluster.run("export", "whole")
    assert b"exported 600 record(s) of whole" in done.stderr
    cluster.run("topic", "create", "copy", "--partitions", "3")
    told = json.loads(cluster.run("import", "copy", "-o", "json", stdin=done.stdout).stderr)
    assert (told["acked"], told["refused"], told["unknown"]) == (600, 0, 0)
    whole = records(cluster, "whole")
    assert records(cluster, "copy") == whole
    file = tmp_path / "whole.sqexport"
    file.write_bytes(done.stdout)
    cluster.run("topic", "create", "narrow")
    by_key = cluster.run("import", "narrow", str(file))
    assert b"keys decide" in by_key.stderr
    narrow = records(cluster, "narrow")
    for key in {row["key"] for row in narrow if row["key"]}:
        times = [[row["timestamp"] for row in rows if row["key"] == key] for rows in (narrow, whole)]
        assert times[0] == times[1]
    refused = cluster.run("import", "narrow", str(file), "--keep-partitions", "-o", "json", expect=7)
    assert b"precondition_failed" in refused.stderr
    cluster.run("topic", "create", "wide", "--partitions", "5")
    cluster.run("import", "wide", str(file), "--keep-partitions", "-q")
    assert records(cluster, "wide") == whole


def test_an_export_shows_its_progress_on_a_terminal(cluster: LocalCluster, tmp_path: Path) -> None:
    """stderr is one, stdout is a file."""
    cluster.run("topic", "create", "progress")
    cluster.run("produce", "progress", "-q", stdin=b"x" * 200 + b"\n" + b"".join(b"%d\n" % i for i in range(400_000)))
    file = tmp_path / "out"
    code = "import os, pty, sys; sys.exit(pty.spawn(['sh', '-c', sys.argv[1]]) >> 8)"
    words = " ".join(cluster.command("export", "progress", "--bootstrap", cluster.bootstrap))
    shown = subprocess.run(
        [sys.executable, "-c", code, f"{words} > {file}"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert shown.returncode == 0
    assert re.search(rb"[\d,]+ records, .*/s, .* left", shown.stdout)
    assert b"exported 400,001 record(s)" in shown.stdout


def test_ranges_of_an_export_are_those_of_tail(cluster: LocalCluster) -> None:
    fill(cluster, "ranges", 2)
    whole = records(cluster, "ranges")
    for name, words in (("times", ["--since", "@1700000200", "--until", "@1700000300", "-p", "1"]), ("none-of-it", ["--from=end"])):
        exported = cluster.run("export", "ranges", "-q", *words).stdout
        cluster.run("topic", "create", name, "--partitions", "2")
        cluster.run("import", name, "-q", stdin=exported)
        seconds = range(200, 300 if name == "times" else 200)
        expected = [row for row in whole if row["partition"] == 1 and (int(str(row["timestamp"])) // 1000 - 1_700_000_000) in seconds]
        assert bool(expected) == (name == "times")
        assert [{**row, "offset": 0} for row in records(cluster, name)] == [{**row, "offset": 0} for row in expected]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_file_that_is_not_whole_ends_with_8_and_says_how_far_it_came(cluster: LocalCluster, damage: str) -> None:
    """Nothing is left out silently: what came before is in the topic, and the message counts it."""
    name = "damaged-" + damage
    cluster.run("topic", "create", name)
    cluster.run("produce", name, "-q", stdin=b"".join(b"%d" % i * 40_000 + b"\n" for i in range(100)), expect=None)
    whole = cluster.run("export", name, "-q").stdout
    broken = {"cut": whole[:-30], "flip": whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:], "empty": b""}[damage]
    cluster.run("topic", "create", name + "-back")
    done = cluster.run("import", name + "-back", stdin=broken, expect=8)
    assert b"error[data_damaged]" in done.stderr
    read = re.search(rb"(\d+) record\(s\) were read before it: partition 0 up to offset (\d+)", done.stderr)
    back = len(records(cluster, name + "-back"))
    if read is None:
        assert b"no record was read" in done.stderr
        assert back == 0
    else:
        assert back == int(read[1]) == int(read[2]) + 1


def test_export_and_import_refuse_what_they_cannot_do(cluster: LocalCluster, tmp_path: Path) -> None:
    assert b"unknown_topic" in cluster.run("export", "nothing", expect=3).stderr
    assert b"unknown_topic" in cluster.run("import", "nothing", expect=3).stderr
    assert b"No such file" in cluster.run("import", "nothing", str(tmp_path / "nothing"), expect=3).stderr
    code = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    words = cluster.command("export", "terminal", "--bootstrap", cluster.bootstrap)
    shown = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    assert shown.returncode == 2
    assert b"an export is not for terminals" in shown.stdout


def test_alter_says_from_when_and_trim_moves_the_start(cluster: LocalCluster) -> None:
    fill(cluster, "changing", 2)
    shown = cluster.run("topic", "alter", "changing", "--retention-time", "7d", "-W", "3", "--dry-run").stdout.decode()
    assert "would be altered" in shown
    assert cluster.describe("changing")[0]["write_quorum"] == 2
    done = cluster.run("topic", "alter", "changing", "--retention-time", "7000d", "-W", "3")
    assert "2 -> 3, from the next epoch of each partition on" in done.stdout.decode()
    assert "for ever -> 7000d, at once" in done.stdout.decode()
    assert "partition 0, 1" in done.stderr.decode()
    row = json.loads(cluster.run("topic", "alter", "changing", "--now", "-o", "json").stdout)
    assert row["pending_partitions"] == []
    assert [partition["write_quorum"] for partition in cluster.describe("changing")] == [3, 3]
    cluster.run("topic", "alter", "changing", "--retention-time", "none")

    before = records(cluster, "changing")
    assert cluster.run("topic", "trim", "changing", "--before", "10", "-p", "0", expect=2).stderr  # nobody to ask
    assert b"would remove 10 record(s)" in cluster.run("topic", "trim", "changing", "--before", "10", "-p", "0", "--dry-run").stderr
    cluster.run("topic", "trim", "changing", "--before", "10", "-p", "0", "--yes")
    assert records(cluster, "changing") == [row for row in before if row["partition"] == 1 or int(str(row["offset"])) >= 10]
    out = cluster.run("topic", "trim", "changing", "--before", "@1700000500", "--yes", "-o", "json").stdout
    rows = sorted((json.loads(line) for line in out.splitlines()), key=lambda row: row["partition"])
    left = records(cluster, "changing")
    assert left == [row for row in before if int(str(row["timestamp"])) >= 1_700_000_500_000]
    assert [row["new_start_offset"] for row in rows] == [partition["start_offset"] for partition in cluster.describe("changing")]
    assert cluster.run("topic", "trim", "changing", "--before", "99999", "-p", "0", "--yes", "-o", "json", expect=7).stderr
    cluster.run("topic", "trim", "changing", "--before", "end", "--yes")
    assert records(cluster, "changing") == []
    cluster.produce("changing", [b"after"])
    assert cluster.tail("changing") == [b"after"]
