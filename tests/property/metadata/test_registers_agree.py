"""Registers are linearizable whatever the network and the disks do (spec/CasRegister.tla, spec/CasVoters.tla, on the real cores)."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamq.metadata.acceptor import Standing
from streamq.metadata.proposer import Phase
from streamq.metadata.voters import Step
from tests.support.register_network import CarrierOperation, Network

BROKERS = ("b1", "b2", "b3")


class Registers(RuleBasedStateMachine):
    """Delayed, lost, repeated and reordered messages; processes that crash with unsynced writes; changes that are retried."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(3)

    @rule(broker=st.sampled_from(BROKERS), change=st.sampled_from(["c1", "c2", "c3", None]))
    def begin_change(self, broker: str, change: str | None) -> None:
        self.network.change(broker, change)

    @rule(broker=st.sampled_from(BROKERS))
    def begin_read(self, broker: str) -> None:
        self.network.read(broker)

    @precondition(lambda self: self.network.bag)
    @rule(data=st.data(), repeat=st.booleans())
    def deliver(self, data: st.DataObject, repeat: bool) -> None:
        self.network.deliver(data.draw(st.integers(0, len(self.network.bag) - 1)), repeat=repeat)

    @precondition(lambda self: self.network.bag)
    @rule(brokers=st.sets(st.sampled_from(BROKERS), min_size=1))
    def deliver_all(self, brokers: set[str]) -> None:
        self.network.settle(only=frozenset(brokers))

    @precondition(lambda self: self.network.bag)
    @rule(data=st.data())
    def lose_message(self, data: st.DataObject) -> None:
        self.network.bag.pop(data.draw(st.integers(0, len(self.network.bag) - 1)))

    @rule(broker=st.sampled_from(BROKERS), count=st.integers(1, 4))
    def sync(self, broker: str, count: int) -> None:
        self.network.sync(broker, count)

    @rule(broker=st.sampled_from(BROKERS))
    def crash(self, broker: str) -> None:
        self.network.crash(broker)

    @invariant()
    def is_one_history(self) -> None:
        self.network.check()


TestRegisters = Registers.TestCase
TestRegisters.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def run_with_losses(seed: int, *, losses: int, steps: int = 200, brokers: int = 3) -> Network:
    """A random run in which disks are lost and carriers, several at once and each stopping anywhere, re-admit their brokers.

    Each run draws its own mix of what happens, so that some are full of crashes, some of bursts, some of old messages.
    """
    choose = random.Random(seed)
    network = Network(brokers)
    names = list(network.nodes)
    carriers: list[CarrierOperation] = []
    kinds = ["change", "read", "identity", "lose", "carry", "crash", "sync", "burst", "deliver"]
    typical = [0.05, 0.04, 0.03, 0.02, 0.15, 0.02, 0.12, 0.12, 0.45]
    weights = [weight * choose.choice([0.2, 1, 1, 3]) for weight in typical]
    changes = choose.randrange(1, 5)
    for kind in choose.choices(kinds, weights, k=steps):
        broker = choose.choice(names)
        if kind == "change":
            network.change(broker, f"c{choose.randrange(changes)}")
        elif kind == "read":
            network.read(broker)
        elif kind == "identity":
            network.change(broker, None)
        elif kind == "lose" and network.chosen:
            replacement = network.lose(broker, limit=losses)
            if replacement is not None:
                carriers = carriers[-2:] + [CarrierOperation(network, b, replacement) for b in names if choose.random() < 0.7]
        elif kind == "carry" and carriers:
            choose.choice(carriers).advance()
        elif kind == "crash":
            network.crash(broker)
        elif kind == "sync":
            network.sync(broker, choose.randrange(1, 4))
        elif kind == "burst":  # some brokers and all their messages come through
            network.settle(only=frozenset(choose.sample(names, choose.randrange(1, len(names) + 1))))
        elif kind == "deliver" and network.bag:
            # Mostly recent messages, sometimes a very old one; now and then lost or repeated.
            index = choose.randrange(len(network.bag)) if choose.random() < 0.3 else max(0, len(network.bag) - 1 - choose.randrange(6))
            if choose.random() < 0.03:
                network.bag.pop(index)
            else:
                network.deliver(index, repeat=choose.random() < 0.1)
        network.check()
    for _ in range(12):  # everything that is still under way arrives, old messages too
        network.settle()
        for carrier in carriers:
            carrier.advance()
        network.check()
    return network


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_registers_stay_linearizable_through_two_losses(seed: int) -> None:
    """Agreement, linearizability and one content per number hold while voters are lost and re-admitted by several carriers (P-40)."""
    run_with_losses(seed, losses=2)


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=15, deadline=None)
def test_five_voters_stay_linearizable_through_a_loss(seed: int) -> None:
    run_with_losses(seed, losses=1, steps=500, brokers=5)


def test_random_runs_reach_re_admission() -> None:
    """The property above is not empty: replacements become ready, and changes are chosen before and after."""
    ready = chosen = 0
    for seed in range(30):
        network = run_with_losses(seed, losses=2)
        ready += any(n.record.standing is Standing.READY and n.number > 1 for n in network.nodes.values())
        chosen += len(network.chosen) > 1
    assert ready >= 10
    assert chosen >= 10


@pytest.mark.parametrize("silent", ["b1", "b2", "b3"])
def test_a_re_admission_completes_while_changes_go_on(silent: str) -> None:
    """Each broker in turn loses its disk; any survivor carries it out; every value is kept and the replacement answers in the end."""
    network = Network(3)
    operation = network.change("b1", "c1")
    network.settle()
    assert operation.attempt.phase is Phase.CHOSEN
    replacement = network.lose(silent, limit=1)
    assert replacement is not None
    survivor = next(b for b in network.nodes if b != silent)
    carrier = CarrierOperation(network, survivor, replacement)
    for round_ in range(12):
        carrier.advance()
        network.settle()
        network.change(survivor, f"d{round_}")
        network.settle()
        network.check()
    assert carrier.steps is not None
    assert carrier.steps.step is Step.DONE
    assert network.nodes[silent].record.standing is Standing.READY
    assert network.floor()[0] == "c1"
