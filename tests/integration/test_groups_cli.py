"""Groups on the command line, with real brokers: what is consumed, committed, shown, set and removed; and under asyncio."""

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from streamq_consumer import Consumer
from streamq_consumer.sync import Consumer as BlockingConsumer
from tests.integration.local import LocalCluster, local_cluster, wait_until

RECORDS = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(3) as running:
        yield running


def made(cluster: LocalCluster, topic: str) -> Counter[bytes]:
    cluster.run("topic", "create", topic, "--partitions", "3")
    values = [b"%d" % i for i in range(RECORDS)]
    for partition in range(3):
        cluster.produce(topic, values[partition::3], "-p", str(partition))
    return Counter(values)


def told(cluster: LocalCluster, *words: str, expect: int = 0) -> dict[str, object]:
    done = cluster.run("group", *words, "-o", "json", expect=expect)
    [row] = [json.loads(line) for line in (done.stdout if expect == 0 else done.stderr).splitlines()]
    return row


def test_consuming_goes_on_where_it_stopped_and_the_group_says_how_far_it_is(cluster: LocalCluster) -> None:
    values = made(cluster, "orders")
    first = cluster.run("consume", "orders", "-g", "billing", "-n", "25").stdout.splitlines()
    assert len(first) == 25
    assert told(cluster, "lag", "billing")["lag"] == RECORDS - 25
    rest = cluster.run("consume", "orders", "-g", "billing", "-n", str(RECORDS - 25)).stdout.splitlines()
    assert Counter(first + rest) == values
    described = told(cluster, "describe", "billing")
    assert described["members"] == []
    assert [(p["position"], p["lag"]) for p in described["partitions"]] == [(20, 0)] * 3  # type: ignore[attr-defined]
    assert b"billing" in cluster.run("group", "ls").stdout


def test_positions_are_set_by_place_and_from_a_file(cluster: LocalCluster, tmp_path: Path) -> None:
    made(cluster, "seeks")
    assert told(cluster, "lag", "nobody", expect=3)["code"] == "unknown_group"
    cluster.run("group", "seek", "later", "--to", "end", "--topic", "seeks", "--yes")
    assert told(cluster, "lag", "later")["lag"] == 0
    cluster.run("group", "seek", "later", "--to=-2", "--yes")
    assert told(cluster, "lag", "later")["lag"] == 6
    saved = tmp_path / "positions.json"
    saved.write_bytes(cluster.run("group", "describe", "later", "-o", "json").stdout)
    assert b"nothing was changed" in cluster.run("group", "seek", "later", "--to", "start", "--dry-run").stderr
    assert cluster.run("group", "seek", "later", "--to", "start", expect=2).stderr  # nobody to ask, and no --yes
    assert told(cluster, "lag", "later")["lag"] == 6
    cluster.run("group", "seek", "later", "--to", "start", "--partition", "1", "--yes")
    assert told(cluster, "lag", "later")["lag"] == 24
    cluster.run("group", "seek", "later", "--to", "@1", "--yes")
    assert told(cluster, "lag", "later")["lag"] == RECORDS
    cluster.run("group", "seek", "later", "--to", str(saved), "--yes")
    assert told(cluster, "lag", "later")["lag"] == 6
    saved.write_text('{"topic": "seeks", "partition": 0, "position": -1}\n')
    assert b"line 1" in cluster.run("group", "seek", "later", "--to", str(saved), "--yes", expect=2).stderr
    cluster.run("group", "rm", "later", "--yes")
    assert told(cluster, "describe", "later", expect=3)["code"] == "unknown_group"


def test_two_members_share_and_a_killed_one_is_replaced(cluster: LocalCluster) -> None:
    made(cluster, "shared")
    words = ("consume", "shared", "-g", "pair", "--session", "1", "-F", "%v\\n")
    members = [cluster.start_command(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        wait_until(lambda: len(members_of(cluster, "pair")) == 2, timeout_s=20, what="two members with partitions")
        assert told(cluster, "seek", "pair", "--to", "start", "--yes", expect=7)["code"] == "group_in_use"
        assert told(cluster, "rm", "pair", "--yes", expect=7)["code"] == "group_in_use"
        members[0].kill()
        wait_until(lambda: len(members_of(cluster, "pair")) == 1, timeout_s=20, what="one member with all partitions")
        cluster.produce("shared", [b"last"])
        members[1].send_signal(signal.SIGTERM)
        out, _ = members[1].communicate(timeout=20)
        assert members[1].returncode == 130
        assert set(out.splitlines()) <= {b"last", *(b"%d" % i for i in range(RECORDS))}
        began = time.monotonic()
        wait_until(lambda: not members_of(cluster, "pair"), timeout_s=5, what="a clean leave")
        assert time.monotonic() - began < 5
    finally:
        for member in members:
            member.kill()
            member.wait()


def members_of(cluster: LocalCluster, group: str) -> set[object]:
    """Those that have partitions, once every partition has an owner or there is no member."""
    described = cluster.run("group", "describe", group, "-o", "json", expect=None)
    if described.returncode:
        return set()
    row = json.loads(described.stdout)
    owners = {partition["member"] for partition in row["partitions"]}
    return owners - {None} if None not in owners or not row["members"] else set()


def test_members_under_asyncio_and_in_scripts(cluster: LocalCluster) -> None:
    values = made(cluster, "both")
    seen: list[bytes | None] = []

    async def read() -> None:
        async with Consumer(cluster.bootstrap, topics=["both"], group="async") as consumer:
            async for record in consumer:
                seen.append(record.value)
                if len(seen) == 20:
                    break

    anyio.run(read, backend="asyncio")
    with BlockingConsumer(cluster.bootstrap, topics=["both"], group="async") as consumer:
        for record in consumer:
            seen.append(record.value)
            if len(seen) == 40:
                break
    with BlockingConsumer(cluster.bootstrap, topics=["both"], group="async", auto_commit=False) as consumer:
        seen += [record.value for record in consumer.fetch(15)]
        consumer.commit()
        left = len(consumer.fetch(100))
    assert left > 0
    with BlockingConsumer(cluster.bootstrap, topics=["both"], group="async") as consumer:
        while len(seen) < RECORDS:
            seen += [record.value for record in consumer.fetch(100)]
    assert Counter(seen) == values
