"""A cluster for tests of any kind: brokers in a thread with an event loop of its own, storage in memory, TCP on loopback."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

import trio

from streamq.client.cluster import Cluster
from streamq.model.messages import CreateTopic, TopicCreated
from streamq.testing.in_process import ClusterInProcess
from streamq.testing.in_process import cluster as cluster_in_loop

__all__ = ["ClusterInThread", "cluster"]

START_S: Final = 20.0
CALL_S: Final = 20.0


class ClusterInThread:
    """Brokers b1, b2, … Methods block, and may be called from any thread; under an event loop that is a few milliseconds."""

    def __init__(self, running: ClusterInProcess, nursery: trio.Nursery, token: trio.lowlevel.TrioToken) -> None:
        self.bootstrap: Final = running.bootstrap
        """Addresses for a client: all brokers."""
        self.brokers: Final = tuple(running.brokers)
        self._running = running
        self._nursery = nursery
        self._token = token

    def create_topic(self, name: str, *, partitions: int = 1, replicas: int = 0, write_quorum: int = 0, read_quorum: int = 0) -> None:
        """As `streamq topic create`; 0 leaves a number to the broker. Raises what that says, AlreadyExistsError for one."""

        async def create() -> None:
            async with Cluster(self.bootstrap) as client:
                await client.request(CreateTopic(name, partitions, replicas, write_quorum, read_quorum, "fsync"), TopicCreated)

        self._call(create)

    def kill(self, broker: str) -> None:
        """Ends it where it is, as SIGKILL and a power cut at once would: what was not durable is gone."""
        self._call(self._running.kill, broker)

    def stop(self, broker: str) -> None:
        """Gracefully: it hands over what it sequences."""
        self._call(self._running.stop, broker)

    def start(self, broker: str) -> None:
        """Starts one that was killed or stopped, on what lies on its disk, and returns when it serves."""
        self._call(self._running.start, broker)

    def pause(self, broker: str) -> None:
        """Has it stand still, as SIGSTOP would, for all that others see of it: it neither answers nor hears and writes nothing, and its
        connections stay. `resume` ends it, and so does `kill`. Its own clock goes on: what it had planned meanwhile it does then."""
        self._call_plain(self._running.brokers[broker].pause)

    def resume(self, broker: str) -> None:
        """It answers what came meanwhile, and finds out what it missed."""
        self._call_plain(self._running.brokers[broker].resume)

    def isolate(self, broker: str) -> None:
        """Cuts it off from the other brokers and from clients, silently: nothing is refused or reset, and what is under way arrives after
        `heal`. One that is started while it is isolated does not get far."""
        self._call_plain(self._running.brokers[broker].isolate)

    def heal(self) -> None:
        """Ends what `isolate` has begun, for all brokers."""
        for broker in self._running.brokers.values():
            self._call_plain(broker.heal)

    def _call_plain(self, work: Callable[[], None]) -> None:
        async def carry_out() -> None:
            work()

        self._call(carry_out)

    def _call(self, work: Callable[..., Awaitable[None]], *args: str) -> None:
        done: Future[None] = Future()

        async def carry_out() -> None:
            try:
                with trio.fail_after(CALL_S):
                    await work(*args)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        # Not trio's own way from a thread, which refuses to be called under another event loop of trio.
        self._token.run_sync_soon(lambda: self._nursery.start_soon(carry_out))
        done.result(CALL_S + 1)


@contextmanager
def cluster(brokers: int = 3) -> Iterator[ClusterInThread]:
    """A running cluster for as long as the block lasts; everything of it is gone afterwards. Any number may run at once."""
    started: Future[tuple[ClusterInThread, trio.Event]] = Future()

    async def live() -> None:
        async with cluster_in_loop(brokers, is_gated=True) as running, trio.open_nursery() as nursery:
            ended = trio.Event()
            started.set_result((ClusterInThread(running, nursery, trio.lowlevel.current_trio_token()), ended))
            await ended.wait()
            nursery.cancel_scope.cancel()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="streamq cluster", daemon=True)
    thread.start()
    running, ended = started.result(START_S)
    try:
        yield running
    finally:
        running._token.run_sync_soon(ended.set)
        thread.join()
