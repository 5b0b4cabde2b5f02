"""Carries out the faults of a plan, each at its time, as far as the protocol promises to bear them. All but `dead` end by themselves."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamq.metadata.changes import trim
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.ids import PartitionId
from streamq.model.messages import Message, Open, Tip, TipAnswer
from streamq.model.quorum import Quorum, high_watermark, reopen_quorum
from streamq.model.registers import PartitionRegister, Segment
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown
from tests.sim.tier1.acceptors import RECORD_KEY
from tests.sim.tier1.disk import Damage, Disk
from tests.sim.tier1.endpoint import Steps, Wait
from tests.sim.tier1.link_faults import LinkFaults
from tests.sim.tier1.losses import Losses
from tests.sim.tier1.meetings import Meetings
from tests.sim.tier1.partition import TOPIC, replica_key
from tests.sim.tier1.plan import Action
from tests.sim.tier1.takeovers import TakeoverRun

if TYPE_CHECKING:
    from tests.sim.tier1.partition import Partition
    from tests.sim.tier1.process import Process
    from tests.sim.tier1.world import World

__all__ = ["Nemesis"]

SUBSTITUTES: Final = ("pause", "slow_disk", "clock")
"""Tried in the place of a fault that would ask for more than the protocol promises."""


class Nemesis:
    """`applied`: faults that really happened; `record`: what and when, for people."""

    def __init__(self, world: "World", actions: Sequence[Action]) -> None:
        self.world = world
        self.dead: set[str] = set()
        self.losses = Losses(world, self.dead)
        self.applied = 0
        self._needed = 0
        """The most replicas that an epoch may need to follow another, by settings that were asked for and may come late."""
        self.record: list[tuple[float, str]] = []
        self.is_over = False
        self.links = links = LinkFaults(world)
        meetings = Meetings(self)
        self._kinds: dict[str, Callable[[Action, str], bool]] = {
            "crash": self._crash, "stop": self._stop, "pause": self._pause, "eio": self._eio, "dead": self._dead,
            "isolate": links.isolate, "oneway": links.oneway, "split": links.split, "flap": links.flap, "reset": links.reset,
            "slow_link": links.slow_link, "cut_clients": links.cut_clients,
            "clock": self._clock, "slow_disk": self._slow_disk, "full_disk": self._full_disk,
            "rot_journal": self._rot_journal, "rot_file": self._rot_file, "lose_disk": self._lose_disk,
            "lose_acceptor": self._lose_acceptor,
            "takeovers": self._takeovers, "duel": self._duel, "storm": self._storm, "settings": self._settings, "trim": self._trim,
            "meet_loss": meetings.loss, "meet_seal": meetings.seal, "meet_trim": meetings.trim,
        }  # fmt: skip
        self.storm: Callable[[int], None] = lambda count: None
        for action in actions:
            world.at(action.at, None, self._lie_in_wait, action)

    def _lie_in_wait(self, action: Action) -> None:
        if action.ambush_s:
            self.storm(6)
        self._later(action.ambush_s, self._apply, action)

    def _apply(self, action: Action) -> None:
        if self.is_over:
            return
        target = self._target(action)
        for kind in (action.kind, *SUBSTITUTES):
            if self.strike(action._replace(kind=kind), target):
                return
            self.world.counters["faults_withheld"] += 1

    def strike(self, action: Action, target: str) -> bool:
        """Now, if the protocol promises to bear it; returns whether it was done."""
        if self.is_over or not self._kinds[action.kind](action, target):
            return False
        self.applied += 1
        self.world.counters[f"fault_{action.kind}"] += 1
        self.record.append((self.world.now, f"{action.kind} of {target} for {action.lasts_s:.2f} s"))
        return True

    def _target(self, action: Action) -> str:
        """`sequencer`: whoever is it now."""
        if action.target != "sequencer":
            return action.target
        for process in self.world.processes.values():
            if any(p.sequencing is not None for p in process.partitions.values()):
                return process.name
        return self.world.brokers[0]

    def _later(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        self.world.after(delay_s, None, call, *args)

    # --- processes

    def _may_end(self, name: str, *, is_clean: bool) -> "Process | None":
        """P-37: where acks come from memory an unclean stop counts as a loss."""
        process = self.world.processes.get(name)
        if process is None or is_clean or self.world.plan.durability == "fsync":
            return process
        if not self.losses.may_lose(name):
            return None
        self.losses.enter(name, "memory")
        return process

    def _crash(self, action: Action, name: str) -> bool:
        process = self._may_end(name, is_clean=False)
        if process is None:
            return False
        self.world.set_refusing(name, action.amount < 0.7)
        process.end(keep=action.amount * 1.2 % 1.0, keeps_written=action.amount < 0.7)
        self._later(action.lasts_s, self.restart, name)
        return True

    def restart(self, name: str) -> None:
        if name not in self.world.processes and name not in self.dead:
            self.world.set_refusing(name, True)
            self.world.start(name)

    def _stop(self, action: Action, name: str) -> bool:
        """Gracefully: hands over what it sequences, writes everything, marks the stop as clean."""
        process = self._may_end(name, is_clean=True)
        if process is None or process.state != "serving" or process.is_paused:
            return False
        process.spawn(self._stop_gracefully(process, action.lasts_s))
        return True

    def _stop_gracefully(self, process: "Process", away_s: float) -> Steps:
        process.state = "stopping"
        for partition in list(process.partitions.values()):
            sequencing = partition.sequencing
            if sequencing is None:
                continue
            alive = [f for f in sequencing.followers.values() if f.is_live and process.peers.is_alive(f.member.broker)]
            if alive:
                yield from process.successions.hand_over(partition, max(alive, key=lambda f: f.tail).member.broker)
            if partition.sequencing is not None:
                partition.sequencing.retire("the broker stops")
        process.flush()
        process.stop_cleanly()
        self._later(away_s, self.restart, process.name)

    def _pause(self, action: Action, name: str) -> bool:
        process = self.world.processes.get(name)
        if process is None or process.is_paused:
            return False
        self.world.pause(process)
        self._later(action.lasts_s, self.world.resume, process)
        return True

    def _eio(self, action: Action, name: str) -> bool:
        """P-15: the next sync fails, and the broker stops. It comes back later, on what its disk kept."""
        if self._may_end(name, is_clean=False) is None:
            return False
        self.world.disks[name].fails = True
        self._later(action.lasts_s + 1.0, self._restart_failed, name, self.world.processes[name])
        return True

    def _restart_failed(self, name: str, process: "Process") -> None:
        if process.is_alive:
            self.world.disks[name].fails = False  # it had nothing to write
        else:
            self.restart(name)

    def _dead(self, action: Action, name: str) -> bool:
        """For good: no more than a minority of the voters, and enough replicas stay for takeovers (I-7)."""
        if not self._may_die(name):
            return False
        process = self._may_end(name, is_clean=False)
        self.dead.add(name)
        self.world.set_refusing(name, action.amount < 0.5)
        if process is not None:
            process.end(keep=action.amount, keeps_written=False)
        return True

    def _may_die(self, name: str) -> bool:
        world = self.world
        dead = {*self.dead, name}
        is_voter_lost = not self.dead and not self.losses.may_lose_voter(self.world.brokers[0])
        if self.world.wounded or name in self.dead or is_voter_lost or world.plan.replicas - len(dead) < self._needed:
            return False
        voters = [v.broker for v in world.first_voters.voters]
        if len([v for v in voters if v not in dead]) < world.first_voters.majority:
            return False
        for index in range(world.plan.partitions):
            register = world.versions.register(index)
            last = [m.broker for m in register.last.replicas]
            for replicas, w in ((register.replicas, register.write), (last, register.last.write)):
                if len([b for b in replicas if b not in dead]) < max(w, len(replicas) - w + 1):
                    return False
            if not self.losses.is_somebody_whole(index, without=dead):
                return False
        return True

    # --- clocks and disks

    def _clock(self, action: Action, name: str) -> bool:
        """Up to two days either way, which no entry's expiry lies within."""
        self.world.clock_offsets_ms[name] = int((2 * action.amount - 1) * 2 * 24 * 3600 * 1000)
        return True

    def _slow_disk(self, action: Action, name: str) -> bool:
        self._set_slowness(name, 5 + 200 * action.amount**2)
        self._later(action.lasts_s, self._set_slowness, name, 1.0)
        return True

    def _set_slowness(self, name: str, slowness: float) -> None:
        self.world.disks[name].slowness = slowness

    def _full_disk(self, action: Action, name: str) -> bool:
        self._set_full(name, True)
        self._later(action.lasts_s, self._set_full, name, False)
        return True

    def _set_full(self, name: str, is_full: bool) -> None:
        self.world.disks[name].is_full = is_full

    # --- losses (I-1: bounded)

    def _end_and_lose(self, action: Action, name: str) -> Disk:
        process = self.world.processes.get(name)
        if process is not None:
            process.end(keep=action.amount, keeps_written=False)
        self._later(action.lasts_s, self.restart, name)
        return self.world.disks[name]

    def _rot_journal(self, action: Action, name: str) -> bool:
        """A bad entry below a synced mark: the next start finds out what was there, as the real journal's recovery does (P-29)."""
        disk = self.world.disks[name]
        if name in self.dead or not self.losses.may_lose(name) or not self.losses.may_lose_voter(name) or disk.lost:
            return False
        lost = self._rotten(disk, action)
        if not lost:
            return False
        self.losses.enter(name, "batches" if all(isinstance(each, LostBatches) for each in lost) else "state", of=self._touched(lost))
        self._end_and_lose(action, name).lose(lost)
        return True

    def _touched(self, lost: Sequence[Lost]) -> set[PartitionId] | None:
        """The partitions that were named; None if nobody can tell."""
        if any(isinstance(each, LostUnknown) for each in lost):
            return None
        keys = {replica_key(p): p for p in self.world.partition_ids}
        of_states = {keys[each.key] for each in lost if isinstance(each, LostState) and each.key in keys}
        return of_states | {each.partition for each in lost if isinstance(each, LostBatches)}

    def _rotten(self, disk: Disk, action: Action) -> list[Lost]:
        """One of: a tail of a run; the state of a replica; both; something that cannot be told, and with it anything."""
        random = self.world.random
        runs = [(p, epoch, run) for p, of in disk.raw_runs.items() for epoch, run in of.items() if run]
        lost: list[Lost] = []
        if runs and action.amount < 0.8:
            partition, epoch, run = runs[-1] if random.random() < 0.7 else random.choice(runs)
            place = random.randrange(len(run))
            lost.append(LostBatches(partition, epoch, run[place].base, run[-1].end))
        if action.amount > 0.5 and disk.raw_states:
            keys = [replica_key(p) for p in self.world.partition_ids if replica_key(p) in disk.raw_states]
            lost += [LostState(key) for key in keys]  # type: ignore[arg-type]
        if action.amount > 0.85:
            lost.append(LostUnknown("a head could not be read"))
        return lost

    def _rot_file(self, action: Action, name: str) -> bool:
        """P-30: bytes of a log file go bad; whoever reads them finds out. The journal has been released: a checkpoint lies behind it."""
        disk = self.world.disks[name]
        runs = [(p, epoch, run) for p, of in disk.raw_runs.items() for epoch, run in of.items() if len(run) > 2]
        if not runs or name in self.dead or disk.lost or disk.unsynced or not self.losses.may_lose(name):
            return False
        partition, epoch, run = runs[int(action.amount * len(runs))]
        place = self.world.random.randrange(len(run) - 1)
        last = min(len(run) - 1, place + self.world.random.randrange(3))
        self.losses.enter(name, "file")
        disk.checkpoint()
        disk.damaged.append(Damage(partition, epoch, run[place].base, run[last].end))
        return True

    def _lose_disk(self, action: Action, name: str) -> bool:
        """P-31: an empty directory under the old address: another incarnation."""
        if name in self.dead or not self.losses.may_lose(name) or not self.losses.may_lose_voter(name):
            return False
        self.losses.enter(name, "disk")
        self._end_and_lose(action, name)
        self.world.disks[name] = Disk(self.world, name, self.world.token(), self.world.first_voters)
        return True

    def _lose_acceptor(self, action: Action, name: str) -> bool:
        """P-3: a promise or acceptance cannot be read any more; the replicas are whole."""
        disk = self.world.disks[name]
        if name in self.dead or disk.lost or not self.losses.may_lose_voter(name) or self.world.first_voters.voter(name) is None:
            return False
        if self._may_end(name, is_clean=False) is None and name in self.world.processes:
            return False
        cells = [key for key in disk.raw_states if key[0] == "acceptor"]
        key = RECORD_KEY if action.amount < 0.3 or not cells else cells[int(action.amount * len(cells))]
        self._end_and_lose(action, name).lose([LostState(key)])  # type: ignore[arg-type]
        return True

    # --- too much at once

    def _takeovers(self, action: Action, _name: str) -> bool:
        """Several brokers take one partition over at the same moment."""
        begun = 0
        for process in list(self.world.processes.values()):
            for partition in process.partitions.values():
                opened = partition.open_segment
                if opened is not None and process.state == "serving" and not process.is_paused and partition.takeover is None:
                    TakeoverRun(partition, opened.epoch, lambda phase: None)
                    begun += 1
        return begun > 0

    def _duel(self, action: Action, _name: str) -> bool:
        """Several brokers change one register at the same moment."""
        for process in self.world.processes.values():
            if process.state == "serving" and not process.is_paused:
                process.spawn(self._change(process, lambda register: register))
        return True

    def _change(self, process: "Process", f: Callable[[PartitionRegister], PartitionRegister]) -> Steps:
        for partition in list(process.partitions.values()):
            try:
                register = yield from process.registers.change_as(PartitionRegister, partition.key, f)
            except StreamqError:
                continue
            partition.learn(register)

    def _storm(self, action: Action, _name: str) -> bool:
        self.storm(20 + int(40 * action.amount))
        return True

    def _settings(self, action: Action, name: str) -> bool:
        """Other settings, from the next epoch on (P-36): another preferred order or set of replicas, other quorums."""
        process = self.world.processes.get(name)
        if process is None or process.state != "serving" or self.world.wounded:
            return False
        brokers = list(self.world.brokers)
        self.world.random.shuffle(brokers)
        n = self.world.plan.replicas
        if action.amount >= 0.6 and not self._may_move(brokers[:n]):
            return False
        w = 1 + int(action.amount * n) if action.lasts_s > 3 else self.world.plan.write
        quorum = Quorum(n, w, n - w + 1)
        assert quorum.fault() is None
        kept = brokers if action.amount < 0.6 else brokers[:n]
        needed = reopen_quorum(replicas=n, write=w)
        if any(name in self.dead for name in kept) and n - len(self.dead) < needed:
            return False  # I-7: with these no epoch could follow
        self._needed = max(self._needed, needed)

        def change(register: PartitionRegister) -> PartitionRegister:
            kept = [m.broker for m in register.last.replicas]
            wanted = tuple(sorted(kept, key=brokers.index)) if action.amount < 0.6 else tuple(brokers[:n])
            return msgspec.structs.replace(register, replicas=wanted, write=quorum.write, read=quorum.read)

        process.spawn(self._change(process, change))
        return True

    def _may_move(self, wanted: Sequence[str]) -> bool:
        """A broker that never held the older segments is given them by nobody yet, and cannot sequence (P-34): one at most at a time."""
        indices = range(self.world.plan.partitions)
        return len(wanted) > 2 and all(sum(self.losses.is_whole(i, b) for b in wanted) >= len(wanted) - 1 for i in indices)

    def _trim(self, action: Action, name: str) -> bool:
        """P-41: up to a high watermark told for the open epoch, and to what the durable tables of W replicas have come to (P-34)."""
        process = self.world.processes.get(name)
        if process is None or process.state != "serving" or process.is_paused:
            return False
        process.spawn(self._trim_at(process, action.amount))
        return True

    def _trim_at(self, process: "Process", amount: float) -> Steps:
        for partition in list(process.partitions.values()):
            opened = partition.open_segment
            if opened is None:
                continue
            limit = yield from self._table_limit(partition, opened)
            start = int(amount * min(partition.replica.high_watermark[1], limit))
            change = trim(TOPIC, partition.index, partition=partition.id, start_offset=start)
            try:
                register = yield from process.registers.change_as(PartitionRegister, partition.key, change)
            except StreamqError:
                continue
            self.world.counters["trims"] += 1
            partition.learn(register)
            for broker in partition.others() if amount > 0.3 else ():  # or else they find out by themselves
                peer = process.peers.get(broker)
                if peer is not None and peer.connection is not None:
                    peer.connection.request(Open(register), (), 1.0, _nothing)

    def _table_limit(self, partition: "Partition", opened: Segment) -> Generator[Wait, Any, int]:
        process = partition.process
        kept = [partition.replica.table_kept] if partition.me in opened.replicas else []
        for member in opened.replicas:
            peer = process.peers.get(member.broker)
            if peer is None or peer.member != member:
                continue
            answer, _ = yield process.peers.ask(member.broker, Tip(partition.id, opened.epoch, opened.base))
            if isinstance(answer, TipAnswer) and peer.member == member:
                kept.append(answer.table)
        return high_watermark(kept, write=opened.write, base=0)


def _nothing(_message: Message, _batches: Sequence[Batch]) -> None:
    """Whether it was told or not."""
