"""Power loss and kills at any moment: everything that was given back is there afterwards, in order and without a hole."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import trio

from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import StorageFailedError
from tests.sim.disk import HostCrashError
from tests.support.simulated_storage import formatted_disk, opened_on
from tests.support.stored_batches import P1, P2, SMALL, batch, batches, make_directory, read_all

APPEND_OFFSETS_MAX = 8


class Writer:
    """Appends what comes next, and knows what was given back; the truth that a restart is compared with."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.tail = 0
        self.durable = 0
        self.epoch = 1
        self.bases = {1: 0}
        self.dropped = False

    def seen(self, storage: DiskStorage) -> None:
        """Goes on from what a restart has found."""
        self.epoch = max(storage.runs(P1), default=1)
        run = storage.runs(P1).get(self.epoch)
        self.tail = self.durable = run.tail if run is not None else self.bases[self.epoch]

    def step(self, storage: DiskStorage) -> None:
        chance = self._chance.random()
        if chance < 0.02:
            end = self.tail
            self.epoch += 1
            self.bases[self.epoch] = end
            self.tail = end + 2
            new = [batch(end, epoch=self.epoch), *batches(0, 4, partition=P2, epoch=self.epoch)]
            storage.append(new, [("tail", b"%d" % self.tail)], (self.epoch, self.tail))
        elif chance < 0.04:
            storage.drop(P2)
        else:
            count = self._chance.randint(1, APPEND_OFFSETS_MAX // 2)
            size = self._chance.choice((40, 400, 4000, 16000))
            new = batches(self.tail, self.tail + 2 * count, epoch=self.epoch, size=size)
            self.tail += 2 * count
            storage.append(new, [("tail", b"%d" % self.tail)], (self.epoch, self.tail))

    def take(self, tokens: list[object]) -> None:
        for token in tokens:
            assert isinstance(token, tuple)
            self.durable = max(self.durable, token[1])

    async def compare(self, storage: DiskStorage) -> None:
        assert storage.lost == ()
        runs = storage.runs(P1)
        assert self.durable <= max((run.tail for run in runs.values()), default=0) <= self.tail
        expected = 0
        for epoch in sorted(runs):
            assert runs[epoch].base == self.bases[epoch] == expected
            held = await read_all(storage, P1, epoch, runs[epoch].base)
            bases = [found.base for found in held]
            assert bases == list(range(expected, runs[epoch].tail, 2))
            assert all(found == batch(found.base, epoch=epoch, size=len(found.payload)) for found in held)
            expected = runs[epoch].tail
        state = int(storage.states().get("tail", b"0"))
        assert self.durable <= state <= expected, "a state is older than what follows it"
        assert expected - state <= APPEND_OFFSETS_MAX, "entries became durable out of their order"


async def write_until_the_crash(storage: DiskStorage, writer: Writer, chance: Random) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.run, writer.take)
        for _ in range(2000):
            writer.step(storage)
            await trio.sleep(chance.choice((0.0, 0.0, 0.001)))


@pytest.mark.parametrize("seed", range(5))
async def test_a_host_that_crashes_again_and_again_loses_nothing_given_back(seed: int) -> None:
    replayed = checkpoints = 0
    for life in range(3):
        chance = Random(f"{seed} {life}")
        disk = formatted_disk(chance)
        writer = Writer(chance)
        for _ in range(6):
            storage = opened_on(disk)
            await writer.compare(storage)
            replayed += storage._entries
            writer.seen(storage)
            disk.crash_after(chance.randint(0, 500))
            with pytest.raises(BaseExceptionGroup) as raised:
                await write_until_the_crash(storage, writer, chance)
            assert raised.group_contains((HostCrashError, StorageFailedError))
            disk.crash()
        last = opened_on(disk)
        await writer.compare(last)
        replayed += last._entries
        checkpoints += last._flusher._number
    assert checkpoints > 0, "no checkpoint was made"
    assert replayed > 0, "nothing was replayed"


CHILD = """
import sys
from pathlib import Path
import msgspec, trio
from streamq.storage.disk_storage import DiskStorage
from tests.support.stored_batches import P1, SMALL, batches

async def main() -> None:
    settings = msgspec.structs.replace(SMALL, flush_bytes=50_000, flush_interval_s=0.05)
    storage = DiskStorage.open(Path(sys.argv[1]), settings=settings)
    run = storage.runs(P1).get(1)
    base = run.tail if run else 0

    def tell(tokens: list[object]) -> None:
        print(tokens[-1], flush=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.run, tell)
        while True:
            storage.append(batches(base, base + 20, size=300), [("tail", b"%d" % (base + 20))], base + 20)
            base += 20
            await trio.sleep(0.0005)

trio.run(main)
"""


def test_a_process_that_is_killed_loses_nothing_given_back(tmp_path: Path) -> None:
    """SIGKILL while journal, log files and checkpoints are being written."""
    directory = make_directory(tmp_path / "data")
    chance = Random(3)
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(chance.randint(20, 400))]
        child.kill()
        told += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        acked = int(told[-1])

        async def check(acked: int = acked) -> None:
            storage = DiskStorage.open(directory, settings=SMALL)
            assert storage.lost == ()
            tail = storage.runs(P1)[1].tail
            assert tail >= acked
            assert int(storage.states()["tail"]) == tail
            assert await read_all(storage, P1, 1, 0) == batches(0, tail, size=300)
            storage._journal.close()
            storage._lock.release()

        trio.run(check)
