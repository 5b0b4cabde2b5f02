"""The journal against a small model, over random sequences of groups, crashes, damage, checkpoints and restarts.

The model knows what was acknowledged, in order, and when the newest group was not yet proven. It demands at each start:

- nothing is read that was not written, nothing twice, nothing out of order, and nothing that an earlier start has cut;
- everything acknowledged since the checkpoint is read, or reported as lost; without damage nothing is lost;
- a loss that is reported was a loss: it names nothing that was read after it.
"""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.model.batches import Batch
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown
from streamq.storage.journal_format import BLOCK_BYTES, NOWHERE, JournalEntry, JournalPosition, StateEntry
from tests.sim.disk import HostCrashError
from tests.unit.storage.journal_lab import DIRECTORY, Lab, Read, batch_of


class Model:
    """A lab, what must be in it, and the random choices."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.lab = Lab(seed=seed, files=self.random.randint(1, 3))
        self.checkpoint: JournalPosition | None = None
        self.groups: list[list[JournalEntry]] = []
        """Acknowledged since the checkpoint."""
        self.unacknowledged: list[list[JournalEntry]] = []
        self.cut: list[JournalEntry] = []
        self.is_damaged = False
        self.is_last_damaged = False
        self.is_marked = False
        self._next = 0

    def entries(self) -> list[JournalEntry]:
        """Each differs from every other ever written."""
        entries: list[JournalEntry] = []
        for _ in range(self.random.randint(0, 4)):
            self._next += 1
            if self.random.random() < 0.5:
                payload = self.random.randbytes(self.random.choice((1, 300, 5000, 60_000)))
                entries.append(batch_of(self.random.randint(1, 3), self._next, payload))
            else:
                entries.append(StateEntry(f"k{self.random.randint(1, 5)}", b"%d" % self._next))
        return entries

    # --- what happens --------------------------------------------------------------------------------------------------

    def write(self) -> None:
        group = self.entries()
        self.unacknowledged = [group]
        self.lab.journal.write_group(group)
        self.unacknowledged = []
        self.groups.append(group)
        self.is_marked = False

    def mark(self) -> None:
        self.lab.journal.write_mark()
        self.is_marked = True

    def release(self) -> None:
        self.checkpoint = self.lab.journal.position
        self.lab.journal.release(self.checkpoint)
        self.groups = []

    def crash(self) -> None:
        """The power fails in the middle of some write, or the process is killed there."""
        left = self.random.randint(0, 8)

        def tick(operation: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise HostCrashError

        self.lab.disk.before = tick
        try:
            while True:
                self.write()
        except HostCrashError:
            self.lab.disk.before = lambda operation: None
        if self.random.random() < 0.7:
            self.lab.disk.crash()

    def damage(self) -> None:
        """A flipped byte, a wiped or garbled stretch, anywhere in the files: below the last group, or in it and behind it, never both.

        Damage to a group and to all that proves it cannot be told from a torn tail (I-1 says so of the last group).
        """
        last = self.lab.read(self.checkpoint).recovered.last[0]
        paths = {DIRECTORY / file.name: file.sequence for file in self.lab.read().recovered.files}
        path = self.random.choice([*paths, *paths, self.lab.folder / "manifest"])
        content = self.lab.disk.content(path)
        offset = self.random.randrange(min(len(content), max(self.lab.journal.position.offset, 2 * BLOCK_BYTES)))
        length = min(self.random.choice((1, 1, 100, 5000, 20_000)), len(content) - offset)
        if last != NOWHERE and paths.get(path) == last.file:
            if offset < last.offset:
                length = min(length, last.offset - offset)
            else:
                self.is_last_damaged = last < self.lab.journal.position and not self.is_marked
        kind = self.random.choice(("flip", "wipe", "garble"))
        if kind == "flip":
            content[offset] ^= 1 << self.random.randrange(8)
        else:
            content[offset : offset + length] = bytes(length) if kind == "wipe" else self.random.randbytes(length)
        self.is_damaged = True

    # --- a start -------------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        read = self.lab.restart(self.checkpoint)
        self._demand_truth(read)
        self._demand_everything(read)
        pending = [entry for group in self.unacknowledged for entry in group]
        dropped = [entry for entry in pending if entry not in read.entries]
        newest = [*self.groups[-1:], *self.unacknowledged]
        self.groups = self.groups[:-1] + [[one for one in group if one in read.entries or is_reported(one, read.lost)] for group in newest]
        self.unacknowledged = []
        limbo = StateEntry("limbo", b"%d" % self.lab.starts)
        self.lab.journal.write_group([limbo])
        self.groups.append([limbo])
        self.cut += dropped
        self.is_last_damaged = False
        self.is_marked = False

    def _demand_truth(self, read: Read) -> None:
        written = [entry for group in (*self.groups, *self.unacknowledged) for entry in group]
        places = [written.index(entry) for entry in read.entries]
        assert places == sorted(set(places))
        assert not [entry for entry in read.entries if entry in self.cut]
        if not self.is_damaged:
            assert read.lost == ()
        newest = {entry.key: entry for entry in written if isinstance(entry, StateEntry)}
        for lost in read.lost:
            if isinstance(lost, LostState):
                assert newest.get(lost.key) not in read.entries

    def _demand_everything(self, read: Read) -> None:
        acked = [entry for group in self.groups for entry in group]
        pending = [entry for group in self.unacknowledged for entry in group]
        if not self.is_damaged:
            assert read.entries in (acked, acked + pending)
            return
        kept = self.groups[:-1] if self.is_last_damaged else self.groups
        for at, entry in enumerate(acked[: sum(map(len, kept))]):
            later = [
                one
                for one in acked[at + 1 :] + pending
                if isinstance(entry, StateEntry) and isinstance(one, StateEntry) and one.key == entry.key
            ]
            assert entry in read.entries or is_reported(entry, read.lost) or any(one in read.entries for one in later), entry


def is_reported(entry: JournalEntry, lost: tuple[Lost, ...]) -> bool:
    for one in lost:
        if isinstance(one, LostUnknown):
            return True
        if isinstance(one, LostState) and isinstance(entry, StateEntry) and one.key == entry.key:
            return True
        if isinstance(one, LostBatches) and isinstance(entry, Batch):
            run = (entry.header.partition, entry.header.epoch)
            if one[:2] == run and one.base <= entry.base < entry.end <= one.end:
                return True
    return False


STEPS = st.sampled_from(("write", "write", "write", "write", "mark", "release", "crash", "restart"))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.lists(STEPS, max_size=30))
def test_without_damage_nothing_acknowledged_is_ever_lost(seed: int, steps: list[str]) -> None:
    model = Model(seed)
    for step in steps:
        getattr(model, step)()
        if step == "crash":
            model.restart()
    model.restart()


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.lists(STEPS, max_size=20), last=st.sampled_from(("damage", "crash, damage", "damage twice")))
def test_after_damage_everything_acknowledged_is_read_or_reported_and_nothing_false_is_read(seed: int, steps: list[str], last: str) -> None:
    """One place is damaged, which may hold several groups' heads, tables and repeats; then a start, and another after more writes."""
    model = Model(seed)
    for step in steps:
        getattr(model, step)()
        if step == "crash":
            model.restart()
    model.write()
    model.write()
    model.mark()
    if last == "crash, damage":
        model.crash()
    model.damage()
    model.restart()
    model.write()
    if last == "damage twice":
        model.mark()
        model.damage()
    model.restart()
    model.restart()


def test_the_model_itself_sees_a_silent_loss() -> None:
    """A journal that forgets is caught: the demands above are not empty."""
    model = Model(1)
    model.write()
    model.groups.append([StateEntry("k1", b"never written")])
    try:
        model.restart()
    except AssertionError:
        return
    raise AssertionError("the loss was not seen")
