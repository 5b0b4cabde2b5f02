"""When a simulated broker takes a partition over, or has it taken over (P-19 to P-22), as `broker.successions` decides it."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from streamq.log.takeover import Phase
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.ids import PartitionId
from streamq.model.messages import Copied, Copy, TakenOver, TakeOver
from streamq.model.registers import PartitionRegister, Segment
from tests.sim.tier1.endpoint import Steps, Wait
from tests.sim.tier1.partition import TOPIC, Partition
from tests.sim.tier1.takeovers import TakeoverRun

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["Successions"]

RETRY_FIRST_S = 0.03
RETRY_MAX_S = 1.0
NEW_EPOCH_INTERVAL_S = 2.0
SEND_HOME_INTERVAL_S = 10.0
PREFERRED_RETURN_AFTER_S = 5.0
CHECK_INTERVAL_S = 0.5
RANK_DELAY_S = 0.05
HANDOFF_TIMEOUT_S = 3.0
DRAIN_TIMEOUT_S = 1.0


class Successions:
    def __init__(self, process: "Process") -> None:
        self.process = process
        self.world = process.world
        self._alive_since: dict[str, float] = {}
        self._home_at: dict[PartitionId, float] = {}
        self._new_epoch_at: dict[PartitionId, float] = {}

    def start(self) -> None:
        self.process.after(CHECK_INTERVAL_S * (0.5 + self.world.random.random()), self._look_around)

    # --- being asked

    def take_over(self, partition: Partition, epoch: int) -> Wait:
        """One attempt; resumes with its last phase. While one is under way here, waits for that and says LOST."""

        def wait(resume: Any) -> None:
            if partition.takeover is not None:
                partition.takeover.ended.append(lambda _: resume(Phase.LOST))
            else:
                TakeoverRun(partition, epoch, resume)

        return wait

    def take_over_here(self, index: int, epoch: int) -> Generator[Wait, Any, PartitionRegister]:
        """Takes the partition over on this broker if `epoch` is still open; the register afterwards, whoever won. Raises StreamqError."""
        process = self.process
        partition = process.partitions.get(self.world.partition_ids[index])
        if partition is None or not partition.replica.state.topic:
            partition = yield from self._adopt(index)
        opened = partition.open_segment
        if opened is None or opened.epoch <= epoch:
            yield self.take_over(partition, epoch)
        register = yield from process.registers.get_as(PartitionRegister, partition.key)
        assert register is not None
        if register.last.epoch <= epoch:
            raise UnavailableError("it could not be taken over", code="unavailable")
        return register

    def _adopt(self, index: int) -> Generator[Wait, Any, Partition]:
        """A partition whose register names this broker and of which nothing lies here yet."""
        partition = self.process.partition(self.world.partition_ids[index])
        register = yield from self.process.registers.get_as(PartitionRegister, partition.key)
        assert register is not None
        if register.last.member(self.process.name) is None:
            raise UnavailableError("this broker is no replica of it", code="not_replica")
        partition.learn(register)
        return partition

    # --- noticing

    def on_suspected(self, broker: str) -> None:
        for partition in list(self.process.partitions.values()):
            opened = partition.open_segment
            if opened is not None and opened.sequencer == broker:
                self.consider(partition)

    def consider(self, partition: Partition) -> None:
        """Starts a takeover of the open epoch after this broker's turn in rank, unless one is under way."""
        opened = partition.open_segment
        if opened is None or "succession" in partition.busy or self.process.state != "serving":
            return
        if opened.member(self.process.name) is None:
            return
        partition.busy.add("succession")
        self.process.spawn(self._succeed(partition, opened))

    def _rank(self, partition: Partition, opened: Segment) -> int:
        peers = self.process.peers
        alive = sorted(m.broker for m in opened.replicas if m.broker != opened.sequencer and peers.is_alive(m.broker))
        if self.process.name not in alive:
            return 0
        first = (partition.id[0] + opened.epoch) % len(alive)
        return (alive.index(self.process.name) - first) % len(alive)

    def _succeed(self, partition: Partition, opened: Segment) -> Steps:
        try:
            yield self.process.sleep(self._rank(partition, opened) * RANK_DELAY_S)
            delay = RETRY_FIRST_S
            while self._is_current(partition, opened):
                phase = yield self.take_over(partition, opened.epoch)
                if phase in (Phase.DONE, Phase.DEFERRED):
                    return
                if partition.replica.table.position < opened.base and (yield from self._have_taken_over(partition, opened)):
                    return
                yield self.process.sleep(delay * (0.5 + self.world.random.random()))
                delay = min(2 * delay, RETRY_MAX_S)
                if self.leads(opened):
                    return
        except StreamqError:
            return
        finally:
            partition.busy.discard("succession")

    def _is_current(self, partition: Partition, opened: Segment) -> bool:
        """Whether this epoch is still open here, with no sequencer at this broker."""
        current = partition.open_segment
        is_open = current is not None and current.epoch == opened.epoch
        return is_open and partition.sequencing is None and self.process.state == "serving"

    def leads(self, opened: Segment) -> bool:
        """Whether another broker may well be sequencing this epoch: it is up, in the incarnation that the segment names."""
        broker = opened.sequencer
        peers = self.process.peers
        if not broker or broker == self.process.name or not peers.is_alive(broker):
            return False
        peer = peers.get(broker)
        return peer is None or peer.member is None or peer.member == opened.member(broker)

    def _have_taken_over(self, partition: Partition, opened: Segment) -> Generator[Wait, Any, bool]:
        """This broker cannot sequence before it holds the whole log (P-34): one of the others that are alive is asked to."""
        for broker in partition.holders(opened.epoch):
            if self.process.peers.is_alive(broker) and (yield from self._ask(broker, partition, opened.epoch)):
                return True
        return False

    # --- looking around

    def _look_around(self) -> None:
        """Epochs without a living sequencer, replicas that are gone, partitions that should go home."""
        self.process.after(CHECK_INTERVAL_S, self._look_around)
        if self.process.state != "serving":
            return
        now = self.world.now
        for peer in self.process.peers:
            if peer.is_dead:
                self._alive_since.pop(peer.broker, None)
            else:
                self._alive_since.setdefault(peer.broker, now)
        for partition in list(self.process.partitions.values()):
            self._look_at(partition, now)

    def _is_gone(self, partition: Partition, opened: Segment) -> bool:
        """P-22: this replica counts no more in the open epoch."""
        return partition.replica.in_limbo(opened.epoch) or opened.member(self.process.name) not in (None, self.process.me)

    def _look_at(self, partition: Partition, now: float) -> None:
        opened = partition.open_segment
        if opened is None:
            return
        sequencing = partition.sequencing
        if sequencing is None:
            if opened.sequencer == self.process.name or (opened.sequencer and not self.leads(opened)):
                self.consider(partition)
            elif self._is_gone(partition, opened) and self._may_open(partition, now):
                self.process.spawn(self._ask_silently(opened.sequencer, partition, opened.epoch))
        elif sequencing.wants_new_epoch:
            if self._may_open(partition, now):
                self.world.counters["new_epochs"] += 1
                self.process.spawn(self._take_over_again(partition, opened.epoch))
        else:
            self._send_home(partition, now)

    def _may_open(self, partition: Partition, now: float) -> bool:
        if now < self._new_epoch_at.get(partition.id, 0.0):
            return False
        self._new_epoch_at[partition.id] = now + NEW_EPOCH_INTERVAL_S
        return True

    def _take_over_again(self, partition: Partition, epoch: int) -> Steps:
        yield self.take_over(partition, epoch)

    def _ask_silently(self, broker: str, partition: Partition, epoch: int) -> Steps:
        yield from self._ask(broker, partition, epoch)

    def _ask(self, broker: str, partition: Partition, epoch: int) -> Generator[Wait, Any, bool]:
        answer, _ = yield self.process.peers.ask(broker, TakeOver(TOPIC, partition.index, epoch), HANDOFF_TIMEOUT_S)
        if not isinstance(answer, TakenOver):
            return False
        partition.learn(answer.register)
        return True

    # --- handing over (P-21)

    def _send_home(self, partition: Partition, now: float) -> None:
        sequencing = partition.sequencing
        assert sequencing is not None
        preferred = sequencing.register.replicas[0]
        since = self._alive_since.get(preferred)
        if preferred == self.process.name or since is None or now - since < PREFERRED_RETURN_AFTER_S:
            return
        follower = sequencing.followers.get(preferred)
        if follower is None or not follower.is_live or follower.tail < sequencing.core.high_watermark or "handoff" in partition.busy:
            return
        if now >= self._home_at.get(partition.id, 0.0) and self._may_open(partition, now):
            self._home_at[partition.id] = now + SEND_HOME_INTERVAL_S
            partition.busy.add("handoff")
            self.process.spawn(self._hand_home(partition, preferred))

    def _hand_home(self, partition: Partition, preferred: str) -> Steps:
        """A broker that is still copying what it lost could not sequence (P-34), and each vain handoff costs an epoch."""
        try:
            for segment in partition.replica.state.chain[-6:]:
                if segment.end is not None and segment.end > segment.base:
                    asked = Copy(partition.id, segment.epoch, segment.end, segment.end)
                    answer, _ = yield self.process.peers.ask(preferred, asked)
                    if not isinstance(answer, Copied) or answer.local_tail < segment.end:
                        return
            yield from self.hand_over(partition, preferred)
        finally:
            partition.busy.discard("handoff")

    def hand_over(self, partition: Partition, successor: str) -> Generator[Wait, Any, None]:
        """Stops assigning, lets what is pending be acked, has `successor` take over; takes it back if that fails."""
        sequencing = partition.sequencing
        if sequencing is None:
            return
        self.world.counters["handoffs"] += 1
        yield from sequencing.drain(DRAIN_TIMEOUT_S)
        done = yield from self._ask(successor, partition, sequencing.epoch)
        if not done and not sequencing.is_retired and self.process.state == "serving":
            yield self.take_over(partition, sequencing.epoch)
        sequencing.wants_new_epoch = True
