"""Checks of the checks (pitfall 60): for each rule that safety hangs on, the code with just that rule broken.

Each mutant replaces functions for as long as it is applied, and `hunt` runs seeds until one of them ends in a violation. What each needed
and showed stands in tests/README.md, made by `python -m tests.sim mutants`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest import mock

import google_crc32c
import msgspec
import trio

from streamq.broker import topics
from streamq.broker import transactions as broker_transactions
from streamq.groups import changes
from streamq.log import record_ids, sequencer
from streamq.log.digest import Digest, SealAnswer
from streamq.log.effects import Effect, Persist
from streamq.log.holding import Holding, Readable, Unreadable
from streamq.log.idempotence import Gap, IdempotenceTable, Next, Place, Producer, Verdict, first_batch
from streamq.log.record_ids import RecordIds
from streamq.log.replica import Replica
from streamq.log.replica_state import ReplicaState
from streamq.log.sequencer import Duplicate, Refused, Sequencer, Waiting
from streamq.log.table_copy import TableCopy
from streamq.log.tails import Tails
from streamq.log.takeover import Phase, Takeover
from streamq.log.takeover_effects import OpenEpoch, TakeoverEffect
from streamq.log.tip import TipEffect, TipRead
from streamq.metadata import changes as register_changes
from streamq.metadata.acceptor import Acceptor, Answer, Cell
from streamq.metadata.transactions import Outcomes, forget, move_in
from streamq.model.batches import Batch, BatchHeader
from streamq.model.errors import NotFoundError
from streamq.model.groups import NOBODY, Entry, GroupPartition, GroupRegister
from streamq.model.messages import Failure, Message, TipAnswer
from streamq.model.registers import PartitionRegister, ProducerRegister, TopicRegister, producer_key
from streamq.model.transactions import AbortedRegister, Transaction
from streamq.storage import journal_recovery, log_reader
from streamq.storage.disk_storage import DiskStorage
from streamq.storage.journal_files import FileReader
from streamq.storage.journal_format import Group, JournalPosition, Row
from streamq_consumer import outcomes as consumer_outcomes
from streamq_consumer.group import GroupReader
from streamq_consumer.membership import Hold, Membership
from streamq_consumer.reading import GroupReading
from streamq_producer import transaction as producer_transactions
from tests.sim.report import Report
from tests.sim.tiers import run_safely

__all__ = ["MUTANTS", "Catch", "Mutant", "Patch", "hunt", "table_row"]

Patch = Callable[[object, str, object], None]
"""(object, name of its attribute, what stands there while the mutant is applied)."""


class Mutant(NamedTuple):
    rule: str
    name: str
    breaks: Callable[[Patch], None]
    within: int
    """Of so many seeds, from 0 on, one at least must end in a violation."""
    near: int = 0
    """The first seed that caught it when this was written: where a short look begins."""
    tier: str = "tier1"

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            self.breaks(lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value)))
            yield


SHOWN_MAX: Final = 120
MISFIT: Final = re.compile(r"\b(TypeError|AttributeError|NameError)\b")


class Catch(NamedTuple):
    seed: int
    tried: int
    violation: str


def hunt(mutant: Mutant, first: int, number: int) -> Catch | None:
    """The first seed that catches it; None if `number` seeds from `first` on went by as if nothing was broken. Raises TypeError if what
    was replaced is called in another way by now: a run that fails of that says nothing about the rule."""
    with mutant.applied():
        for tried, seed in enumerate(range(first, first + number), 1):
            report: Report = run_safely(mutant.tier, seed)
            if report.violation is not None:
                if MISFIT.search(report.violation):
                    raise TypeError(f"{mutant.name} does not fit the code that it breaks any more:\n{report.violation}")
                return Catch(seed, tried, report.violation)
    return None


def table_row(mutant: Mutant, catch: Catch | None) -> str:
    """As it stands in tests/README.md."""
    if catch is None:
        return f"| {mutant.name} | {mutant.rule} | {mutant.tier} | **none of {mutant.within}** | |"
    lines = [line for line in catch.violation.splitlines() if line.strip()]
    shown = lines[-1] if lines[0] == "an exception" else lines[0]
    shown = re.sub(r"b'[^']{12,}'|[0-9a-f]{32}", "…", shown)
    shown = shown if len(shown) <= SHOWN_MAX else f"{shown[:SHOWN_MAX]}…"
    return f"| {mutant.name} | {mutant.rule} | {mutant.tier} | {catch.tried} of {mutant.within} | {shown} |"


# --- registers


def answers_before_it_is_durable(patch: Patch) -> None:
    def keep(self: Acceptor, key: str, cell: Cell, then: Message) -> Answer:
        self._cells[key] = cell
        return Answer(then)

    patch(Acceptor, "_set", keep)


def takes_the_others_epoch_for_its_own(patch: Patch) -> None:
    """Attempt ids are not looked at, as if all were the same."""

    def on_outcome(self: Takeover, register: PartitionRegister, now: float) -> list[TakeoverEffect]:
        self.register = register
        last = register.last
        if last.epoch == self._epoch + 1:
            self.phase = Phase.OPEN
            self._deadline = now + self._change_timeout_s
            return [OpenEpoch(register)]
        return plain(self, register, now)

    plain = Takeover._on_outcome
    patch(Takeover, "_on_outcome", on_outcome)


def closes_whatever_is_there(patch: Patch) -> None:
    """The change writes over the register, whoever closed the epoch meanwhile."""

    def change(*_: object, epoch: int, end: int, opened: Any, **__: object) -> Callable[[PartitionRegister], PartitionRegister]:
        def over(register: PartitionRegister) -> PartitionRegister:
            place = next((i for i, segment in enumerate(register.chain) if segment.epoch == epoch), len(register.chain) - 1)
            closed = msgspec.structs.replace(register.chain[place], end=end)
            return msgspec.structs.replace(register, chain=(*register.chain[:place], closed, opened))

        return over

    from tests.sim.tier1 import takeovers

    patch(takeovers, "close_and_open", change)


def answers_in_any_configuration(patch: Patch) -> None:
    """Numbers and standings are not looked at."""
    plain = Acceptor._refusal

    def refusal(self: Acceptor, number: int, *, needs_ready: bool) -> Failure | None:
        return plain(self, number, needs_ready=needs_ready) if not self._is_proved else None

    patch(Acceptor, "_refusal", refusal)


# --- quorums of a segment


def another_incarnation_counts(patch: Patch) -> None:
    """Brokers are known by their names alone. (Limbo, P-29, is of a directory, and says nothing about another one's epochs: while it is
    heeded, an empty directory is kept out by it, and this mutant does no harm.)"""

    def good(self: Digest) -> dict[str, SealAnswer]:
        named = {broker: self.segment.member(broker) for broker in self.answers}
        return {
            broker: a for broker, a in self.answers.items() if named[broker] is not None and not (a.limbo and a.member == named[broker])
        }

    patch(Digest, "good", good)


def acks_below_w(patch: Patch) -> None:
    plain = Sequencer.__init__

    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **given)
        self._write = max(1, self._write - 1)

    patch(Sequencer, "__init__", init)


def a_sealed_replica_reports(patch: Patch) -> None:
    """4.4: what was stored before a seal is reported after it, and the seal's answer counts only what was durable."""
    plain = Replica._on_batches_durable
    plain_seal = Replica.on_seal

    def durable(self: Replica, persist: Persist, effects: list[Effect]) -> None:
        accepts, self._accepts = self._accepts, persist.epoch
        try:
            plain(self, persist, effects)
        finally:
            self._accepts = accepts

    def on_seal(self: Replica, *given: Any) -> list[Effect]:
        with mock.patch.object(Tails, "taken", Tails.durable):
            return plain_seal(self, *given)

    patch(Replica, "_on_batches_durable", durable)
    patch(Replica, "on_seal", on_seal)


def takes_stores_past_a_gap(patch: Patch) -> None:
    def all_of_them(self: Holding, epoch: int, batches: list[Batch], limit: int) -> tuple[Batch, ...]:
        taken = self._tails.taken(self._state, epoch)
        assert taken is not None
        return tuple(batch for batch in batches if taken < batch.end <= limit)

    patch(Holding, "_continuation", all_of_them)


# --- takeovers


def forgets_its_seal(patch: Patch) -> None:
    """The mark is not there any more after a restart."""
    plain = Holding.__init__

    def init(self: Holding, me: Any, state: ReplicaState, *given: Any) -> None:
        plain(self, me, msgspec.structs.replace(state, sealed=max(0, state.opened - 1)), *given)

    patch(Holding, "__init__", init)


def counts_sealed_tails_as_committed(patch: Patch) -> None:
    plain = TipRead.on_answer

    def on_answer(self: TipRead, member: Any, answer: TipAnswer, now: float) -> list[TipEffect]:
        return plain(self, member, msgspec.structs.replace(answer, sealed=False), now)

    patch(TipRead, "on_answer", on_answer)


def closes_before_the_repair(patch: Patch) -> None:
    patch(Takeover, "_go_on_repairing", lambda self, now: self._close(now))


# --- reading


def nothing_is_cut(patch: Patch) -> None:
    """A log keyed by offset alone: what lies in the oldest run that has it, below the newest high watermark."""

    def served(self: Replica, offset: int) -> Readable | Unreadable:
        for epoch in sorted(self._tails.epochs()):
            tail = self._tails.durable(self._state, epoch)
            if self._tails.contains(epoch, offset) and tail is not None and offset < self.high_watermark[1]:
                return Readable(epoch, offset, min(tail, self.high_watermark[1]))
        return Unreadable.LACKING

    patch(Tails, "cuts", lambda self, state: [])
    patch(Tails, "check", lambda self, state: None)
    patch(Holding, "readable", served)


def believes_the_hint(patch: Patch) -> None:
    """The epoch that the hint names counts as current without W unsealed answers or a register read."""
    plain = TipRead._begin

    def begin(self: TipRead, register: PartitionRegister, now: float) -> list[TipEffect]:
        effects = plain(self, register, now)
        self._is_current = True
        return effects

    patch(TipRead, "_begin", begin)


# --- losses


def limbo_is_not_kept(patch: Patch) -> None:
    plain = Holding.__init__

    def init(self: Holding, me: Any, state: ReplicaState, *given: Any) -> None:
        plain(self, me, msgspec.structs.replace(state, limbo=(), limbo_everywhere=False), *given)

    patch(Holding, "__init__", init)


def limbo_ends_at_once(patch: Patch) -> None:
    patch(Holding, "_limbo_is_over", lambda self, state, epoch: True)


# --- the journal


def bodies_are_not_checked(patch: Patch) -> None:
    plain = journal_recovery._entry

    def entry(row: Row, group: bytes) -> journal_recovery.Replayed:
        body = group[row.at : row.at + (row.length or 0)]
        return plain(row._replace(crc=google_crc32c.value(body)), group)

    patch(journal_recovery, "_entry", entry)


def groups_of_an_earlier_use_count(patch: Patch) -> None:
    """A journal file is used again and again; what is left in it of an earlier use passes for what was written now."""
    plain = FileReader.group_at

    def group_at(self: FileReader, offset: int, *, key: bytes, sequence: int | None) -> Group | None:
        group = plain(self, offset, key=key, sequence=None)
        if group is None or sequence is None:
            return group
        return group._replace(position=JournalPosition(sequence, offset), end=JournalPosition(sequence, group.end.offset))

    patch(FileReader, "group_at", group_at)


# --- idempotence


def a_new_sequencer_knows_no_producer(patch: Patch) -> None:
    plain = Sequencer.__init__

    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **{**given, "table": IdempotenceTable(given["segment"].base)})

    patch(Sequencer, "__init__", init)


def void_batches_stay_in_the_table(patch: Patch) -> None:
    """Who sequences again goes on with what it had assigned before, committed or void."""
    kept: list[tuple[IdempotenceTable, Sequencer]] = []
    plain = Sequencer.__init__

    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **given)
        former = next((sequencer for table, sequencer in reversed(kept) if table is given["table"]), None)
        if former is not None:
            self._overlay = former._overlay
        kept.append((given["table"], self))
        del kept[:-8]

    patch(Sequencer, "__init__", init)


def a_gap_is_taken(patch: Patch) -> None:
    """And the table bears that its places are not consecutive."""
    plain = sequencer.judge

    def judge(known: Producer | None, *, epoch: int, sequence: int) -> Verdict:
        verdict = plain(known, epoch=epoch, sequence=sequence)
        return Next() if isinstance(verdict, Gap) else verdict

    def place_of(self: Producer, sequence: int) -> Place | None:
        return next((place for place in self.places if place.sequence == sequence), None)

    patch(sequencer, "judge", judge)
    patch(Producer, "place_of", place_of)


def a_new_epoch_forgets_the_mark(patch: Patch) -> None:
    """A named producer that is opened again begins at nothing."""
    patch(Producer, "begin_epoch", lambda self, place, header: first_batch(place, header))


# --- conditions


def a_new_sequencer_knows_no_id(patch: Patch) -> None:
    """Only those that it has assigned itself."""
    plain = Sequencer._on_identified

    def on_identified(self: Sequencer, *given: Any) -> Waiting | Duplicate | Refused | None:
        with mock.patch.object(self._table, "ids", RecordIds()):
            return plain(self, *given)

    patch(Sequencer, "_on_identified", on_identified)
    patch(RecordIds, "forget_below", lambda self, offset: None)


def void_ids_are_remembered(patch: Patch) -> None:
    """Who sequences again goes on with the ids that it had assigned before, committed or void."""
    kept: dict[int, RecordIds] = {}
    plain = Sequencer.__init__

    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **given)
        self._ids = kept.setdefault(id(self._table), self._ids)

    patch(Sequencer, "__init__", init)
    patch(RecordIds, "forget_below", lambda self, offset: None)


def an_id_counts_for_ever(patch: Patch) -> None:
    patch(record_ids, "_counts_at", lambda stored, at: True)


def a_table_comes_without_ids_and_token(patch: Patch) -> None:
    """Who is behind the start offset knows none there."""
    plain = TableCopy.table

    def table(self: TableCopy) -> IdempotenceTable:
        copied = plain(self)
        copied.ids, copied.fencing_token = RecordIds(), 0
        return copied

    patch(TableCopy, "table", table)


def a_new_sequencer_knows_no_token(patch: Patch) -> None:
    plain = Sequencer.__init__

    def init(self: Sequencer, **given: Any) -> None:
        plain(self, **given)
        self._token = self._token_committed = 0

    patch(Sequencer, "__init__", init)


def a_token_in_flight_refuses_for_good(patch: Patch) -> None:
    patch(Sequencer, "_below_token", lambda self, token: Refused("fenced", ""))


def an_offset_is_not_looked_at(patch: Patch) -> None:
    patch(BatchHeader, "is_conditional", property(lambda self: False))


def an_offset_in_flight_refuses_for_good(patch: Patch) -> None:
    patch(Sequencer, "_not_expected", lambda self, expected: Refused("precondition_failed", ""))


# --- trimming


def a_trim_leaves_a_gap(patch: Patch) -> None:
    """Who is behind the start offset does not begin inside a batch there."""
    patch(Tails, "has_run", lambda self, epoch: True)


def a_table_comes_without_its_producers(patch: Patch) -> None:
    """Who is behind the start offset begins with an empty table there."""
    plain = TableCopy.table
    patch(TableCopy, "table", lambda self: IdempotenceTable(plain(self).position))


def nobody_asks_for_a_table(patch: Patch) -> None:
    patch(Holding, "table_needed", lambda self: False)


def tables_in_memory_count(patch: Patch) -> None:
    """The start offset moves past what durable tables have come to; then the power goes."""
    patch(Holding, "table_kept", property(lambda self: self.table.position))


def a_checkpoint_keeps_the_table_before(patch: Patch) -> None:
    """Files go with a checkpoint that holds an older table."""
    plain = DiskStorage._collected
    before: dict[int, dict[str, bytes]] = {}

    def collected(self: DiskStorage) -> dict[str, bytes]:
        found = plain(self)
        older, before[id(self)] = before.get(id(self), dict(self._derived)), found
        return older

    patch(DiskStorage, "_collected", collected)


def damage_below_the_start_hides_what_is_above(patch: Patch) -> None:
    """A walk does not go on behind damage in what was trimmed, which nobody has copies of."""
    plain = log_reader.walk
    patch(log_reader, "walk", lambda source, fd, anchor, *, wanted=0: plain(source, fd, anchor))


# --- identities


def a_topic_made_again_keeps_its_ids(patch: Patch) -> None:
    """The topic's name stands for it: who makes it again finds the ids of the one before, and keeps them."""
    plain_topic, plain_partition = topics.create_topic, topics.create_partition

    def create_topic(topic: TopicRegister, *, over: bytes | None) -> Callable[[TopicRegister | None], TopicRegister]:
        def change(current: TopicRegister | None) -> TopicRegister:
            if current is None or not current.deleted:
                return plain_topic(topic, over=over)(current)
            return msgspec.structs.replace(topic, id=current.id, partitions=current.partitions)

        return change

    def create_partition(register: PartitionRegister, *, over: bytes | None) -> Callable[[PartitionRegister | None], PartitionRegister]:
        def change(current: PartitionRegister | None) -> PartitionRegister:
            is_former = current is not None and current.deleted and current.id == register.id
            return register if is_former else plain_partition(register, over=over)(current)

        return change

    patch(topics, "create_topic", create_topic)
    patch(topics, "create_partition", create_partition)


# --- groups


def positions_move_back(patch: Patch) -> None:
    plain = changes._committed

    def committed(register: GroupRegister, number: int, entries: Sequence[Entry], transaction: Transaction | None = None) -> GroupRegister:
        after = plain(register, number, entries, transaction)
        if transaction is not None:
            return after
        said = {(e.topic, e.partition): e for e in entries if e.position is not None}
        topics = []
        for topic in after.topics:
            partitions = list(topic.partitions)
            for index, before in enumerate(register.topic(topic.name).partitions):  # type: ignore[union-attr]
                entry = said.get((topic.name, index))
                if entry is not None and before.holder == number and before.since == entry.since:
                    partitions[index] = msgspec.structs.replace(partitions[index], position=max(0, (entry.position or 0) - 1))
            topics.append(msgspec.structs.replace(topic, partitions=tuple(partitions)))
        return msgspec.structs.replace(after, topics=tuple(topics))

    patch(changes, "_committed", committed)


def partitions_are_taken_from_who_has_them(patch: Patch) -> None:
    """A rebalance that does not wait for anybody."""
    plain = changes._settled

    def settled(before: GroupRegister, after: GroupRegister) -> GroupRegister:
        told = plain(before, after)
        topics = tuple(
            msgspec.structs.replace(
                topic,
                partitions=tuple(
                    p if p.holder == p.target else msgspec.structs.replace(p, holder=p.target, since=told.generation)
                    for p in topic.partitions
                ),
            )
            for topic in told.topics
        )
        return msgspec.structs.replace(told, topics=topics)

    patch(changes, "_settled", settled)


def a_silent_member_goes_on(patch: Patch) -> None:
    patch(Membership, "stops_at", property(lambda self: float("inf")))


def what_is_in_hand_counts_as_handled(patch: Patch) -> None:
    patch(GroupReading, "in_hand", lambda self, place: None)


def a_member_begins_where_it_likes(patch: Patch) -> None:
    plain = Hold.__init__

    def init(self: Hold, since: int, position: int | None) -> None:
        plain(self, since, None if position is None else position + 1)

    patch(Hold, "__init__", init)


# --- transactions


def undecided_data_is_handed_out(patch: Patch) -> None:
    plain = consumer_outcomes.Outcomes.is_committed
    patch(consumer_outcomes.Outcomes, "is_committed", lambda self, header: plain(self, header) is not False)


def aborted_data_is_handed_out(patch: Patch) -> None:
    plain = consumer_outcomes.Outcomes.is_committed

    def is_committed(self: consumer_outcomes.Outcomes, header: BatchHeader) -> bool | None:
        return None if plain(self, header) is None else True

    patch(consumer_outcomes.Outcomes, "is_committed", is_committed)


def commits_without_waiting_for_acks(patch: Patch) -> None:
    async def flush(self: producer_transactions.Transactions) -> None:
        self._dispatcher.end_transaction()

    patch(producer_transactions.Transactions, "flush", flush)


def positions_count_before_the_transaction(patch: Patch) -> None:
    async def commit_in(self: GroupReader, transaction: Transaction) -> None:
        await self.commit(self.positions())

    patch(GroupReader, "commit_in", commit_in)


def positions_count_behind_the_transaction(patch: Patch) -> None:
    plain = GroupReader.on_transaction_ended

    async def commit_in(self: GroupReader, transaction: Transaction) -> None:
        self._pending = dict(self.positions())

    def on_transaction_ended(self: GroupReader, *, is_committed: bool) -> list[tuple[Any, int]]:
        if is_committed:
            self._marks.update(self._pending)
            self._commit_wanted.set()
        return plain(self, is_committed=is_committed)

    patch(GroupReader, "commit_in", commit_in)
    patch(GroupReader, "on_transaction_ended", on_transaction_ended)


def an_opening_aborts_nothing(patch: Patch) -> None:
    patch(register_changes, "abort_next", lambda register: register)


def a_zombie_is_told_aborted(patch: Patch) -> None:
    """And goes on with the next number, which its successor has, too."""

    def ended(name: str, register: ProducerRegister, known: Outcomes, number: int, *, epoch: int) -> bool:
        return bool(known.of(number))

    patch(broker_transactions, "ended", ended)


def pending_positions_are_dropped(patch: Patch) -> None:
    """A partition goes on though nobody knows what becomes of the transaction of who had it."""
    _hands_on(patch, lambda p: msgspec.structs.replace(p, pending=None))


def pending_positions_count(patch: Patch) -> None:
    _hands_on(patch, lambda p: msgspec.structs.replace(p, position=p.pending.position if p.pending is not None else None, pending=None))


def _hands_on(patch: Patch, undecided: Callable[[GroupPartition], GroupPartition]) -> None:
    plain = changes._settled

    def settled(before: GroupRegister, after: GroupRegister) -> GroupRegister:
        living = {member.number for member in after.members} - {NOBODY}
        topics = tuple(
            msgspec.structs.replace(
                topic, partitions=tuple(undecided(p) if p.pending and p.holder not in living else p for p in topic.partitions)
            )
            for topic in after.topics
        )
        return plain(before, msgspec.structs.replace(after, topics=topics))

    patch(changes, "_settled", settled)


def the_block_is_read_before_the_register(patch: Patch) -> None:
    """What is moved in between is in neither."""
    blocks_of = broker_transactions

    async def look(self: broker_transactions.Transactions, transaction: Transaction) -> Outcomes:
        producer, number = transaction
        key = (producer, number // blocks_of.ABORTED_BLOCK)
        known = self._blocks.get(key)
        if known is not None and known.of(number) is not None:
            return known
        registers = self._node.registers
        name = await self._name_of(producer)
        block = await registers.get_as(AbortedRegister, blocks_of.aborted_key(producer, number))
        await trio.sleep(0.05)
        register = await registers.get_as(ProducerRegister, producer_key(name))
        if register is None or number > register.decided + 1:
            raise NotFoundError("there is no such transaction yet", code="not_found")
        found = blocks_of.outcomes(register, number, block)
        if known is None or known.decided < found.decided:
            self._blocks[key] = found
        return found

    patch(broker_transactions.Transactions, "look", look)


def moved_numbers_are_forgotten_first(patch: Patch) -> None:
    """They are not aborted until their block has them, nor ever if the broker dies."""

    async def move_aborted(self: broker_transactions.Transactions, name: str) -> None:
        registers = self._node.registers
        register = await registers.get_as(ProducerRegister, producer_key(name))
        if register is None or not register.aborted:
            return
        await registers.change_as(ProducerRegister, producer_key(name), forget(name, register.aborted))
        for number in register.aborted:
            key = broker_transactions.aborted_key(register.id, number)
            await registers.change_as(AbortedRegister, key, move_in([number]))

    patch(broker_transactions.Transactions, "_move_aborted", move_aborted)


def what_may_be_committed_is_read_again(patch: Patch) -> None:
    plain = producer_transactions.Transactions.give_up

    async def give_up(self: producer_transactions.Transactions, positions: producer_transactions.Positions | None) -> bool | None:
        told = await plain(self, positions)
        owed, self._owed = self._owed, None
        if owed is not None:
            owed.on_transaction_ended(is_committed=False)
        return told

    patch(producer_transactions.Transactions, "give_up", give_up)


MUTANTS: Final = (
    Mutant("P-3", "answers before it is durable", answers_before_it_is_durable, 200, 0),
    Mutant("P-5", "takes another attempt's epoch for its own", takes_the_others_epoch_for_its_own, 200, 1),
    Mutant("P-8", "closes whatever is there", closes_whatever_is_there, 200, 0),
    Mutant("P-10", "another incarnation counts", another_incarnation_counts, 200, 59),
    Mutant("P-11", "acks below W", acks_below_w, 200, 0),
    Mutant("P-11", "a sealed replica reports", a_sealed_replica_reports, 200, 75),
    Mutant("P-13", "takes stores past a gap", takes_stores_past_a_gap, 200, 4),
    Mutant("P-16", "forgets its seal", forgets_its_seal, 200, 4),
    Mutant("P-17", "counts sealed tails as committed", counts_sealed_tails_as_committed, 200, 0),
    Mutant("P-18", "closes before the repair", closes_before_the_repair, 200, 0),
    Mutant("P-23", "nothing is cut", nothing_is_cut, 200, 13),
    Mutant("P-24", "believes the hint", believes_the_hint, 200, 0),
    Mutant("P-28", "bodies are not checked", bodies_are_not_checked, 200, 40, "storage"),
    Mutant("P-28", "groups of an earlier use count", groups_of_an_earlier_use_count, 200, 6, "storage"),
    Mutant("P-29", "limbo is not kept", limbo_is_not_kept, 200, 3),
    Mutant("P-29", "limbo ends at once", limbo_ends_at_once, 200, 3),
    Mutant("P-33", "a new epoch forgets the mark", a_new_epoch_forgets_the_mark, 200, 2),
    Mutant("P-34", "void batches stay in the table", void_batches_stay_in_the_table, 200, 3),
    Mutant("P-34", "a new sequencer knows no producer", a_new_sequencer_knows_no_producer, 200, 0),
    Mutant("P-34", "a table comes without its producers", a_table_comes_without_its_producers, 400, 216),
    Mutant("P-34", "tables in memory count", tables_in_memory_count, 1000, 679),
    Mutant("P-34", "a checkpoint keeps the table before", a_checkpoint_keeps_the_table_before, 50, 0, "storage"),
    Mutant("P-34", "a new sequencer knows no id", a_new_sequencer_knows_no_id, 200, 2),
    Mutant("P-34", "void ids are remembered", void_ids_are_remembered, 200, 29),
    Mutant("P-34", "an id counts for ever", an_id_counts_for_ever, 200, 2),
    Mutant("P-34", "a table comes without ids and token", a_table_comes_without_ids_and_token, 400, 312),
    Mutant("conditions", "a new sequencer knows no token", a_new_sequencer_knows_no_token, 200, 4),
    Mutant("conditions", "a token in flight refuses for good", a_token_in_flight_refuses_for_good, 200, 4),
    Mutant("conditions", "an offset is not looked at", an_offset_is_not_looked_at, 200, 4),
    Mutant("conditions", "an offset in flight refuses for good", an_offset_in_flight_refuses_for_good, 200, 4),
    Mutant("P-35", "a gap is taken", a_gap_is_taken, 200, 4),
    Mutant("P-39", "a topic made again keeps its ids", a_topic_made_again_keeps_its_ids, 50, 0, "topics"),
    Mutant("P-40", "answers in any configuration", answers_in_any_configuration, 200, 21),
    Mutant("P-41", "a trim leaves a gap", a_trim_leaves_a_gap, 400, 0),
    Mutant("P-41", "nobody asks for a table", nobody_asks_for_a_table, 200, 0),
    Mutant("groups", "positions move back", positions_move_back, 10, 3, "groups"),
    Mutant("groups", "partitions are taken from who has them", partitions_are_taken_from_who_has_them, 10, 0, "groups"),
    Mutant("groups", "a silent member goes on", a_silent_member_goes_on, 20, 0, "groups"),
    Mutant("groups", "what is in hand counts as handled", what_is_in_hand_counts_as_handled, 10, 0, "groups"),
    Mutant("groups", "a member begins where it likes", a_member_begins_where_it_likes, 10, 0, "groups"),
    Mutant("P-41", "damage below the start hides what is above", damage_below_the_start_hides_what_is_above, 400, 339, "storage"),
    Mutant("transactions", "undecided data is handed out", undecided_data_is_handed_out, 10, 0, "transactions"),
    Mutant("transactions", "aborted data is handed out", aborted_data_is_handed_out, 10, 0, "transactions"),
    Mutant("transactions", "commits without waiting for acks", commits_without_waiting_for_acks, 10, 0, "transactions"),
    Mutant("transactions", "positions count before the transaction", positions_count_before_the_transaction, 10, 0, "transactions"),
    Mutant("transactions", "positions count behind the transaction", positions_count_behind_the_transaction, 10, 0, "transactions"),
    Mutant("transactions", "an opening aborts nothing", an_opening_aborts_nothing, 10, 0, "transactions"),
    Mutant("transactions", "a zombie is told aborted", a_zombie_is_told_aborted, 10, 0, "transactions"),
    Mutant("transactions", "pending positions are dropped", pending_positions_are_dropped, 10, 0, "transactions"),
    Mutant("transactions", "pending positions count", pending_positions_count, 10, 0, "transactions"),
    Mutant("transactions", "the block is read before the register", the_block_is_read_before_the_register, 10, 0, "transactions"),
    Mutant("transactions", "moved numbers are forgotten first", moved_numbers_are_forgotten_first, 10, 0, "transactions"),
    Mutant("transactions", "what may be committed is read again", what_may_be_committed_is_read_again, 40, 15, "transactions"),
)
