"""Carries a schedule of faults out on a simulated cluster, and heals it in the end.

A fault that would ask for more than the protocol promises is left out: a disk loses data only while every replica is whole (I-1, one loss
at a time), and the founding of the cluster is over when the first fault comes.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from streamq.client.connection import connect
from streamq.client.settings import Address
from streamq.model.errors import StreamqError
from streamq.model.messages import CreateTopic, DeleteTopic, Hello, Message, Ok, TakeOver, TopicCreated
from streamq.storage.interface import StorageFailedError
from streamq.wire.framing import PREAMBLE, PROTOCOL_VERSIONS, encode_frame
from tests.sim.disk import HostCrashError, Kind
from tests.sim.tier2.brokers import PORT, Broker
from tests.sim.tier2.cluster import SimulatedCluster
from tests.sim.tier2.schedule import LOSSES, Fault
from tests.sim.tier2.step_counter import StepCounter
from tests.sim.tier2.workload import TOPIC, Workload

__all__ = ["Nemesis"]

Answer = TypeVar("Answer", bound=Message)
JUMP_MS: Final = 600_000
DOWN_MIN_S: Final = 0.02
STEPS_MAX: Final = 400
DISK_OPERATIONS_MAX: Final = 60
REPEATS_OF_A_FLAP: Final = 6
READS_WITHIN_S: Final = 10.0
ADMIN_S: Final = 10.0
RESERVE_BYTES: Final = 4 << 20
IDLE_S: Final = 0.4
ROTS: Final[dict[str, Kind]] = {
    "rot in the journal": "journal",
    "rot in log files": "log",
    "rot in an index": "index",
    "rot in a checkpoint": "checkpoint",
    "rot in the identity": "identity",
}


class Nemesis:
    def __init__(self, cluster: SimulatedCluster, workload: Workload, schedule: list[Fault], rng: random.Random) -> None:
        self.cluster = cluster
        self.workload = workload
        self.schedule = schedule
        self.random = rng
        self.steps = StepCounter()
        self.carried_out = 0
        self._duels = 0
        self._names = list(cluster.brokers)
        self._acts: dict[str, Callable[[Broker, Broker, Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "cut power": self._cut_power,
            "kill at a step": self._kill_at_a_step,
            "cut power at a disk operation": self._cut_power_at_an_operation,
            "kill the sequencer": self._kill_the_sequencer,
            "kill all": self._kill_all,
            "stop": self._stop,
            "pause": self._pause,
            "isolate": self._isolate,
            "isolate one way": self._isolate_one_way,
            "cut a link": self._cut_a_link,
            "flap": self._flap,
            "split": self._split,
            "slow a link": self._slow_a_link,
            "reset connections": self._reset,
            "slow disk": self._slow_disk,
            "full disk": self._full_disk,
            "sync fails": self._sync_fails,
            "clock jumps": self._clock_jumps,
            "takeovers at once": self._takeovers_at_once,
            "duelling proposers": self._duelling_proposers,
            "storm": self._storm,
            "empty disk": self._empty_disk,
            **dict.fromkeys(ROTS, self._rot),
            "empty two disks": self._empty_two_disks,
            "misdirected write": self._misdirected,
            "lost write": self._lost_write,
        }

    async def run(self) -> None:
        """Each fault at its time, however long the one before lasts."""
        async with trio.open_nursery() as nursery:
            for fault in self.schedule:
                await trio.sleep_until(fault.at)
                nursery.start_soon(self._carry_out, fault)

    async def _carry_out(self, fault: Fault) -> None:
        target = self.cluster.brokers[self._names[fault.target]]
        other = self.cluster.brokers[self._names[fault.other]]
        if fault.kind in LOSSES and (lack := self.cluster.why_not_whole(TOPIC, self.workload.partitions)) is not None:
            self.cluster.note("nemesis", f"only a kill instead of {fault}: {lack}")
            self.cluster.counters["losses left out"] += 1
            fault = fault._replace(kind="kill")
        if fault.kind in LOSSES:
            self.cluster.damaged[target.name] = None
            self.cluster.counters["losses"] += 1
        self.cluster.note("nemesis", str(fault))
        self.cluster.counters[f"fault: {fault.kind}"] += 1
        self.carried_out += 1
        try:
            await self._acts[fault.kind](target, other, fault)
        finally:
            if fault.kind in LOSSES:
                await self._until_whole(target)

    async def _until_whole(self, target: Broker) -> None:
        """One loss is over when everything is on N replicas again. A broker that can't prove its directory any more is rejoined."""
        while target.name in self.cluster.damaged:
            if target.refused:
                self.cluster.note("nemesis", f"rejoins {target.name}, which said: {target.refused}")
                self.cluster.wipe(target.name)
                target.start()
            elif not target.is_up:
                target.start()
            is_whole = self.cluster.why_not_whole(TOPIC, self.workload.partitions, but=target.name) is None
            if is_whole and await self._is_read(target):
                del self.cluster.damaged[target.name]
            else:
                await trio.sleep(0.5)

    async def _is_read(self, target: Broker) -> bool:
        """Rot is made good when it is met, and in the journal when a checkpoint has passed it: until then a restart meets it again."""
        with trio.move_on_after(READS_WITHIN_S):
            try:
                await self.workload.read_from(target.name)
                await target.storage.flush()
            except (StreamqError, StorageFailedError, HostCrashError) as error:  # it may die meanwhile
                self.cluster.note("nemesis", f"reading all of {target.name}: {error}")
            else:
                return True
        return False

    async def _down_for(self, broker: Broker, fault: Fault) -> None:
        await trio.sleep(max(DOWN_MIN_S, fault.lasts_s))
        broker.start()

    # --- processes and machines

    async def _kill(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.kill()
        await self._down_for(target, fault)

    async def _cut_power(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.cut_power()
        await self._down_for(target, fault)

    async def _kill_at_a_step(self, target: Broker, _other: Broker, fault: Fault) -> None:
        self.steps.arm(target, int(fault.amount * STEPS_MAX))
        await trio.sleep(1.0)
        self.steps.disarm(target)
        await self._down_for(target, fault)

    async def _cut_power_at_an_operation(self, target: Broker, _other: Broker, fault: Fault) -> None:
        if target.is_up:
            target.disk.crash_after(int(fault.amount * DISK_OPERATIONS_MAX))
        await trio.sleep(1.0)
        target.cut_power()
        await self._down_for(target, fault)

    async def _kill_the_sequencer(self, target: Broker, _other: Broker, fault: Fault) -> None:
        register = self.cluster.register(TOPIC, int(fault.amount * self.workload.partitions))
        if register is not None and register.last.sequencer in self.cluster.brokers:
            target = self.cluster.brokers[register.last.sequencer]
        (target.kill if fault.amount < 0.5 else target.cut_power)()
        await self._down_for(target, fault)

    async def _kill_all(self, _target: Broker, _other: Broker, fault: Fault) -> None:
        for broker in self.cluster.brokers.values():
            (broker.kill if fault.amount < 0.5 else broker.cut_power)()
        await trio.sleep(fault.lasts_s)
        for broker in self.cluster.brokers.values():
            broker.start()
            await trio.sleep(fault.amount)

    async def _stop(self, target: Broker, _other: Broker, fault: Fault) -> None:
        with trio.move_on_after(12.0):
            await target.stop()
        target.kill()
        await self._down_for(target, fault)

    async def _pause(self, target: Broker, _other: Broker, fault: Fault) -> None:
        process = target.process
        if process is not None:
            process.stop()
            await trio.sleep(fault.lasts_s)
            process.go_on()

    # --- the network

    async def _blocked(self, links: list[tuple[str, str]], lasts_s: float) -> None:
        for link in links:
            self.cluster.network.block(*link)
        await trio.sleep(lasts_s)
        for link in links:
            self.cluster.network.unblock(*link)

    def _hosts(self) -> list[str]:
        return [*self._names, *self.cluster.client_hosts]

    async def _isolate(self, target: Broker, _other: Broker, fault: Fault) -> None:
        others = [host for host in (self._hosts() if fault.amount < 0.5 else self._names) if host != target.name]
        await self._blocked([(target.name, o) for o in others] + [(o, target.name) for o in others], fault.lasts_s)

    async def _isolate_one_way(self, target: Broker, _other: Broker, fault: Fault) -> None:
        others = [name for name in self._names if name != target.name]
        links = [(target.name, o) for o in others] if fault.amount < 0.5 else [(o, target.name) for o in others]
        await self._blocked(links, fault.lasts_s)

    async def _cut_a_link(self, target: Broker, other: Broker, fault: Fault) -> None:
        both = [(target.name, other.name), (other.name, target.name)]
        await self._blocked(both if fault.amount < 0.5 else both[:1], fault.lasts_s)

    async def _flap(self, target: Broker, other: Broker, fault: Fault) -> None:
        for _ in range(REPEATS_OF_A_FLAP):
            await self._blocked([(target.name, other.name), (other.name, target.name)], fault.lasts_s * self.random.random())
            await trio.sleep(fault.lasts_s * self.random.random())

    async def _split(self, _target: Broker, _other: Broker, fault: Fault) -> None:
        hosts = self._hosts()
        side = {host for host in hosts if self.random.random() < 0.5}
        await self._blocked([(a, b) for a in hosts for b in hosts if (a in side) != (b in side)], fault.lasts_s)

    async def _slow_a_link(self, target: Broker, other: Broker, fault: Fault) -> None:
        network = self.cluster.network
        for link in ((target.name, other.name), (other.name, target.name)):
            network.slow(*link, fault.amount * 0.4)
        await trio.sleep(fault.lasts_s)
        for link in ((target.name, other.name), (other.name, target.name)):
            network.slow(*link, 0.0)

    async def _reset(self, target: Broker, other: Broker, fault: Fault) -> None:
        self.cluster.network.reset(target.name, other.name if fault.amount < 0.5 else None)

    # --- disks and clocks

    async def _slow_disk(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.disk.slowness = 10 ** (1 + 2 * fault.amount)
        await trio.sleep(fault.lasts_s)
        target.disk.slowness = 1.0

    async def _full_disk(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.disk.fill(leaving_bytes=int(fault.amount * RESERVE_BYTES))
        await trio.sleep(fault.lasts_s)
        target.disk.free_up()

    async def _sync_fails(self, target: Broker, _other: Broker, fault: Fault) -> None:
        """P-15: it is final, whatever later syncs say."""
        process, failed_before = target.process, target.disk.failed_syncs
        if process is not None:
            target.disk.fail_next_sync()
        await trio.sleep(2.0)
        target.disk.disarm()
        has_failed = target.disk.failed_syncs > failed_before
        self.cluster.counters["failed_syncs"] += has_failed
        await trio.sleep(max(DOWN_MIN_S, fault.lasts_s))
        if has_failed and process is not None and target.process is process:
            await trio.sleep(1.0)  # it was paused, perhaps
            if target.process is process and not process.is_stopped:
                self.cluster.fail(f"{target.name} goes on after a sync has failed (P-15)")
        target.start()

    async def _clock_jumps(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.clock.jump_ms += int((2 * fault.amount - 1) * JUMP_MS)

    # --- losses

    async def _empty_disk(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.cut_power()
        self.cluster.wipe(target.name)
        await self._down_for(target, fault)

    async def _empty_two_disks(self, target: Broker, other: Broker, fault: Fault) -> None:
        """More than the protocol bears with W = 2; no schedule has it, but a test that wants to see a run fail."""
        for broker in (target, other):
            broker.cut_power()
            self.cluster.damaged[broker.name] = None
            self.cluster.wipe(broker.name)
            broker.start()

    async def _rot(self, target: Broker, _other: Broker, fault: Fault) -> None:
        where = ROTS[fault.kind]
        if where not in ("log", "index") or fault.amount < 0.5:
            await self._end_when_idle(target, target.kill)
        self.cluster.note("nemesis", f"damaged: {target.disk.rot(where)}")
        await self._down_for(target, fault)

    async def _misdirected(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.disk.misdirect_next_write("journal" if fault.amount < 0.6 else "log")
        await trio.sleep(2.0)
        await self._end_when_idle(target, target.cut_power)
        target.disk.disarm()
        await self._down_for(target, fault)

    async def _lost_write(self, target: Broker, _other: Broker, fault: Fault) -> None:
        target.disk.lose_next_write("journal" if fault.amount < 0.6 else "log")
        await trio.sleep(2.0)
        await self._end_when_idle(target, target.cut_power)
        target.disk.disarm()
        await self._down_for(target, fault)

    async def _end_when_idle(self, target: Broker, end: Callable[[], None]) -> None:
        """Damage to the last group of a journal that nothing proves cannot be told from a torn tail (I-1): its idle mark is waited for."""
        others = [host for host in self._hosts() if host != target.name]
        await self._blocked([(o, target.name) for o in others], IDLE_S)
        end()

    # --- many at once

    async def _takeovers_at_once(self, _target: Broker, _other: Broker, fault: Fault) -> None:
        index = int(fault.amount * self.workload.partitions)
        register = self.cluster.register(TOPIC, index)
        if register is not None:
            async with trio.open_nursery() as nursery:
                for broker in self.cluster.brokers.values():
                    if broker.is_serving:
                        nursery.start_soon(self._ask_to_take_over, broker, index, register.last.epoch)

    async def _ask_to_take_over(self, broker: Broker, index: int, epoch: int) -> None:
        """As another broker would."""
        hello = Hello(PROTOCOL_VERSIONS, (), "nemesis", self.cluster.cluster_id, "nemesis", bytes(16))
        with trio.move_on_after(3.0):
            try:
                stream = await self.cluster.network.connect("nemesis", broker.name, PORT)
                ask = [PREAMBLE, *encode_frame(hello, request=1), *encode_frame(TakeOver(TOPIC, index, epoch), request=2)]
                await stream.send_all(b"".join(ask))
                while await stream.receive_some():
                    pass
            except (trio.BrokenResourceError, StreamqError) as error:
                self.cluster.note("nemesis", f"asking {broker.name} to take over: {error!r}")

    async def _duelling_proposers(self, _target: Broker, _other: Broker, _fault: Fault) -> None:
        """The same topic is made at every broker at once: one of them may make it, and then it is there for all."""
        self._duels += 1
        name = f"duel{self._duels}"
        made: dict[bytes, str] = {}
        async with trio.open_nursery() as nursery:
            for broker in self.cluster.brokers.values():
                nursery.start_soon(self._create, broker, name, made)
        if len(made) > 1:
            self.cluster.fail(f"topic {name} was made {len(made)} times, by {', '.join(made.values())}")
        for maker in made.values():
            await self._admin(self.cluster.brokers[maker], DeleteTopic(name), Ok)

    async def _create(self, broker: Broker, name: str, made: dict[bytes, str]) -> None:
        created = await self._admin(broker, CreateTopic(name, 1, 0, 0, 0, "fsync"), TopicCreated)
        if created is not None:
            made[created.topic.id] = broker.name

    async def _admin(self, broker: Broker, message: Message, kind: type[Answer]) -> Answer | None:
        """One question to one broker; None if it was not answered, or with an error."""
        with trio.move_on_after(ADMIN_S):
            try:
                async with connect(Address(broker.name, PORT), host=self.workload.host("admin")) as client:
                    return await client.request(message, kind)
            except StreamqError as error:
                self.cluster.note("nemesis", f"{message} at {broker.name}: {error.code}")
                self.cluster.counters[f"admin: {error.code}"] += 1
        return None

    async def _storm(self, _target: Broker, _other: Broker, fault: Fault) -> None:
        await self.workload.storm(int(20 + 100 * fault.amount))

    # --- the end

    async def heal(self, *, dead: list[str]) -> None:
        """Everything works again, but brokers named in `dead`, which stay away."""
        cluster = self.cluster
        cluster.note("nemesis", f"heals everything; dead for good: {dead or 'nobody'}")
        cluster.network.heal()
        for broker in cluster.brokers.values():
            self.steps.disarm(broker)
            broker.disk.slowness = 1.0
            broker.disk.free_up()
            if broker.process is not None:
                broker.process.go_on()
            if broker.name in dead:
                broker.kill()
                broker.is_gone = True
            else:
                broker.start()
