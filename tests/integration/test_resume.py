"""`streamq produce --resume`: killed anywhere and started again, it leaves each line in the topic once, in order per partition."""

import json
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.local import LocalCluster, local_cluster

RUNS_MAX = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(3) as cluster:
        yield cluster


def records(cluster: LocalCluster, topic: str) -> dict[int, list[tuple[str | None, str]]]:
    """Key and value of each record, by partition in order."""
    found: dict[int, list[tuple[str | None, str]]] = defaultdict(list)
    for line in cluster.run("tail", topic, "--from=start", "-o", "json").stdout.splitlines():
        record = json.loads(line)
        found[record["partition"]].append((record.get("key"), record["value"]))
    return found


def check_once(cluster: LocalCluster, topic: str, lines: list[tuple[str | None, str]]) -> None:
    found = records(cluster, topic)
    order = {line: number for number, line in enumerate(lines)}
    assert len(order) == len(lines), "lines must differ"
    assert sum(map(len, found.values())) == len(lines)
    for stored in found.values():
        numbers = [order[line] for line in stored]
        assert numbers == sorted(set(numbers))


def kill_and_resume(cluster: LocalCluster, words: list[str], rng: random.Random, *, kills: int, longest_s: float) -> None:
    """Starts the command again and again, and kills it in the midst of things, `kills` times at most; the last time it ends by itself."""
    for _ in range(kills):
        process = cluster.start_command(*words)
        time.sleep(rng.uniform(0.25, longest_s))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
    for _ in range(RUNS_MAX):
        if cluster.run(*words, expect=None).returncode == 0:
            return
    raise AssertionError("it never came to its end")


def numbered(path: Path, count: int) -> list[tuple[str | None, str]]:
    texts = [f"{number} {'x' * (number % 97)}" for number in range(count)]
    path.write_text("\n".join(texts))  # the last one has no newline
    return [(None, text) for text in texts]


def test_killed_and_started_again_each_line_is_there_once(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.run("topic", "create", "lines", "--partitions", "3")
    lines = numbered(tmp_path / "lines", 6_000)
    words = ["produce", "lines", "--resume", "ingest", "--rate", "5000", "-q", str(tmp_path / "lines")]
    kill_and_resume(cluster, words, random.Random(7), kills=4, longest_s=0.8)
    check_once(cluster, "lines", lines)
    again = json.loads(cluster.run(*words[:4], "-o", "json", words[-1]).stderr)
    assert again["acked"] == 0
    with (tmp_path / "lines").open("a") as file:
        file.write("\nmore\n")
    told = cluster.run(*words[:4], words[-1]).stderr.decode()
    assert "resumed at byte" in told
    assert "acked 1" in told
    check_once(cluster, "lines", [*lines, (None, "more")])


def test_lines_with_keys_go_by_them_and_those_without_by_their_place(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.run("topic", "create", "keyed", "--partitions", "4")
    lines: list[tuple[str | None, str]] = [(f"k{n % 5}" if n % 3 else None, f"{n}") for n in range(3_000)]
    path = tmp_path / "keyed"
    path.write_text("".join(f"{key}:{value}\n" if key else f"{value}\n" for key, value in lines))
    words = ["produce", "keyed", "--resume", "by-key", "--key-sep", ":", "--rate", "4000", str(path)]
    kill_and_resume(cluster, words, random.Random(8), kills=1, longest_s=0.7)
    check_once(cluster, "keyed", lines)


def test_another_file_and_what_cannot_be_read_again_are_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.run("topic", "create", "refused")
    path = tmp_path / "file"
    path.write_text("one\ntwo\nthree\n")
    cluster.run("produce", "refused", "--resume", "name", str(path))
    path.write_text("one\n")
    assert "was stored up to byte 14" in cluster.run("produce", "refused", "--resume", "name", str(path), expect=7).stderr.decode()
    path.write_text("one\ntwo\nthree, and more\n")
    assert "none does now" in cluster.run("produce", "refused", "--resume", "name", str(path), expect=7).stderr.decode()
    for words in ([], ["-"], [str(path), str(path)], [str(path), "--format", "json"], [str(path), "--rejects", str(tmp_path / "r")]):
        cluster.run("produce", "refused", "--resume", "name", *words, expect=2)
    cluster.run("produce", "refused", "--resume", "no/name", str(path), expect=2)
    cluster.run("produce", "nowhere", "--resume", "name", str(path), expect=3)


def ingest_under_kills(cluster: LocalCluster, path: Path, *, records: int, kills: int, rng: random.Random) -> None:
    """A broker at a time is killed and started again while the command is, too."""
    cluster.run("topic", "create", "storm", "--partitions", "3")
    lines = numbered(path, records)
    words = ["produce", "storm", "--resume", "storm", "--rate", "3000", "-q", str(path)]
    down = ""
    for number in range(kills):
        process = cluster.start_command(*words)
        if number % 2:
            if down:
                cluster.start(down)
            down = "" if down else rng.choice(cluster.names)
            if down:
                cluster.cluster("kill", down)
        time.sleep(rng.uniform(0.2, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    if down:
        cluster.start(down)
    kill_and_resume(cluster, words, rng, kills=0, longest_s=1)
    check_once(cluster, "storm", lines)


@pytest.mark.long
def test_many_kills_of_the_command_and_of_brokers(cluster: LocalCluster, tmp_path: Path) -> None:
    ingest_under_kills(cluster, tmp_path / "storm", records=60_000, kills=40, rng=random.Random(9))
