"""Faults that meet: each alone is common, and together, in this order, they hardly come by chance. What they ask for is what the
counterexamples of the model are made of (tests/spec/README.md); only the order is given, everything else stays random.
"""

from typing import TYPE_CHECKING, Final

from streamq.metadata.acceptor import Standing
from tests.sim.tier1.plan import Action
from tests.sim.tier1.takeovers import Phase, TakeoverRun

if TYPE_CHECKING:
    from tests.sim.tier1.nemesis import Nemesis
    from tests.sim.tier1.partition import Partition
    from tests.sim.tier1.sequencing import Sequencing

__all__ = ["Meetings"]

LOOK_S: Final = 0.0005
LOOKS_MAX: Final = 1_000
READY_S: Final = 0.5


class Meetings:
    def __init__(self, nemesis: "Nemesis") -> None:
        self.nemesis = nemesis
        self.world = nemesis.world

    def _sequencing(self, name: str) -> "Sequencing | None":
        process = self.world.processes.get(name)
        if process is None or process.is_paused:
            return None
        return next((p.sequencing for p in process.partitions.values() if p.sequencing is not None), None)

    def _followers(self, sequencing: "Sequencing", action: Action) -> list[str]:
        names = [f.member.broker for f in sequencing.followers.values() if f.is_live]
        return names if action.amount * 8 % 1 < 0.5 else names[::-1]

    def _cut(self, name: str, others: list[str], lasts_s: float) -> None:
        for other in others:
            self.nemesis.links.cut(name, other, lasts_s)
            self.nemesis.links.cut(other, name, lasts_s)

    # --- a loss, while of those that hold the tail nobody else is there

    def loss(self, action: Action, name: str) -> bool:
        """W replicas hold the tail and the others lag; then one of the W loses it, the rest of the W go away, and the others come back.

        Whoever lost something counts in no quorum (P-10, P-29), whether it was started once or twice since."""
        sequencing = self._sequencing(name)
        if sequencing is None or sequencing.segment.write < 2:
            return False
        followers = self._followers(sequencing, action)
        kept = sequencing.segment.write - 1
        if len(followers) <= kept or len(followers) != len(sequencing.followers):
            return False
        victim, *beside = followers[:kept]
        if not self.nemesis.losses.may_lose(victim) or not self.nemesis.losses.may_lose_voter(victim):
            return False
        lag_s = 0.05 + 0.25 * (action.amount * 16 % 1)
        for lagging in followers[kept:]:
            self._cut(lagging, [name, *beside], lag_s + READY_S)
        self.nemesis.storm(20)
        self.world.after(lag_s, None, self._lose, action, sequencing, victim, [name, *beside])
        return True

    def _lose(self, action: Action, sequencing: "Sequencing", victim: str, away: list[str]) -> None:
        if sequencing.is_retired:
            return
        kind = "lose_disk" if action.amount * 32 % 1 < 0.4 else "rot_journal"
        if not self.nemesis.strike(action._replace(kind=kind, lasts_s=0.02, amount=action.amount * 64 % 1), victim):
            return
        self._cut_when_ready(action, victim, away, LOOKS_MAX)
        if action.amount * 128 % 1 < 0.6:
            again_s = 0.05 + 0.6 * (action.amount * 256 % 1)
            self.world.after(again_s, None, self.nemesis.strike, action._replace(kind="crash", lasts_s=0.02, amount=0.5), victim)

    def _cut_when_ready(self, action: Action, victim: str, away: list[str], looks: int) -> None:
        """Who lost its disk is a voter again only with all the others' help, and without it nothing can be taken over."""
        process = self.world.processes.get(victim)
        is_voter = self.world.first_voters.voter(victim) is not None
        if looks and (process is None or (is_voter and process.acceptor.standing is not Standing.READY)):
            self.world.after(LOOK_S, None, self._cut_when_ready, action, victim, away, looks - 1)
            return
        for name in away:
            self._cut(name, list(self.world.brokers), action.lasts_s)

    # --- a crash between the answer to a seal and the end of the takeover that it was for

    def seal(self, action: Action, name: str) -> bool:
        """Somebody takes over whom the sequencer cannot reach, and is held up when it has its answers; who answered starts anew meanwhile.

        It must still be sealed (P-16): the sequencer would go on with it, past the end that the takeover is about to write."""
        sequencing = self._sequencing(name)
        if sequencing is None or len(sequencing.followers) < 2:
            return False
        candidate, *others = self._followers(sequencing, action) or [""]
        process = self.world.processes.get(candidate)
        if process is None or process.state != "serving" or process.is_paused or not others:
            return False
        partition = next((p for p in process.partitions.values() if p.index == sequencing.partition.index), None)
        if partition is None or partition.takeover is not None:
            return False
        self._cut(candidate, [name], action.lasts_s)
        run = TakeoverRun(partition, sequencing.epoch, lambda phase: None)
        self._hold(action, partition, run, others, LOOKS_MAX)
        return True

    def _hold(self, action: Action, partition: "Partition", run: TakeoverRun, others: list[str], looks: int) -> None:
        if partition.takeover is not run or not looks or self.nemesis.is_over:
            return
        if run.core.phase not in (Phase.REPAIR, Phase.CLOSE):
            self.world.after(LOOK_S, None, self._hold, action, partition, run, others, looks - 1)
            return
        self.nemesis.strike(action._replace(kind="pause", lasts_s=0.3 + action.lasts_s), partition.me.broker)
        for other in others:
            self.nemesis.strike(action._replace(kind="crash", lasts_s=0.02, amount=0.5), other)
        for delay_s in (0.1, 0.3, 0.6):
            self.world.after(delay_s, None, self.nemesis.storm, 12)

    # --- a trim, and a disk that is lost behind it

    def trim(self, action: Action, name: str) -> bool:
        """The log is trimmed, and a replica comes back empty, far behind the start offset (P-41), or the power goes everywhere: of the
        tables that were folded from what is trimmed now only durable ones are left (P-34)."""
        sequencing = self._sequencing(name)
        if sequencing is None or len(sequencing.followers) < 2:
            return False
        behind = next(iter(self._followers(sequencing, action)), None)
        if behind is None or not self.nemesis.strike(action._replace(kind="trim", amount=0.999), name):
            return False
        if action.amount * 16 % 1 < 0.4:
            for broker in self.world.brokers:
                self.world.after(0.05, None, self.nemesis.strike, action._replace(kind="crash", lasts_s=0.05, amount=0.7), broker)
        else:
            self.world.after(0.5, None, self.nemesis.strike, action._replace(kind="lose_disk"), behind)
        return True
