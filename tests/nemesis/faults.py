"""What the nemesis does. Each fault is a function that breaks something, lets it be broken for a while, and mends it again."""

import random
import signal
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.errors import StreamqError
from streamq.model.messages import BrokerState, BrokerStatus
from tests.nemesis.cluster import Broker, Cluster
from tests.nemesis.disks import Flip, SmallDisk, flip_in_journal, flip_in_log, lose
from tests.nemesis.network import CLIENTS, CUT
from tests.nemesis.switch import Rule
from tests.nemesis.workload import Workload

__all__ = ["KINDS", "Kind", "Scene"]

REJOIN_S: Final = 60.0


class Scene:
    """What a fault may touch. `small`: the broker whose data lies on the small disk."""

    def __init__(
        self, cluster: Cluster, workload: Workload, rng: random.Random, *, losses_max: int, small: tuple[str, SmallDisk] | None
    ) -> None:
        self.cluster = cluster
        self.workload = workload
        self.rng = rng
        self.losses_max = losses_max
        self.small = small
        self.may_end: set[str] = set()
        """Brokers that may end by themselves during this fault."""
        self.flips: list[tuple[str, Flip]] = []
        """Damage whose repair is still to be waited for."""

    def pick(self, count: int = 1) -> list[Broker]:
        return [self.cluster.brokers[name] for name in self.rng.sample(self.cluster.names, count)]

    def sequencer(self) -> Broker:
        partition = self.rng.randrange(self.workload.partitions)
        versions = self.workload.history.registers.get(partition)
        name = versions[-1].last.sequencer if versions else ""
        return self.cluster.brokers.get(name) or self.pick()[0]

    def others(self, *brokers: Broker) -> list[str]:
        return [name for name in self.cluster.names if name not in {broker.name for broker in brokers}]

    async def wait(self, least: float, most: float) -> None:
        await trio.sleep(self.rng.uniform(least, most))

    async def kill(self, broker: Broker) -> None:
        await trio.to_thread.run_sync(broker.kill)

    async def stop(self, broker: Broker) -> None:
        if not await trio.to_thread.run_sync(broker.stop):
            self.workload.troubles[f"{broker.name} did not stop gracefully"] += 1


Run = Callable[[Scene], Awaitable[None]]


class Kind(NamedTuple):
    name: str
    run: Run
    needs_network: bool = False
    needs_small_disk: bool = False
    loses: int = 0
    """How many brokers lose data by it; all of it is copied again before the next loss (I-1)."""


# --- processes -------------------------------------------------------------------------------------------------------------


async def kill(scene: Scene) -> None:
    (broker,) = scene.pick()
    await scene.kill(broker)
    await scene.wait(0, 3)
    broker.start()


async def kill_sequencer(scene: Scene) -> None:
    broker = scene.sequencer()
    await scene.kill(broker)
    await scene.wait(0, 2)
    broker.start()


async def kill_while_it_starts(scene: Scene) -> None:
    (broker,) = scene.pick()
    for _ in range(3):
        await scene.kill(broker)
        broker.start()
        await scene.wait(0, 0.8)


async def pause(scene: Scene) -> None:
    (broker,) = scene.pick()
    broker.pause()
    await scene.wait(0.2, 4)
    broker.resume()


async def pause_sequencer(scene: Scene) -> None:
    broker = scene.sequencer()
    broker.pause()
    await scene.wait(0.2, 3)
    broker.resume()


async def stutter(scene: Scene) -> None:
    """Stopped and continued at the pace of the failure detector."""
    (broker,) = scene.pick()
    for _ in range(8):
        broker.pause()
        await scene.wait(0.1, 0.9)
        broker.resume()
        await scene.wait(0.02, 0.5)


async def pause_most(scene: Scene) -> None:
    brokers = scene.pick(len(scene.cluster.names) - 1)
    for broker in brokers:
        broker.pause()
    await scene.wait(0.5, 2)
    for broker in brokers:
        broker.resume()
        await scene.wait(0, 0.3)


async def stop(scene: Scene) -> None:
    (broker,) = scene.pick()
    await scene.stop(broker)
    await scene.wait(0, 2)
    broker.start()


async def rolling_restart(scene: Scene) -> None:
    for broker in scene.pick(len(scene.cluster.names)):
        await scene.stop(broker)
        broker.start()
        await scene.wait(0.5, 1.5)


async def double(scene: Scene) -> None:
    first, second = scene.pick(2)
    await scene.kill(first)
    second.pause()
    await scene.wait(0, 2)
    second.resume()
    await scene.wait(0, 0.5)
    first.start()


async def all_killed(scene: Scene) -> None:
    brokers = scene.pick(len(scene.cluster.names))
    for broker in brokers:
        broker.signal(signal.SIGKILL)
    for broker in brokers:
        await scene.kill(broker)
    for broker in brokers:
        broker.start()
        await scene.wait(0, 0.3)


# --- networks --------------------------------------------------------------------------------------------------------------


async def _for_a_while(scene: Scene, least: float = 0.5, most: float = 5) -> None:
    assert scene.cluster.network is not None
    await scene.wait(least, most)
    scene.cluster.network.heal()


async def isolate(scene: Scene) -> None:
    """From all other brokers; clients still reach it."""
    (broker,) = scene.pick()
    assert scene.cluster.network is not None
    scene.cluster.network.both_ways([broker.name], scene.others(broker), CUT)
    await _for_a_while(scene)


async def isolate_from_all(scene: Scene) -> None:
    broker = scene.sequencer()
    assert scene.cluster.network is not None
    scene.cluster.network.both_ways([broker.name], [*scene.others(broker), CLIENTS], CUT)
    await _for_a_while(scene)


async def deaf(scene: Scene) -> None:
    """It hears nobody and is heard."""
    broker = scene.rng.choice((scene.sequencer(), *scene.pick()))
    assert scene.cluster.network is not None
    scene.cluster.network.rule(scene.others(broker), [broker.name], CUT)
    await _for_a_while(scene)


async def mute(scene: Scene) -> None:
    """It hears everybody and is not heard."""
    broker = scene.rng.choice((scene.sequencer(), *scene.pick()))
    assert scene.cluster.network is not None
    scene.cluster.network.rule([broker.name], scene.others(broker), CUT)
    await _for_a_while(scene)


async def cut_pair(scene: Scene) -> None:
    """Two don't see each other and everybody else sees both."""
    first, second = scene.pick(2)
    assert scene.cluster.network is not None
    scene.cluster.network.both_ways([first.name], [second.name], CUT)
    await _for_a_while(scene)


async def halves(scene: Scene) -> None:
    """No majority anywhere but around one broker that both sides see."""
    brokers = [broker.name for broker in scene.pick(len(scene.cluster.names))]
    middle = len(brokers) // 2
    assert scene.cluster.network is not None
    scene.cluster.network.both_ways(brokers[:middle], brokers[middle + 1 :], CUT)
    await _for_a_while(scene)


async def flapping(scene: Scene) -> None:
    (broker,) = scene.pick()
    network = scene.cluster.network
    assert network is not None
    for _ in range(8):
        shape = scene.rng.choice(("both", "deaf", "mute"))
        if shape != "mute":
            network.rule(scene.others(broker), [broker.name], CUT)
        if shape != "deaf":
            network.rule([broker.name], scene.others(broker), CUT)
        await scene.wait(0.05, 0.9)
        network.heal()
        await scene.wait(0.01, 0.5)


async def slow(scene: Scene) -> None:
    """One broker's links, or all, with jitter: frames overtake each other."""
    rule = Rule(delay_s=scene.rng.choice((0.02, 0.1, 0.3)), jitter_s=scene.rng.choice((0, 0.05, 0.2)))
    await _bad_links(scene, rule)


async def lossy(scene: Scene) -> None:
    await _bad_links(scene, Rule(lost=scene.rng.choice((0.02, 0.1, 0.3)), jitter_s=0.01, twice=0.05))


async def _bad_links(scene: Scene, rule: Rule) -> None:
    assert scene.cluster.network is not None
    ones = scene.rng.choice(([scene.pick()[0].name], scene.cluster.names))
    scene.cluster.network.both_ways(ones, scene.cluster.names, rule)
    await _for_a_while(scene, 2, 6)


async def cut_and_kill(scene: Scene) -> None:
    """One is cut off, another dies, and only when it is back the first is seen again."""
    first, second = scene.pick(2)
    assert scene.cluster.network is not None
    scene.cluster.network.both_ways([first.name], scene.others(first), CUT)
    await scene.wait(0, 1.5)
    await scene.kill(second)
    await scene.wait(0, 1)
    if scene.rng.random() < 0.5:
        second.start()
        await scene.wait(0, 1)
        scene.cluster.network.heal()
    else:
        scene.cluster.network.heal()
        await scene.wait(0, 1)
        second.start()


# --- disks -----------------------------------------------------------------------------------------------------------------


async def full_disk(scene: Scene) -> None:
    """Sometimes up to the reserve, and sometimes to the last byte by somebody else: then the broker may stop (P-15)."""
    assert scene.small is not None
    name, disk = scene.small
    leave = scene.rng.choice((0, 1 << 20, 24 << 20))
    scene.may_end.add(name)
    disk.fill(leave_bytes=leave)
    await scene.wait(3, 8)
    disk.free()
    broker = scene.cluster.brokers[name]
    await scene.wait(0.2, 0.4)
    if broker.has_ended:
        scene.workload.troubles["a broker whose disk was full stopped"] += 1
        broker.start()
    scene.may_end.discard(name)


async def flip_journal(scene: Scene) -> None:
    """Of a broker that was killed: one that stops leaves nothing in its journal."""
    (broker,) = scene.pick()
    await scene.kill(broker)
    await _flip(scene, broker, flip_in_journal)


async def flip_log(scene: Scene) -> None:
    (broker,) = scene.pick()
    if scene.rng.random() < 0.5:
        await scene.kill(broker)
    else:
        await scene.stop(broker)
    await _flip(scene, broker, flip_in_log)


async def _flip(scene: Scene, broker: Broker, how: Callable[..., Flip | None]) -> None:
    flip = await trio.to_thread.run_sync(how, broker.data, scene.rng)
    broker.start()
    if flip is None:
        scene.workload.troubles["there was nothing to flip"] += 1
    else:
        scene.flips.append((broker.name, flip))


async def wipe(scene: Scene) -> None:
    await _wipe(scene, *scene.pick())


async def wipe_two(scene: Scene) -> None:
    """The second as soon as the first is a voter again, before it can have copied much: P-40 replaces one voter at a time, and needs all
    others."""
    first, second = scene.pick(2)
    await _wipe(scene, first)
    with trio.move_on_after(REJOIN_S):
        while not await _is_serving(first):
            await trio.sleep(0.02)
    await _wipe(scene, second)


async def _wipe(scene: Scene, broker: Broker) -> None:
    await scene.kill(broker)
    await trio.to_thread.run_sync(lose, broker.data)
    await scene.wait(0, 3)
    await trio.to_thread.run_sync(lambda: scene.cluster.rejoin(broker.name, timeout_s=REJOIN_S))


async def _is_serving(broker: Broker) -> bool:
    try:
        async with ClientCluster(broker.address) as client:
            return (await client.request(BrokerStatus(), BrokerState, timeout_s=1.0)).state == "serving"
    except StreamqError:
        return False


KINDS: Final = (
    Kind("kill", kill),
    Kind("kill-sequencer", kill_sequencer),
    Kind("kill-while-it-starts", kill_while_it_starts),
    Kind("pause", pause),
    Kind("pause-sequencer", pause_sequencer),
    Kind("stutter", stutter),
    Kind("pause-most", pause_most),
    Kind("stop", stop),
    Kind("rolling-restart", rolling_restart),
    Kind("double", double),
    Kind("all-killed", all_killed),
    Kind("isolate", isolate, needs_network=True),
    Kind("isolate-from-all", isolate_from_all, needs_network=True),
    Kind("deaf", deaf, needs_network=True),
    Kind("mute", mute, needs_network=True),
    Kind("cut-pair", cut_pair, needs_network=True),
    Kind("halves", halves, needs_network=True),
    Kind("flapping", flapping, needs_network=True),
    Kind("slow", slow, needs_network=True),
    Kind("lossy", lossy, needs_network=True),
    Kind("cut-and-kill", cut_and_kill, needs_network=True),
    Kind("full-disk", full_disk, needs_small_disk=True),
    Kind("flip-journal", flip_journal, loses=1),
    Kind("flip-log", flip_log, loses=1),
    Kind("wipe", wipe, loses=1),
    Kind("wipe-two", wipe_two, loses=2),
)
