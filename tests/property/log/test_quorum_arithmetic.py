"""The quorum arithmetic against a deliberately dumb twin that enumerates sets."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from streamq.model.limits import REPLICAS_MAX
from streamq.model.quorum import Quorum, high_watermark, majority, reopen_quorum, seal_quorum, survives

SIZES = range(1, 7)
SOUND = [(n, w, r) for n in SIZES for w in range(1, n + 1) for r in range(1, n + 1) if w + r > n]


@given(tails=st.lists(st.integers(0, 9), max_size=7), write=st.integers(1, 7), base=st.integers(0, 9))
def test_the_high_watermark_is_the_largest_offset_that_write_replicas_reach(tails: list[int], write: int, base: int) -> None:
    reached = [offset for offset in range(base, 10) if sum(1 for tail in tails if tail >= offset) >= write]
    assert high_watermark(tails, write=write, base=base) == max(reached, default=base)


def test_a_seal_meets_every_write_quorum_and_is_as_small_as_can_be() -> None:
    for n, w, _ in SOUND:
        needed = seal_quorum(replicas=n, write=w)
        replicas = range(n)

        def meets(count: int, n: int = n, w: int = w, replicas: range = replicas) -> bool:
            return all(set(seal) & set(stored) for seal in combinations(replicas, count) for stored in combinations(replicas, w))

        assert meets(needed)
        assert needed == 1 or not meets(needed - 1)


def test_read_and_write_quorums_meet_exactly_when_the_numbers_are_sound() -> None:
    for n in SIZES:
        for w in SIZES:
            for r in SIZES:
                fits = w <= n and r <= n
                meet = fits and all(set(a) & set(b) for a in combinations(range(n), w) for b in combinations(range(n), r))
                assert (Quorum(n, w, r).fault() is None) == meet


def test_refusals_say_what_would_do() -> None:
    assert "try a read quorum of 2" in str(Quorum(3, 2, 1).fault())
    assert "try 2" in str(Quorum(3, 0, 3).fault())
    assert str(REPLICAS_MAX) in str(Quorum(REPLICAS_MAX + 1, 1, 1).fault())


def test_a_new_epoch_can_be_written_and_sealed_by_those_that_answered() -> None:
    for n, w, _ in SOUND:
        answered = reopen_quorum(replicas=n, write=w)
        assert answered >= w
        assert answered >= seal_quorum(replicas=n, write=w)
        assert answered <= n


def test_what_a_topic_survives_is_what_is_left_of_its_quorums() -> None:
    for n, w, r in SOUND:
        s = survives(Quorum(n, w, r))
        assert n - s.append >= w > n - s.append - 1
        needed = max(w, seal_quorum(replicas=n, write=w))  # steps 1 and 5 of a takeover, without brokers to replace the lost ones
        assert n - s.takeover >= needed > n - s.takeover - 1
        assert n - s.tip >= r > n - s.tip - 1
        assert w - s.data_loss == 1


def test_a_majority_meets_every_other() -> None:
    for n in SIZES:
        assert 2 * majority(n) > n
        assert 2 * (majority(n) - 1) <= n
