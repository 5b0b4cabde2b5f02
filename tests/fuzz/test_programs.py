"""A sample of whole programs under fuzz; `python -m tests.fuzz --target broker` runs as many as there is time for."""

from collections.abc import Iterator

import pytest

from tests.fuzz.live_targets import LIVE_TARGETS
from tests.fuzz.target import Target, attempt, measured

TARGETS = {target.name: target for target in LIVE_TARGETS}
every_seed = pytest.mark.parametrize("seed", range(1, 4))


@pytest.fixture(autouse=True, scope="module")
def _memory_is_measured() -> Iterator[None]:
    with measured():
        yield


def run(target: Target, seed: int) -> None:
    assert attempt(target, seed.to_bytes(8, "big")).is_accepted


@every_seed
def test_a_broker_outlives_hostile_clients_and_peers_and_serves_honest_ones(seed: int) -> None:
    run(TARGETS["broker"], seed)


@every_seed
def test_a_producer_among_hostile_brokers_gives_each_record_an_outcome(seed: int) -> None:
    run(TARGETS["producer"], seed)


@every_seed
def test_a_consumer_among_hostile_brokers_hands_out_what_is_consecutive(seed: int) -> None:
    run(TARGETS["consumer"], seed)
