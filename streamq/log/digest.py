"""What a takeover has heard about its epoch (step 2): which answers count, how far the log goes, who holds it whole."""

from typing import NamedTuple

from streamq.model.ids import Member
from streamq.model.messages import Sealed
from streamq.model.quorum import seal_quorum
from streamq.model.registers import Segment

__all__ = ["Digest", "SealAnswer"]


class SealAnswer(NamedTuple):
    member: Member
    tail: int
    high_watermark: int
    limbo: bool


class Digest:
    """The answers of one round of sealing epoch `segment`, kept up to date with repairs. One answer a broker, the first."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.answers: dict[str, SealAnswer] = {}
        self.unreachable: set[str] = set()
        self._repaired: set[str] = set()

    def add(self, member: Member, sealed: Sealed) -> None:
        self.unreachable.discard(member.broker)
        self.answers[member.broker] = SealAnswer(member, sealed.local_tail, sealed.high_watermark, sealed.limbo)

    def forget(self, broker: str) -> None:
        self.unreachable.add(broker)
        self._repaired.discard(broker)
        self.answers.pop(broker, None)

    @property
    def members(self) -> dict[str, Member]:
        """Who answered, by broker, in the incarnation that did."""
        return {broker: a.member for broker, a in self.answers.items()}

    def good(self) -> dict[str, SealAnswer]:
        """The answers that count in this epoch: of a replica named with that incarnation (P-10), not in limbo for it (P-29)."""
        named = self.segment.replicas
        return {broker: a for broker, a in self.answers.items() if a.member in named and not a.limbo}

    def lack_of_seals(self) -> str | None:
        """P-36: N - W + 1 answers that count are needed, however large R is. None if there are as many."""
        needed = seal_quorum(replicas=len(self.segment.replicas), write=self.segment.write)
        have = len(self.good())
        return None if have >= needed else f"{have} of the {needed} seals that epoch {self.segment.epoch} needs were answered"

    def tail(self) -> int:
        """L: everything acked in the epoch is below it, because these seals and any W replicas have one in common."""
        return max(a.tail for a in self.good().values())

    def high_watermark(self) -> int:
        """The largest that was told for the epoch; true from whomever it comes."""
        return max(self.segment.base, *(a.high_watermark for a in self.answers.values()))

    def keepers(self) -> list[str]:
        """Who may hold the tail (step 4): replicas that count and, if those are fewer than W, other brokers of the epoch in their place."""
        good = self.good()
        if len(good) >= self.segment.write:
            return list(good)
        return [*good, *(b for b in self.answers if b not in good and self.segment.member(b) is not None)]

    def holding(self, tail: int) -> list[str]:
        """Keepers that hold everything below `tail`.

        A replacement, which has to hold the whole segment, counts by what it answered to a repair: what it said when it was sealed is no
        word to go by (P-29, P-30).
        """
        good = self.good()
        return [b for b in self.keepers() if (self.answers[b].tail >= tail if b in good else b in self._repaired)]

    def hold(self, broker: str, local_tail: int, *, below: int) -> bool:
        """`broker` reported this local tail after a repair. Returns whether it moved."""
        before = self.answers[broker]
        self.answers[broker] = before._replace(tail=max(before.tail, local_tail))
        if local_tail >= below:
            self._repaired.add(broker)
        return local_tail > before.tail

    def replacements(self) -> dict[str, Member]:
        """Repaired brokers of the epoch that do not count in it: the closed segment names them (step 5)."""
        good = self.good()
        return {b: self.answers[b].member for b in self._repaired if b not in good}
