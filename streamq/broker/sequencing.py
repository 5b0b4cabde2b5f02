"""This broker as the sequencer of one open epoch: batches in, stores out, acks back, lagging followers fed from storage."""

import logging
from typing import TYPE_CHECKING, Final

import trio

from streamq.broker.follower import Follower
from streamq.broker.session import Session
from streamq.log.retention import Retention
from streamq.log.sequencer import Acked, Assigned, Duplicate, Progress, Refused, Sequencer, Waiting
from streamq.model.batches import Batch
from streamq.model.errors import StreamqError
from streamq.model.ids import Member
from streamq.model.limits import COPY_BYTES_MAX
from streamq.model.messages import Ack, Nack, Open, Stored, StoredRun, StoreRun, Tip, TipAnswer
from streamq.model.registers import PartitionRegister, partition_key
from streamq.wire.batch_format import stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.broker.partition import Partition
    from streamq.broker.peers import Peer
    from streamq.model.messages import Message

__all__ = ["Sequencing", "Ticket"]

log = logging.getLogger(__name__)

FEED_BYTES: Final = COPY_BYTES_MAX // 4
"""What a lagging follower is sent before its next report is awaited: its catching up never fills the queues of the foreground."""
FEED_STALL_S: Final = 2.0
DOUBTS_MAX: Final = 10_000
"""Refusals that wait to be confirmed."""
FEED_PAUSE_S: Final = 0.05
FEED_PAUSE_MAX_S: Final = 1.0


class Ticket:
    """Who waits for the outcome of one batch."""

    __slots__ = ("arrived_us", "number", "session", "size")

    def __init__(self, session: Session, number: int, size: int, arrived_us: int) -> None:
        self.session = session
        self.number = number
        self.size = size
        self.arrived_us = arrived_us


class Sequencing:
    """Invariants: a batch is stamped once, and given to the own replica first; each live follower has been sent all so far.

    Batches that are assigned in one synchronous step are stored at its end, all at once; no other task runs in between.
    """

    def __init__(self, partition: "Partition", register: PartitionRegister) -> None:
        self.partition = partition
        self.node = partition.node
        self.register = register
        self.segment = register.last
        self.retention = Retention(register.retention_bytes, register.retention_ms)
        self.epoch = self.segment.epoch
        self.core = Sequencer(partition=partition.id, segment=self.segment, table=partition.replica.table, dedup_ms=register.dedup_ms)
        self.is_retired = False
        self._wants_new_epoch = False
        self._carried = self.core.high_watermark
        self._progressed = trio.lowlevel.ParkingLot()
        self._assigned: list[Batch] = []
        """In this synchronous step, to be stored at its end."""
        self._doubts: list[tuple[Session, int, Refused]] = []
        self._seen = (-1, 0)
        """High watermark at the last check, and for how many checks it has stood there with batches in flight."""
        others = [member for member in self.segment.replicas if member.broker != self.node.broker]
        self.followers = {m.broker: Follower(m, tail=self.segment.base, changed=self._changed) for m in others}

    def learn(self, register: PartitionRegister) -> None:
        """What followers are told when they come back, and what retention goes by, is the newest that was heard of this epoch."""
        mine = self.register
        if register.last.epoch == self.epoch and register.start_offset >= mine.start_offset and register.settings >= mine.settings:
            self.register = register
            self.retention = Retention(register.retention_bytes, register.retention_ms)
            self.core.dedup_ms = register.dedup_ms
            self._changed()

    def start(self) -> None:
        """Sends `Open` to every other replica and serves. The own replica has opened the epoch already."""
        for follower in self.followers.values():
            peer = self.node.peers.get(follower.member.broker)
            if peer is not None and peer.member == follower.member and peer.channel is not None:
                peer.channel.send(Open(self.register))
                follower.is_live = True
        self._changed()

    @property
    def wants_new_epoch(self) -> bool:
        """A replica is gone for this epoch (P-22)."""
        return self._wants_new_epoch

    @wants_new_epoch.setter
    def wants_new_epoch(self, value: bool) -> None:
        self._wants_new_epoch = value
        self._changed()

    def _changed(self) -> None:
        self.node.changed[self.partition.id] = None

    # --- producing

    def produce(self, session: Session, number: int, batch: Batch) -> None:
        """One batch whose checksums hold. Its outcome goes to the session, now or later."""
        node = self.node
        refusal = node.storage.refusal()
        if refusal is not None:
            session.nacks.append(Nack(number, "disk_full", refusal, ""))
            node.touch(session)
            return
        ticket = Ticket(session, number, batch.size, node.now_us)
        result = self.core.on_produce(batch.header, ticket, node.clock.now_ms())
        if isinstance(result, Assigned):
            self._took(ticket)
            node.metrics.took(batch.header.records, ticket.size)
            if not self._assigned:
                node.touch_sequencing(self)
            place = {"epoch": result.epoch, "base": result.base, "append_time": result.append_time}
            self._assigned.append(stamp(batch, **place, window_ms=result.window_ms))
        elif isinstance(result, Duplicate):
            base = result.base if result.base is not None else -1
            of, is_duplicate = len(self.segment.replicas), batch.header.is_identified
            session.acks.append(Ack(number, base, result.append_time, result.copies, of, self._durable, result.mark, is_duplicate))
            node.touch(session)
            node.metrics.duplicates += 1
        elif isinstance(result, Refused) and result.is_doubtful:
            self._doubt(session, number, result)
        elif isinstance(result, Refused):
            session.nacks.append(Nack(number, result.code, result.message, self._hint() if result.code == "not_sequencer" else ""))
            node.touch(session)
        else:
            assert isinstance(result, Waiting)
            self._took(ticket)
            node.metrics.duplicates += 1

    def _doubt(self, session: Session, number: int, refused: Refused) -> None:
        """A gap is final for its producer (P-35); a sequencer whose epoch is over without its knowing would see one in what is none."""
        if len(self._doubts) >= DOUBTS_MAX:
            session.nacks.append(Nack(number, "busy", f"{DOUBTS_MAX} refusals wait to be confirmed", ""))
            self.node.touch(session)
            return
        session.pending += 1
        self._doubts.append((session, number, refused))
        if len(self._doubts) == 1:
            self.node.nursery.start_soon(self._confirm_doubts, name=f"doubts in {self.partition.name}")

    async def _confirm_doubts(self) -> None:
        """Each is answered after a quorum read of the register that began after it was found."""
        while self._doubts:
            count = len(self._doubts)
            instead: Refused | None = None
            try:
                if not await self.is_current():
                    instead = Refused("not_sequencer", f"epoch {self.epoch} is over; another broker goes on")
            except StreamqError as error:
                instead = Refused("not_ready", f"a refusal could not be confirmed: {error}")
            answered, self._doubts = self._doubts[:count], self._doubts[count:]
            for session, number, refused in answered:
                told = instead or refused
                session.pending -= 1
                session.nacks.append(Nack(number, told.code, told.message, self._hint()))
                self.node.touch(session)
            self.node.flush()

    def _took(self, ticket: Ticket) -> None:
        self.node.took(ticket.size)
        ticket.session.pending += 1

    @property
    def _durable(self) -> bool:
        return self.segment.durability == "fsync"

    def _hint(self) -> str:
        opened = self.partition.open_segment
        return opened.sequencer if opened is not None and opened.epoch > self.epoch else ""

    def store_assigned(self) -> None:
        """Ends the step. The own replica comes first: if it was sealed within the step (P-14), nobody is sent anything."""
        batches, self._assigned = self._assigned, []
        partition, core = self.partition, self.core
        if not batches or self.is_retired:
            return
        run = StoreRun(partition.id, self.epoch, core.high_watermark, len(batches))
        partition.carry_out(partition.replica.on_store(run, batches, self._own_report))
        self.node.loaded[partition.id] = None
        if self.is_retired:
            return
        for follower in self.followers.values():
            if follower.is_live:
                self._send(follower, batches)
        self._carried = core.high_watermark

    def _send(self, follower: Follower, batches: "Sequence[Batch]") -> None:
        peer = self.node.peers.get(follower.member.broker)
        if peer is None or not peer.has_room or peer.member != follower.member:
            follower.is_live = False
            self.feed(follower)
            return
        peer.store(self.partition.id, self.epoch, self.core.high_watermark, batches)
        self.node.touch_peer(peer)

    def tell_watermark(self) -> None:
        """To the live followers, if no store has carried it since it moved."""
        if self._carried < self.core.high_watermark and not self.is_retired:
            self._carried = self.core.high_watermark
            for follower in self.followers.values():
                if follower.is_live:
                    self._send(follower, ())

    # --- reports

    def _own_report(self, message: "Message", batches: "Sequence[Batch]" = ()) -> None:
        assert isinstance(message, Stored)
        for run in message.runs:
            self.on_stored(self.node.me, run)

    def on_stored(self, member: Member, run: StoredRun) -> None:
        """A report of one replica, the own one included; `member` is who speaks on the connection (P-10)."""
        if run.epoch != self.epoch or self.is_retired:
            return
        progress = self.core.on_stored(member, run)
        follower = self.followers.get(member.broker)
        if follower is not None and follower.member == member and run.state == "stored":
            follower.tail = max(follower.tail, run.local_tail)
            follower.reported.set()
        self._follow(progress)
        if follower is not None and (progress.resend_from is not None or progress.open_again):
            follower.is_live = False
            self.feed(follower)
        if progress.gone:
            self.wants_new_epoch = True

    def _follow(self, progress: Progress) -> None:
        self._progressed.unpark_all()
        for acked in progress.acks:
            self._ack(acked)
        if progress.advanced:
            # The own replica learns the watermark as any other does, but at once: its readers are the first to be served.
            run = StoreRun(self.partition.id, self.epoch, self.core.high_watermark, 0)
            self.partition.carry_out(self.partition.replica.on_store(run, (), self._own_report))
            self.node.watermark_moved(self.partition)
        for ticket in progress.unknown:
            assert isinstance(ticket, Ticket)
            self._nack(ticket, "unknown_outcome", "the epoch ended before this batch was acked; a retry finds out")
        if self.core.phase is self.core.phase.STOPPED and not self.is_retired:
            self.retire("the epoch was sealed")

    def _ack(self, acked: Acked) -> None:
        ticket = acked.ticket
        assert isinstance(ticket, Ticket)
        self.node.answered(ticket.size)
        self.node.metrics.ack_seconds.record(self.node.now_us - ticket.arrived_us)
        ticket.session.pending -= 1
        place, of = (acked.base, acked.append_time, acked.copies), len(self.segment.replicas)
        ticket.session.acks.append(Ack(ticket.number, *place, of, self._durable, acked.mark, acked.is_duplicate))
        self.node.touch(ticket.session)

    def _nack(self, ticket: Ticket, code: str, message: str) -> None:
        self.node.answered(ticket.size)
        ticket.session.pending -= 1
        ticket.session.nacks.append(Nack(ticket.number, code, message, self._hint()))
        self.node.touch(ticket.session)

    def retire(self, why: str) -> None:
        """Stops assigning for good (P-14); what was assigned and not acked is answered as unknown."""
        if self.is_retired:
            return
        self.is_retired = True
        log.info("%s: no longer sequencer of epoch %d: %s", self.partition.name, self.epoch, why)
        self._changed()
        self._follow(self.core.stop())
        if self.partition.sequencing is self:
            self.partition.sequencing = None
        self.node.flush()

    async def drain(self, timeout_s: float) -> bool:
        """Begins a handoff (P-21) and waits until everything assigned is acked; False when that took too long."""
        self.core.begin_handoff()
        with trio.move_on_after(timeout_s):
            while not self.core.is_drained and not self.is_retired:
                await self._progressed.park()
        return self.core.is_drained

    # --- followers, and whether there is anything to wait for

    def peer_connected(self, peer: "Peer") -> None:
        follower = self.followers.get(peer.broker)
        if follower is not None:
            follower.is_live = False
            self.feed(follower)

    def feed(self, follower: Follower) -> None:
        """Starts a feeder for a follower that is not live, unless one runs."""
        if not follower.is_feeding and not self.is_retired:
            follower.is_feeding = True
            self.node.nursery.start_soon(self._feed, follower, name=f"feed {follower.member.broker} {self.partition.name}")

    async def _feed(self, follower: Follower) -> None:
        """Until the follower is live; pauses and begins again while it is connected and not ready."""
        pause_s = FEED_PAUSE_S
        try:
            while not self.is_retired:
                try:
                    await self._catch_up(follower)
                    return
                except StreamqError as error:
                    log.info("%s: feeding %s paused: %s", self.partition.name, follower.member.broker, error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, FEED_PAUSE_MAX_S)
        finally:
            follower.is_feeding = False

    async def _catch_up(self, follower: Follower) -> None:
        node, partition = self.node, self.partition
        broker = follower.member.broker
        peer = node.peers.get(broker)
        if peer is None or peer.channel is None:
            return  # `peer_connected` begins again
        timeout_s = 2 * node.config.request_timeout_s
        channel = peer.channel
        if peer.member != follower.member:
            # Back with another incarnation: gone for this epoch (P-22), and worth a new one as soon as it can be a replica of that.
            await channel.request(Tip(partition.id, self.epoch, self.segment.base), timeout_s=timeout_s)
            self.wants_new_epoch = True
            return
        await channel.request(Open(self.register), timeout_s=timeout_s)
        answer = (await channel.request(Tip(partition.id, self.epoch, self.segment.base), timeout_s=timeout_s)).message
        if not isinstance(answer, TipAnswer):
            return
        if answer.sealed or answer.limbo:
            # Gone for this epoch: sealed by a takeover that came to nothing, it will never store in it again (P-16).
            self.wants_new_epoch = True
            return
        offset = answer.local_tail
        if offset > max(follower.tail, self.segment.base, partition.replica.state.start_offset):
            offset -= 1  # its report was lost: a repeated batch brings another; below the start there is none (P-41)
        node.metrics.catch_ups += 1
        while peer.channel is channel and not self.is_retired:
            batches = await partition.read_epoch(self.epoch, offset, max_bytes=FEED_BYTES) if offset < self.core.next_offset else []
            if not batches:
                self._join(follower, offset)
                return
            if not peer.has_room:
                await trio.sleep(FEED_PAUSE_S)
                continue
            peer.store(partition.id, self.epoch, self.core.high_watermark, batches)
            peer.flush()
            offset = batches[-1].end
            if offset >= self.core.next_offset:
                self._join(follower, offset)
                return
            with trio.move_on_after(FEED_STALL_S) as waited:
                while follower.tail < offset:
                    follower.reported = trio.Event()
                    await follower.reported.wait()
            if waited.cancelled_caught:
                return  # `Stalls` begins again

    def _join(self, follower: Follower, offset: int) -> None:
        """It has been sent everything: no await since the last batch was read, so nothing was assigned in between."""
        follower.is_live = offset >= self.core.next_offset
        if follower.is_live:
            self._send(follower, ())  # the watermark, which it may not know
            self.node.flush()

    async def is_current(self, *, deadline_s: float | None = None) -> bool:
        """Whether the register, by a quorum read begun now, names this epoch as the open one. Raises StreamqError."""
        mine = self.register
        register = await self.node.registers.get_as(PartitionRegister, partition_key(mine.topic, mine.index), deadline_s=deadline_s)
        if register is None or register.id != self.partition.id or register.deleted:
            return False
        self.partition.learn(register)
        return register.last.epoch == self.epoch

    def count_stalled_checks(self) -> int:
        """To be called by each check: for how many now the high watermark has stood still with batches in flight."""
        mark, checks = self._seen
        checks = checks + 1 if self.core.in_flight and mark == self.core.high_watermark else 0
        self._seen = (self.core.high_watermark, checks)
        return checks
