"""One broker's storage under every fault of the disk, in virtual time, against a model that is nothing but a list of what was appended.

In a life of the process its owner appends batches and states, begins new epochs, cuts and drops, reads, and restores what is damaged, while
faults befall the disk. Then the process is killed or stopped, or the power goes, perhaps in the middle of an operation. At each start:

- what is there is what a beginning of the list makes, at least as long as what was given back; unless its loss is reported, and without
  damage to the medium nothing is;
- every batch that is read is the one that was appended; damage is an error that names a range, and good copies heal it (P-30).

Only damage to the newest groups of the journal, which nothing proves any more, may go unreported (I-1).
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import trio

from streamq.model.errors import CorruptDataError
from streamq.model.registers import Voters
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import DamagedRangeError, StorageFailedError
from tests.sim.disk import HostCrashError, Kind, SimulatedDisk
from tests.sim.simulated_storage import format_directory, open_storage, rejoin_directory
from tests.sim.storage_model import PARTITIONS, Model, Violation, demand, written_batch

__all__ = ["StorageWorld", "Violation"]

LIFE_S: Final = 8.0
ROOM_BYTES: Final = 1 << 30
WINDOW: Final = 20
"""Appends on their way at most."""
RESTORES_MAX: Final = 500
KINDS: Final[tuple[Kind, ...]] = ("journal", "journal", "journal", "log", "log", "index", "checkpoint", "identity")
CLUSTER: Final = b"cluster........."
VOTERS: Final = Voters(1, ())


class StorageWorld:
    """`run` lives so many lives under trio; `counts` tells what happened. Raises Violation."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(f"owner {seed}")
        self.disk = SimulatedDisk(Random(f"disk {seed}"))
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.tokens: list[object] = []
        self._model = Model()
        self._was_stopped = False
        self._had_room = False
        """It was, and no full disk was in the way of the mark of it."""
        self._seen_damage = 0
        self._may_fail = False
        self._given = trio.Event()
        format_directory(self.disk, cluster=CLUSTER, broker="b1", first_voters=VOTERS)

    async def run(self, lives: int) -> None:
        for _ in range(lives):
            storage = self._start()
            if storage is not None:
                await self._live(storage)

    # --- a start -------------------------------------------------------------------------------------------------------

    def _start(self) -> DiskStorage | None:
        """None if the host crashed meanwhile."""
        if self.chance.random() < 0.1:
            self.disk.crash_after(self.chance.randrange(30))
        try:
            storage = open_storage(self.disk)
        except HostCrashError:
            self._had_room = False  # a start may have been counted
            self._end("crashed while starting")
            return None
        except StorageFailedError:
            demand(self._may_fail, "a start fails on a good disk")
            self._had_room = False
            self._end("failed while starting")
            return None
        except CorruptDataError as error:
            demand(any(damage.kind == "identity" for damage in self.disk.damage), f"a start is refused on a good disk: {error}")
            self._note(f"rejoins: {error.message}")
            self.disk.kill()
            rejoin_directory(self.disk, cluster=CLUSTER, broker="b1", first_voters=VOTERS)
            self.disk.damage.clear()
            self._model, self._seen_damage = Model(), 0
            self._was_stopped = self._had_room = False
            storage = open_storage(self.disk)
        self._note(f"starts, lost {storage.lost}")
        ever, fresh = self.disk.damage, self.disk.damage[self._seen_damage :]
        demand(self._was_stopped or not storage.was_stopped_cleanly, "a stop that was none passes for a clean one")
        demand(bool(ever) or storage.was_stopped_cleanly or not self._had_room, "a clean stop is forgotten")
        self._was_stopped = self._had_room = False
        for kind in {type(loss).__name__ for loss in storage.lost}:
            self.counts[kind] += 1
        self._model.compare(storage, ever=ever, fresh=fresh)
        return storage

    # --- a life --------------------------------------------------------------------------------------------------------

    async def _live(self, storage: DiskStorage) -> None:
        """Until the process ends, in one way or another."""
        ending = self.chance.choice(("crash", "crash", "kill", "stop", "crash after"))
        try:
            with trio.move_on_after(self.chance.uniform(0, LIFE_S)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(storage.run, self._take)
                    await self._own(storage, nursery, ending)
            if ending == "stop":
                self._was_stopped = True  # even if the power goes just after its mark
                room = self.disk.free_bytes()
                await storage.close()
                self._had_room = storage.refusal() is None and room > ROOM_BYTES
        except (StorageFailedError, HostCrashError, Violation, BaseExceptionGroup) as error:
            ending = self._why(error)
        self._end(ending)

    async def _own(self, storage: DiskStorage, nursery: trio.Nursery, ending: str) -> None:
        model = self._model
        if storage.lost:
            model.enter_limbo(storage)
            while model.is_in_limbo:
                await self._given.wait()
        model.adopt(storage)
        storage.at_checkpoint(model.trims.encoded)
        self._seen_damage = len(self.disk.damage)
        model.repeat_cuts(storage)
        if ending == "crash after":
            self.disk.crash_after(self.chance.choice((10, 100, 1000)) + self.chance.randrange(100))
        nursery.start_soon(self._befall)
        nursery.start_soon(self._read_all_the_time, storage)
        while True:
            await trio.sleep(self.chance.expovariate(self.chance.choice((10, 50, 1000))))
            while model.on_their_way >= WINDOW:
                await self._given.wait()
            if storage.refusal() is None:
                self.counts[model.step(storage, self.chance)] += 1
            else:
                self.counts["refused"] += 1
                model.append_state(storage, self.chance)

    def _take(self, tokens: list[object]) -> None:
        self.tokens += tokens
        self._model.take(tokens)
        self._given.set()
        self._given = trio.Event()

    async def _read_all_the_time(self, storage: DiskStorage) -> None:
        while True:
            await trio.sleep(self.chance.expovariate(2))
            runs = [(partition, epoch) for partition in PARTITIONS for epoch in storage.runs(partition)]
            if runs:
                await self._read(storage, *self.chance.choice(runs))

    async def _read(self, storage: DiskStorage, partition: bytes, epoch: int) -> None:
        """From somewhere to the end, mending what is damaged, as a broker does. What lies below the start offset is nobody's (P-41)."""
        run = storage.runs(partition).get(epoch)
        offset = 0 if run is None else self.chance.randrange(run.base, run.tail)
        for _ in range(RESTORES_MAX):
            run = storage.runs(partition).get(epoch)
            offset = max(offset, self._model.starts.get(partition, 0))
            if run is None or not run.base <= offset < run.tail:
                return
            try:
                found = await storage.read(partition, epoch, offset, max_bytes=self.chance.choice((1, 5000, 1 << 20)))
            except DamagedRangeError as damage:
                demand(any(one.kind in ("log", "index") for one in self.disk.damage), f"{damage} on a good disk")
                self.counts["damaged ranges"] += 1
                await self._restore(storage, damage)
                continue
            self.counts["reads"] += 1
            for batch in found:
                expected = written_batch(partition, epoch, batch.base)
                demand(batch == expected, f"{partition!r} epoch {epoch}: offset {batch.base} is not what was written")
            demand(
                not found or found[0].base <= offset < found[0].end, f"reading offset {offset} begins with {found[0].base if found else 0}"
            )
            if not found:
                return
            offset = found[-1].end
        raise Violation(f"{partition!r} epoch {epoch}: offset {offset} stays damaged")

    async def _restore(self, storage: DiskStorage, damage: DamagedRangeError) -> None:
        """Nobody has copies of what lies below the start offset."""
        run = storage.runs(damage.partition).get(damage.epoch)
        if run is not None:
            base, end = max(damage.base, self._model.starts.get(damage.partition, 0)), min(damage.end, run.tail)
            copies = [written_batch(damage.partition, damage.epoch, at) for at in range(base // 2 * 2, end, 2)]
            if copies:
                await storage.restore(damage.partition, damage.epoch, copies)

    # --- what befalls the disk -----------------------------------------------------------------------------------------

    async def _befall(self) -> None:
        """One fault in a life, or none."""
        await trio.sleep(self.chance.uniform(0, LIFE_S / 2))
        kind = self.chance.choice(KINDS)
        fault = self.chance.choice(("none", "none", "rot", "lost", "misdirected", "sync", "full", "slow"))
        self.counts[fault] += 1
        self._note(f"befallen by {fault} ({kind})")
        await self._faults()[fault](kind)

    def _faults(self) -> dict[str, Callable[[Kind], Awaitable[None]]]:
        disk = self.disk

        async def none(kind: Kind) -> None:
            await trio.lowlevel.checkpoint()

        async def rot(kind: Kind) -> None:
            self._note(f"rotten: {disk.rot(kind)}")

        async def lost(kind: Kind) -> None:
            disk.lose_next_write(kind)

        async def misdirected(kind: Kind) -> None:
            disk.misdirect_next_write(kind)

        async def sync(kind: Kind) -> None:
            self._may_fail = True
            disk.fail_next_sync(self.chance.choice((None, kind)))

        async def full(kind: Kind) -> None:
            self._may_fail = True  # if not even a journal file fits
            disk.fill(leaving_bytes=self.chance.choice((0, 100_000, 3_000_000)))
            await trio.sleep(self.chance.uniform(0, 3))
            disk.free_up()

        async def slow(kind: Kind) -> None:
            disk.slowness = 300.0
            await trio.sleep(self.chance.uniform(0, 2))
            disk.slowness = 1.0

        return {"none": none, "rot": rot, "lost": lost, "misdirected": misdirected, "sync": sync, "full": full, "slow": slow}

    # --- the end of a life ---------------------------------------------------------------------------------------------

    def _why(self, error: BaseException) -> str:
        """What ended the life. A violation, or what is no end of a life at all, goes on."""
        while isinstance(error, BaseExceptionGroup):
            error = next((one for one in error.exceptions if not isinstance(one, HostCrashError | StorageFailedError)), error.exceptions[0])
        if isinstance(error, HostCrashError):
            return "crash"
        if isinstance(error, StorageFailedError):
            demand(self._may_fail, f"the storage gives up on a good disk: {error}")
            return "failed"
        raise error

    def _end(self, ending: str) -> None:
        self._note(f"ends: {ending}")
        self.counts[ending] += 1
        if ending in ("kill", "stop"):
            self.disk.kill()
            self._model.on_kill()
        elif ending == "failed":  # after a failed sync the cache may have lost anything that was not synced
            self.disk.kill()
            self._model.on_crash()
        else:
            self.disk.crash()
            self._model.on_crash()
        self.disk.relieve()
        self._may_fail = False
        if self.chance.random() < 0.1:
            self._note(f"rotten while it was off: {self.disk.rot(self.chance.choice(KINDS))}")

    def _note(self, what: str) -> None:
        self.story.append(f"{trio.current_time():8.4f} {what}")
