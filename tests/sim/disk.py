"""The simulated disk of all tests: a medium with a file system that outlives processes, and what befalls it.

`disk.ops` is the operating system as one process sees it. It ends with `kill` (the process: the cache stays), `crash` (the power: only what
was synced stays, and whatever else by chance) or `replace` (the medium). After that each of its operations raises HostCrashError, and
`disk.ops` is the next process's. Whatever is random comes from the generator given in, so the same one makes the same disk.
"""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final, Literal, NamedTuple

from tests.sim.disk_medium import ROOT, SECTOR, Names, SimulatedFile
from tests.sim.disk_ops import HostCrashError, SimulatedOps

__all__ = ["DATA", "ROOT", "SECTOR", "Damage", "HostCrashError", "Kind", "SimulatedDisk", "kind_of"]

DATA: Final = ROOT / "data"
CAPACITY_BYTES: Final = 1 << 34
SYNC_S: Final = 0.0003
BLOCK: Final = 4096
RECENT_BLOCKS: Final = 12
ZEROS: Final = bytes(BLOCK)
Kind = Literal["journal", "log", "index", "checkpoint", "identity", "other"]


class Damage(NamedTuple):
    """Bytes `[first, last]` of a file on the medium are not what was written there last."""

    fault: Literal["rot", "lost write", "misdirected write"]
    kind: Kind
    path: Path
    first: int
    last: int


def kind_of(path: Path) -> Kind:
    """What a file of a broker's directory is, or is to be once it has its name."""
    if path.parent.name == "journal":
        return "journal"
    if path.parent.parent.name == "logs":
        return "index" if ".index" in path.name else "log"
    if path.name.startswith("checkpoint"):
        return "checkpoint"
    return "identity" if path.name.startswith(("identity", "starts")) else "other"


class SimulatedDisk:
    """`before` is called with the name of each operation that changes anything, before it happens; it may raise. Reset by `crash`.

    `damage` is all that was done to the medium. `slowness` multiplies what every operation takes.
    """

    def __init__(self, chance: Random, *, sync_s: float = SYNC_S, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.chance = chance
        self.lock = threading.RLock()  # real storages have threads
        self.names = Names()
        self.locked: set[Path] = set()
        self.before: Callable[[str], None] = _nothing
        self.damage: list[Damage] = []
        self.slowness = 1.0
        self.capacity_bytes = capacity_bytes
        self.operations = 0
        """Changes so far, of all processes."""
        self.torn_writes = 0
        """There in part after the power went, so far."""
        self.failed_syncs = 0
        self._sync_s = sync_s
        self._whole_capacity_bytes = capacity_bytes
        self._ops: SimulatedOps | None = None
        self._until_crash: int | None = None
        self._is_dying = False
        self._next_writes: dict[Kind, Literal["lost write", "misdirected write"]] = {}
        self._failing_syncs: list[Kind | None] = []

    # --- processes and power -------------------------------------------------------------------------------------------

    @property
    def ops(self) -> SimulatedOps:
        """Of the process that runs now."""
        if self._ops is None:
            self._ops = SimulatedOps(self)
        return self._ops

    @property
    def is_down(self) -> bool:
        """A crash that was ordered has come: the owner ends the broker, and says by `crash` or `kill` what is left."""
        return self._is_dying

    def kill(self) -> None:
        """The process ends, the host goes on: what it has written is there, synced or not."""
        if self._ops is not None:
            self._ops.is_dead = True
        self._ops = None
        self.locked.clear()
        self.before = _nothing
        self._until_crash, self._is_dying = None, False

    def crash(self, *, keeps_names: bool | None = None) -> None:
        """The power goes: contents and names (unless all or none of the unsynced are kept) are what was synced, more or less."""
        self.kill()
        files = dict.fromkeys(self.names.now.files.values())
        self.names.lose(self.chance, keeps=keeps_names)
        for file in dict.fromkeys([*files, *self.names.now.files.values()]):
            self.torn_writes += file.lose(self.chance)

    def crash_after(self, operations: int) -> None:
        """So many more changes, then HostCrashError out of the next one, which has happened or not; and out of everything after it."""
        self._until_crash = operations

    def replace(self) -> None:
        """An empty disk in its place."""
        self.kill()
        self.names = Names()
        self.capacity_bytes = self._whole_capacity_bytes
        self._next_writes.clear()
        self._failing_syncs.clear()

    # --- faults --------------------------------------------------------------------------------------------------------

    def rot(self, kind: Kind) -> Damage | None:
        """A flipped bit, or now and then a stretch of garbage, somewhere in a file of this kind that holds anything. None if none does."""
        files = self._files_of(kind)
        if not files:
            return None
        path = self.chance.choice(files)
        durable = self.names.now.files[path].durable
        written = [at for at in range(0, len(durable), BLOCK) if durable[at : at + BLOCK] != ZEROS[: len(durable) - at]]
        if not written:
            return None
        # Mostly where was written last: older journal is not read any more, older batches rarely.
        first = self.chance.choice(written[-RECENT_BLOCKS:] if self.chance.random() < 0.7 else written)
        first += self.chance.randrange(min(BLOCK, len(durable) - first))
        if self.chance.random() < 0.8:
            return self._damage("rot", path, first, bytes([durable[first] ^ 1 << self.chance.randrange(8)]))
        return self._damage("rot", path, first, self.chance.randbytes(min(self.chance.choice((SECTOR, BLOCK)), len(durable) - first)))

    def lose_next_write(self, kind: Kind) -> None:
        """The next write to such a file is reported as written, and synced, and never reaches the medium."""
        self._next_writes[kind] = "lost write"

    def misdirect_next_write(self, kind: Kind) -> None:
        """The next write to such a file reaches the medium in another place, of this file or another one of the kind."""
        self._next_writes[kind] = "misdirected write"

    def fail_next_sync(self, kind: Kind | None = None) -> None:
        """EIO from the next sync (of such a file). What was to be synced is dropped: some of it has reached the medium, some has not."""
        self._failing_syncs.append(kind)

    def disarm(self) -> None:
        """Faults that were ordered and have met no write or sync yet do not come any more."""
        self._next_writes.clear()
        self._failing_syncs.clear()

    def fill(self, *, leaving_bytes: int = 0) -> None:
        """Somebody else takes all space but this much."""
        self.capacity_bytes = self.used_bytes() + leaving_bytes

    def free_up(self) -> None:
        self.capacity_bytes = self._whole_capacity_bytes

    def relieve(self) -> None:
        """Room, its usual speed, and no syncs that are to fail. What was damaged stays so."""
        self.free_up()
        self.slowness = 1.0
        self._failing_syncs.clear()

    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes())

    def used_bytes(self) -> int:
        return sum(len(file.content) for file in self.names.now.files.values())

    def latency_s(self) -> float:
        """How long a write with its sync takes: drawn anew each time."""
        spike = 10.0 if self.chance.random() < 0.01 else 1.0
        return self._sync_s * self.slowness * spike * self.chance.uniform(0.7, 1.5)

    # --- looking at it -------------------------------------------------------------------------------------------------

    def content(self, path: Path) -> bytearray:
        """To be damaged in place; what is damaged is so on the medium, and what was not synced is."""
        file = self.names.now.files[path]
        file.sync()
        file.durable = file.content
        return file.content

    def flip(self, path: Path, offset: int, mask: int = 0x40) -> None:
        file = self.names.now.files[path]
        file.damage(offset, bytes([file.durable[offset] ^ mask]))

    def remove(self, path: Path) -> None:
        self.names.forget(path)

    def paths(self) -> list[Path]:
        return sorted(self.names.now.files)

    def digest(self) -> str:
        """Of all names and contents, as seen and as a power loss would leave them."""
        digest = hashlib.sha256()
        for path in self.paths():
            file = self.names.now.files[path]
            digest.update(b"%s %d %d " % (str(path).encode(), len(file.content), len(file.durable)))
            digest.update(file.content)
            digest.update(file.durable)
        return digest.hexdigest()

    # --- for `SimulatedOps` --------------------------------------------------------------------------------------------

    def begin(self, operation: str) -> None:
        """Before each change."""
        self.before(operation)
        self.operations += 1
        if self._until_crash is not None:
            self._until_crash -= 1
            if self._until_crash < 0:
                self._is_dying = True
                self.ops.is_dead = True
                if self.chance.random() < 0.5:
                    raise HostCrashError(f"in the middle of: {operation}")

    def end(self) -> None:
        """After each change."""
        if self._is_dying:
            raise HostCrashError("it was done, and nobody was told")

    def write(self, path: Path, file: SimulatedFile, offset: int, written: bytes) -> None:
        fault = self._next_writes.pop(kind_of(path), None)
        if fault is None:
            file.write(offset, written)
            return
        file.write_in_vain(offset, written)
        self.damage.append(Damage("lost write", kind_of(path), path, offset, offset + len(written) - 1))
        if fault == "misdirected write":
            victim = self.chance.choice(self._files_of(kind_of(path)) or [path])
            size = len(self.names.now.files[victim].durable)
            places = [at for at in range(0, size, BLOCK) if victim != path or not offset - len(written) < at < offset + len(written)]
            if places:
                self._damage("misdirected write", victim, self.chance.choice(places), written)

    def sync_fails(self, path: Path) -> bool:
        for kind in self._failing_syncs:
            if kind in (None, kind_of(path)):
                self._failing_syncs.remove(kind)
                self.failed_syncs += 1
                return True
        return False

    def _files_of(self, kind: Kind) -> list[Path]:
        return [path for path in self.paths() if kind_of(path) == kind and self.names.now.files[path].durable]

    def _damage(self, fault: Literal["rot", "misdirected write"], path: Path, first: int, wrong: bytes) -> Damage:
        file = self.names.now.files[path]
        wrong = wrong[: len(file.durable) - first]
        file.damage(first, wrong)
        damage = Damage(fault, kind_of(path), path, first, first + len(wrong) - 1)
        self.damage.append(damage)
        return damage


def _nothing(operation: str) -> None:
    pass
