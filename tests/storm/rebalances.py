"""A storm of rebalances: members in processes of their own that come and go in every way there is, under load; every record is accounted
for, and calm and storm alternate, with as many members alive in both.

Large processes hold members that leave and hang; small ones are stopped and killed by the judge. All that they tell comes through one pipe
(`prefork`), and is judged in the order in which it was written.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from streamq.model.errors import StreamqError
from streamq.model.groups import GroupRegister
from streamq.model.ids import Ballot
from streamq.model.messages import GroupRead, ReadGroup
from streamq_producer import Producer
from tests.integration.local import LocalCluster, local_cluster
from tests.sim.group_observer import GroupObserver
from tests.storm.gaps import LEAVE_TO_HANDLED_S_MAX, Gaps, percentile, percentiles
from tests.storm.members import CALM, GROUP, OVER, PROCESSING_S, SESSION_S, STORM, TOPIC, be_load, be_members
from tests.storm.prefork import Forks, set_phase

__all__ = ["Storm"]

JOINS_S: Final = 15.0
PHASE_S: Final = 30.0
SETTLES_S: Final = 3 * SESSION_S + PROCESSING_S
"""Between a storm and the next calm: who hangs or was killed is no member any more."""
END_S: Final = 60.0
SMALL: Final = 2
"""Members of a process that is stopped and killed."""
SMALL_PROCESSES: Final = 5
LARGE_PROCESSES: Final = 4
FAULT_EVERY_S: Final = 4.0
STOPPED_S: Final = (0.5, 2.5 * SESSION_S)
LONGER_MAX: Final = 1.1
"""The p99 of a partition that does not move, in the storm, over that in a calm: what two calms differ by, too."""


class _Process:
    def __init__(self, pid: int, name: str) -> None:
        self.pid = pid
        self.name = name
        self.tokens: set[str] = set()
        self.is_stopped = False
        self.excused = 0
        """It may have been stopped between being handed records and saying so, once for each stop: to no harm, since it cannot commit."""


class Storm:
    def __init__(
        self, *, members: int, partitions: int, rate: float, seed: int, phase_s: float = PHASE_S, joins_s: float = JOINS_S
    ) -> None:
        self.members = members
        self.partitions = partitions
        self.rate = rate
        self.phase_s = phase_s
        self.joins_s = joins_s
        self.random = random.Random(seed)
        self.faults: list[str] = []
        self.observer = GroupObserver(self._fail, sees_all_votes=False)
        self.gaps = Gaps()
        self.acked = [0] * partitions
        self.counts: Counter[str] = Counter()
        self.alive: dict[str, float] = {}
        """By phase, members that lived on average."""
        self.busy: dict[str, list[float]] = {}
        """By phase, the part of the machine's time that was used, and the brokers' part."""
        self._processes: dict[str, _Process] = {}
        self._alive: set[str] = set()
        self._judging: _Process | None = None
        self._rest = b""
        self._polled = 0

    def run(self, *, minutes: float) -> int:
        """`minutes` of storm, and as many of calm."""
        forks = Forks({"members": be_members, "load": be_load})
        try:
            with local_cluster(3) as cluster:
                cluster.run("topic", "create", TOPIC, "--partitions", str(self.partitions))
                trio.run(self._live, cluster, forks, minutes)
        finally:
            forks.close()
        return self._verdict()

    def _fail(self, why: str) -> None:
        process = self._judging
        if process is not None and process.excused and why.startswith("two owners"):
            process.excused -= 1
            self.counts["stopped with records in hand"] += 1
            return
        if len(self.faults) < 20:
            print(f"VIOLATION: {why}", flush=True)
        self.faults.append(why)

    # --- the play ------------------------------------------------------------------------------------------------------------

    async def _live(self, cluster: LocalCluster, forks: Forks, minutes: float) -> None:
        set_phase(forks.phase, CALM)
        forks.start("load", cluster.bootstrap, self.partitions, self.rate)
        small = min(SMALL_PROCESSES, self.members // (2 * SMALL))
        in_large = self.members - small * SMALL
        large = min(LARGE_PROCESSES, in_large)
        for number in range(large):
            self._start(forks, cluster, f"large{number}", in_large // large + (number < in_large % large))
        for number in range(small):
            self._start(forks, cluster, f"small{number}", SMALL)
        brokers = [cluster.pid(name) for name in cluster.names]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, forks)
            nursery.start_soon(self._poll, cluster, forks)
            await trio.sleep(self.joins_s)
            stormed_s = 0.0
            while stormed_s < 60 * minutes and not self.faults:
                await self._count(forks, CALM, brokers)
                set_phase(forks.phase, STORM)
                async with trio.open_nursery() as faults:
                    faults.start_soon(self._do_harm, forks, cluster)
                    await self._count(forks, STORM, brokers)
                    faults.cancel_scope.cancel()
                set_phase(forks.phase, CALM)
                stormed_s += self.phase_s
                print(f"{stormed_s:.0f} s of storm: {dict(self.counts)}", flush=True)
                await trio.sleep(SETTLES_S)
            set_phase(forks.phase, OVER)
            with trio.move_on_after(END_S) as scope:
                while any(self.observer.handled_to.get(p, 0) < end for p, end in enumerate(self.acked)):
                    await trio.sleep(0.1)
            if scope.cancelled_caught:
                self._fail(f"records were not handled {END_S:g} s after the end")
            nursery.cancel_scope.cancel()

    def _start(self, forks: Forks, cluster: LocalCluster, name: str, members: int, *, at_once: bool = False) -> None:
        # A name of its own for each life: what is handed out is told by it.
        pid = forks.start("members", cluster.bootstrap, f"{name}-{self.random.getrandbits(32):x}", members, self.random.random(), at_once)
        self._processes[name] = _Process(pid, name)

    async def _count(self, forks: Forks, phase: str, brokers: list[int]) -> None:
        """One phase, in which gaps count."""
        self.gaps.on_phase(phase, time.monotonic())
        before, looks = _cpu(brokers), 0
        alive = 0
        until = trio.current_time() + self.phase_s
        while trio.current_time() < until:
            await trio.sleep(0.25)
            looks += 1
            alive += len(self._alive) - sum(len(process.tokens) for process in self._processes.values() if process.is_stopped)
        self.gaps.on_phase("", time.monotonic())
        used = [(now - then) / self.phase_s for now, then in zip(_cpu(brokers), before, strict=True)]
        self.busy.setdefault(phase, []).append(used[0])
        print(f"  {_NAMES[phase]}: {alive / looks:.1f} members alive, {used[0]:.2f} cores busy, {used[1]:.2f} of them brokers; ", end="")
        self.alive[phase] = alive / looks
        values = self.gaps.staying.get(phase, [])
        print(f"so far p50 {percentile(values, 0.5) * 1000:.0f} ms, p99 {percentile(values, 0.99) * 1000:.0f} ms", flush=True)

    async def _do_harm(self, forks: Forks, cluster: LocalCluster) -> None:
        """Stops and kills small processes. Cancelled, it leaves none stopped."""
        try:
            while True:
                await trio.sleep(self.random.expovariate(1 / FAULT_EVERY_S))
                ready = [process for process in self._processes.values() if process.name.startswith("small") and not process.is_stopped]
                if not ready:
                    continue
                process = self.random.choice(ready)
                if self.random.random() < 0.5:
                    self.counts["killed"] += len(process.tokens)
                    self.gaps.on_ill(process.tokens)
                    forks.kill(process.pid)
                    self._harmed(forks, process)
                    self._alive = {name for name in self._alive if not name.startswith(process.name + "-")}
                    self._start(forks, cluster, process.name, SMALL, at_once=True)
                else:
                    self._stop(process)
                    self._harmed(forks, process)
                    # Above this one, so that it goes on while others are harmed.
                    trio.lowlevel.spawn_system_task(self._go_on_later, process, self.random.uniform(*STOPPED_S))
        finally:
            for process in self._processes.values():
                self._go_on(process)

    def _harmed(self, forks: Forks, process: _Process) -> None:
        self._read(forks)  # what it told before
        self.counts["harmed while it left"] += self.gaps.on_harm(process.name)

    def _stop(self, process: _Process) -> None:
        self.counts["stopped"] += len(process.tokens)
        process.is_stopped = True
        process.excused += 1
        self.gaps.on_ill(process.tokens)
        os.kill(process.pid, signal.SIGSTOP)

    async def _go_on_later(self, process: _Process, after_s: float) -> None:
        await trio.sleep(after_s)
        self._go_on(process)

    def _go_on(self, process: _Process) -> None:
        if process.is_stopped:
            os.kill(process.pid, signal.SIGCONT)
            process.is_stopped = False
            self.gaps.on_well(process.tokens)

    # --- what is told --------------------------------------------------------------------------------------------------------

    async def _listen(self, forks: Forks) -> None:
        while True:
            await trio.lowlevel.wait_readable(forks.events)
            self._read(forks)

    def _read(self, forks: Forks) -> None:
        """All that was told so far."""
        while True:
            try:
                data = os.read(forks.events, 1 << 20)
            except BlockingIOError:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                kind, at, *rest = msgspec.json.decode(line)
                self._on_event(kind, at, rest)
            if not data:
                return

    def _on_event(self, kind: str, at: float, rest: list[Any]) -> None:
        if kind == "acked":
            for partition, end in rest[0].items():
                self.acked[int(partition)] = max(self.acked[int(partition)], end)
            return
        if kind == "fault":
            self._fail(rest[0])
            return
        name = rest[0]
        process = self._judging = self._processes.get(name.partition("-")[0])
        if kind == "joined":
            self.counts["joined"] += 1
            self._alive.add(name)
            if process is not None:
                process.tokens.add(rest[1])
        elif kind == "handed":
            token = bytes.fromhex(rest[1])
            for partition, (since, offsets) in rest[2].items():
                self.observer.on_handed(name, token, int(partition), since, offsets)
                late = self.gaps.late_moves
                self.gaps.on_handed(rest[1], int(partition), since, at)
                if self.gaps.late_moves > late:
                    stopped = [process.name for process in self._processes.values() if process.is_stopped]
                    print(f"LATE: {partition} came to {name} after {self.gaps.moves[-1]:.3f} s; stopped now: {stopped}", flush=True)
        elif kind == "handled":
            for partition, offsets in rest[2].items():
                self.observer.on_handled(bytes.fromhex(rest[1]), int(partition), offsets)
        elif kind == "leaves":
            self.gaps.on_leaves(rest[2], at, name.partition("-")[0])
        else:
            assert kind == "ends"
            self.counts[rest[2]] += 1
            self._alive.discard(name)
            if process is not None:
                process.tokens.discard(rest[1])
            if rest[2] == "hang":
                self.gaps.on_ill([rest[1]])
        self._judging = None

    async def _poll(self, cluster: LocalCluster, forks: Forks) -> None:
        """What the register says now and then: positions never pass what is handled, and never fall."""
        async with Producer(cluster.bootstrap) as anybody:
            versions: list[GroupRegister] = []
            while True:
                try:
                    told = await anybody._cluster.request(ReadGroup(GROUP), GroupRead)
                except StreamqError:
                    pass
                else:
                    self._read(forks)  # what was committed was told before
                    self._polled += 1
                    self._see_the_ill(told.register)
                    self.observer.on_voted(Ballot(self._polled, "", b""), told.register)
                    versions = [*versions[-1:], told.register]
                    self.observer.judge(versions)
                await trio.sleep(0.2)

    def _see_the_ill(self, register: GroupRegister) -> None:
        tokens = {member.number: member.token.hex() for member in register.members}
        topic = register.topic(TOPIC)
        if topic is not None:
            holders = [(index, tokens.get(partition.holder, "")) for index, partition in enumerate(topic.partitions)]
            self.counts["moved to the ill"] += self.gaps.on_goes_to_the_ill(holders)

    # --- the verdict ---------------------------------------------------------------------------------------------------------

    def _verdict(self) -> int:
        print(f"members: {dict(self.counts)}; {sum(self.acked)} records acked")
        ninety_nine = {}
        for phase in (CALM, STORM):
            gaps = self.gaps.staying.get(phase, [])
            ninety_nine[phase] = percentile(gaps, 0.99)
            print(f"gaps of a partition that does not move, {_NAMES[phase]}: {percentiles(gaps)}")
        print(f"from a clean leave to the next handout: {percentiles(self.gaps.moves)}")
        for why, gaps in self.gaps.other_moves.items():
            print(f"between the last handout and the next, moved {why}: {percentiles(gaps)}")
        late = self.gaps.late_moves
        ratio = ninety_nine[STORM] / (ninety_nine[CALM] or 1.0)
        print(f"p99 in the storm is {ratio:.2f} of that in a calm; {late} of {len(self.gaps.moves)} moves took longer than "
              f"{LEAVE_TO_HANDLED_S_MAX:g} s; {len(self.faults)} violations")  # fmt: skip
        return 1 if self.faults or late or ratio > LONGER_MAX else 0


_NAMES: Final = {CALM: "calm", STORM: "in the storm"}


def _cpu(pids: list[int]) -> tuple[float, float]:
    """Seconds that all cores, and these processes, have worked."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    own = 0
    for pid in pids:
        of_process = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own += int(of_process[11]) + int(of_process[12])
    return (sum(fields[:3]) + sum(fields[5:7])) / tick, own / tick
