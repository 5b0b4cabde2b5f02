"""A journal after crashes and damage (P-28, P-29): what was synced comes back, what is lost is named exactly, nothing false is read."""

import os
from random import Random

import pytest

from streamq.storage.interface import LostBatches, LostState, LostUnknown
from streamq.storage.journal_format import JournalEntry, JournalPosition, StateEntry
from tests.sim.disk import HostCrashError
from tests.unit.storage.journal_lab import DIRECTORY, LIMBO, Lab, batch_of, expected_loss, flat, partition_id, three_groups

# --- torn tails ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["zeros", "garbage", "stale"])
def test_every_prefix_of_the_last_group_is_a_torn_tail(rest: str) -> None:
    """Whatever lies behind the prefix: the groups before it come back, the last one is whole or gone, and nothing is lost."""
    lab = Lab()
    groups, ends = three_groups(lab)
    content = lab.disk.content(lab.path(1))
    first, last = ends[2].offset, ends[3].offset
    good = bytes(content[first:last])
    filler = {"zeros": bytes(len(good)), "garbage": Random(1).randbytes(len(good)), "stale": bytes(content[ends[1].offset : last])}[rest]
    for length in [*range(500), *range(500, len(good), 37)]:
        content[first:last] = good[:length] + filler[length : len(good)]
        read = lab.read()
        is_whole = read.entries == flat(groups)
        assert is_whole or read.entries == flat(groups[:2])
        assert is_whole or length < len(good)
        assert read.lost == ()
        assert read.recovered.end == (ends[3] if is_whole else ends[2])


def test_flips_in_the_last_group_are_a_torn_tail() -> None:
    lab = Lab()
    groups, ends = three_groups(lab)
    path = lab.path(1)
    for offset in range(ends[2].offset, ends[3].offset, 29):
        lab.disk.flip(path, offset)
        read = lab.read()
        lab.disk.flip(path, offset)
        assert read.entries in (flat(groups), flat(groups[:2]))
        assert read.lost == ()


def test_a_cut_tail_never_comes_back() -> None:
    """A torn group is longer than what is written over it; its end must not be read after the next crash."""
    lab = Lab()
    first = batch_of(1, 0, b"first")
    lab.journal.write_group([first])
    cut = lab.journal.position
    lab.journal.write_group([batch_of(1, 1, os.urandom(50_000))])
    lab.disk.flip(lab.path(1), cut.offset + 20_000)
    assert lab.restart().entries == [first]
    assert lab.journal.position == cut
    second = batch_of(1, 1, b"second")
    lab.journal.write_group([second])
    lab.disk.flip(lab.path(1), cut.offset + 20_000)  # what was torn is whole again, but for its head
    assert lab.restart().entries == [first, second]
    assert lab.restart().lost == ()


@pytest.mark.parametrize("seed", range(40))
def test_a_crash_at_any_operation_loses_nothing_acknowledged(seed: int) -> None:
    """The power fails before the n-th operation, over several starts, changes of files and checkpoints included."""
    random = Random(seed)
    lab = Lab(seed=seed)
    acked: list[JournalEntry] = []
    checkpoint: JournalPosition | None = None
    next_base = 0
    for _ in range(8):
        left = random.randint(0, 60)
        pending: list[JournalEntry] = []

        def tick(operation: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise HostCrashError

        lab.disk.before = tick
        try:
            while True:
                pending = [batch_of(1, next_base, random.randbytes(random.choice((10, 5000, 200_000)))), StateEntry("k", b"%d" % next_base)]
                next_base += 1
                lab.journal.write_group(pending)
                acked += pending
                pending = []
                if random.random() < 0.15:
                    checkpoint = lab.journal.position
                    acked.clear()
                    lab.journal.release(checkpoint)
        except HostCrashError:
            lab.disk.crash()
        read = lab.restart(checkpoint)
        assert read.lost == ()
        assert read.entries in (acked, acked + pending)
        acked = read.entries


# --- damage below a proof --------------------------------------------------------------------------------------------------


def test_a_flip_anywhere_below_a_proof_loses_at_most_the_entry_it_hits_and_says_so() -> None:
    """Head, table and repeat are made good by each other; a body is lost exactly; padding holds nothing."""
    lab = Lab()
    groups, ends = three_groups(lab)
    lab.journal.write_mark()
    path = lab.path(1)
    lost_at_all = set()
    for offset in range(ends[0].offset, ends[3].offset, 7):
        lab.disk.flip(path, offset)
        read = lab.read()
        lab.disk.flip(path, offset)
        missing = [entry for entry in flat(groups) if entry not in read.entries]
        assert len(missing) <= 1
        assert read.entries == [entry for entry in flat(groups) if entry not in missing]
        assert read.lost == tuple(expected_loss(entry) for entry in missing)
        assert read.recovered.end == lab.journal.position
        if missing:
            lost_at_all.add(read.lost)
            (damage,) = read.recovered.damage
            assert damage.first_byte <= offset <= damage.last_byte
            assert DIRECTORY / damage.file == path
    assert len(lost_at_all) == 9


def test_a_damaged_head_or_table_is_named_though_nothing_is_lost() -> None:
    lab = Lab()
    _, ends = three_groups(lab)
    lab.journal.write_mark()
    for offset in (0, 30, 100, 150):
        lab.disk.flip(lab.path(1), ends[1].offset + offset)
        read = lab.read()
        lab.disk.flip(lab.path(1), ends[1].offset + offset)
        assert read.lost == ()
        assert [d for d in read.recovered.damage if d.first_byte <= ends[1].offset + offset <= d.last_byte]


def test_damaged_heads_one_behind_the_other_are_told_by_the_repeats_behind() -> None:
    lab = Lab()
    groups, ends = three_groups(lab)
    lab.journal.write_mark()
    for end in ends[:3]:
        lab.disk.flip(lab.path(1), end.offset + 50)
    read = lab.read()
    assert read.entries == flat(groups)
    assert read.lost == ()


def test_what_neither_head_nor_repeat_tells_is_an_unknown_loss() -> None:
    lab = Lab()
    groups, ends = three_groups(lab)
    lab.journal.write_mark()
    content = lab.disk.content(lab.path(1))
    content[ends[1].offset : ends[3].offset] = bytes(ends[3].offset - ends[1].offset)
    content[ends[3].offset + 200] ^= 1  # the mark's repeat
    read = lab.read()
    assert read.entries == flat(groups[:1])
    assert [type(lost) for lost in read.lost] == [LostUnknown]
    assert read.recovered.end == lab.journal.position


def test_a_wiped_group_is_lost_exactly_as_its_repeat_says() -> None:
    lab = Lab()
    groups, ends = three_groups(lab)
    lab.journal.write_mark()
    lab.disk.content(lab.path(1))[ends[1].offset : ends[2].offset] = bytes(ends[2].offset - ends[1].offset)
    read = lab.read()
    assert read.entries == flat([groups[0], groups[2]])
    assert sorted(map(str, read.lost)) == sorted(str(expected_loss(entry)) for entry in groups[1])


def test_a_later_value_makes_good_the_loss_of_a_state() -> None:
    lab = Lab()
    start = lab.journal.position
    lab.journal.write_group([StateEntry("seal", b"old value")])
    lab.journal.write_group([StateEntry("other", b"x")])
    content = lab.disk.content(lab.path(1))
    content[content.index(b"old value")] ^= 1
    assert lab.read(start).lost == (LostState("seal"),)
    lab.journal.write_group([StateEntry("seal", b"new value")])
    assert lab.read(start).lost == ()
    lab.journal.write_group([StateEntry("seal", None)])
    assert lab.read(start).lost == ()


def test_neighbouring_losses_of_a_run_are_one_range() -> None:
    lab = Lab()
    for i in range(4):
        lab.journal.write_group([batch_of(1, 10 * i, b"payload %d" % i, records=10)])
    lab.journal.write_mark()
    content = lab.disk.content(lab.path(1))
    for i in (1, 2):
        content[content.index(b"payload %d" % i)] ^= 1
    assert lab.read().lost == (LostBatches(partition_id(1), 1, 10, 30),)


def test_damage_stays_reported_until_a_checkpoint_passes_it() -> None:
    """Nothing damaged is written over: a crash before the limbo is durable finds all of it again (P-29)."""
    lab = Lab()
    three_groups(lab)
    lab.journal.write_mark()
    content = lab.disk.content(lab.path(1))
    content[content.index(b"value 1")] ^= 1
    loss = (LostState("s1"),)
    assert lab.restart().lost == loss
    lab.disk.crash()
    assert lab.restart(limbo=[LIMBO]).lost == loss
    read = lab.restart()
    assert read.lost == loss
    assert read.entries[-1] == LIMBO
    assert lab.read(lab.journal.position).lost == ()
