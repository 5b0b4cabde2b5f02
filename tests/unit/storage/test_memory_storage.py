"""What simulations rely on: `MemoryStorage` loses exactly what a disk may lose, and keeps time by trio's clock."""

import pytest
import trio
import trio.testing

from streamq.model.registers import Voters
from streamq.storage.interface import DamagedRangeError, Identity, LostBatches, LostState, LostUnknown, Run, StorageFailedError
from streamq.storage.memory_storage import CHECKPOINT_ENTRIES, MemoryStorage
from tests.support.stored_batches import P1, P2, Tokens, batch, batches, running, store

IDENTITY = Identity(b"cluster.........", "b1", bytes(16), Voters(1, ()), 1)


async def test_writing_and_syncing_take_their_time(autojump_clock: trio.testing.MockClock) -> None:
    storage = MemoryStorage(IDENTITY, write_s=1.0, sync_s=2.0)
    async with running(storage) as tokens:
        storage.append([batch(0)], [], "written", sync=False)
        storage.append([batch(2)], [], "synced")
        await trio.sleep(0.9)
        assert tokens.given == []
        await trio.sleep(0.2)
        assert tokens.given == ["written"]
        assert (storage.unsynced, storage.unsynced_written) == (2, 2)
        await trio.sleep(1.8)
        assert tokens.given == ["written"]
        await trio.sleep(0.2)
        assert tokens.given == ["written", "synced"]
        assert storage.unsynced == 0


@pytest.mark.parametrize("kept", range(6))
async def test_a_crash_keeps_a_prefix_of_what_was_not_synced(kept: int) -> None:
    storage = MemoryStorage(IDENTITY)
    await store(storage, *batches(0, 4), states={"a": b"1"})
    storage.append([batch(4)], [("a", b"2")], None)
    storage.cut(P1, 1, 2)
    storage.append([batch(0, partition=P2)], [], None)
    storage.drop(P2)
    after = storage.crash(keep_unsynced=kept)
    assert after.runs(P1)[1] == Run(0, 4 if kept == 0 else 6 if kept < 3 else 2)
    assert after.states()["a"] == (b"1" if kept < 2 else b"2")
    assert (P2 in after.partitions()) == (kept == 4)
    assert after.identity.starts == 2


async def test_a_crashed_storage_does_nothing_any_more() -> None:
    storage = MemoryStorage(IDENTITY)
    tokens = Tokens()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.run, tokens.take)
        after = storage.crash()
        storage.append([batch(0)], [], 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert tokens.given == []
    assert after.partitions() == []


async def test_what_is_lost_is_told_and_gone() -> None:
    storage = MemoryStorage(IDENTITY)
    await store(storage, *batches(0, 10), states={"a": b"1", "b": b"1"})
    lost = (LostBatches(P1, 1, 6, 8), LostState("a"), LostUnknown("a file is gone"))
    after = storage.crash(lost=lost)
    assert after.lost == lost
    assert after.runs(P1)[1] == Run(0, 6)
    assert dict(after.states()) == {"b": b"1"}
    assert after.crash().lost == ()


async def test_damage_is_met_by_reading_until_it_is_restored() -> None:
    storage = MemoryStorage(IDENTITY)
    await store(storage, *batches(0, 20))
    storage.damage(P1, 1, 5, 9)
    assert await storage.read(P1, 1, 0, max_bytes=1 << 20) == batches(0, 4)
    with pytest.raises(DamagedRangeError):
        await storage.read(P1, 1, 4, max_bytes=1 << 20)
    await storage.restore(P1, 1, batches(4, 8))
    with pytest.raises(DamagedRangeError):
        await storage.crash().headers(P1, 1, 8, max_batches=1)
    await storage.restore(P1, 1, batches(8, 10))
    assert await storage.read(P1, 1, 0, max_bytes=1 << 20) == batches(0, 20)


async def test_a_failed_sync_is_final() -> None:
    storage = MemoryStorage(IDENTITY, sync_s=0.01)
    tokens = Tokens()
    storage.append([batch(0)], [], 1)
    storage.fail("injected")
    with pytest.raises(StorageFailedError):
        await storage.run(tokens.take)
    assert tokens.given == []


async def test_derived_values_are_never_ahead_of_what_is_durable() -> None:
    storage = MemoryStorage(IDENTITY)
    storage.at_checkpoint(lambda: [("table", b"%d" % storage.runs(P1)[1].tail)])
    await store(storage, *batches(0, 2 * CHECKPOINT_ENTRIES))
    assert storage.crash().states()["table"] == b"%d" % (2 * CHECKPOINT_ENTRIES)
    storage = MemoryStorage(IDENTITY)
    storage.at_checkpoint(lambda: [("table", b"%d" % storage.runs(P1)[1].tail)])
    storage.append(batches(0, 10), [], None)
    storage.checkpoint()
    assert "table" not in storage.crash(keep_unsynced=9).states()
