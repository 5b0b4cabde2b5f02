"""Positions that hang on transactions, under every order of joining, reading, storing, ending, expiring and late copies: what committed
transactions have read is each partition's records from the first on, none twice, none passed over, and the group's positions say so.

The members are played as `streamq_consumer.group` is: they see the register now and then, read on from where they stand, and ask for the
commit of a transaction only when its positions were stored and none of them was fenced.
"""

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamq.groups.changes import (
    Joining,
    Step,
    TopicSeen,
    UndecidedError,
    commit,
    coordinate,
    expire,
    join,
    leave,
    orphans,
    pending,
    settled,
    with_outcomes,
)
from streamq.model.errors import GroupLostError
from streamq.model.groups import Entry, GroupRegister, held_by
from streamq.model.transactions import Transaction

PARTITIONS = 2
SEEN = [TopicSeen("t", b"t", PARTITIONS)]
TOKENS = [bytes([n]) * 16 for n in range(1, 4)]


class Member:
    """`holds` is where it stands in each partition that its last view gave it: (since, next offset)."""

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.holds: dict[int, tuple[int, int]] = {}
        self.transaction: Transaction | None = None
        self.taken: dict[tuple[int, int], int] = {}
        self.is_stored = False
        self.numbers = 0


class Group(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.register: GroupRegister = coordinate("g", by="b1", fresh_id=b"g" * 16)(None)
        self.members = {token: Member(token) for token in TOKENS}
        self.outcomes: dict[Transaction, bool] = {}
        self.reads: dict[Transaction, list[tuple[int, int, int]]] = {}
        """What each transaction has transformed: partition, first offset, end."""
        self.copies: list[Step] = []
        self.covered = dict.fromkeys(range(PARTITIONS), 0)
        for token in TOKENS[:2]:
            self.apply(join(Joining(token, "", ("t",), 1000), SEEN))
        for member in self.members.values():
            self.look(member)

    def decide(self, transaction: Transaction, *, commits: bool) -> bool:
        if transaction not in self.outcomes:
            self.outcomes[transaction] = commits
            for partition, first, end in sorted(self.reads.get(transaction, ())) if commits else ():
                assert first <= self.covered[partition], f"records of {partition} are passed over, before {first}"
                assert first >= self.covered[partition], f"records of {partition} are transformed twice, from {first} on"
                self.covered[partition] = end
        return self.outcomes[transaction]

    def apply(self, step: Step) -> object:
        """As the coordinator does: what is in the way is aborted unless it is decided, then once more; and it comes to its own result."""
        try:
            after, outcome = step(self.register)
        except UndecidedError as undecided:
            self.register, _ = settled({t: self.decide(t, commits=False) for t in undecided.transactions})(self.register)
            after, outcome = step(self.register)
        again, _ = step(after)
        assert again == after, "twice is not once"
        assert after.fault() is None
        self.register = after
        return outcome

    # --- members that come and go

    @rule(
        kind=st.sampled_from(["join", "join", "join another", "expire", "leave", "let go", "view", "view"]),
        token=st.sampled_from(TOKENS),
        partition=st.integers(0, PARTITIONS - 1),
    )
    def comes_or_goes(self, kind: str, token: bytes, partition: int) -> None:
        """A member may join again by a late copy of its question, or be replaced by one of its name."""
        member = self.members[token]
        if kind.startswith("join"):
            self.apply(join(Joining(token, "s" if kind == "join another" else "", ("t",), 1000), SEEN))
        elif kind == "expire":
            self.apply(expire({token}))
        elif kind == "leave":
            self.apply(leave(token, tuple(Entry("t", p, since, None, True) for p, (since, _) in member.holds.items())))
            member.holds = {}
        elif kind == "view":
            self.look(member)
        elif partition in member.holds:
            since, _ = member.holds.pop(partition)
            try:
                self.apply(commit(token, [Entry("t", partition, since, None, True)]))
            except GroupLostError:
                member.holds = {}

    def look(self, member: Member) -> None:
        known = self.register.member(member.token)
        seen = {h.partition: h for topic in held_by(self.register, known.number) for h in topic.partitions} if known is not None else {}
        member.holds = {
            partition: (held.since, member.holds[partition][1] if self.is_same(member, partition, held.since) else held.position or 0)
            for partition, held in seen.items()
        }

    def is_same(self, member: Member, partition: int, since: int) -> bool:
        return partition in member.holds and member.holds[partition][0] == since

    # --- transactions

    @precondition(lambda self: any(member.holds for member in self.members.values()))
    @rule(data=st.data(), count=st.integers(1, 3), goes_on=st.sampled_from(["", "store", "store", "end"]))
    def read(self, data: st.DataObject, count: int, goes_on: str) -> None:
        """And perhaps the next steps at once."""
        member = self.members[data.draw(st.sampled_from([token for token, member in self.members.items() if member.holds]))]
        if member.is_stored:
            return
        if member.transaction is None:
            member.numbers += 1
            member.transaction = Transaction(member.token, member.numbers)
        partition = data.draw(st.sampled_from(sorted(member.holds)))
        since, at = member.holds[partition]
        member.taken.setdefault((partition, since), at)
        member.holds[partition] = since, at + count
        if goes_on:
            self.store(member, is_answered=True)
        if goes_on == "end" and member.is_stored:
            self.end(member, commits=True)

    @precondition(lambda self: any(member.transaction for member in self.members.values()))
    @rule(data=st.data(), how=st.sampled_from(["store", "commit", "commit", "raise", "store, and hear nothing"]))
    def go_on(self, data: st.DataObject, how: str) -> None:
        member = self.members[data.draw(st.sampled_from([token for token, member in self.members.items() if member.transaction]))]
        if how.startswith("store"):
            self.store(member, is_answered=how == "store")
        elif how == "raise" or member.is_stored:
            self.end(member, commits=how == "commit")

    def store(self, member: Member, *, is_answered: bool) -> None:
        if member.is_stored:
            return
        assert member.transaction is not None
        entries = []
        for partition, since in member.taken:
            if not self.is_same(member, partition, since):
                self.end(member, commits=False)
                return
            entries.append(Entry("t", partition, since, member.holds[partition][1], False))
        self.reads[member.transaction] = [(p, first, member.holds[p][1]) for (p, _), first in member.taken.items()]
        step = commit(member.token, entries, member.transaction)
        self.copies.append(step)
        try:
            fenced = self.apply(step)
        except GroupLostError:
            fenced, member.holds = entries, {}
        if fenced:
            self.end(member, commits=False)
        else:
            member.is_stored = is_answered

    def end(self, member: Member, *, commits: bool) -> None:
        assert member.transaction is not None
        is_committed = self.decide(member.transaction, commits=commits)
        assert commits or not is_committed
        if not is_committed:
            for (partition, since), first in member.taken.items():
                if self.is_same(member, partition, since):
                    member.holds[partition] = since, first
        member.transaction, member.taken, member.is_stored = None, {}, False

    # --- whoever looks

    @rule(data=st.data(), kind=st.sampled_from(["orphans", "orphans", "too old", "late copy"]))
    def others(self, data: st.DataObject, kind: str) -> None:
        begun = sorted(member.transaction for member in self.members.values() if member.transaction is not None)
        if kind == "orphans":
            found = orphans(self.register)
            self.apply(settled({transaction: self.decide(transaction, commits=False) for transaction in found}))
            assert not orphans(self.register)
        elif kind == "too old" and begun:
            self.decide(data.draw(st.sampled_from(begun)), commits=False)
        elif kind == "late copy" and self.copies:
            with suppress(GroupLostError):
                self.apply(self.copies[data.draw(st.integers(0, len(self.copies) - 1))])

    @invariant()
    def positions_say_what_is_committed(self) -> None:
        counted = with_outcomes(self.register, self.outcomes)
        for index in range(PARTITIONS):
            partition = counted.partition("t", index)
            assert ((partition.position or 0) if partition is not None else 0) == self.covered[index]

    @invariant()
    def a_partition_lies_idle_only_for_a_transaction(self) -> None:
        topic = self.register.topic("t")
        for partition in topic.partitions if topic is not None else ():
            assert partition.holder or partition.pending or not self.register.members
        assert orphans(self.register) <= pending(self.register)


TestGroup = Group.TestCase
TestGroup.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
