"""The schedule: one fault after the other, every kind as often as the others, in an order that the seed decides.

After each fault the cluster has to serve every partition again by itself, within `STEADY_S`. After one that lost data nothing else is lost
until every segment has all its copies again: I-1 promises nothing beyond W - 1 losses at a time.
"""

import random
import time
from typing import Final, NamedTuple

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.errors import StreamqError
from streamq.model.messages import BrokerState, BrokerStatus, PartitionDescription
from streamq.model.registers import PartitionRegister
from streamq_consumer import Consumer
from tests.nemesis.disks import Flip
from tests.nemesis.faults import Kind, Scene
from tests.nemesis.workload import TOPIC

__all__ = ["Episode", "Nemesis", "NotSteadyError"]

STEADY_S: Final = 90.0
WHOLE_S: Final = 180.0
POLL_S: Final = 0.1
BEHIND_MAX: Final = 1000
"""Records that a replica may lag while others are being written."""
now: Final = time.monotonic


class Episode(NamedTuple):
    """One fault: it began, was mended at `healed`, and at `steady` every partition had been written to again."""

    kind: str
    began: float
    healed: float
    steady: float


class NotSteadyError(Exception):
    """The cluster did not come back by itself, or a broker ended that nobody had ended."""


class Nemesis:
    def __init__(self, scene: Scene, kinds: tuple[Kind, ...], rng: random.Random) -> None:
        self.scene = scene
        self.workload = scene.workload
        self.cluster = scene.cluster
        self.kinds = kinds
        self.rng = rng
        """Of the order alone: how much a fault draws may depend on what it meets."""
        self.episodes: list[Episode] = []

    async def run(self, *, seconds: float) -> None:
        """Raises NotSteadyError."""
        await self.until_steady()
        deadline = now() + seconds
        bag: list[Kind] = []
        while now() < deadline:
            if not bag:
                bag = self.rng.sample(self.kinds, len(self.kinds))
            await self.play(bag.pop())
            await trio.sleep(self.rng.uniform(0, 1.5))

    async def play(self, kind: Kind) -> None:
        began = now()
        print(f"{began:.1f} {kind.name}", flush=True)
        self.scene.rng = random.Random(self.rng.random())
        await kind.run(self.scene)
        healed = now()
        await self.until_steady()
        self.episodes.append(Episode(kind.name, began, healed, now()))
        if kind.loses:
            await self.until_whole()

    async def until_steady(self) -> None:
        since = now()
        while any(at <= since for at in self.workload.acked_at):
            self.check_processes()
            if now() - since > STEADY_S:
                silent = [partition for partition, at in enumerate(self.workload.acked_at) if at <= since]
                raise NotSteadyError(f"nothing was acked in partitions {silent} within {STEADY_S:g} s after the fault was over")
            await trio.sleep(POLL_S / 5)

    def check_processes(self) -> None:
        ended = [line for line in self.cluster.unexpected_ends() if line.split()[0] not in self.scene.may_end]
        if ended:
            raise NotSteadyError("; ".join(ended))

    async def until_whole(self) -> None:
        """Until every broker serves and is out of limbo, every segment is held by all its replicas, and damage has been read over."""
        since = now()
        while self.scene.flips:
            await self._read_over(*self.scene.flips.pop())
        while (lacking := await self._lacking()) is not None:
            self.check_processes()
            if now() - since > WHOLE_S:
                raise NotSteadyError(f"not every copy is there again within {WHOLE_S:g} s: {lacking}")
            await trio.sleep(POLL_S)

    async def _read_over(self, name: str, flip: Flip) -> None:
        """Damage in a log file shows when it is read, and counts as a lost copy until then."""
        registers = self.workload.history.registers
        index = next((p for p, versions in registers.items() if versions[-1].id.hex() == flip.partition), None)
        if index is None or flip.end <= flip.base:
            return
        reader = f"reader of the damage at {flip.base} on {name}"
        with trio.move_on_after(WHOLE_S) as scope:
            async with Consumer(self.cluster.bootstrap, topics=[TOPIC], partitions=[index], start=flip.base, broker=name) as consumer:
                while consumer.position(TOPIC, index) < flip.end:
                    self.workload.saw(reader, await consumer.fetch(500, timeout=0.5))
        if scope.cancelled_caught:
            raise NotSteadyError(f"{name} did not serve [{flip.base}, {flip.end}) of partition {index} within {WHOLE_S:g} s after {flip}")

    async def _lacking(self) -> str | None:
        """What is not yet as it should be; None if nothing."""
        try:
            async with ClientCluster(self.cluster.bootstrap) as client:
                states = {
                    name: await client.request(BrokerStatus(), BrokerState, broker=name, timeout_s=2.0) for name in self.cluster.names
                }
                told = [await self.workload.look_at_register(client, p, timeout_s=5.0) for p in range(self.workload.partitions)]
        except StreamqError as error:
            return error.message
        for name, state in states.items():
            if state.state != "serving" or state.limbo:
                return f"{name} is {state.state}, in limbo for {state.limbo} partitions"
        incarnations = {name: state.register.incarnation for name, state in states.items()}
        return next((lack for each in told if (lack := _lack_of(each, incarnations)) is not None), None)


def _lack_of(told: PartitionDescription, incarnations: dict[str, bytes]) -> str | None:
    register: PartitionRegister = told.register
    for segment in register.chain:
        if segment.end != segment.base:
            for member in segment.replicas:
                if incarnations.get(member.broker) != member.incarnation:
                    return f"epoch {segment.epoch} of {register.topic}/{register.index} is lacking on {member.broker}"
    if told.high_watermark is None:
        return told.tip_error
    behind = [view for view in told.replicas if view.local_tail is None or view.local_tail < told.high_watermark - BEHIND_MAX]
    return f"{behind[0].broker} is behind in {register.topic}/{register.index}: {behind[0]}" if behind else None
