"""What a storage must hold: the list of what its owner has appended, cut and dropped, of which a beginning is durable."""

import zlib
from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

from streamq.model.batches import Batch
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown, Run
from tests.sim.disk import Damage
from tests.support.stored_batches import P1, P2, batch

__all__ = ["PARTITIONS", "Model", "Violation", "demand", "written_batch"]

PARTITIONS: Final = (P1, P2)
KEYS: Final = ("a", "b", "c")
LIMBO: Final = "limbo"
TABLE: Final = "table/"
GROUP_BYTES_MIN: Final = 4096
SIZES: Final = (20, 100, 100, 500, 500, 3000, 9000)


class Violation(AssertionError):
    """The storage has broken a promise."""


def demand(holds: bool, message: str) -> None:
    if not holds:
        raise Violation(message)


def written_batch(partition: bytes, epoch: int, base: int) -> Batch:
    """Every batch has two records; its bytes follow from its place."""
    return batch(base, 2, partition=partition, epoch=epoch, size=SIZES[zlib.crc32(b"%s %d %d" % (partition, epoch, base)) % len(SIZES)])


class Append(NamedTuple):
    batches: tuple[tuple[bytes, int, int], ...]
    """Partition, epoch and base."""
    states: tuple[tuple[str, bytes | None], ...]


class Cut(NamedTuple):
    partition: bytes
    epoch: int
    end: int


class Drop(NamedTuple):
    partition: bytes


class Trims:
    """Up to where the owner has had each run trimmed, ever: what lies below may be gone, or be there (again) after a crash.

    `encoded` is what stands for the idempotence table: it goes with each checkpoint, and says up to where anything may be gone there."""

    def __init__(self) -> None:
        self.starts: dict[tuple[bytes, int], int] = {}

    def of(self, key: tuple[bytes, int]) -> int:
        return self.starts.get(key, 0)

    def encoded(self) -> list[tuple[str, bytes]]:
        return [(f"{TABLE}{partition.hex()}/{epoch}", b"%d" % start) for (partition, epoch), start in self.starts.items()]

    def fit(self, actual: dict[tuple[bytes, int], Run], expected: dict[tuple[bytes, int], Run]) -> bool:
        """Whether these are the same runs, but for what may be gone."""
        return actual.keys() <= expected.keys() and all(self._fits(key, actual.get(key), run) for key, run in expected.items())

    def _fits(self, key: tuple[bytes, int], actual: Run | None, expected: Run) -> bool:
        if actual is None:
            return expected.tail <= self.of(key)
        return actual.tail == expected.tail and expected.base <= actual.base <= max(expected.base, self.of(key))


class Image:
    """Runs and states at one moment."""

    def __init__(self, runs: dict[tuple[bytes, int], Run], states: dict[str, bytes]) -> None:
        self.runs = runs
        self.states = states

    def __repr__(self) -> str:
        return f"{self.runs} {self.states}"

    def copy(self) -> "Image":
        return Image(dict(self.runs), dict(self.states))

    def apply(self, what: Append | Cut | Drop) -> None:
        if isinstance(what, Drop):
            self.runs = {key: run for key, run in self.runs.items() if key[0] != what.partition}
        elif isinstance(what, Cut):
            run = self.runs.get((what.partition, what.epoch))
            if run is not None and what.end <= run.base:
                del self.runs[what.partition, what.epoch]
            elif run is not None:
                self.runs[what.partition, what.epoch] = Run(run.base, min(run.tail, what.end))
        else:
            for partition, epoch, base in what.batches:
                run = self.runs.get((partition, epoch), Run(base, base))
                self.runs[partition, epoch] = Run(run.base, base + 2)
            for key, value in what.states:
                self.states.pop(key, None)
                if value is not None:
                    self.states[key] = value


class Model:
    """`durable` entries of the list were given back; those up to `written` at least lie with the operating system (P-37)."""

    def __init__(self) -> None:
        self._before = Image({}, {})
        self._list: list[Append | Cut | Drop] = []
        self._now = self._before.copy()
        self.durable = 0
        self._written = 0
        self._floor = 0
        self._groups = [0]
        """How much was durable after each group commit."""
        self._epochs = dict.fromkeys(PARTITIONS, 1)
        self._bases: dict[tuple[bytes, int], int] = {}
        self._ends: dict[tuple[bytes, int], int] = {}
        self._ever: set[tuple[bytes, int, int]] = set()
        self._next = 0
        self.trims = Trims()
        self.starts: dict[bytes, int] = {}
        """The start offset that storage was told in this life, by partition."""
        self.is_in_limbo = False

    @property
    def on_their_way(self) -> int:
        return len(self._list) - self.durable

    # --- what the owner does -------------------------------------------------------------------------------------------

    def step(self, storage: DiskStorage, chance: Random) -> str:
        partition = chance.choice(PARTITIONS)
        epoch = self._epochs[partition]
        run = self._now.runs.get((partition, epoch))
        what = chance.choices(("append", "state", "epoch", "trim", "roll", "drop"), (80, 10, 8, 4, 2, 1))[0]
        if what == "trim":
            self._trim(storage, partition, chance)
        elif what == "roll":
            storage.roll(partition)
        elif what == "drop":
            storage.drop(partition)
            self._record(Drop(partition))
            self._ends = {key: end for key, end in self._ends.items() if key[0] != partition}
            self._epochs[partition] += 1
        elif what == "epoch" and run is not None:
            least = min(max(run.base, self.trims.of((partition, epoch))), run.tail)  # an epoch never ends below the start offset (P-41)
            end = self._ends[partition, epoch] = chance.randrange(least, run.tail + 1) // 2 * 2
            storage.cut(partition, epoch, end)
            self._record(Cut(partition, epoch, end))
            self._epochs[partition] += 1
        elif what == "state":
            self.append_state(storage, chance)
        else:
            self._append(storage, partition, epoch, chance)
            return "append"
        return what

    def _append(self, storage: DiskStorage, partition: bytes, epoch: int, chance: Random) -> None:
        run = self._now.runs.get((partition, epoch))
        first = self._bases.setdefault((partition, epoch), self._ends.get((partition, epoch - 1), 2 * chance.randrange(10)))
        base = run.tail if run is not None else first
        places = tuple((partition, epoch, base + 2 * i) for i in range(chance.choice((1, 1, 1, 4))))
        self._ever.update(places)
        states = (self._state(chance),) if chance.random() < 0.2 else ()
        self._queue(storage, Append(places, states), sync=chance.random() < 0.8)

    def _trim(self, storage: DiskStorage, partition: bytes, chance: Random) -> None:
        """To anywhere, the end of what is there included."""
        runs = dict(storage.runs(partition))
        if runs:
            least, most = min(run.base for run in runs.values()), max(run.tail for run in runs.values())
            start = chance.choice((most, chance.randrange(least, most + 1), chance.randrange(least, most + 1))) // 2 * 2
            for epoch in runs:
                self.trims.starts[partition, epoch] = max(start, self.trims.of((partition, epoch)))
            self._tell_start(storage, partition, start)

    def _tell_start(self, storage: DiskStorage, partition: bytes, start: int) -> None:
        self.starts[partition] = max(start, self.starts.get(partition, 0))
        storage.trim(partition, start)

    def append_state(self, storage: DiskStorage, chance: Random) -> None:
        self._queue(storage, Append((), (self._state(chance),)), sync=True)

    def enter_limbo(self, storage: DiskStorage) -> None:
        """On record before anything else (P-29): until it is, what was lost must be reported again."""
        self.is_in_limbo = True
        self._next += 1
        storage.append([], [(LIMBO, b"%d" % self._next)], LIMBO)

    def repeat_cuts(self, storage: DiskStorage) -> None:
        """As an owner does at every start: a crash may have undone them."""
        for (partition, epoch), end in self._ends.items():
            storage.cut(partition, epoch, end)
            self._record(Cut(partition, epoch, end))
        self.starts.clear()
        for partition in PARTITIONS:
            self._tell_start(storage, partition, min((self.trims.of((partition, epoch)) for epoch in storage.runs(partition)), default=0))

    def _state(self, chance: Random) -> tuple[str, bytes | None]:
        self._next += 1
        return chance.choice(KEYS), b"%d" % self._next if chance.random() < 0.8 else None

    def _queue(self, storage: DiskStorage, what: Append, *, sync: bool) -> None:
        self._record(what)
        storage.append([written_batch(*place) for place in what.batches], what.states, (len(self._list), sync), sync=sync)

    def _record(self, what: Append | Cut | Drop) -> None:
        self._list.append(what)
        self._now.apply(what)

    def take(self, tokens: Sequence[object]) -> None:
        """What is given back."""
        for token in tokens:
            if token == LIMBO:
                self.is_in_limbo = False
                continue
            number, is_durable = token  # type: ignore[misc]
            if is_durable:
                demand(number > self.durable, f"token {number} comes after {self.durable}")
                self.durable = number
            else:
                self._written = max(self._written, number)
        if self.durable > self._groups[-1]:
            self._groups.append(self.durable)

    # --- what a start must find ----------------------------------------------------------------------------------------

    def on_crash(self) -> None:
        self._floor = self.durable

    def on_kill(self) -> None:
        self._floor = max(self.durable, self._written)

    def compare(self, storage: DiskStorage, *, ever: Sequence[Damage], fresh: Sequence[Damage]) -> None:
        """`ever` is all damage that was done to this directory, `fresh` that since the start before."""
        floor = self._floor
        unproven = sum(1 + -(-(one.last - one.first + 1) // GROUP_BYTES_MIN) for one in fresh if one.kind == "journal")
        if unproven:
            floor = min(floor, self._groups[max(0, len(self._groups) - 1 - unproven)])
        actual = found_in(storage)
        image = self._before.copy()
        uncovered = ""
        for number in range(len(self._list) + 1):
            if number >= floor and image.states == actual.states and self.trims.fit(actual.runs, image.runs):
                uncovered = self._uncovered(storage, image, actual)
                if not uncovered:
                    demand(bool(ever) or not storage.lost, f"losses are reported on a good disk: {storage.lost}")
                    return
            if number < len(self._list):
                image.apply(self._list[number])
        demand(not uncovered, uncovered)
        demand(bool(ever), f"what is there is no beginning of what was appended: {self._differences(actual, floor)}")
        self._demand_reports(actual, floor, storage.lost)

    def _uncovered(self, storage: DiskStorage, image: Image, actual: Image) -> str:
        """P-34: nothing is gone that the table kept with the same checkpoint does not cover; what is, if these are the runs."""
        for key, run in image.runs.items():
            found = actual.runs.get(key)
            begins = run.tail if found is None else found.base
            table = int(storage.states().get(f"{TABLE}{key[0].hex()}/{key[1]}", b"0"))
            if begins > max(run.base, table):
                return f"{key}: {run} begins at {begins} now, and the table kept is at {table}"
        return ""

    def adopt(self, storage: DiskStorage) -> None:
        """What a start has found is durable."""
        self._before = found_in(storage)
        self._now = self._before.copy()
        self._list = []
        self.durable = self._written = self._floor = 0
        self._groups = [0]

    def _image_at(self, number: int) -> Image:
        image = self._before.copy()
        for what in self._list[:number]:
            image.apply(what)
        return image

    def _differences(self, actual: Image, floor: int) -> str:
        least, most = self._image_at(floor), self._image_at(len(self._list))
        return f"there are {actual}, given back were {least}, appended were {most}"

    def _demand_reports(self, actual: Image, floor: int, lost: Sequence[Lost]) -> None:
        """After damage: what is missing is reported, and what is there was appended once."""
        for (partition, epoch), run in actual.runs.items():
            strange = [base for base in range(*run, 2) if (partition, epoch, base) not in self._ever]
            demand(not strange, f"{partition!r} epoch {epoch}: {strange} were never appended")
        if any(isinstance(loss, LostUnknown) for loss in lost):
            return
        least, later = self._image_at(floor), self._list[floor:]
        dropped = {what.partition for what in later if isinstance(what, Drop)}
        holes = {(loss.partition, loss.epoch): loss for loss in lost if isinstance(loss, LostBatches)}
        for key, run in least.runs.items():
            end = min(run.tail, self._ends.get(key, run.tail))
            found = actual.runs.get(key)
            start = max(run.base, self.trims.of(key))
            if key[0] in dropped or end <= start or (found is not None and found.base <= start and found.tail >= end):
                continue
            hole = holes.get(key)
            is_reported = hole is not None and hole.end >= end and hole.base <= (found.tail if found is not None else end)
            demand(is_reported, f"{key}: {run} was given back, {found} is there, and {hole} is reported")
        gone = {loss.key for loss in lost if isinstance(loss, LostState)}
        for key in KEYS:
            values = [least.states.get(key), *(value for what in later if isinstance(what, Append) for k, value in what.states if k == key)]
            demand(key in gone or actual.states.get(key) in values, f"{key}: {actual.states.get(key)!r} is none of {values}")


def found_in(storage: DiskStorage) -> Image:
    runs = {(partition, epoch): run for partition in PARTITIONS for epoch, run in storage.runs(partition).items()}
    return Image(runs, {key: value for key, value in storage.states().items() if key != LIMBO and not key.startswith(TABLE)})
