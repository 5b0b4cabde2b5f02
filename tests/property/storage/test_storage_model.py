"""Storage against a model that is nothing but dictionaries: any sequence of appends, cuts, drops, flushes, stops and crashes."""

from collections.abc import Callable
from random import Random

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import Identity, Run, Storage
from streamq.storage.memory_storage import MemoryStorage
from tests.support.simulated_storage import formatted_disk, opened_on
from tests.support.stored_batches import P1, P2, batches, read_all, running

PARTITIONS = (P1, P2)
partitions = st.sampled_from((P1, P1, P2))
epochs = st.sampled_from((1, 1, 2))
kinds = {
    "append": st.tuples(st.just("append"), partitions, epochs, st.integers(1, 30)),
    "cut": st.tuples(st.just("cut"), partitions, epochs, st.integers(0, 100)),
    "drop": st.tuples(st.just("drop"), partitions),
    "state": st.tuples(st.just("state"), st.sampled_from("ab"), st.one_of(st.none(), st.binary(max_size=8))),
    "flush": st.tuples(st.just("flush")),
    "crash": st.tuples(st.just("crash")),
    "stop": st.tuples(st.just("stop")),
}
weights = "append append append append cut cut drop state state flush flush crash crash stop"
steps = st.sampled_from(weights.split()).flatmap(kinds.__getitem__)


class Model:
    def __init__(self) -> None:
        self.runs: dict[tuple[bytes, int], Run] = {}
        self.states: dict[str, bytes] = {}

    def perform(self, storage: Storage, step: tuple[object, ...]) -> None:
        """The step, to the storage and to the model."""
        match step:
            case ("append", bytes() as partition, int() as epoch, int() as count):
                base, tail = self.runs.get((partition, epoch), Run(10 * epoch, 10 * epoch))
                storage.append(batches(tail, tail + 2 * count, partition=partition, epoch=epoch, size=300), [], None)
                self.runs[partition, epoch] = Run(base, tail + 2 * count)
            case ("cut", bytes() as partition, int() as epoch, int() as percent):
                base, tail = self.runs.get((partition, epoch), Run(0, 200))
                end = base + (tail - base) * percent // 200 * 2
                storage.cut(partition, epoch, end)
                if (partition, epoch) in self.runs and end <= base:
                    del self.runs[partition, epoch]
                elif (partition, epoch) in self.runs:
                    self.runs[partition, epoch] = Run(base, min(tail, end))
            case ("drop", bytes() as partition):
                storage.drop(partition)
                self.runs = {key: run for key, run in self.runs.items() if key[0] != partition}
            case ("state", str() as key, bytes() | None as value):
                storage.append([], [(key, value)], None)
                self.states.pop(key, None)
                if value is not None:
                    self.states[key] = value

    async def compare(self, storage: Storage) -> None:
        assert storage.lost == ()
        assert {(p, e): run for p in PARTITIONS for e, run in storage.runs(p).items()} == self.runs
        assert {key: value for key, value in storage.states().items() if key != "synced"} == self.states
        for (partition, epoch), run in self.runs.items():
            expected = batches(run.base, run.tail, partition=partition, epoch=epoch, size=300)
            assert await read_all(storage, partition, epoch, run.base, max_bytes=5_000) == expected
            middle = (run.base + run.tail) // 2
            headers = await storage.headers(partition, epoch, middle, max_batches=3)
            assert [header.base for header in headers] == list(range(middle // 2 * 2, run.tail, 2))[: len(headers)]
            assert headers
            assert await storage.find_time(partition, epoch, 1000 + run.tail) == run.tail - 2
            assert await storage.find_time(partition, epoch, 1001 + run.tail) is None


async def follow(sequence: list[tuple[object, ...]], storage: Storage, again: Callable[[Storage], Storage]) -> None:
    model = Model()
    while True:
        end = next((at for at, step in enumerate(sequence) if step[0] in ("crash", "stop")), len(sequence))
        async with running(storage) as tokens:
            for step in sequence[:end]:
                if step[0] == "flush" and isinstance(storage, DiskStorage):
                    await storage.flush()
                model.perform(storage, step)
            storage.append([], [("synced", b"1")], "synced")
            await tokens.until("synced")
            await model.compare(storage)
        if end == len(sequence):
            return
        if sequence[end][0] == "stop":
            await storage.close()
        sequence = sequence[end + 1 :]
        storage = again(storage)
        await model.compare(storage)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(sequence=st.lists(steps, min_size=8, max_size=40), seed=st.integers(0, 1000))
def test_storage_is_what_was_done_to_it(kind: str, sequence: list[tuple[object, ...]], seed: int) -> None:
    disk = formatted_disk(Random(seed))

    def again(storage: Storage) -> Storage:
        if isinstance(storage, MemoryStorage):
            return storage.crash()
        disk.crash()
        return opened_on(disk)

    async def main() -> None:
        memory = MemoryStorage(Identity(b"cluster.........", "b1", bytes(16), Voters(1, ()), 1))
        await follow(sequence, memory if kind == "memory" else opened_on(disk), again)

    trio.run(main)
