"""Producers whose batches are stored on a condition or not at all: records with ids, appends at an offset or with a fencing token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamq.model.batches import FLAG_CONDITIONAL, FLAG_FENCED, FLAG_IDENTIFIED, BatchHeader
from streamq.model.messages import Ack
from tests.sim.tier1.checks import Violation, batch_id, id_of, id_text, named
from tests.sim.tier1.clients import Pending, Producer
from tests.sim.tier1.plan import ProducerPlan

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["Appender", "Identifier", "producer_of"]

IDS_SHARED = 6
"""Any of so many that were used last is used again, by whomever."""
REFUSED = ("fenced", "precondition_failed", "past_the_end")


def producer_of(world: "World", plan: ProducerPlan) -> Producer:
    return {"ids": Identifier, "appends": Appender}.get(plan.kind, Producer)(world, plan)


class _OneByOne(Producer):
    """Makes a batch when it is about to be sent. `pending` goes by running numbers, not by sequences."""

    def __init__(self, world: "World", plan: ProducerPlan) -> None:
        super().__init__(world, plan)
        self._number = 0

    def header(self) -> BatchHeader:
        raise NotImplementedError

    def make(self) -> None:
        self._made += 1
        self._queue.append(BatchHeader(self.partition, 1, 0, 0, 0, self.identity, 0, 0, 0, 0, 0, 0, 0))

    def _send_more(self) -> None:
        if self._is_waiting:
            return
        fresh: list[int] = []
        while self._queue and len(self.pending) < self.plan.window:
            self._queue.pop()
            self.pending[self._number] = Pending(self.header(), self.ledger.committed)
            fresh.append(self._number)
            self._number += 1
        if fresh and not self._send(fresh):
            self._try_again()


class Identifier(_OneByOne):
    """Sends records with ids, some of which it or another one has sent before; each says something else, so it shows which was stored."""

    def header(self) -> BatchHeader:
        world, ledger = self.world, self.ledger
        world.marks += 1
        is_new = not ledger.ids_used or world.random.random() < 0.4
        number = ledger.ids_used if is_new else ledger.ids_used - 1 - world.random.randrange(min(IDS_SHARED, ledger.ids_used))
        ledger.ids_used += is_new
        id = id_of(self.plan.partition, number)
        return BatchHeader(self.partition, 1, 0, 0, world.marks, id, 0, 0, ledger.time, 0, 0, 0, 0, flags=FLAG_IDENTIFIED)

    def _on_ack(self, pending: Pending, ack: Ack) -> None:
        """`first_timestamp` is the log's time when it was sent: what had expired by then is nobody's first."""
        if not ack.is_duplicate:
            super()._on_ack(pending, ack)
        header = pending.header
        self.world.counters["ids_known" if ack.is_duplicate else "ids_new"] += 1
        if ack.is_duplicate and ack.append_time + self.world.plan.dedup_ms < header.first_timestamp:
            raise Violation(f"P-34: {id_text(header.producer)} was taken for one at {ack.base}, which had expired before it was sent")
        self.ledger.time = max(self.ledger.time, ack.append_time)


class Appender(_OneByOne):
    """One writer of several, each of which may believe to be the only one. It has one batch under way, and goes on under a higher producer
    epoch after a refusal, as a producer does."""

    def __init__(self, world: "World", plan: ProducerPlan) -> None:
        super().__init__(world, plan)
        self.token = self._next_token()
        self._epoch = 0
        self._sequence = 0
        self._tries = 0

    def _next_token(self) -> int:
        self.ledger.tokens_given += 1
        return self.ledger.tokens_given

    def header(self) -> BatchHeader:
        world, random = self.world, self.world.random
        self._tries = 0
        world.marks += 1
        flags = random.choice((FLAG_CONDITIONAL, FLAG_FENCED, FLAG_FENCED, FLAG_CONDITIONAL | FLAG_FENCED))
        if random.random() < 0.15:
            self.token = self._next_token()
        committed = self.ledger.committed
        base = max(0, committed + random.choice((0, 0, 0, 0, 0, -1, -4, 1, 3))) if flags & FLAG_CONDITIONAL else 0
        mark = self.token if flags & FLAG_FENCED else 0
        return BatchHeader(
            self.partition, 1 + random.randrange(3), 0, 0, world.marks, self.identity, self._epoch, self._sequence, 0, 0, 0, base, 0,
            flags=flags, mark=mark,
        )  # fmt: skip

    def _send(self, sequences: Sequence[int]) -> bool:
        self._tries += 1
        return super()._send(sequences)

    def _on_ack(self, pending: Pending, ack: Ack) -> None:
        super()._on_ack(pending, ack)
        header = pending.header
        self._sequence += 1
        if header.flags & FLAG_CONDITIONAL:
            self.world.counters["appended_at_offset"] += 1
            if ack.base != header.base:
                raise Violation(f"{named(batch_id(header))} wanted offset {header.base}, and was stored at {ack.base}")
        if header.flags & FLAG_FENCED:
            self.world.counters["appended_with_token"] += 1

    def _on_nack(self, sequence: int, code: str, sequencer: str, sender: str) -> bool:
        if code == "conflict":
            self.world.counters["append_conflicts"] += 1
            return True
        if code not in REFUSED:
            return super()._on_nack(sequence, code, sequencer, sender)
        pending = self.pending.pop(sequence)
        header = pending.header
        self.world.counters[f"append_{code}"] += 1
        if code != "past_the_end":
            self.world.checks.on_refused(self.plan.partition, header, code, pending.floor)
        if code != "past_the_end" or (self._tries == 1 and not self.plan.strays and self.world.plan.network.is_ordered):
            self.refused.add(batch_id(header))
        else:
            self.unknown += 1  # the end moves, and another copy that comes late may find its offset
        self._epoch, self._sequence = self._epoch + 1, 0
        if code == "fenced" and self.world.random.random() < 0.6:
            self.token = self._next_token()
        return False
