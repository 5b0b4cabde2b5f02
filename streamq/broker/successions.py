"""When this broker takes a partition over, or has it taken over (P-19 to P-22). Only liveness depends on what is decided here."""

import logging
from typing import Final

import trio

from streamq.broker.lookout import Lookout
from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.broker.sequencing import Sequencing
from streamq.broker.takeovers import take_over
from streamq.log.replica_state import ReplicaState
from streamq.log.takeover import Phase
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError
from streamq.model.ids import Member, PartitionId
from streamq.model.messages import Copied, Copy, TakenOver, TakeOver
from streamq.model.registers import PartitionRegister, Segment, partition_key

__all__ = ["Successions"]

log = logging.getLogger(__name__)

TAKEOVERS_AT_ONCE: Final = 16
"""So that a broker which lost a peer with a thousand partitions does not drown in its own takeovers."""
RETRY_FIRST_S: Final = 0.03
RETRY_MAX_S: Final = 1.0
NEW_EPOCH_INTERVAL_S: Final = 2.0
"""A replica that is gone brings about at most one new epoch in this time (P-22)."""
SEND_HOME_INTERVAL_S: Final = 10.0
"""Between two handoffs of a partition to the broker that it prefers: one that cannot take it yet costs an epoch each time."""
CHECK_INTERVAL_S: Final = 0.5
PATIENCE_FIRST_S: Final = 1.0
PATIENCE_MAX_S: Final = 30.0
"""Before a takeover from a sequencer that somebody else reaches, though this broker does not."""
DRAIN_TIMEOUT_S: Final = 1.0
HANDOFF_TIMEOUT_S: Final = 3.0


class Successions:
    """Watches the open epochs of the replicas here: whose sequencer is down, who is next in rank, who should have it back."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._limiter = trio.CapacityLimiter(TAKEOVERS_AT_ONCE)
        self._handoffs = trio.CapacityLimiter(TAKEOVERS_AT_ONCE)
        self._alive_since: dict[str, float] = {}
        self._home_at: dict[PartitionId, float] = {}
        self._new_epoch_at: dict[PartitionId, float] = {}
        self._patience: dict[PartitionId, tuple[float, float]] = {}
        """How long it was waited last (`_patience_s`), and until when."""
        self._lookout = Lookout(node, interval_s=CHECK_INTERVAL_S)
        self._peers_seen: list[tuple[str, bool, Member | None]] = []

    # --- being asked

    async def take_over_here(self, topic: str, index: int, epoch: int, why: str) -> PartitionRegister:
        """Takes the partition over on this broker if `epoch` is still open; the register afterwards, whoever won. Raises StreamqError."""
        while True:
            partition = self.node.by_place(topic, index)
            if partition is None:
                partition = await self._adopt(topic, index)
            async with self._limiter:
                opened = partition.open_segment
                if opened is None or opened.epoch <= epoch:
                    await take_over(partition, epoch, why)
            register = await self._living_register(topic, index)
            if register.id == partition.id:
                break
            partition.drop()  # P-39: the topic was made again, and of the deletion before nothing was heard here
        if register.last.epoch <= epoch:
            raise UnavailableError(f"{topic}/{index} could not be taken over from epoch {epoch}", code="unavailable")
        return register

    async def _adopt(self, topic: str, index: int) -> Partition:
        """A partition whose register names this broker and of which nothing lies here yet."""
        register = await self._living_register(topic, index)
        if register.last.member(self.node.broker) is None:
            raise UnavailableError(f"broker {self.node.broker} is no replica of {topic}/{index}", code="not_replica")
        partition = self.partition(register.id)
        partition.learn(register)
        return partition

    async def _living_register(self, topic: str, index: int) -> PartitionRegister:
        register = await self.node.registers.get_as(PartitionRegister, partition_key(topic, index))
        if register is None or register.deleted:
            raise NotFoundError(f"partition {topic}/{index} does not exist", code="unknown_partition")
        return register

    def partition(self, identity: PartitionId) -> Partition:
        """The runner of this partition, made if it is the first time that this broker hears of it."""
        return self.node.partitions.setdefault(identity, self.stranger(identity))

    def stranger(self, identity: PartitionId) -> Partition:
        """The runner of this partition, or one to answer with and forget: messages that promise nothing leave nothing behind."""
        partition = self.node.partitions.get(identity)
        return partition or Partition(self.node, ReplicaState(identity, limbo_everywhere=self.node.has_forgotten))

    async def learn(self, partition: Partition) -> None:
        """Reads the partition's register; takes it in, or drops the partition if its topic is gone. Raises StreamqError."""
        state = partition.replica.state
        if not state.topic:
            return  # only a seal or a tip ever named it: its `Open` will say more
        register = await self.node.registers.get_as(PartitionRegister, partition_key(state.topic, state.index))
        if register is None:
            return
        if register.deleted or register.id != partition.id:
            # P-39: a topic created again has new ids, so this one is gone for ever either way; a quorum read said so.
            log.info("%s was deleted: dropping its data", partition.name)
            partition.drop()
        else:
            partition.learn(register)

    async def confirm_deleted(self, told: PartitionRegister) -> None:
        """Somebody says that the partition was deleted: believed after a quorum read only."""
        partition = self.node.partitions.get(told.id)
        if partition is None:
            return
        try:
            await self.learn(partition)
        except StreamqError as error:
            log.info("%s: its deletion could not be confirmed yet: %s", partition.name, error)

    # --- noticing

    def on_suspected(self, broker: str) -> None:
        """That broker does not answer: its open epochs are taken over, in rank order."""
        self.node.metrics.suspicions += 1
        for partition in self.node.partitions.values():
            opened = partition.open_segment
            if opened is not None and opened.sequencer == broker:
                self.consider(partition, f"its sequencer {broker} does not answer")

    def consider(self, partition: Partition, why: str) -> None:
        """Starts a takeover of the open epoch after this broker's turn in rank, unless one is under way."""
        opened = partition.open_segment
        if opened is None or "succession" in partition.busy or self.node.state != "serving":
            return
        if opened.member(self.node.broker) is None:
            return
        partition.busy.add("succession")
        self.node.nursery.start_soon(self._succeed, partition, opened, why, name=f"succession {partition.name}")

    def _rank(self, partition: Partition, opened: Segment) -> int:
        """This broker's turn among the replicas that are alive; the first differs from partition to partition, so that load is spread."""
        alive = sorted(m.broker for m in opened.replicas if m.broker != opened.sequencer and self.node.peers.is_alive(m.broker))
        if self.node.broker not in alive:
            return 0
        first = (partition.id[0] + opened.epoch) % len(alive)
        return (alive.index(self.node.broker) - first) % len(alive)

    def _patience_s(self, partition: Partition, opened: Segment) -> float:
        """How long to let a sequencer be that somebody reaches, though this broker does not; twice as long each time.

        Who opened its epoch while this broker could not reach it lives: the way between the two is broken. Both would take over from each
        other for ever (P-19: to keep duels rare, who lost one backs off). Those who reach it are as quick as ever to notice its end.
        """
        since = self.node.peers.dead_since(opened.sequencer)
        epoch, learned_at = partition.newest_epoch
        if since is None or epoch != opened.epoch or learned_at <= since:
            return 0.0
        now = trio.current_time()
        last_s, until = self._patience.get(partition.id, (0.0, now))
        patience_s = PATIENCE_FIRST_S if now > until + 2 * PATIENCE_MAX_S else min(max(2 * last_s, PATIENCE_FIRST_S), PATIENCE_MAX_S)
        self._patience[partition.id] = patience_s, now + patience_s
        return patience_s

    async def _succeed(self, partition: Partition, opened: Segment, why: str) -> None:
        try:
            await trio.sleep(self._rank(partition, opened) * self.node.config.takeover_rank_delay_s)
            if patience_s := self._patience_s(partition, opened):
                with trio.move_on_after(patience_s):
                    while self._is_current(partition, opened):
                        await partition.changed.wait()
                if self.leads(opened):
                    return
            delay = RETRY_FIRST_S
            while True:
                async with self._limiter:
                    if not self._is_current(partition, opened):
                        return
                    phase = await take_over(partition, opened.epoch, why)
                if phase in (Phase.DONE, Phase.DEFERRED):
                    return
                if partition.replica.table.position < opened.base and await self._have_taken_over(partition, opened):
                    return
                await trio.sleep(delay * (0.5 + self.node.clock.random()))
                delay = min(2 * delay, RETRY_MAX_S)
                if self.leads(opened):
                    return  # it is back and serves, as far as can be told
        except StreamqError as error:
            log.info("%s: succession given up for now: %s", partition.name, error)
        finally:
            partition.busy.discard("succession")

    def _is_current(self, partition: Partition, opened: Segment) -> bool:
        """Whether this epoch is still open here, with no sequencer at this broker."""
        current = partition.open_segment
        is_open = current is not None and current.epoch == opened.epoch and not partition.is_dropped
        return is_open and partition.sequencing is None and self.node.state == "serving"

    def leads(self, opened: Segment) -> bool:
        """Whether another broker may well be sequencing this epoch: it is up, in the incarnation that the segment names.

        One that is back in another incarnation has nothing of the epoch and does not even know that it was its sequencer (P-10, P-22).
        """
        broker = opened.sequencer
        if not broker or broker == self.node.broker or not self.node.peers.is_alive(broker):
            return False
        peer = self.node.peers.get(broker)
        return peer is None or peer.member is None or peer.member == opened.member(broker)

    async def _have_taken_over(self, partition: Partition, opened: Segment) -> bool:
        """This broker cannot sequence before it holds the whole log (P-34): one of the others that are alive is asked to."""
        state = partition.replica.state
        for broker in partition.holders(opened.epoch):
            if self.node.peers.is_alive(broker) and await self._ask(broker, TakeOver(state.topic, state.index, opened.epoch)):
                return True
        return False

    # --- looking around

    async def run(self) -> None:
        """Until cancelled: epochs without a living sequencer, replicas that are gone, partitions that should go home."""
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            if self.node.state != "serving":
                continue
            now = trio.current_time()
            for peer in self.node.peers:
                if self.node.peers.is_alive(peer.broker):
                    self._alive_since.setdefault(peer.broker, now)
                else:
                    self._alive_since.pop(peer.broker, None)
            peers = [(peer.broker, self.node.peers.is_alive(peer.broker), peer.member) for peer in self.node.peers]
            if peers != self._peers_seen:
                self._peers_seen = peers
                self._lookout.keep_all(self.node.partitions)
            for partition in self._lookout.due():
                if not self._look_at(partition, now):
                    self._lookout.keep(partition)

    def _look_at(self, partition: Partition, now: float) -> bool:
        """Whether there is nothing to be done, as long as neither the partition nor any peer changes."""
        opened = partition.open_segment
        if opened is None:
            return True
        sequencing = partition.sequencing
        if sequencing is None:
            if opened.sequencer == self.node.broker:
                self.consider(partition, "an epoch of this broker's former start is open")
            elif opened.sequencer and not self.leads(opened):
                self.consider(partition, f"its sequencer {opened.sequencer} is down, or back without what it had")
            elif partition.replica.in_limbo(opened.epoch) or opened.member(self.node.broker) not in (None, self.node.me):
                self._ask_for_new_epoch(partition, opened, now)
            else:
                return True
        elif sequencing.wants_new_epoch:
            self._open_new_epoch(partition, opened, now)
        else:
            return self._send_home(partition, sequencing, now)
        return False

    def _may_open(self, partition: Partition, now: float) -> bool:
        if now < self._new_epoch_at.get(partition.id, 0.0):
            return False
        self._new_epoch_at[partition.id] = now + NEW_EPOCH_INTERVAL_S
        return True

    def _open_new_epoch(self, partition: Partition, opened: Segment, now: float) -> None:
        """P-22: one of the replicas is gone for this epoch; the next names who came back in its place."""
        if self._may_open(partition, now):
            self.node.nursery.start_soon(self._take_over_again, partition, opened.epoch)

    async def _take_over_again(self, partition: Partition, epoch: int) -> None:
        try:
            async with self._limiter:
                await take_over(partition, epoch, "a replica is gone for this epoch")
        except StreamqError as error:
            log.info("%s: no new epoch for now: %s", partition.name, error)

    def _ask_for_new_epoch(self, partition: Partition, opened: Segment, now: float) -> None:
        """This replica is the one that is gone for the epoch; its sequencer may not have noticed, without traffic."""
        if self._may_open(partition, now):
            state = partition.replica.state
            self.node.nursery.start_soon(self._ask, opened.sequencer, TakeOver(state.topic, state.index, opened.epoch))

    async def _ask(self, broker: str, message: TakeOver) -> bool:
        try:
            answer = await self.node.peers.request(broker, message, HANDOFF_TIMEOUT_S)
        except StreamqError as error:
            log.info("%s/%d: %s was asked to take over: %s", message.topic, message.index, broker, error)
            return False
        if isinstance(answer, TakenOver):
            partition = self.node.by_place(message.topic, message.index)
            if partition is not None:
                partition.learn(answer.register)
        return True

    # --- handing over

    def _send_home(self, partition: Partition, sequencing: Sequencing, now: float) -> bool:
        """Back to the replica that the partition prefers, once it has been up for a while and holds everything (P-21). As `_look_at`."""
        preferred = sequencing.register.replicas[0]
        since = self._alive_since.get(preferred)
        if preferred == self.node.broker or since is None:
            return True
        follower = sequencing.followers.get(preferred)
        is_whole = follower is not None and follower.is_live and follower.tail >= sequencing.core.high_watermark
        has_returned = is_whole and now - since >= self.node.config.preferred_return_after_s
        if (
            has_returned
            and "handoff" not in partition.busy
            and now >= self._home_at.get(partition.id, 0.0)
            and self._may_open(partition, now)
        ):
            self._home_at[partition.id] = now + SEND_HOME_INTERVAL_S
            self.node.nursery.start_soon(self._hand_home, partition, preferred)
        return False

    async def _hand_home(self, partition: Partition, preferred: str) -> None:
        """A broker that is still copying what it lost could not sequence (P-34), and each vain handoff costs an epoch."""
        try:
            for segment in partition.replica.state.chain:
                if segment.end is not None and segment.end > segment.base:
                    asked = Copy(partition.id, segment.epoch, segment.end, segment.end)
                    answer = await self.node.peers.request(preferred, asked, self.node.config.request_timeout_s)
                    if not isinstance(answer, Copied) or answer.local_tail < segment.end:
                        return
            await self.hand_over(partition, preferred)
        except StreamqError as error:
            log.info("%s: not handed to %s: %s", partition.name, preferred, error)

    async def hand_over(self, partition: Partition, successor: str) -> None:
        """Stops assigning, lets what is pending be acked, has `successor` take over; takes it back if that fails (P-21)."""
        if partition.sequencing is None or "handoff" in partition.busy:
            return
        partition.busy.add("handoff")
        try:
            # No more at once than the successor takes over at once: a partition that waits its turn goes on being served.
            async with self._handoffs:
                sequencing = partition.sequencing
                if sequencing is not None:
                    await self._hand_over(partition, sequencing, successor)
        finally:
            partition.busy.discard("handoff")

    async def _hand_over(self, partition: Partition, sequencing: Sequencing, successor: str) -> None:
        try:
            await sequencing.drain(DRAIN_TIMEOUT_S)
            state = partition.replica.state
            done = await self._ask(successor, TakeOver(state.topic, state.index, sequencing.epoch))
            self.node.metrics.handoffs += 1
            if not done and not sequencing.is_retired and self.node.state == "serving":
                await take_over(partition, sequencing.epoch, f"handing over to {successor} failed")
        except StreamqError as error:
            log.info("%s: taking it back from %s failed: %s", partition.name, successor, error)
        finally:
            # Drained, it assigns nothing any more: whatever went wrong, a new epoch ends that.
            sequencing.wants_new_epoch = True

    async def hand_over_all(self) -> None:
        """Before a graceful stop: every partition sequenced here goes to the most complete replica that is alive."""
        async with trio.open_nursery() as nursery:
            for partition in list(self.node.partitions.values()):
                sequencing = partition.sequencing
                if sequencing is None:
                    continue
                alive = [f for f in sequencing.followers.values() if f.is_live and self.node.peers.is_alive(f.member.broker)]
                if alive:
                    nursery.start_soon(self.hand_over, partition, max(alive, key=lambda f: f.tail).member.broker)
