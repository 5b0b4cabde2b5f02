"""What a broker counts agrees with what was done: exactly, where that can be known."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from streamq.broker.usage import process_usage
from streamq.model.batches import Batch
from streamq.model.messages import Ack, CreateTopic, Metrics, Nack, ReadMetrics
from streamq.net.network import TcpNetwork
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.file_ops import FileOps
from streamq.storage.memory_storage import MemoryStorage
from streamq.testing.in_process import cluster
from tests.broker.test_cluster_in_process import create, find, to
from tests.broker.wire_client import WireClient, make_batch, new_producer, wire_client
from tests.support.disk_cluster import JOURNAL_FILE_BYTES, disk_cluster

README = Path(__file__).parents[2] / "deploy" / "README.md"


async def metrics_of(client: WireClient) -> Metrics:
    answer = await client.ask(ReadMetrics())
    assert isinstance(answer, Metrics)
    return answer


def grown(before: Metrics, after: Metrics) -> dict[str, int | float]:
    return {name: value - before.counters.get(name, 0) for name, value in after.counters.items() if value != before.counters.get(name, 0)}


async def test_counters_of_a_sequencer_say_what_was_taken_acked_repeated_and_refused() -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        producer = new_producer()
        batches = [make_batch(view.id, [b"x" * 10] * (i + 1), producer=producer, sequence=i) for i in range(7)]
        async with to(running, view.sequencer) as client:
            before = await metrics_of(client)
            assert all(isinstance(outcome, Ack) for outcome in await client.produce(*batches))
            assert all(isinstance(outcome, Ack) for outcome in await client.produce(*batches[3:5]))
            [gap] = await client.produce(make_batch(view.id, [b"gap"], producer=producer, sequence=20))
            [elsewhere, again] = await client.produce(make_batch(bytes(16), [b"?"]), make_batch(bytes(16), [b"?"]))
            assert [outcome.code for outcome in (gap, elsewhere, again) if isinstance(outcome, Nack)] == ["sequence_gap"] + 2 * [
                "not_sequencer"
            ]
            after = await metrics_of(client)
        told = grown(before, after)
        assert {name: told.get(name) for name in ("batches_taken", "records_taken", "bytes_taken", "duplicates", "batches_acked")} == {
            "batches_taken": 7,
            "records_taken": sum(range(1, 8)),
            "bytes_taken": sum(batch.size for batch in batches),
            "duplicates": 2,
            "batches_acked": 9,
        }
        assert {name: value for name, value in told.items() if name.startswith("batches_nacked")} == {
            "batches_nacked_sequence_gap": 1,
            "batches_nacked_not_sequencer": 2,
        }
        acks = after.histograms["ack_seconds"].since(before.histograms["ack_seconds"])
        assert acks.count == 7
        assert 0 < acks.percentile(0.5) <= acks.largest < 5
        assert after.gauges["in_flight_bytes"] == 0
        assert after.gauges["partitions_sequenced"] == 1


async def test_followers_count_what_they_are_sent_and_every_replica_what_is_read_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        batches = [make_batch(view.id, [b"v"] * 3) for _ in range(5)]
        size = sum(batch.size for batch in batches)
        async with to(running, view.sequencer) as client:
            await client.produce(*batches)
        follower = next(name for name in running.brokers if name != view.sequencer)
        async with to(running, follower) as client:
            with trio.fail_after(5):
                while (told := await metrics_of(client)).counters["batches_followed"] < 5:
                    await trio.sleep(0.01)
            assert (told.counters["batches_followed"], told.counters["bytes_followed"]) == (5, size)
            assert told.counters["batches_taken"] == 0
            assert (told.gauges["partitions_sequenced"], told.gauges["partitions_followed"]) == (0, 1)
            await client.read(view.id, 0, 15)
            from_memory = await metrics_of(client)
            assert {name: n for name, n in grown(told, from_memory).items() if "read" in name} == {
                "batches_read": 5,
                "records_read": 15,
                "bytes_read": size,
            }
            from_disk_only(monkeypatch)
            await client.read(view.id, 0, 15)
            assert {name: n for name, n in grown(from_memory, await metrics_of(client)).items() if "disk" in name} == {
                "bytes_read_from_disk": size
            }


def from_disk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = MemoryStorage.recent

    async def read(self: MemoryStorage, partition: bytes, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        await trio.lowlevel.checkpoint()
        return in_memory(self, partition, epoch, offset, max_bytes=max_bytes) or []

    monkeypatch.setattr(MemoryStorage, "recent", lambda *_, **__: None)
    monkeypatch.setattr(MemoryStorage, "read", read)


async def test_a_takeover_is_counted_by_who_won_it_with_its_duration_and_the_seals() -> None:
    async with cluster(3) as running:
        [view] = await create(running)
        await running.kill(view.sequencer)
        others = [name for name in running.brokers if name != view.sequencer]
        sequencer = view.sequencer
        with trio.fail_after(10):
            while sequencer not in others:
                async with to(running, others[0]) as client:
                    sequencer = (await find(client))[0].sequencer
                await trio.sleep(0.01)
        async with to(running, sequencer) as client:
            told = await metrics_of(client)
        assert told.counters["takeovers_begun"] >= told.counters["takeovers_won"] >= 1
        assert told.histograms["takeover_seconds"].count == told.counters["takeovers_won"]
        assert told.counters["suspicions"] >= 1
        async with to(running, next(name for name in others if name != sequencer)) as client:
            assert (await metrics_of(client)).counters["seals"] >= 1


async def test_a_broker_that_does_not_serve_yet_tells_its_metrics_and_counts_connections_that_broke_the_protocol() -> None:
    async with cluster(1) as running:
        stream = await TcpNetwork().connect(*running.brokers["b1"].config.address)
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await stream.receive_some(100) == b""
        await stream.aclose()
        async with to(running, "b1") as client:
            told = await metrics_of(client)
        assert told.counters["connections_broken"] == 1
        assert told.gauges["serving"] == 1
        assert "process_cpu_seconds" not in told.counters


@asynccontextmanager
async def broker_on_disk(directory: Path) -> AsyncIterator[tuple[WireClient, DiskStorage]]:
    """The only broker of its cluster, as a process would run it, with a client."""
    async with (
        disk_cluster(directory, [FileOps()], usage=process_usage) as brokers,
        wire_client(brokers["b1"].config.address) as client,
    ):
        yield client, brokers["b1"].storage


async def test_the_journal_counts_its_groups_bytes_and_syncs_and_the_process_what_it_takes(tmp_path: Path) -> None:
    async with broker_on_disk(tmp_path) as (client, storage):
        await client.ask(CreateTopic("t", 1, 1, 1, 1, "fsync"))
        [view] = await find(client, "t")
        with trio.fail_after(10):
            while not (await metrics_of(client)).gauges["partitions_sequenced"]:
                await trio.sleep(0.01)
        before = await metrics_of(client)
        sizes = 0
        for i in range(10):
            batch = make_batch(view.id, [b"%d" % i * 5_000])
            sizes += batch.size
            [outcome] = await client.produce(batch)
            assert isinstance(outcome, Ack)
        after = await metrics_of(client)
        await storage.flush()
        flushed = await metrics_of(client)
    told = grown(before, after)
    assert (told["journal_groups"], told["journal_entries"]) == (10, 10)
    assert told["journal_syncs"] >= 10
    assert sizes < told["journal_bytes"] <= sizes + told["journal_syncs"] * 2 * 4096
    syncs = after.histograms["journal_sync_seconds"].since(before.histograms["journal_sync_seconds"])
    assert syncs.count == told["journal_syncs"]
    assert after.counters["journal_files_begun"] == 1
    assert after.counters["journal_made_bytes"] == after.counters["journal_files_made"] * JOURNAL_FILE_BYTES > 0
    assert told["process_cpu_seconds"] > 0
    assert after.gauges["process_memory_bytes"] > 10 << 20
    assert after.gauges["process_open_files"] > 3
    assert after.gauges["memory_unflushed_bytes"] >= sizes
    assert flushed.gauges["memory_unflushed_bytes"] == 0
    assert flushed.counters["log_bytes"] >= sizes
    assert flushed.counters["checkpoint_bytes"] > 0
    assert flushed.histograms["flush_seconds"].count == flushed.counters["flushes"] == 1


async def test_what_a_broker_tells_is_what_the_table_for_operators_lists(tmp_path: Path) -> None:
    async with broker_on_disk(tmp_path) as (client, _):
        await client.produce(make_batch(bytes(16), [b"for nobody"]))
        told = await metrics_of(client)
    kinds = {"counter": told.counters, "gauge": told.gauges, "histogram": told.histograms}
    names = {(re.sub(r"^batches_nacked_.*", "batches_nacked_CODE", name), kind) for kind, each in kinds.items() for name in each}
    listed: list[tuple[str, str]] = []
    for row in re.finditer(r"^\| (`[^|]+`) \| ((?:counter|gauge|histogram)[^|]*) \|", README.read_text(), re.MULTILINE):
        found = re.findall(r"`([a-zA-Z_]+)`", row[1])
        kinds_of = row[2].split(", ")
        listed += zip(found, kinds_of if len(kinds_of) > 1 else kinds_of * len(found), strict=True)
    assert len(listed) == len(set(listed))
    assert names == set(listed)
