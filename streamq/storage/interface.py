"""What a broker asks of its storage. Two implementations, `DiskStorage` and `MemoryStorage`, pass one conformance suite.

Everything durable is one of two things. A **batch** belongs to a run: the batches of one partition in one epoch, contiguous from the run's
base on. A **state** is a small value under a key, of which only the newest counts (sealed marks and chains per partition, promises and
acceptances per register). Both go through one journal, in the order of `append`, in one sync (P-27).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import trio

from streamq.model.batches import Batch, BatchHeader
from streamq.model.errors import CorruptDataError
from streamq.model.files import StoredFile
from streamq.model.ids import Incarnation, PartitionId
from streamq.model.registers import Voters
from streamq.storage.metrics import StorageMetrics

__all__ = [
    "DamagedRangeError",
    "Identity",
    "Lost",
    "LostBatches",
    "LostState",
    "LostUnknown",
    "Run",
    "RunsView",
    "Storage",
    "StorageFailedError",
]


class Identity(NamedTuple):
    """Whose directory this is (P-31). `starts` counts this start already."""

    cluster: bytes
    broker: str
    incarnation: Incarnation
    first_voters: Voters
    starts: int


class Run(NamedTuple):
    """`[base, tail)` of one epoch lies here, contiguous."""

    base: int
    tail: int


class HeldRun(Protocol):
    """What an implementation keeps of a run, whatever else it keeps."""

    base: int

    @property
    def tail(self) -> int: ...


class RunsView(Mapping[int, Run]):
    """An implementation's runs as everybody else may see them; it follows their changes."""

    def __init__(self, runs: Mapping[int, HeldRun]) -> None:
        self._runs = runs

    def __getitem__(self, epoch: int) -> Run:
        run = self._runs[epoch]
        return Run(run.base, run.tail)

    def __iter__(self) -> Iterator[int]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)


class LostBatches(NamedTuple):
    """These offsets were acknowledged once and cannot be read from the journal any more (P-29). The run ends at `base`."""

    partition: PartitionId
    epoch: int
    base: int
    end: int


class LostState(NamedTuple):
    """The newest value of this key cannot be read any more."""

    key: str


class LostUnknown(NamedTuple):
    """Damage that cannot be pinned to anything: everything may have been lost."""

    reason: str


Lost = LostBatches | LostState | LostUnknown


class StorageFailedError(Exception):
    """A write or sync failed. Final: the broker stops and answers nothing more for what was not durable (P-15)."""


class DamagedRangeError(CorruptDataError):
    """Offsets `[base, end)` of a run fail their checksum in a log file, at these byte positions of `file` (P-30)."""

    def __init__(self, *, partition: PartitionId, epoch: int, base: int, end: int, file: str, first_byte: int, last_byte: int) -> None:
        super().__init__(
            f"{file}: bytes {first_byte} to {last_byte} are damaged (epoch {epoch}, offsets {base} to {end - 1})",
            code="data_damaged",
            hint="the range is copied again from another replica when it is read there; `streamq log verify` lists all damage",
        )
        self.partition = partition
        self.epoch = epoch
        self.base = base
        self.end = end
        self.file = file
        self.first_byte = first_byte
        self.last_byte = last_byte


class Storage(Protocol):
    """Opened by the implementation's own constructor; single-threaded towards its owner (the broker's event loop)."""

    @property
    def identity(self) -> Identity: ...

    @property
    def lost(self) -> tuple[Lost, ...]:
        """What the journal once held below a synced mark and could not give back at this start."""

    @property
    def was_stopped_cleanly(self) -> bool:
        """Whether the start before this one ended with `close`."""

    @property
    def metrics(self) -> StorageMetrics:
        """What was counted since it was opened."""

    def gauges(self) -> Mapping[str, int]:
        """How things stand, by name; for people to read. May ask the operating system."""

    # --- what is there -------------------------------------------------------------------------------------------------

    def states(self) -> Mapping[str, bytes]:
        """The newest value of every key, durable or on its way. A view: do not change it."""

    def runs(self, partition: PartitionId) -> Mapping[int, Run]:
        """Epoch to run, batches on their way to the disk included. A view: do not change it."""

    def partitions(self) -> Sequence[PartitionId]:
        """Every partition that has a run here."""

    def files(self, partition: PartitionId) -> Sequence[StoredFile]:
        """What lies in log files, in offset order; not what waits in memory for its log file."""

    # --- writing -------------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[Batch], states: Sequence[tuple[str, bytes | None]], token: object, *, sync: bool = True) -> None:
        """Queues a write; entries become durable in the order of the calls. None as a state's value forgets the key.

        A batch must begin a run of its epoch or continue it exactly (asserted). `token` is given back through `run`'s `on_durable` once all
        of it is durable; with `sync=False` already when it has been written to the operating system (P-37). After `StorageFailedError`
        no token is ever given back again.
        """

    async def run(self, on_durable: Callable[[list[object]], None]) -> None:
        """Writes, syncs, checkpoints, until cancelled. Calls `on_durable` in the event loop, once for each group commit, tokens in order.

        Raises StorageFailedError when a write or a sync fails. Cancellation loses nothing that was given back.
        """

    async def close(self) -> None:
        """After `run` has ended: writes what is pending, a checkpoint, and the mark of a clean stop."""

    def refusal(self) -> str | None:
        """Why no new batches should be taken now (disk full), None when they may. States are still written: room is reserved (P-15)."""

    def backlog(self) -> trio.Event | None:
        """What to wait for before more is taken from others, while more waits in memory than the disk keeps up with; None if there is room.

        Never while there is a `refusal`: that is to be told.
        """

    def cut(self, partition: PartitionId, epoch: int, end: int) -> None:
        """Forgets the epoch's batches at and past `end` (their epoch was closed there). Repeated at every start by the owner, so that a
        replay of the journal cannot bring them back. A cut at or below the run's base forgets the run."""

    def trim(self, partition: PartitionId, start_offset: int) -> None:
        """Gives back the space of what lies below `start_offset`: whole log files that end at or below it go, their runs' bases move up.

        The owner's durable state says that nothing below it is wanted. Nothing is removed before a checkpoint without it is durable, which
        follows soon and holds the derived values as of now or later; a crash before leaves all of it. Repeated at every start by the owner.
        A reader under way goes on, or finds that the run does not contain its offset any more.
        """

    def roll(self, partition: PartitionId) -> None:
        """Closes the newest log file of the partition, however small: what comes goes into another."""

    def drop(self, partition: PartitionId) -> None:
        """Forgets the whole partition: its topic is deleted (a tombstone was read) or its copy is void."""

    async def restore(self, partition: PartitionId, epoch: int, batches: Sequence[Batch]) -> None:
        """Writes good copies over a damaged range of log data, byte for byte, durably. The batches must be the ones that were there."""

    def at_checkpoint(self, collect: Callable[[], Sequence[tuple[str, bytes]]], kept: Callable[[], None] | None = None) -> None:
        """Registers who supplies derived values (idempotence tables with their positions) to be kept with each checkpoint.

        They come back in `states()` at the next start; they are never older than the checkpoint that they lie in. `kept` is called in the
        event loop once what was collected last is durable, unless the storage is closing.
        """

    # --- reading -------------------------------------------------------------------------------------------------------

    def recent(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch] | None:
        """Batches from the one that contains `offset` on, if that one is in memory; else None. At least one batch, then up to `max_bytes`.

        Includes batches on their way to the disk: who serves them decides what may be seen.
        """

    async def read(self, partition: PartitionId, epoch: int, offset: int, *, max_bytes: int) -> list[Batch]:
        """As `recent`, from memory or disk; [] if the run does not contain `offset`. Raises DamagedRangeError; every batch is checked."""

    async def headers(self, partition: PartitionId, epoch: int, offset: int, *, max_batches: int) -> list[BatchHeader]:
        """The headers from the batch that contains `offset` on. Raises DamagedRangeError."""

    async def find_time(self, partition: PartitionId, epoch: int, timestamp_ms: int) -> int | None:
        """The base of the first batch of the run whose largest record time is at or after `timestamp_ms`; None if there is none."""
