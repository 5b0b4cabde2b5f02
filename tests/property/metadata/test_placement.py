"""Placement is balanced, spreads over racks, and every broker computes the same."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.metadata.placement import Load, Site, place


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[Site], int, int, int]:
    count = draw(st.integers(1, 9))
    racks = draw(st.lists(st.sampled_from(["", "r1", "r2", "r3"]), min_size=count, max_size=count))
    sites = [Site(f"b{index}", rack) for index, rack in enumerate(racks)]
    return sites, draw(st.integers(1, 40)), draw(st.integers(1, count)), draw(st.integers(0, 1 << 64))


def sequencers(placed: list[tuple[str, ...]], sites: list[Site]) -> list[int]:
    counts = Counter(replicas[0] for replicas in placed)
    return [counts[site.broker] for site in sites]


@given(requests())
@settings(max_examples=100, deadline=None)
def test_replicas_are_distinct_brokers_and_everybody_agrees(request: tuple[list[Site], int, int, int]) -> None:
    sites, partitions, replicas, seed = request
    placed = place(sites, partitions=partitions, replicas=replicas, seed=seed)
    assert len(placed) == partitions
    for chosen in placed:
        assert len(set(chosen)) == len(chosen) == replicas
        assert set(chosen) <= {site.broker for site in sites}
    assert place(sites, partitions=partitions, replicas=replicas, seed=seed) == placed


@given(requests())
@settings(max_examples=100, deadline=None)
def test_without_racks_replicas_and_sequencers_differ_by_at_most_one(request: tuple[list[Site], int, int, int]) -> None:
    sites, partitions, replicas, seed = request
    sites = [Site(site.broker, "") for site in sites]
    placed = place(sites, partitions=partitions, replicas=replicas, seed=seed)
    held = Counter(name for chosen in placed for name in chosen)
    counts = [held[site.broker] for site in sites]
    assert max(counts) - min(counts) <= 1
    led = sequencers(placed, sites)
    assert max(led) - min(led) <= 1


@given(requests())
@settings(max_examples=100, deadline=None)
def test_racks_are_used_evenly(request: tuple[list[Site], int, int, int]) -> None:
    """No partition has two replicas in one rack while another rack, or a broker without one, was free."""
    sites, partitions, replicas, seed = request
    racks = {site.broker: site.rack for site in sites}
    free = Counter(racks.values())
    for chosen in place(sites, partitions=partitions, replicas=replicas, seed=seed):
        used = Counter(racks[name] for name in chosen)
        most = max((count for rack, count in used.items() if rack), default=0)
        if most > 1:
            assert used[""] == free[""]
            for rack in free:
                assert not rack or used[rack] >= min(free[rack], most - 1)


def test_new_partitions_go_where_least_is() -> None:
    sites = [Site(f"b{index}", "") for index in range(4)]
    load = {"b0": Load(10, 5), "b1": Load(10, 5)}
    placed = place(sites, partitions=8, replicas=1, seed=1, load=load)
    assert Counter(chosen[0] for chosen in placed) == {"b2": 4, "b3": 4}


def test_partitions_of_three_brokers_are_led_by_all_of_them() -> None:
    sites = [Site(f"b{index}", "") for index in range(3)]
    placed = place(sites, partitions=6, replicas=3, seed=42)
    assert sorted(sequencers(placed, sites)) == [2, 2, 2]
    assert len({place(sites, partitions=1, replicas=3, seed=seed)[0] for seed in range(50)}) > 3
