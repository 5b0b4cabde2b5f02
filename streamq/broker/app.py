"""The composition root: everything of one broker put together, started, and stopped in order.

`run_broker` takes storage, network and clock as they come, so that a simulation can bring its own; `process` is the process around it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from streamq import __version__
from streamq.broker.config import BrokerConfig
from streamq.broker.local_acceptor import LocalAcceptor
from streamq.broker.lookout import Lookout
from streamq.broker.metrics import BrokerMetrics, Usage
from streamq.broker.news import read_news
from streamq.broker.node import FORGOTTEN_KEY, Clock, Node
from streamq.broker.partition import Partition, nothing, replica_key, table_key
from streamq.broker.peers import Peers
from streamq.broker.readmission import Readmissions, join_cluster
from streamq.broker.refills import Refills
from streamq.broker.registers import Registers
from streamq.broker.requests import Requests
from streamq.broker.retention import Trims
from streamq.broker.router import BrokerRouter
from streamq.broker.server import Server
from streamq.broker.stalls import Stalls
from streamq.broker.successions import Successions
from streamq.broker.transactions import Transactions
from streamq.log.idempotence import IdempotenceTable, TableSnapshot
from streamq.log.replica_state import ReplicaState
from streamq.model.errors import StreamqError
from streamq.model.ids import PartitionId
from streamq.model.messages import AnyMessage, Message
from streamq.model.registers import BrokerRegister, broker_key
from streamq.net.network import Network
from streamq.net.poller import Poller
from streamq.storage.interface import Lost, LostBatches, LostState, LostUnknown, Storage
from streamq.wire.codec import decode_value

__all__ = ["Stopping", "load_partitions", "run_broker"]

log = logging.getLogger(__name__)

SOFTWARE: Final = f"streamq/{__version__}"
WATERMARK_INTERVAL_S: Final = 0.003
"""A watermark that no store carries is told after so long (4.5)."""
LEARN_AT_ONCE: Final = 64
ADDRESSES_INTERVAL_S: Final = 2.0
REPLICA_PREFIX: Final = replica_key(b"")


class Stopping:
    """Asked for once, by a signal or a `Stop` message."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def __call__(self) -> None:
        self.event.set()


async def run_broker(
    config: BrokerConfig,
    storage: Storage,
    network: Network,
    clock: Clock,
    *,
    stop: Stopping,
    on_serving: Callable[[], None],
    metrics: BrokerMetrics | None = None,
    usage: Usage | None = None,
) -> None:
    """Runs one broker until `stop` is called; then hands over what it sequences, closes the storage and returns.

    Cancelled, it stops where it is, like a crash. What happens is counted in `metrics`, if given; `usage` says what the process takes, if
    it is the broker's alone. Raises StorageFailedError when the disk fails, StreamqError when it must not serve.
    """
    async with trio.open_nursery() as outer:
        node = Node(config, storage, clock, outer, metrics)
        # Limbo is written before anything else, so that it is durable before anything damaged is cut (P-29).
        load_partitions(node)
        outer.start_soon(storage.run, node.on_durable, name="storage")
        async with trio.open_nursery() as inner:
            node.nursery = inner
            await _serve(node, network, stop, on_serving, usage)
            inner.cancel_scope.cancel()
        outer.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await storage.close()


def load_partitions(node: Node) -> None:
    """Makes a runner for each partition that lies here, in limbo where something was lost (P-29)."""
    storage = node.storage
    if any(isinstance(each, LostUnknown) for each in storage.lost):
        log.warning("what was lost cannot be told: in limbo for every partition until the registers are read")
        storage.append((), ((FORGOTTEN_KEY, b"1"),), nothing)
    node.has_forgotten = FORGOTTEN_KEY in storage.states()
    for key, value in dict(storage.states()).items():
        if key.startswith(REPLICA_PREFIX):
            state = decode_value(ReplicaState, value)
            node.partitions[state.id] = Partition(node, state, _table(storage, state.id))
    for identity in storage.partitions():
        node.partitions.setdefault(identity, Partition(node, ReplicaState(identity), _table(storage, identity)))
    for identity in _partitions_of(storage.lost, node.partitions):
        partition = node.partitions.setdefault(identity, Partition(node, ReplicaState(identity)))
        log.warning("%s: acknowledged data was lost; in limbo until it is copied again", partition.name)
        node.metrics.limbo += 1
        partition.carry_out(partition.replica.enter_limbo())
    for partition in node.partitions.values():
        partition.carry_out(partition.replica.on_restart())
        if not storage.was_stopped_cleanly:  # P-37
            partition.carry_out(partition.replica.enter_limbo_of(partition.replica.memory_epochs()))
        partition.give_back()

    def tables() -> Sequence[tuple[str, bytes]]:
        return [(table_key(p.id), p.encoded_table()) for p in node.partitions.values() if p.replica.table.position]

    def kept() -> None:
        for partition in list(node.partitions.values()):
            partition.on_checkpoint()

    storage.at_checkpoint(tables, kept)


def _table(storage: Storage, partition: PartitionId) -> IdempotenceTable | None:
    value = storage.states().get(table_key(partition))
    return IdempotenceTable.restore(decode_value(TableSnapshot, value)) if value is not None else None


def _partitions_of(lost: Sequence[Lost], known: dict[PartitionId, Partition]) -> list[PartitionId]:
    """Whose data or promises may be gone (P-29)."""
    found: dict[PartitionId, None] = {}
    for each in lost:
        if isinstance(each, LostBatches):
            found[each.partition] = None
        elif isinstance(each, LostState) and each.key.startswith(REPLICA_PREFIX):
            found[bytes.fromhex(each.key.removeprefix(REPLICA_PREFIX))] = None
        elif isinstance(each, LostUnknown):
            return list(known)
    return list(found)


async def _serve(node: Node, network: Network, stop: Stopping, on_serving: Callable[[], None], usage: Usage | None) -> None:
    config, storage, nursery = node.config, node.storage, node.nursery
    acceptor = LocalAcceptor(storage, new_incarnation=node.clock.token)

    async def request(broker: str, message: Message, timeout_s: float) -> AnyMessage:
        return await node.peers.request(broker, message, timeout_s)

    node.registers = Registers(
        local=acceptor,
        request=request,
        nursery=nursery,
        start=node.clock.token(),
        jitter=node.clock.random,
        request_timeout_s=config.request_timeout_s,
        deadline_s=config.register_timeout_s,
    )
    readmissions = Readmissions(registers=node.registers, local=acceptor, nursery=nursery)
    successions = Successions(node)
    node.take_over_here = successions.take_over_here
    transactions = Transactions(node)
    acceptor.on_voted = transactions.on_voted
    router = BrokerRouter(node, acceptor, successions, Requests(node, readmissions, successions, transactions, stop, usage))
    poller = Poller(after_pass=node.flush)
    node.peers = Peers(
        config,
        node.identity,
        network,
        software=SOFTWARE,
        deliver=router.deliver_from_peer,
        after_chunk=node.flush,
        connected=router.peer_connected,
        suspected=successions.on_suspected,
        poller=poller,
    )
    # The newest configuration adopted here counts: a voter that was re-admitted may have moved.
    for voter in acceptor.voters.voters:
        node.peers.learn(voter.broker, voter.host, voter.port)
    node.registers.subscribe("broker/", lambda key, value: _learn_broker(node, value))
    server = Server(
        config,
        node.identity,
        router,
        software=SOFTWARE,
        heard=node.peers.heard_incoming,
        unread=node.peers.unread,
        lost=node.peers.incoming_lost,
        metrics=node.metrics,
        poller=poller,
    )
    node.sessions = server.sessions
    listener = await network.listen(config.host, config.port)
    if config.listens_beyond_loopback:
        log.warning(
            "listening on %s, beyond this machine: there is no authentication yet; whoever reaches the port can read and write", config.host
        )
    nursery.start_soon(poller.run, name="poller")
    nursery.start_soon(server.run, listener, name="server")
    nursery.start_soon(node.peers.run, name="peers")
    host, port = config.address
    register = BrokerRegister(node.broker, node.me.incarnation, host, port, config.rack, node.identity.starts)
    async with trio.open_nursery() as joining:

        async def join() -> None:
            await join_cluster(
                registers=node.registers, local=acceptor, register=register, bootstrap=lambda: [p.broker for p in node.peers]
            )
            joining.cancel_scope.cancel()

        joining.start_soon(join)
        await stop.event.wait()
    if stop.event.is_set():
        return
    node.state = "serving"
    nursery.start_soon(node.tell_watermarks, WATERMARK_INTERVAL_S, name="watermarks")
    nursery.start_soon(successions.run, name="successions")
    nursery.start_soon(read_news, node, successions.learn, name="news")
    nursery.start_soon(Refills(node).run, name="refills")
    nursery.start_soon(Trims(node).run, name="trims")
    nursery.start_soon(Stalls(node).run, name="stalls")
    nursery.start_soon(_learn, node, successions, name="learn")
    nursery.start_soon(_learn_addresses, node, name="addresses")
    on_serving()
    await stop.event.wait()
    node.state = "stopping"
    with trio.move_on_after(config.stop_timeout_s):
        await successions.hand_over_all()
        for partition in list(node.partitions.values()):
            if partition.sequencing is not None:
                partition.sequencing.retire("the broker stops")
        await server.drain()


def _learn_broker(node: Node, value: bytes) -> None:
    register = decode_value(BrokerRegister, value)
    node.peers.learn(register.broker, register.host, register.port)


async def _learn(node: Node, successions: Successions) -> None:
    """After a start: what became of the partitions here meanwhile, and where the other brokers are."""
    limiter = trio.CapacityLimiter(LEARN_AT_ONCE)

    async def learn(partition: Partition) -> None:
        async with limiter:
            with suppress(StreamqError):
                await successions.learn(partition)

    async with trio.open_nursery() as nursery:
        for partition in list(node.partitions.values()):
            nursery.start_soon(learn, partition)
    with suppress(StreamqError):
        for key in await node.registers.list(broker_key("")):
            await node.registers.get(key)


async def _learn_addresses(node: Node) -> None:
    """Until cancelled: where the brokers are that this one needs and is not connected to. They may be new to it, or have moved."""
    lookout = Lookout(node, interval_s=ADDRESSES_INTERVAL_S)
    named: set[str] = set()
    while True:
        await trio.sleep(ADDRESSES_INTERVAL_S)
        named.update(m.broker for p in lookout.due() if p.open_segment is not None for m in p.open_segment.replicas)
        for broker in sorted(named | {peer.broker for peer in node.peers}):
            peer = node.peers.get(broker)
            if broker != node.broker and (peer is None or peer.channel is None):
                with suppress(StreamqError):
                    await node.registers.get(broker_key(broker))
