"""The real storage in simulated lives (`storage_world`): a sample of seeds, and what seeds have found."""

from collections import Counter
from random import Random

import pytest
import trio
import trio.testing

from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import StorageFailedError
from tests.sim.disk import SimulatedDisk
from tests.sim.simulated_storage import format_directory, open_storage
from tests.sim.storage_seeds import MUST_HAPPEN, account, run_seed
from tests.support.stored_batches import P1, batches, read_all, running

SAMPLE = range(25)


@pytest.mark.slow
def test_a_sample_of_lives_holds() -> None:
    counters: Counter[str] = Counter()
    for seed in SAMPLE:
        report = run_seed(seed)
        if report.violation is not None:
            pytest.fail(account(seed))
        counters.update(report.counters)
    assert [what for what in MUST_HAPPEN if not counters[what]] == []


async def flush_in_vain(storage: DiskStorage, disk: SimulatedDisk) -> None:
    async with running(storage) as tokens:
        storage.append(batches(0, 20), [], "given")
        await tokens.until("given")
        disk.fail_next_sync("log")
        with pytest.raises(StorageFailedError):
            await storage.flush()
        await trio.sleep(1)


async def test_a_folder_that_a_failed_flush_has_made_is_durable_before_a_checkpoint_counts_on_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Pitfall 46, found by seed 28: the next start found the folder there, never synced its name, and a power loss took the log file."""
    disk = SimulatedDisk(Random(1))
    format_directory(disk, cluster=b"cluster.........", broker="b1", first_voters=Voters(1, ()))
    first = open_storage(disk)
    with pytest.raises(BaseExceptionGroup) as raised:
        await flush_in_vain(first, disk)
    assert raised.group_contains(StorageFailedError)
    disk.kill()
    second = open_storage(disk)
    async with running(second):
        await second.flush()
    disk.crash(keeps_names=False)
    assert await read_all(open_storage(disk), P1, 1, 0) == batches(0, 20)
