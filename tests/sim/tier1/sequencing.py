"""A simulated broker as the sequencer of one open epoch: stores out, acks back, lagging followers fed, as `broker.sequencing` does it."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from streamq.log.sequencer import Assigned, Duplicate, Phase, Progress, Refused
from streamq.model.batches import FLAG_CONDITIONAL, Batch, BatchHeader
from streamq.model.errors import StreamqError
from streamq.model.ids import Member
from streamq.model.messages import Ack, Message, Nack, Open, Stored, StoredRun, StoreRun, Tip, TipAnswer
from streamq.model.registers import PartitionRegister
from tests.sim.tier1 import events
from tests.sim.tier1.checks import Violation, batch_id
from tests.sim.tier1.endpoint import Steps, Wait
from tests.sim.tier1.session import Session

if TYPE_CHECKING:
    from tests.sim.tier1.partition import Partition
    from tests.sim.tier1.peers import Peer

__all__ = ["Sequencing"]

FEED_STALL_S = 2.0
STALL_CHECK_S = 1.0
FEED_PAUSE_S = 0.05
WATERMARK_INTERVAL_S = 0.003


class Follower:
    """Another replica of the epoch. `is_live`: it is sent each batch as it is assigned; else it is fed from storage, or waited for."""

    def __init__(self, member: Member, tail: int) -> None:
        self.member = member
        self.is_live = False
        self.is_feeding = False
        self.tail = tail
        self.reported: list[Callable[[Any], None]] = []
        self.stalled_tail = -1


class Ticket:
    __slots__ = ("header", "number", "session")

    def __init__(self, session: Session, number: int, header: BatchHeader) -> None:
        self.session = session
        self.number = number
        self.header = header


class Sequencing:
    """Invariants: a batch is stamped once, and given to the own replica first; each live follower has been sent all so far."""

    def __init__(self, partition: "Partition", register: PartitionRegister) -> None:
        self.partition = partition
        self.process = partition.process
        self.world = partition.world
        self.register = register
        self.segment = register.last
        self.epoch = self.segment.epoch
        self.core = partition.new_sequencer(register)
        self.is_retired = False
        self.wants_new_epoch = False
        self._carried = self.core.high_watermark
        self._is_telling = False
        self._doubts: list[tuple[Session, int, str]] = []
        self.drained: list[Callable[[Any], None]] = []
        self.followers = {m.broker: Follower(m, self.segment.base) for m in self.segment.replicas if m.broker != self.process.name}

    def learn(self, register: PartitionRegister) -> None:
        if register.last.epoch == self.epoch and register.start_offset >= self.register.start_offset:
            self.register = register

    def start(self) -> None:
        """Sends `Open` to every other replica and serves. The own replica has opened the epoch already."""
        if self.world.is_traced:
            self.world.note(events.SequencerBegan(self.partition.me, self.partition.index, self.epoch, self.segment.base))
        for follower in self.followers.values():
            peer = self.process.peers.get(follower.member.broker)
            if peer is not None and peer.member == follower.member:
                assert peer.connection is not None
                peer.connection.request(Open(self.register), (), 2.0, _nothing)
                follower.is_live = True
        self.process.after(STALL_CHECK_S, self._watch)

    # --- producing

    def produce(self, session: Session, number: int, batch: Batch) -> None:
        process = self.process
        if process.disk.is_full:
            session.nack(Nack(number, "disk_full", "", ""))
            self.world.counters["refused_full"] += 1
            return
        ticket = Ticket(session, number, batch.header)
        result = self.core.on_produce(batch.header, ticket, process.now_ms())
        self._check()
        if type(result) is Assigned:
            stamped = stamp(batch, result)
            self.world.checks.on_assigned(self, stamped)
            if self.world.is_traced:
                header = stamped.header
                self.world.note(
                    events.Assigned(self.partition.me, self.partition.index, self.epoch, header.base, header.end, batch_id(header))
                )
            self._store(stamped)
        elif type(result) is Duplicate:
            self._on_duplicate(session, number, batch.header, result)
        elif type(result) is Refused:
            self.world.counters[f"refused_{result.code}"] += 1
            if result.is_doubtful:
                self._doubt(session, number, result.code)
            else:
                session.nack(Nack(number, result.code, result.message, self._hint() if result.code == "not_sequencer" else ""))
        else:
            self.world.counters["duplicates_refused"] += 1

    def _on_duplicate(self, session: Session, number: int, header: BatchHeader, result: Duplicate) -> None:
        self.world.counters["duplicates_refused"] += 1
        if result.base is not None:
            self._acked(result.base, header, is_repeat=True)
        base, of = -1 if result.base is None else result.base, len(self.segment.replicas)
        session.ack(Ack(number, base, result.append_time, result.copies, of, True, result.mark, header.is_identified))

    def _acked(self, base: int, header: BatchHeader, *, is_repeat: bool) -> None:
        batch, end = batch_id(header), base + header.records
        if is_repeat and header.is_identified:
            self.world.checks.on_duplicate_id(self, base, header)
            return
        self.world.checks.on_ack(self, base, end, batch, is_repeat=is_repeat)
        if self.world.is_traced:
            self.world.note(events.Acked(self.partition.me, self.partition.index, self.epoch, base, end, batch, is_repeat))

    def _check(self) -> None:
        try:
            self.core.check()
        except AssertionError as broken:
            raise Violation(f"the sequencer of epoch {self.epoch} broke an invariant of its own: {broken}") from None

    def _doubt(self, session: Session, number: int, code: str) -> None:
        """A gap is final for its producer (P-35), so a quorum read begun now must show that this epoch is not over."""
        self._doubts.append((session, number, code))
        if len(self._doubts) == 1:
            self.process.spawn(self._confirm_doubts())

    def _confirm_doubts(self) -> Steps:
        while self._doubts:
            count = len(self._doubts)
            try:
                register = yield from self.process.registers.get_as(PartitionRegister, self.partition.key)
            except StreamqError:
                instead = "not_ready"
            else:
                assert register is not None
                self.partition.learn(register)
                instead = "" if register.last.epoch == self.epoch else "not_sequencer"
            answered, self._doubts = self._doubts[:count], self._doubts[count:]
            for session, number, code in answered:
                session.nack(Nack(number, instead or code, "", self._hint()))
            self.process.flush()

    def _hint(self) -> str:
        opened = self.partition.open_segment
        return opened.sequencer if opened is not None and opened.epoch > self.epoch else ""

    def _store(self, batch: Batch) -> None:
        partition, core = self.partition, self.core
        batches = (batch,)
        run = StoreRun(partition.id, self.epoch, core.high_watermark, 1)
        partition.carry_out(partition.replica.on_store(run, batches, self._own_report))
        for follower in self.followers.values():
            if follower.is_live:
                self._send(follower, batches)
        self._carried = core.high_watermark

    def _send(self, follower: Follower, batches: Sequence[Batch]) -> None:
        peer = self.process.peers.get(follower.member.broker)
        if peer is None or peer.member != follower.member:
            follower.is_live = False
            return
        peer.store(self.partition.id, self.epoch, self.core.high_watermark, batches)

    def _tell_watermark(self) -> None:
        """To the live followers, if no store has carried it since it moved (4.5)."""
        self._is_telling = False
        if self._carried < self.core.high_watermark and not self.is_retired:
            self._carried = self.core.high_watermark
            for follower in self.followers.values():
                if follower.is_live:
                    self._send(follower, ())

    # --- reports

    def _own_report(self, message: Message, _batches: Sequence[Batch] = ()) -> None:
        assert isinstance(message, Stored)
        for run in message.runs:
            self.on_stored(self.process.me, run)

    def on_stored(self, member: Member, run: StoredRun) -> None:
        """A report of one replica, the own one included; `member` is who speaks on the connection (P-10)."""
        if run.epoch != self.epoch or self.is_retired:
            return
        progress = self.core.on_stored(member, run)
        self._check()
        follower = self.followers.get(member.broker)
        if follower is not None and follower.member == member and run.state == "stored" and run.local_tail > follower.tail:
            follower.tail = run.local_tail
            reported, follower.reported = follower.reported, []
            for resume in reported:
                self.process.after(0.0, resume, None)
        self._follow(progress)
        if follower is not None and (progress.resend_from is not None or progress.open_again):
            self.world.counters["gaps_filled"] += 1
            follower.is_live = False
            self.feed(follower)
        if progress.gone:
            self.wants_new_epoch = True

    def _follow(self, progress: Progress) -> None:
        if progress.advanced:
            self.world.checks.on_progress(self, self.core.high_watermark)
        for acked in progress.acks:
            ticket = acked.ticket
            assert isinstance(ticket, Ticket)
            self._acked(acked.base, ticket.header, is_repeat=acked.is_duplicate)
            self.world.counters["acks"] += 1
            place, of = (acked.base, acked.append_time, acked.copies), len(self.segment.replicas)
            ticket.session.ack(Ack(ticket.number, *place, of, True, acked.mark, acked.is_duplicate))
        if progress.advanced:
            run = StoreRun(self.partition.id, self.epoch, self.core.high_watermark, 0)
            self.partition.carry_out(self.partition.replica.on_store(run, (), self._own_report))
            if not self._is_telling:
                self._is_telling = True
                self.process.after(WATERMARK_INTERVAL_S, self._tell_watermark)
        for ticket in progress.unknown:
            assert isinstance(ticket, Ticket)
            self.world.counters["unknown_outcomes"] += 1
            ticket.session.nack(Nack(ticket.number, "unknown_outcome", "", self._hint()))
        if self.core.phase is Phase.STOPPED and not self.is_retired:
            self.retire("the epoch was sealed")
        if self.drained and (self.core.is_drained or self.is_retired):
            drained, self.drained = self.drained, []
            for resume in drained:
                self.process.after(0.0, resume, None)

    def retire(self, why: str) -> None:
        """Stops assigning for good (P-14); what was assigned and not acked is answered as unknown."""
        if self.is_retired:
            return
        self.is_retired = True
        if self.world.is_traced:
            self.world.note(events.SequencerStopped(self.partition.me, self.partition.index, self.epoch))
        self._follow(self.core.stop())
        if self.partition.sequencing is self:
            self.partition.sequencing = None

    def drain(self, timeout_s: float) -> Generator[Wait, Any, None]:
        """Begins a handoff (P-21) and waits until everything assigned is acked, or for so long."""
        self.core.begin_handoff()
        if not self.core.is_drained and not self.is_retired:

            def wait(resume: Callable[[Any], None]) -> None:
                self.drained.append(resume)
                self.process.after(timeout_s, resume, None)

            yield wait

    # --- followers

    def peer_connected(self, peer: "Peer") -> None:
        follower = self.followers.get(peer.broker)
        if follower is not None:
            follower.is_live = False
            self.feed(follower)

    def feed(self, follower: Follower) -> None:
        """Starts a feeder for a follower that is not live, unless one runs."""
        if not follower.is_feeding and not self.is_retired:
            follower.is_feeding = True
            self.process.spawn(self._feed(follower))

    def _feed(self, follower: Follower) -> Steps:
        """Until the follower is live; pauses and begins again while it is connected and not ready."""
        pause_s = FEED_PAUSE_S
        while not self.is_retired:
            try:
                yield from self._catch_up(follower)
                break
            except StreamqError:
                yield self.process.sleep(pause_s)
                pause_s = min(2 * pause_s, STALL_CHECK_S)
        follower.is_feeding = False

    def _catch_up(self, follower: Follower) -> Generator[Wait, Any, None]:
        partition, peers = self.partition, self.process.peers
        broker = follower.member.broker
        peer = peers.get(broker)
        if peer is None or peer.connection is None:
            return  # `peer_connected` begins again
        connection = peer.connection
        tip = Tip(partition.id, self.epoch, self.segment.base)
        if peer.member != follower.member:
            # Back with another incarnation: gone for this epoch (P-22), and worth a new one as soon as it can be a replica of that.
            yield from peers.ask_whole(broker, tip, 2.0)
            self.wants_new_epoch = True
            return
        yield from peers.ask_whole(broker, Open(self.register), 2.0)
        answer = yield from peers.ask_whole(broker, tip, 2.0)
        if not isinstance(answer, TipAnswer):
            return
        if answer.sealed or answer.limbo:
            # Gone for this epoch: sealed by a takeover that came to nothing, it will never store in it again (P-16).
            self.wants_new_epoch = True
            return
        offset = answer.local_tail
        if offset > max(follower.tail, self.segment.base, partition.replica.state.start_offset):
            offset -= 1  # its report was lost: a repeated batch brings another; below the start there is none (P-41)
        self.world.counters["catch_ups"] += 1
        while peer.connection is connection and not self.is_retired:
            batches = (yield from partition.read_whole(self.epoch, offset)) if offset < self.core.next_offset else []
            if not batches:
                self._join(follower, offset)
                return
            peer.store(partition.id, self.epoch, self.core.high_watermark, batches)
            self.process.flush()
            offset = batches[-1].end
            if offset >= self.core.next_offset:
                self._join(follower, offset)
                return
            until = self.world.now + FEED_STALL_S
            while follower.tail < offset and self.world.now < until:
                yield self._report_of(follower, until - self.world.now)
            if follower.tail < offset:
                return  # `_watch` begins again

    def _report_of(self, follower: Follower, timeout_s: float) -> Wait:
        def wait(resume: Callable[[Any], None]) -> None:
            follower.reported.append(resume)
            self.process.after(timeout_s, resume, None)

        return wait

    def _join(self, follower: Follower, offset: int) -> None:
        """It has been sent everything: nothing was waited for since the last batch was read, so nothing was assigned in between."""
        follower.is_live = offset >= self.core.next_offset
        if follower.is_live:
            self._send(follower, ())
            self.process.flush()

    def _watch(self) -> None:
        """Finds followers that should have reported more by now, whatever was lost on the way."""
        if self.is_retired:
            return
        if self._is_sealed_for_nothing():
            self.retire("the own replica is sealed, and nobody has gone on")
            return
        for follower in self.followers.values():
            peer = self.process.peers.get(follower.member.broker)
            if peer is None or peer.connection is None or follower.is_feeding:
                continue
            behind = follower.tail < self.core.next_offset
            if not follower.is_live or (behind and follower.tail == follower.stalled_tail):
                follower.is_live = False
                self.feed(follower)
            follower.stalled_tail = follower.tail if behind else -1
        self.process.after(STALL_CHECK_S, self._watch)

    def _is_sealed_for_nothing(self) -> bool:
        """P-14: a takeover sealed the own replica and came to nothing. Without a new batch no store would be rejected, and nobody told."""
        is_ending = self.partition.takeover is not None or self.core.phase is not Phase.SERVING
        return not is_ending and self.partition.replica.accepts_epoch != self.epoch


def stamp(batch: Batch, place: Assigned) -> Batch:
    h = batch.header
    header = BatchHeader(
        h.partition,
        h.records,
        h.payload_bytes,
        h.raw_bytes,
        h.payload_crc,
        h.producer,
        h.producer_epoch,
        h.sequence,
        h.first_timestamp,
        h.max_timestamp,
        place.epoch,
        place.base,
        place.append_time,
        flags=h.flags & ~FLAG_CONDITIONAL,
        mark=place.window_ms or h.mark,
    )
    return Batch(header, b"", b"")


def _nothing(_message: Message, _batches: Sequence[Batch]) -> None:
    pass
