"""The chaos of `log_chaos` is worth something: with one rule of the protocol broken, it finds a violation (pitfall 60).

Each mutant replaces one function of the cores for the length of a test. What it breaks is named after spec/README.md where it is there.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from streamq.log import digest, holding, idempotence, next_epoch, replica, sequencer, tip
from streamq.log.digest import Digest, SealAnswer
from streamq.log.effects import Effect, Persist
from streamq.log.replica import Replica
from streamq.log.sequencer import Sequencer
from streamq.log.tails import Tails
from streamq.log.takeover import Takeover
from streamq.model.messages import Seal
from streamq.model.registers import PartitionRegister
from tests.support.log_chaos import Chaos
from tests.support.log_world import Broker, Violation, World

pytestmark = pytest.mark.slow

Patch = Callable[[pytest.MonkeyPatch], None]
SEEDS = 2_000
STEPS = 1_500


def seal_quorum_one_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(digest, "seal_quorum", lambda *, replicas, write: max(1, replicas - write))
    patch.setattr(next_epoch, "reopen_quorum", lambda *, replicas, write: 1)  # it would hide the other


def ack_below_w(patch: pytest.MonkeyPatch) -> None:
    plain = Sequencer.__init__

    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **given)
        self._write -= 1

    patch.setattr(Sequencer, "__init__", init)


def volatile_seal(patch: pytest.MonkeyPatch) -> None:
    plain = Broker.start

    def start(self: Broker) -> None:
        if self.disk.state is not None:
            self.disk.state = msgspec.structs.replace(self.disk.state, sealed=max(0, self.disk.state.opened - 1))
        plain(self)

    patch.setattr(Broker, "start", start)


def no_repair(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Takeover, "_go_on_repairing", lambda self, now: self._close(now))


def smallest_tail(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Digest, "tail", lambda self: min(a.tail for a in self.good().values()))


def wrong_incarnation_and_limbo_count(patch: pytest.MonkeyPatch) -> None:
    def good(self: Digest) -> dict[str, SealAnswer]:
        return {broker: a for broker, a in self.answers.items() if self.segment.member(broker) is not None}

    patch.setattr(Digest, "good", good)


def limbo_is_not_entered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replica, "enter_limbo", lambda self: [])


def sealed_replica_reports(patch: pytest.MonkeyPatch) -> None:
    def rejection(self: Replica, epoch: int) -> tuple[str, int]:
        tail = self.local_tail(epoch)
        return ("stored", tail) if tail is not None and epoch <= self.state.sealed else ("not_opened", 0)

    patch.setattr(Replica, "_rejection", rejection)


def stores_on_their_way_are_reported(patch: pytest.MonkeyPatch) -> None:
    """4.4: a store that was taken before a seal is reported after it, and the seal's answer does not count it."""
    plain = Replica._on_batches_durable

    def durable(self: Replica, persist: Persist, effects: list[Effect]) -> None:
        accepts, self._accepts = self._accepts, persist.epoch
        try:
            plain(self, persist, effects)
        finally:
            self._accepts = accepts

    patch.setattr(Replica, "_on_batches_durable", durable)
    plain_seal = Replica.on_seal

    def on_seal(self: Replica, seal: Seal, reply_to: object) -> list[Effect]:
        taken = Tails.taken
        Tails.taken = Tails.durable  # type: ignore[method-assign]
        try:
            return plain_seal(self, seal, reply_to)
        finally:
            Tails.taken = taken  # type: ignore[method-assign]

    patch.setattr(Replica, "on_seal", on_seal)


def nothing_is_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tails, "cuts", lambda self, state: [])
    patch.setattr(Tails, "check", lambda self, state: None)

    def served(self: Replica, offset: int) -> holding.Readable | holding.Unreadable:
        """What lies in the oldest run that has it, below the newest high watermark: a log keyed by offset alone."""
        for epoch in sorted(self._tails.epochs()):
            tail = self._tails.durable(self._state, epoch)
            if self._tails.contains(epoch, offset) and tail is not None and offset < self.high_watermark[1]:
                return holding.Readable(epoch, offset, min(tail, self.high_watermark[1]))
        return holding.Unreadable.LACKING

    patch.setattr(Replica, "readable", served)


def void_batches_stay_in_the_table(patch: pytest.MonkeyPatch) -> None:
    plain = Replica._committed_span

    def span(self: Replica, offset: int) -> tuple[int, int, int | None] | None:
        found = plain(self, offset)
        return found if found is None or found[2] is not None else (found[0], self.local_tail(found[0]) or 0, None)

    patch.setattr(Replica, "_committed_span", span)
    durable = Replica._on_batches_durable

    def fold_at_once(self: Replica, persist: Persist, effects: list[Effect]) -> None:
        durable(self, persist, effects)
        self._fold_committed()

    patch.setattr(Replica, "_on_batches_durable", fold_at_once)
    patch.setattr(Replica, "is_complete", lambda self, offset: self.table.position >= offset)

    def init(self: Sequencer, **given: Any) -> None:
        given["table"].position = given["segment"].base
        plain_init(self, **given)

    plain_init = Sequencer.__init__
    patch.setattr(Sequencer, "__init__", init)


def no_gap_check(patch: pytest.MonkeyPatch) -> None:
    def judge(known: idempotence.Producer | None, *, epoch: int, sequence: int) -> idempotence.Verdict:
        if known is not None and any(p.sequence == sequence for p in known.places):
            return idempotence.Repeat(next(p for p in known.places if p.sequence == sequence))
        return idempotence.Next()

    patch.setattr(sequencer, "judge", judge)


def table_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **{**given, "table": idempotence.IdempotenceTable(given["segment"].base)})

    plain = Sequencer.__init__
    patch.setattr(Sequencer, "__init__", init)


def tip_is_not_confirmed(patch: pytest.MonkeyPatch) -> None:
    plain = tip.TipRead._begin

    def begin(self: tip.TipRead, register: PartitionRegister, now: float) -> list[tip.TipEffect]:
        effects = plain(self, register, now)
        self._is_current = True
        return effects

    patch.setattr(tip.TipRead, "_begin", begin)


def register_is_written_blindly(patch: pytest.MonkeyPatch) -> None:
    def change(**given: Any) -> Callable[[PartitionRegister], PartitionRegister]:
        def f(register: PartitionRegister) -> PartitionRegister:
            place = next((i for i, s in enumerate(register.chain) if s.epoch == given["epoch"]), len(register.chain) - 1)
            closed = msgspec.structs.replace(register.chain[place], end=given["end"])
            return msgspec.structs.replace(register, chain=(*register.chain[:place], closed, given["opened"]))

        return f

    patch.setattr("tests.support.log_takeovers.close_and_open", lambda *_, **given: change(**given))


def gaps_are_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replica, "_continuation", lambda self, epoch, batches, limit: tuple(b for b in batches if b.end <= limit))


def restarted_sequencer_goes_on(patch: pytest.MonkeyPatch) -> None:
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
                patch.setattr(self.sequencer, "check", lambda: None)

    patch.setattr(Broker, "start", start)


def late_repairs_bring_void_batches_back(patch: pytest.MonkeyPatch) -> None:
    """Reading is clipped at the ends of closed segments, so it is the replica's own check that notices."""
    patch.setattr(replica, "end_of", lambda state, epoch: None)


MUTANTS: list[tuple[Patch, dict[str, int]]] = [
    (seal_quorum_one_short, {}),
    (ack_below_w, {}),
    (volatile_seal, {}),
    (no_repair, {"losses": 1}),
    (smallest_tail, {}),
    (wrong_incarnation_and_limbo_count, {"losses": 1}),
    (limbo_is_not_entered, {"losses": 1}),
    (sealed_replica_reports, {}),
    (stores_on_their_way_are_reported, {}),
    (nothing_is_cut, {}),
    (void_batches_stay_in_the_table, {}),
    (no_gap_check, {}),
    (table_is_forgotten, {}),
    (tip_is_not_confirmed, {}),
    (register_is_written_blindly, {}),
    (gaps_are_stored, {}),
    (restarted_sequencer_goes_on, {}),
    (late_repairs_bring_void_batches_back, {}),
]


@pytest.mark.parametrize(("mutant", "given"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_rule_is_noticed(mutant: Patch, given: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    for seed in range(SEEDS):
        try:
            chaos = Chaos(World(seed=seed), **given)
            chaos.run(STEPS)
            chaos.heal()
        except Violation as found:
            print(f"seed {seed}: {type(found).__name__} {found}")
            return
    pytest.fail(f"{SEEDS} runs did not notice it")
