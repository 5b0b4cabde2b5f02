"""The chaos of `log_chaos` is worth something: with one rule of the protocol broken, it finds a violation (pitfall 60).

The mutants of `sim/mutants.py` that it can tell, and some that only it was given.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from streamq.log import digest, next_epoch, replica
from streamq.log.digest import Digest, SealAnswer
from streamq.log.effects import Effect, Persist
from streamq.log.replica import Replica
from streamq.log.sequencer import Sequencer
from streamq.model.registers import PartitionRegister
from tests.sim import mutants
from tests.support.log_chaos import Chaos
from tests.support.log_world import Broker, Violation, World

pytestmark = pytest.mark.slow

Breaks = Callable[[mutants.Patch], None]
SEEDS = 2_000
STEPS = 1_500


def seal_quorum_one_short(patch: mutants.Patch) -> None:
    patch(digest, "seal_quorum", lambda *, replicas, write: max(1, replicas - write))
    patch(next_epoch, "reopen_quorum", lambda *, replicas, write: 1)  # it would hide the other


def volatile_seal(patch: mutants.Patch) -> None:
    plain = Broker.start

    def start(self: Broker) -> None:
        if self.disk.state is not None:
            self.disk.state = msgspec.structs.replace(self.disk.state, sealed=max(0, self.disk.state.opened - 1))
        plain(self)

    patch(Broker, "start", start)


def smallest_tail(patch: mutants.Patch) -> None:
    patch(Digest, "tail", lambda self: min(a.tail for a in self.good().values()))


def wrong_incarnation_and_limbo_count(patch: mutants.Patch) -> None:
    def good(self: Digest) -> dict[str, SealAnswer]:
        return {broker: a for broker, a in self.answers.items() if self.segment.member(broker) is not None}

    patch(Digest, "good", good)


def limbo_is_not_entered(patch: mutants.Patch) -> None:
    patch(Replica, "enter_limbo", lambda self: [])


def sealed_replica_reports(patch: mutants.Patch) -> None:
    def rejection(self: Replica, epoch: int) -> tuple[str, int]:
        tail = self.local_tail(epoch)
        return ("stored", tail) if tail is not None and epoch <= self.state.sealed else ("not_opened", 0)

    patch(Replica, "_rejection", rejection)


def void_batches_stay_in_the_table(patch: mutants.Patch) -> None:
    plain = Replica._committed_span

    def span(self: Replica, offset: int) -> tuple[int, int, int | None] | None:
        found = plain(self, offset)
        return found if found is None or found[2] is not None else (found[0], self.local_tail(found[0]) or 0, None)

    patch(Replica, "_committed_span", span)
    durable = Replica._on_batches_durable

    def fold_at_once(self: Replica, persist: Persist, effects: list[Effect]) -> None:
        durable(self, persist, effects)
        self._fold_committed()

    patch(Replica, "_on_batches_durable", fold_at_once)
    patch(Replica, "is_complete", lambda self, offset: self.table.position >= offset)

    def init(self: Sequencer, **given: Any) -> None:
        given["table"].position = given["segment"].base
        plain_init(self, **given)

    plain_init = Sequencer.__init__
    patch(Sequencer, "__init__", init)


def register_is_written_blindly(patch: mutants.Patch) -> None:
    def change(**given: Any) -> Callable[[PartitionRegister], PartitionRegister]:
        def f(register: PartitionRegister) -> PartitionRegister:
            place = next((i for i, s in enumerate(register.chain) if s.epoch == given["epoch"]), len(register.chain) - 1)
            closed = msgspec.structs.replace(register.chain[place], end=given["end"])
            return msgspec.structs.replace(register, chain=(*register.chain[:place], closed, given["opened"]))

        return f

    patch("tests.support.log_takeovers.close_and_open", lambda *_, **given: change(**given))


def restarted_sequencer_goes_on(patch: mutants.Patch) -> None:
    """P-8, P-12: from the end of its own durable copy."""
    plain = Broker.start

    def start(self: Broker) -> None:
        plain(self)
        state = self.replica.state
        if state.chain and state.chain[-1].is_open and state.chain[-1].sequencer == self.name and self.replica.accepts_epoch is not None:
            segment = state.chain[-1]
            self.become_sequencer(segment)
            if self.sequencer is not None:
                self.sent = list(self.disk.view.get(segment.epoch, []))
                self.sequencer.next_offset = self.replica.local_tail(segment.epoch) or segment.base
                patch(self.sequencer, "check", lambda: None)

    patch(Broker, "start", start)


def late_repairs_bring_void_batches_back(patch: mutants.Patch) -> None:
    """Reading is clipped at the ends of closed segments, so it is the replica's own check that notices."""
    patch(replica, "end_of", lambda state, epoch: None)


MUTANTS: list[tuple[Breaks, dict[str, int]]] = [
    (seal_quorum_one_short, {}),
    (mutants.acks_below_w, {}),
    (volatile_seal, {}),
    (mutants.closes_before_the_repair, {"losses": 1}),
    (smallest_tail, {}),
    (wrong_incarnation_and_limbo_count, {"losses": 1}),
    (limbo_is_not_entered, {"losses": 1}),
    (sealed_replica_reports, {}),
    (mutants.a_sealed_replica_reports, {}),
    (mutants.nothing_is_cut, {}),
    (void_batches_stay_in_the_table, {}),
    (mutants.a_gap_is_taken, {}),
    (mutants.a_new_sequencer_knows_no_producer, {}),
    (mutants.believes_the_hint, {}),
    (register_is_written_blindly, {}),
    (mutants.takes_stores_past_a_gap, {}),
    (restarted_sequencer_goes_on, {}),
    (late_repairs_bring_void_batches_back, {}),
]


@pytest.mark.parametrize(("mutant", "given"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_rule_is_noticed(mutant: Breaks, given: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch.setattr)
    for seed in range(SEEDS):
        try:
            chaos = Chaos(World(seed=seed), **given)
            chaos.run(STEPS)
            chaos.heal()
        except Violation as found:
            print(f"seed {seed}: {type(found).__name__} {found}")
            return
    pytest.fail(f"{SEEDS} runs did not notice it")
