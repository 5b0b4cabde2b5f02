"""`streamq tail`: every range, over one partition and several, in every format, as it was promised."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from streamq.cli import tail
from streamq.cli.grammar import parser
from streamq.cli.tail import Range, Tail, filter_of, open_consumer, printer_of
from streamq.model.errors import NotFoundError, OffsetError, RefusedError
from streamq.model.messages import Subscribe
from tests.support.backends import run
from tests.support.fake_cluster import FakeCluster, FakePartition, fake_cluster
from tests.unit.consumer.test_consumer import fill
from tests.unit.consumer.test_times import fill_at

FIRST_MS = 1_700_000_000_000
NOW_MS = FIRST_MS + 100_000
"""100 s after the first record."""


class Clock:
    now_ms = NOW_MS


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    written: list[bytes] = []
    monkeypatch.setattr(tail, "write_out", written.append)
    monkeypatch.setattr(tail, "_now_ms", lambda: Clock.now_ms)
    monkeypatch.setattr(tail, "FETCH_TIMEOUT_S", 0.05)
    monkeypatch.setattr(Clock, "now_ms", NOW_MS)
    return written


async def print_tail(cluster: FakeCluster, *words: str) -> None:
    options = parser().parse_args(["tail", *words])
    command = Tail(Range.of(options, now_ms=Clock.now_ms), printer=printer_of(options), keep=filter_of(options))
    async with open_consumer(options, command.wanted, cluster.bootstrap) as consumer:
        await command.print_range(consumer)


def with_cluster(body: Callable[[FakeCluster, list[FakePartition]], Any], *, partitions: int) -> None:
    """Records are 1 s apart, 100 of them, in turns over the partitions; a value is its record's second."""

    async def inner() -> None:
        async with fake_cluster() as cluster:
            made = cluster.create("t", partitions)
            for number, partition in enumerate(made):
                fill_seconds(partition, list(range(number, 100, partitions)))
            await body(cluster, made)

    run("trio", inner)


def fill_seconds(partition: FakePartition, seconds: list[int]) -> None:
    fill_at(partition, [FIRST_MS + 1000 * second for second in seconds])


def seconds(printed: list[bytes]) -> list[int]:
    """What a format of the user's own printed: one time a line."""
    return [(int(line) - FIRST_MS) // 1000 for line in b"".join(printed).splitlines()]


def iso(second: int) -> str:
    return datetime.fromtimestamp(FIRST_MS / 1000 + second, UTC).isoformat()


RANGES: list[tuple[list[str], list[int]]] = [
    ([], list(range(90, 100))),
    (["-n", "3"], [97, 98, 99]),
    (["-n", "0"], []),
    (["--from=-4"], [96, 97, 98, 99]),
    (["--from=-4", "-n", "2"], [96, 97]),
    (["--from", "start"], list(range(100))),
    (["--from=end"], []),
    (["--exit-at-end", "-n", "1"], [99]),
    (["--since", "5s"], list(range(95, 100))),
    (["--since", "1.5m", "-n", "2"], [10, 11]),
    (["--since", "2h"], list(range(100))),
    (["--since", iso(97)], [97, 98, 99]),
    (["--from", iso(97)], [97, 98, 99]),
    (["--since", f"@{FIRST_MS // 1000 + 98}"], [98, 99]),
    (["--since", f"@{FIRST_MS + 98_000}"], [98, 99]),
    (["--since", "7s", "--until", "4s"], [93, 94, 95]),
    (["--since", "4s", "--until", "7s"], []),
    (["--from", "start", "--until", iso(3)], [0, 1, 2]),
    (["--since", "7s", "--until", "end"], [93, 94, 95, 96, 97, 98, 99]),
    (["--until", iso(50)], list(range(40, 50))),
    (["--until", iso(50), "-n", "2"], [48, 49]),
    (["--from=-3", "--until", "10s"], [87, 88, 89]),
    (["--until", iso(0)], []),
]


@pytest.mark.parametrize("partitions", [1, 3])
def test_every_range_in_order_of_time(printed: list[bytes], partitions: int) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        for words, expected in RANGES:
            printed.clear()
            await print_tail(cluster, "t", "-F", r"%d\n", *words)
            shown = seconds(printed)
            if partitions > 1 and ("--from" in words or "--since" in words):  # partitions take turns, a batch each
                assert set(shown) == set(expected) or "-n" in words, words
            else:
                assert shown == expected, words
            assert len(shown) == len(expected), words

    with_cluster(body, partitions=partitions)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--from", "30"], {0: [30, 31, 32, 33], 1: [30, 31, 32], 2: [30, 31, 32]}),
        (["--from", "33"], {0: [33]}),
        (["--from", "31", "--until", "33"], {0: [31, 32], 1: [31, 32], 2: [31, 32]}),
        (["--until", "2"], {0: [0, 1], 1: [0, 1], 2: [0, 1]}),
        (["--from", "31", "-p", "1"], {1: [31, 32]}),
        (["--from", "31", "-p", "1", "-p", "0"], {1: [31, 32], 0: [31, 32, 33]}),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_offsets_are_of_each_partition(printed: list[bytes], words: list[str], expected: dict[int, list[int]]) -> None:
    """One that has not come so far has nothing of the range yet; only one that nobody has come to is an error."""

    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        await print_tail(cluster, "t", "-o", "json", *words)
        rows = [json.loads(line) for line in b"".join(printed).splitlines()]
        assert {p: [row["offset"] for row in rows if row["partition"] == p] for p in expected} == expected
        assert len(rows) == sum(map(len, expected.values()))

    with_cluster(body, partitions=3)


def test_places_that_are_not_there_are_told(printed: list[bytes]) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        for words, error in (
            (["--from", "101"], OffsetError), (["-p", "2"], NotFoundError), (["--broker", "b9"], NotFoundError),
            (["-f", "--until=end"], RefusedError), (["--until=-3"], RefusedError), (["--until=start"], RefusedError),
            (["-F", "%v", "-o", "json"], RefusedError), (["-n", "600000"], RefusedError),
        ):  # fmt: skip
            with pytest.raises(error):
                await print_tail(cluster, "t", *words)
        made[0].start_offset = 5
        with pytest.raises(OffsetError) as trimmed:
            await print_tail(cluster, "t", "--from", "4")
        assert trimmed.value.code == "offset_trimmed"

    with_cluster(body, partitions=2)


def test_records_without_time_order_are_all_looked_at_up_to_the_tip(printed: list[bytes]) -> None:
    """Producers may give any times: what is before --until is printed wherever it lies."""

    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        fill_seconds(made[0], [20, 500, 30])
        await print_tail(cluster, "t", "-F", r"%d\n", "--from", "98", "--until", iso(99))
        assert seconds(printed) == [98, 20, 30]

    with_cluster(body, partitions=1)


@pytest.mark.parametrize("partitions", [1, 2])
def test_following_until_a_time_ends_when_it_has_come_though_nothing_comes(printed: list[bytes], partitions: int) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(print_tail, cluster, "t", "-F", r"%d\n", "-f", "--from=-2", "--until", iso(103))
            while len(seconds(printed)) < 2:
                await anyio.sleep(0.01)
            fill_seconds(made[0], [101, 105, 102])
            while len(seconds(printed)) < 4:
                await anyio.sleep(0.01)
            Clock.now_ms = FIRST_MS + 103_000
        assert seconds(printed) == [98, 99, 101, 102]

    with_cluster(body, partitions=partitions)


def test_following_goes_on_behind_the_last_ones_up_to_an_offset(printed: list[bytes]) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(print_tail, cluster, "t", "-F", r"%p/%o\n", "-f", "--from=-2", "--until", "51")
            while len(printed) < 1:
                await anyio.sleep(0.01)
            fill_seconds(made[1], [101, 102])
            fill_seconds(made[0], [103])
        assert sorted(b"".join(printed).split()) == [b"0/49", b"0/50", b"1/49", b"1/50"]

    with_cluster(body, partitions=2)


def test_following_from_an_offset_that_some_partitions_have_not_come_to(printed: list[bytes]) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        del made[1].log[40:]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(print_tail, cluster, "t", "-F", r"%p/%o\n", "-f", "--from=48", "-n", "4")
            while len(b"".join(printed).split()) < 2:
                await anyio.sleep(0.01)
            fill(made[1], 10, batch=3)
        assert sorted(b"".join(printed).split()) == [b"0/48", b"0/49", b"1/48", b"1/49"]

    with_cluster(body, partitions=2)


@pytest.mark.parametrize(
    "range_words", [["--from", "start"], ["--since", "3s"], ["-n", "3"], ["--from", "97", "--until", "99"]], ids=" ".join
)
@pytest.mark.parametrize("form", ["raw", "json", "format"])
def test_every_format_in_every_kind_of_range(printed: list[bytes], range_words: list[str], form: str) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        words = {"raw": [], "json": ["-o", "json"], "format": ["-F", r"%t/%p@%o %d %v\n"]}[form]
        await print_tail(cluster, "t", *range_words, *words)
        lines = b"".join(printed).splitlines()
        first = 0 if "start" in range_words else 97
        offsets = list(range(first, 99 if "--until" in range_words else 100))
        times = [FIRST_MS + 1000 * offset for offset in offsets]
        values = [b"%d" % time for time in times]
        if form == "raw":
            assert lines == values
        elif form == "json":
            assert [json.loads(line) for line in lines] == [
                {"topic": "t", "partition": 0, "offset": offset, "timestamp": time, "key": None, "value": value.decode()}
                for offset, time, value in zip(offsets, times, values, strict=True)
            ]
        else:
            assert lines == [b"t/0@%d %d %s" % row for row in zip(offsets, times, values, strict=True)]

    with_cluster(body, partitions=1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--grep", "7$", "--from", "start"], [7, 17, 27, 37, 47, 57, 67, 77, 87, 97]),
        (["--grep", "7$", "--from", "start", "-n", "2"], [7, 17]),
        (["--grep", "7$"], [97]),
        (["--grep", "7$", "--since", "20s"], [87, 97]),
        (["--key", "none", "--from", "start"], []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_filters_look_at_the_range_and_count_what_they_keep(printed: list[bytes], words: list[str], expected: list[int]) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        for partition in made:
            partition.log.clear()
            fill(partition, 100)  # values are offsets
        await print_tail(cluster, "t", "-F", r"%o\n", *[w if w != "20s" else f"@{1.8}" for w in words])
        assert [int(line) for line in b"".join(printed).split()] == expected

    with_cluster(body, partitions=1)


def test_the_last_ones_of_several_topics_are_merged_by_time(printed: list[bytes]) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        [other] = cluster.create("u")
        fill_seconds(other, [95, 97, 200])
        await print_tail(cluster, "t", "u", "-n", "5", "-F", r"%t %d\n")
        rows = [line.split() for line in b"".join(printed).splitlines()]
        assert [(topic, (int(time) - FIRST_MS) // 1000) for topic, time in rows] == [
            (b"t", 97), (b"u", 97), (b"t", 98), (b"t", 99), (b"u", 200),
        ]  # fmt: skip

    with_cluster(body, partitions=2)


def test_the_data_comes_from_the_broker_that_is_named(printed: list[bytes]) -> None:
    async def body(cluster: FakeCluster, made: list[FakePartition]) -> None:
        await print_tail(cluster, "t", "--broker", "b2", "-o", "json")
        assert len(b"".join(printed).splitlines()) == 10
        asked = {name for name, broker in cluster.brokers.items() if any(isinstance(m, Subscribe) for m in broker.requests)}
        assert asked == {"b2"}

    with_cluster(body, partitions=2)
