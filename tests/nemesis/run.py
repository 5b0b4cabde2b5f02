"""One run from founding to verdict."""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import trio

from streamq.client.cluster import Cluster as ClientCluster
from streamq.model.errors import UnavailableError
from streamq.model.messages import BrokerState, BrokerStatus, CreateTopic, TopicCreated
from tests.nemesis import network
from tests.nemesis.cluster import Cluster
from tests.nemesis.disks import SmallDisk
from tests.nemesis.evidence import LAST_READER, UnreadableError, read_disks, read_logs
from tests.nemesis.faults import KINDS, Kind, Scene
from tests.nemesis.nemesis import Nemesis, NotSteadyError
from tests.nemesis.network import Network
from tests.nemesis.report import Report, longest_gaps, outcomes, unavailability
from tests.nemesis.workload import TOPIC, Workload
from tests.sim.checkers import check, told

__all__ = ["Plan", "run"]

FOUND_S: Final = 60.0
SETTLE_S: Final = 2.0


class Plan(NamedTuple):
    seconds: float
    seed: int
    brokers: int
    write: int
    partitions: int = 4
    kinds: tuple[str, ...] = ()
    """Only these; all that can be done here if empty."""


def run(plan: Plan) -> Report:
    """Keeps the brokers' directories if anything is wrong with the run, or with the nemesis itself."""
    directory = Path(tempfile.mkdtemp(prefix="streamq-nemesis-"))
    is_kept = False
    try:
        with _cluster(plan, directory) as (cluster, small):
            try:
                report = _run(plan, cluster, small)
                is_kept = bool(report.violations)
            except Exception:
                is_kept = True
                raise
            finally:
                if is_kept:
                    _keep(cluster, directory / "kept")
                    print(f"the brokers' directories are kept in {directory}", flush=True)
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)
    return report


@contextmanager
def _cluster(plan: Plan, directory: Path) -> Iterator[tuple[Cluster, tuple[str, SmallDisk] | None]]:
    names = [f"b{i + 1}" for i in range(plan.brokers)]
    with ExitStack() as stack:
        small = None
        net = None
        if network.is_inside():
            net = stack.enter_context(Network(names))
            small = (names[-1], SmallDisk(directory / "small"))
        data_at = {small[0]: small[1].data} if small else None
        yield stack.enter_context(Cluster(directory, plan.brokers, network=net, data_at=data_at)), small


def _run(plan: Plan, cluster: Cluster, small: tuple[str, SmallDisk] | None) -> Report:
    workload = Workload(cluster, partitions=plan.partitions, seed=plan.seed)
    rng = random.Random(plan.seed)
    scene = Scene(cluster, workload, rng, losses_max=plan.write - 1, small=small)
    kinds, skipped = _possible(plan, scene)
    nemesis = Nemesis(scene, kinds, rng)
    violations: list[str] = []
    began = time.monotonic()
    try:
        trio.run(_under_faults, plan, nemesis)
        took = time.monotonic() - began
        violations += [f"{broker.name} did not stop gracefully in the end" for broker in cluster.brokers.values() if not broker.stop()]
        read_disks(cluster, workload)
    except* (NotSteadyError, UnreadableError) as group:
        took = time.monotonic() - began
        violations += [str(error) for error in _leaves(group)]
    history = workload.history
    if history.log:
        anomalies = check(history)
        violations += [told(anomalies)] if anomalies else []
    violations += [*workload.wrong, *cluster.faults_in_logs()]
    on_the_way = [poll for poll in history.polls if not poll.consumer.startswith(LAST_READER)]
    happened = {"fault": nemesis.episodes, "read": on_the_way, "tip read": history.tips}
    violations += [f"nothing was proved: there was no {what}" for what, of in happened.items() if not of]
    gaps, quiet = longest_gaps(history, nemesis.episodes)
    return Report(
        seed=plan.seed,
        brokers=plan.brokers,
        write=plan.write,
        seconds=took,
        records=sum(len(log) for log in history.log.values()),
        outcomes=outcomes(history),
        read=sum(len(poll.records) for poll in on_the_way),
        tips=len(history.tips),
        epochs=sum(versions[-1].last.epoch for versions in history.registers.values()),
        happened=cluster.happened(),
        troubles=dict(workload.troubles),
        unavailable=unavailability(gaps),
        quiet=quiet,
        skipped=skipped,
        violations=violations,
    )


async def _under_faults(plan: Plan, nemesis: Nemesis) -> None:
    workload = nemesis.workload
    await _create_topic(plan, workload.cluster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workload.run)
        await nemesis.run(seconds=plan.seconds)
        await nemesis.until_whole()
        workload.stop_sending()
    await nemesis.until_whole()
    await read_logs(workload)


async def _create_topic(plan: Plan, cluster: Cluster) -> None:
    order = CreateTopic(TOPIC, plan.partitions, plan.brokers, plan.write, 0, "fsync")
    with trio.fail_after(FOUND_S):
        while True:
            try:
                async with ClientCluster(cluster.bootstrap) as client:
                    for name in cluster.names:
                        while (await client.request(BrokerStatus(), BrokerState, broker=name)).state != "serving":
                            await trio.sleep(0.1)
                    await client.request(order, TopicCreated, timeout_s=FOUND_S)
                    return
            except UnavailableError:
                await trio.sleep(0.1)  # they are starting


def _possible(plan: Plan, scene: Scene) -> tuple[tuple[Kind, ...], list[str]]:
    """The kinds of fault that can be done here, and why others can't."""
    possible, skipped = [], []
    reason = network.why_not() or "run it through the command, which makes the namespaces"
    for kind in KINDS:
        if plan.kinds and kind.name not in plan.kinds:
            continue
        if (kind.needs_network and scene.cluster.network is None) or (kind.needs_small_disk and scene.small is None):
            skipped.append(f"{kind.name}: {reason}")
        elif kind.loses > scene.losses_max:
            skipped.append(f"{kind.name}: W = {plan.write} survives the loss of {scene.losses_max} only (I-1)")
        else:
            possible.append(kind)
    return tuple(possible), skipped


def _keep(cluster: Cluster, where: Path) -> None:
    """What lies on the small disk is gone with the namespaces."""
    for broker in cluster.brokers.values():
        broker.kill()
        if broker.data.parent != broker.directory:
            shutil.copytree(broker.data, where / broker.name, ignore_dangling_symlinks=True)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
