"""Drives a `World` at random: traffic, retries, lost and repeated mail, crashes, losses, takeovers by anybody at any moment, tip reads."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from streamq.log.tip import ReadRegister, SendTip, TipEffect, TipRead
from streamq.metadata.changes import name_holders
from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER, Member
from streamq.model.messages import Message, TipAnswer
from streamq.model.registers import PartitionRegister
from tests.support.log_world import PARTITION, Broker, Disk, Violation, World, uid

PRODUCERS = (b"P" * 16, b"Q" * 16)
Ticket = tuple[bytes, int, int]


def header(ticket: Ticket, *, records: int = 1, producer_epoch: int = 0) -> BatchHeader:
    producer, sequence, mark = ticket
    return BatchHeader(PARTITION, records, 0, 0, mark, producer, producer_epoch, sequence, 0, 0, 0, 0, 0)


class TipRun:
    """One tip read: whatever was acked before it began must lie below its result (P-24)."""

    def __init__(self, world: World, hint: PartitionRegister) -> None:
        self.world = world
        self.floor = max((base + 1 for base in world.acked.values()), default=0)
        self.core = TipRead(register=hint, now=world.now_ms / 1000)
        self.carry_out(self.core.start())

    def carry_out(self, effects: Sequence[TipEffect]) -> None:
        for effect in effects:
            if isinstance(effect, SendTip):
                self._ask(effect)
            elif isinstance(effect, ReadRegister):
                self.world.post(self._anyone(), "tip register", lambda _: self._told(self.world.register))

    def _anyone(self) -> Member:
        return next(iter(self.world.brokers.values())).me

    def _told(self, register: PartitionRegister) -> None:
        self.carry_out(self.core.on_register(register, self.world.now_ms / 1000))
        self._conclude()

    def _ask(self, effect: SendTip) -> None:
        def ask(there: Broker) -> None:
            speaker = there.me

            def reply(message: Message, _batches: object = ()) -> None:
                assert isinstance(message, TipAnswer)
                self.world.post(self._anyone(), "tip answer", lambda _: self._answered(speaker, message))

            there.carry_out(there.replica.on_tip(effect.tip, reply))

        self.world.post(self.world.brokers[effect.broker].me, "tip ask", ask)

    def _answered(self, speaker: Member, message: TipAnswer) -> None:
        self.carry_out(self.core.on_answer(speaker, message, self.world.now_ms / 1000))
        self._conclude()

    def _conclude(self) -> None:
        result = self.core.result
        if result is not None:
            self.world.counts["tips"] = self.world.counts.get("tips", 0) + 1
            if result.high_watermark < self.floor:
                raise Violation(f"P-24: the tip is {result.high_watermark}, and {self.floor} records had been acked when the read began")
            self.world.note_told(result.epoch, result.high_watermark)


class Chaos:
    def __init__(self, world: World, *, losses: int = 0, epochs: int = 12) -> None:
        self.world = world
        self.random = world.random
        self.losses_left = losses
        self.epochs = epochs
        self.floors: dict[Ticket, int] = {}
        self.plain = 0
        self.history = [world.register]
        self.tips: list[TipRun] = []
        self.events: list[tuple[Callable[[], None], int]] = [
            (self.deliver, 60),
            (self.settle, 25),
            (self.produce, 15),
            (self.produce_plain, 4),
            (self.lose_mail, 6),
            (self.resend, 6),
            (self.take_over, 2),
            (self.pass_time, 3),
            (self.crash, 1),
            (self.restart, 4),
            (self.learn, 2),
            (self.read, 3),
            (self.refill, 4),
            (self.lose_disk, 1),
            (self.late_change, 1),
            (self.read_tip, 2),
            (self.checkpoint, 1),
        ]

    def run(self, steps: int) -> None:
        calls, weights = zip(*self.events, strict=True)
        for call in self.random.choices(calls, weights, k=steps):
            call()
            self._look()

    def _look(self) -> None:
        if self.world.register is not self.history[-1]:
            self.history.append(self.world.register)
        for ticket, base in self.world.acked.items():
            if base < self.floors.get(ticket, 0):
                raise Violation(f"I-3: {ticket} was sent when {self.floors[ticket]} was acked, and lies at {base}")

    def up(self) -> list[Broker]:
        return [b for b in self.world.brokers.values() if b.is_up]

    # --- events

    def deliver(self) -> None:
        if self.world.mail:
            count = len(self.world.mail)
            index = 0 if self.random.random() < 0.5 else self.random.randrange(count)
            self.world.deliver(index, repeat=self.random.random() < 0.05)

    def settle(self) -> None:
        broker = self.random.choice(list(self.world.brokers.values()))
        if broker.is_up and broker.disk.pending:
            broker.settle(self.random.randint(1, len(broker.disk.pending)))

    def produce(self) -> None:
        producer = self.random.choice(PRODUCERS)
        done = sum(1 for t in self.world.acked if t[0] == producer)
        lowest = next(s for s in range(done + 1) if (producer, s, 0) not in self.world.acked)
        self.send((producer, lowest + self.random.randrange(3), 0))

    def produce_plain(self) -> None:
        self.plain += 1
        self.send((NO_PRODUCER, 0, self.plain))

    def send(self, ticket: Ticket) -> None:
        sequencers = [b for b in self.up() if b.sequencer is not None]
        if sequencers:
            self.floors.setdefault(ticket, max((base + 1 for base in self.world.acked.values()), default=0))
            to = self.random.choice(sequencers)
            records = 1 + (ticket[1] + ticket[2]) % 2
            self.world.post(to.me, "produce", lambda here: here.produce(header(ticket, records=records), ticket))

    def lose_mail(self) -> None:
        for _ in range(self.random.randint(0, 3)):
            if self.world.mail:
                self.world.mail.pop(self.random.randrange(len(self.world.mail)))

    def resend(self) -> None:
        for broker in self.up():
            if broker.sequencer is not None:
                member = self.random.choice(broker.sequencer.segment.replicas)
                broker.resend(member, broker.sequencer.tail_of(member))

    def take_over(self) -> None:
        if len(self.world.register.chain) < self.epochs and len(self.world.mail) < 400:
            broker = self.random.choice(self.up() or [None])
            if broker is not None and len(broker.takeovers) < 2:
                known = broker.replica.state.opened
                self.world.begin_takeover(broker.name, known if known and self.random.random() < 0.3 else None)

    def pass_time(self) -> None:
        self.world.now_ms += self.random.choice((1, 10, 50, 3000))
        now = self.world.now_ms / 1000
        for broker in self.up():
            for run in list(broker.takeovers):
                run.carry_out(run.core.on_deadline(now))
        for tip in self.tips:
            tip.carry_out(tip.core.on_deadline(now))
        self.tips = [t for t in self.tips if t.core.result is None][-3:]

    def crash(self) -> None:
        broker = self.random.choice(list(self.world.brokers.values()))
        if broker.is_up:
            broker.crash(self.random.randint(0, len(broker.disk.pending)))
            self.world.counts["crashes"] += 1

    def restart(self) -> None:
        for broker in self.world.brokers.values():
            if not broker.is_up and self.random.random() < 0.5:
                broker.start()

    def learn(self) -> None:
        for broker in self.up():
            if self.random.random() < 0.4:
                if broker.replica.state.limbo_everywhere:
                    broker.carry_out(broker.replica.on_limbo_read(self.world.register))
                else:
                    broker.carry_out(broker.replica.on_learn(self.random.choice(self.history[-2:])))

    def read(self) -> None:
        for broker in self.up():
            self.world.note_told(*broker.replica.high_watermark)
            self.world.read_all(broker.name)

    def refill(self) -> None:
        for broker in self.up():
            wanted = broker.replica.wanted()
            if wanted is not None and wanted.holders:
                source = self.world.brokers[self.random.choice(wanted.holders)]
                if source.is_up:
                    _, batches = source.copied(wanted.epoch, wanted.offset, wanted.end)
                    broker.carry_out(broker.replica.on_copied(wanted.epoch, batches))
            gone = {s.epoch: named for s in broker.replica.renames() if (named := s.member(broker.name)) is not None}
            if gone:
                change = name_holders("t", 0, partition=PARTITION, gone=gone, holder=broker.me)
                self.world.register = change(self.world.register)
                broker.carry_out(broker.replica.on_learn(self.world.register))
            broker.fold()

    def checkpoint(self) -> None:
        broker = self.random.choice(list(self.world.brokers.values()))
        if broker.is_up:
            broker.disk.table = broker.replica.table.snapshot()

    def lose_disk(self) -> None:
        """With its incarnation, or with the mark that makes it enter limbo: anything of it may be left then (P-29)."""
        if self.losses_left and self.random.random() < 0.3:
            self.losses_left -= 1
            self.world.counts["losses"] += 1
            self.lose(self.random.choice(list(self.world.brokers.values())), limbo=self.random.random() < 0.5)

    def lose(self, broker: Broker, *, limbo: bool) -> None:
        if broker.is_up:
            broker.crash(0)
        old = broker.disk
        broker.disk = Disk(old.incarnation if limbo else self.world.token())
        if limbo:
            broker.disk.lost = True
            broker.disk.raw = {e: left for e, run in old.raw.items() if (left := run[: self.random.randint(0, len(run))])}
            broker.disk.state = old.state if self.random.random() < 0.5 else None
            broker.disk.table = old.table if self.random.random() < 0.5 else None
            broker.disk.crash(0)
        self.world.members[broker.name] = broker.me

    def late_change(self) -> None:
        """A register change whose proposer was told nothing takes effect after all."""
        if self.world.late_changes:
            self.world.late_changes.pop(self.random.randrange(len(self.world.late_changes)))()

    def read_tip(self) -> None:
        if len(self.tips) < 3:
            self.tips.append(TipRun(self.world, self.random.choice(self.history)))

    # --- the end

    def heal(self) -> list[Batch]:
        """Everything comes up, one takeover succeeds, everything is copied and told; returns the log that everybody reads then."""
        world = self.world
        world.faults = 0.0
        world.mail.clear()
        for broker in world.brokers.values():
            broker.takeovers.clear()
            if not broker.is_up:
                broker.start()
            world.settle_all()
        for name in [*world.brokers, *world.brokers]:
            for broker in world.brokers.values():
                if broker.replica.state.limbo_everywhere:
                    broker.carry_out(broker.replica.on_limbo_read(world.register))
                broker.carry_out(broker.replica.on_learn(world.register))
            self._refill_all()
            world.take_over(name)
            self._look()
            sequencer = world.brokers[name].sequencer
            if sequencer is not None and sequencer.epoch == world.register.last.epoch:
                break
        else:
            raise Violation("no takeover succeeds although everything is up again")
        self._refill_all()
        last = world.brokers[name]
        last.produce(header((b"Z" * 16, 0, 0)), (b"Z" * 16, 0, 0))
        world.deliver_all()
        for member in world.register.last.replicas:
            last.store(member, [])
        world.deliver_all()
        self._refill_all()
        return self._final_log()

    def _refill_all(self) -> None:
        for _ in range(400):
            self.world.settle_all()
            self.refill()
            if all(b.replica.wanted() is None and not b.disk.pending for b in self.world.brokers.values()):
                return

    def _final_log(self) -> list[Batch]:
        world = self.world
        log: dict[int, Batch] = {}
        for name, broker in world.brokers.items():
            tip = world.read_all(name)
            if tip != broker.replica.high_watermark[1] or (b"Z" * 16, 0, 0) not in world.acked:
                raise Violation(f"{name} reads up to {tip} only, of {broker.replica.high_watermark}")
            for segment in world.register.chain:
                log.update((b.base, b) for b in broker.batches(segment.epoch, segment.base, tip if segment.end is None else segment.end))
        batches = [log[base] for base in sorted(log)]
        if any(a.end != b.base for a, b in pairwise(batches)) or (batches and batches[0].base != 0):
            raise Violation("I-4: the final log has a hole")
        named = [uid(b) for b in batches if b.header.producer != NO_PRODUCER]
        if len(set(named)) != len(named):
            raise Violation("I-5: a batch is in the log twice")
        for offset, identity in world.seen.items():
            if offset not in log or uid(log[offset]) != identity:
                raise Violation(f"I-1: {identity} was seen at offset {offset} and is not there in the end")
        for producer in PRODUCERS:
            mine = [uid(b)[1] for b in batches if b.header.producer == producer]
            if mine != list(range(len(mine))):
                raise Violation(f"I-3: the batches of one producer lie in the order {mine}")
        return batches
