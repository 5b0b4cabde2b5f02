"""Re-admission of a metadata voter that came back with a new incarnation (P-40): what may be decided, and the steps afterwards.

    (decide n + 1 among the voters of n) -> ADOPT -> LIST -> RESCAN -> CONFIRM -> DONE

Deciding is a change of the write-once register `voters/<n+1>`; `Readmission` is the state machine of the rest. Every step may be repeated,
by any broker, any number at once. Checked in spec/CasVoters.tla, whose mutants name what each wait is for.
"""

from enum import Enum

from streamq.metadata.proposer import Ask
from streamq.model.ids import Member
from streamq.model.messages import AdoptVoters, Keys, ListKeys, VotersReady, VotersView
from streamq.model.registers import Voter, Voters

__all__ = ["Readmission", "Step", "can_replace_one", "founding_quorum", "replacing", "voters_key", "why_not_next"]


def voters_key(number: int) -> str:
    """The write-once register that decides configuration `number`, among the voters of `number - 1`."""
    return f"voters/{number}"


def replacing(voters: Voters, replacement: Voter) -> Voters:
    """The content of the next number: the same, with one lost voter's incarnation replaced (P-40)."""
    assert voters.voter(replacement.broker) is not None
    changed = tuple(replacement if voter.broker == replacement.broker else voter for voter in voters.voters)
    return Voters(number=voters.number + 1, voters=changed)


def why_not_next(before: Voters, after: Voters) -> str | None:
    """Why `after` cannot be the content of the number after `before`; None if it can."""
    if after.number != before.number + 1:
        return f"number {after.number} follows {before.number}"
    if [voter.broker for voter in after.voters] != [voter.broker for voter in before.voters]:
        return "other brokers are voters"
    replaced = [new.broker for old, new in zip(before.voters, after.voters, strict=True) if old.incarnation != new.incarnation]
    return None if len(replaced) == 1 else f"{len(replaced)} incarnations are replaced at once"


def can_replace_one(voters: Voters) -> bool:
    """Whether the voters that remain when one is lost can decide anything."""
    return len(voters.voters) - 1 >= voters.majority


def founding_quorum(voters: Voters) -> int:
    """How many others must have looked whether they know a broker's name, so that none of its earlier starts stays unseen (P-31).

    `broker/<id>` was accepted by a majority, perhaps by the asking broker's own lost directory; so at least majority - 1 of the n - 1
    others hold it, and n - majority + 1 of these meet them. For three voters: both others.
    """
    n = len(voters.voters)
    return min(n - 1, n - voters.majority + 1)


class Step(Enum):
    ADOPT = "the number is decided; every survivor and the replacement is told, and must have adopted it durably"
    LIST = "all have adopted it; every survivor lists its keys with an accepted value, under this number"
    RESCAN = "all have listed; each key awaits an identity change, promised by survivors alone, accepted by a majority with the replacement"
    CONFIRM = "every key is rescanned; the replacement must record that it is ready"
    DONE = "the replacement answers everything; nothing is awaited"
    SUPERSEDED = "a higher number was decided; whoever needs it begins anew"


class Readmission:
    """The steps after the decision of `voters`, which names `replacement` in its new incarnation.

    `asks()` are the messages whose answers the present step lacks; in RESCAN `keys` are the registers still to be changed by identity.
    """

    def __init__(self, *, voters: Voters, replacement: Member) -> None:
        assert voters.names(replacement)
        self.voters = voters
        self.replacement = replacement
        self.survivors = frozenset(voter.broker for voter in voters.voters) - {replacement.broker}
        self.step = Step.ADOPT
        self._adopted: set[str] = set()
        self._after: dict[str, str] = dict.fromkeys(self.survivors, "")
        self._listed: set[str] = set()
        self._keys: set[str] = set()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self._keys)) if self.step is Step.RESCAN else ()

    def asks(self) -> list[Ask]:
        number = self.voters.number
        if self.step is Step.ADOPT:
            everybody = self.survivors | {self.replacement.broker}
            return [Ask(broker, AdoptVoters(voters=self.voters)) for broker in sorted(everybody - self._adopted)]
        if self.step is Step.LIST:
            return [
                Ask(broker, ListKeys(number=number, prefix="", after=self._after[broker]))
                for broker in sorted(self.survivors - self._listed)
            ]
        if self.step is Step.CONFIRM:
            return [Ask(self.replacement.broker, VotersReady(number=number, member=self.replacement))]
        return []

    def on_voters(self, broker: str, view: VotersView) -> None:
        """The answer to `AdoptVoters` and to `VotersReady`."""
        if view.voters.number > self.voters.number:
            self.step = Step.SUPERSEDED
        if view.voters != self.voters:
            return
        if self.step is Step.ADOPT:
            self._adopted.add(broker)
            # mut_voters_list_early: no list counts that was made before its acceptor refuses the old number.
            if self._adopted >= self.survivors | {self.replacement.broker}:
                self.step = Step.LIST
                self._leave_list()
        elif self.step is Step.CONFIRM and broker == self.replacement.broker and view.ready:
            self.step = Step.DONE

    def on_keys(self, broker: str, *, after: str, page: Keys) -> None:
        """One page of a survivor's list, that was asked for with `after`. The acceptor answers only under this number."""
        if self.step is not Step.LIST or broker in self._listed or self._after.get(broker) != after:
            return
        self._keys.update(page.keys)
        if page.more and page.keys:
            self._after[broker] = page.keys[-1]
        else:
            self._listed.add(broker)
        self._leave_list()

    def _leave_list(self) -> None:
        # mut_voters_one_list: a value may be on one survivor alone, so all of them must have listed.
        if self._listed == self.survivors:
            self.step = Step.RESCAN
            self._leave_rescan()

    def on_rescanned(self, key: str) -> None:
        """The identity change of `key` is chosen under this number: promised by survivors alone, accepted by the replacement too."""
        if self.step is Step.RESCAN:
            self._keys.discard(key)
            self._leave_rescan()

    def _leave_rescan(self) -> None:
        if not self._keys:
            self.step = Step.CONFIRM
