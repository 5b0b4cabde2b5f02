"""Which files have outlived a retention: whole, closed ones, oldest first, never past a hole or a limit."""

import pytest

from streamq.log.retention import ROLL_SHARE, Retention, new_start, wants_roll
from streamq.model.files import StoredFile

NOW = 1_000_000
EVERYTHING = 1 << 40


def files(*sizes: int, epoch_of: tuple[int, ...] = (), last_is_open: bool = True) -> list[StoredFile]:
    """Ten offsets each; file i was appended from 1,000 i to 1,000 i + 900."""
    last = len(sizes) - 1
    return [
        StoredFile(epoch_of[i] if epoch_of else 1, 10 * i, 10 * i + 10, size, 1_000 * i, 1_000 * i + 900, not last_is_open or i < last)
        for i, size in enumerate(sizes)
    ]


def start_of(found: list[StoredFile], retention: Retention, *, start: int = 0, limit: int = EVERYTHING, now_ms: int = NOW) -> int:
    return new_start(found, retention, start=start, limit=limit, now_ms=now_ms)


@pytest.mark.parametrize(("max_bytes", "expected"), [(None, 0), (1_000, 0), (300, 0), (299, 0), (200, 10), (199, 10), (100, 20), (1, 20)])
def test_by_bytes_what_remains_is_still_as_much_as_asked_for(max_bytes: int | None, expected: int) -> None:
    """And the file that is still written stays."""
    assert start_of(files(100, 100, 100), Retention(max_bytes)) == expected


@pytest.mark.parametrize(("now_ms", "expected"), [(5_000, 0), (5_900, 0), (5_901, 10), (6_901, 20), (1 << 40, 30)])
def test_by_time_files_go_whose_newest_append_is_older(now_ms: int, expected: int) -> None:
    found = files(1, 1, 1, last_is_open=False)
    assert start_of(found, Retention(None, 5_000), now_ms=now_ms) == expected


def test_either_reason_is_enough() -> None:
    found = files(100, 100, 100, 100)
    assert start_of(found, Retention(300, 10_000), now_ms=11_000) == 10
    assert start_of(found, Retention(300, 10_000), now_ms=12_000) == 20


def test_small_files_of_closed_epochs_count_too() -> None:
    found = files(5, 5, 5, 5, epoch_of=(1, 2, 4, 4))
    assert start_of(found, Retention(6)) == 20


def test_nothing_goes_past_the_limit_or_a_hole_or_before_the_start() -> None:
    found = files(100, 100, 100, 100)
    assert start_of(found, Retention(1), limit=25) == 20
    assert start_of(found, Retention(1), start=15) == 30
    del found[1]  # this replica still copies it
    assert start_of(found, Retention(1)) == 10
    assert start_of(found, Retention(1), start=5, limit=5) == 5


def test_an_append_time_that_is_not_known_lies_before_the_next_files() -> None:
    """Of checkpoints that an older version wrote."""
    old = [file._replace(first_append=0, last_append=0) for file in files(1, 1, last_is_open=False)]
    assert start_of(old, Retention(None, 1), now_ms=1 << 40) == 0
    assert start_of([*old, *files(1, 1, 1)[2:]], Retention(None, 1), now_ms=2_002) == 20
    assert start_of([*old, *files(1, 1, 1)[2:]], Retention(None, 1), now_ms=2_001) == 0


def test_a_file_is_closed_early_when_it_is_a_share_of_what_is_retained() -> None:
    [file] = files(100)
    assert not wants_roll(file, Retention(), now_ms=1 << 40)
    assert wants_roll(file, Retention(100 * ROLL_SHARE), now_ms=0)
    assert not wants_roll(file, Retention(100 * ROLL_SHARE + 1), now_ms=0)
    old = file._replace(first_append=1_000)
    assert wants_roll(old, Retention(None, 80 * ROLL_SHARE), now_ms=1_080)
    assert not wants_roll(old, Retention(None, 80 * ROLL_SHARE), now_ms=1_079)
    assert not wants_roll(file, Retention(None, 1), now_ms=1 << 40)  # nobody knows since when it is written
