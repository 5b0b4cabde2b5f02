"""One replica on a disk that does as it is told, for unit tests of the log cores."""

from collections.abc import Sequence

from streamq.log.effects import Cut, Effect, Persist, Reply
from streamq.log.replica import Replica
from streamq.log.replica_state import ReplicaState
from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER, Member
from streamq.model.messages import Message, Repair, Repaired, Seal, Sealed, StoreRun, Tip, TipAnswer
from streamq.model.registers import Durability, PartitionRegister, Segment

PARTITION = b"p" * 16


def members(count: int) -> tuple[Member, ...]:
    return tuple(Member(f"b{i}", bytes([i]) * 16) for i in range(1, count + 1))


def batch(base: int, *, records: int = 1, epoch: int = 1, producer: bytes = NO_PRODUCER, sequence: int = 0) -> Batch:
    return Batch(BatchHeader(PARTITION, records, 0, 0, base, producer, 0, sequence, 0, 0, epoch, base, 1_000 + base), b"", b"")


def segment(
    epoch: int,
    base: int,
    *,
    end: int | None = None,
    replicas: Sequence[Member] = members(3),
    write: int = 2,
    durability: Durability = "fsync",
    attempt: bytes = b"",
) -> Segment:
    read = len(replicas) - write + 1
    return Segment(epoch, base, end, tuple(replicas), write, read, durability, "b1", attempt or bytes([epoch]) * 16)


def register(
    *chain: Segment, id: bytes = PARTITION, start_offset: int = 0, replicas: Sequence[str] = ("b1", "b2", "b3"), write: int = 2
) -> PartitionRegister:
    return PartitionRegister(id, "t", 0, tuple(replicas), write, len(replicas) - write + 1, "fsync", start_offset, chain)


class Answers(list[Message]):
    """A reply handle that keeps what it is told."""

    def __call__(self, message: Message, _batches: object = ()) -> None:
        self.append(message)


class Lab:
    def __init__(self, me: Member) -> None:
        self.me = me
        self.pending: list[Persist] = []
        self.state = ReplicaState(PARTITION)
        self.runs: dict[int, tuple[int, int]] = {}
        self.replica = Replica(me, self.state, self.runs)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                self.pending.append(effect)
            elif isinstance(effect, Reply) and isinstance(effect.to, Answers):
                effect.to(effect.message, effect.batches)
            elif isinstance(effect, Cut):
                base, tail = self.runs.get(effect.epoch, (0, 0))
                if effect.end <= base:
                    self.runs.pop(effect.epoch, None)
                else:
                    self.runs[effect.epoch] = (base, min(tail, effect.end))

    def settle(self) -> None:
        """Everything that was asked for is durable."""
        while self.pending:
            persist = self.pending.pop(0)
            if persist.state is not None:
                self.state = persist.state
            if persist.batches:
                base, _ = self.runs.get(persist.epoch, (persist.batches[0].base, 0))
                self.runs[persist.epoch] = (base, persist.end)
            self.carry_out(self.replica.on_durable(persist))
        self.replica.check()

    def restart(self) -> None:
        """After everything pending was written."""
        self.settle()
        self.replica = Replica(self.me, self.state, self.runs)
        self.carry_out(self.replica.on_restart())

    def tails(self) -> dict[int, int]:
        self.settle()
        return {epoch: tail for epoch, (_, tail) in self.runs.items()}

    def learn(self, told: PartitionRegister) -> None:
        self.carry_out(self.replica.on_learn(told))
        self.settle()

    def store(self, *batches: Batch, epoch: int = 1, mark: int = 0, settle: bool = True) -> Answers:
        answers = Answers()
        self.carry_out(self.replica.on_store(StoreRun(PARTITION, epoch, mark, len(batches)), batches, answers))
        if settle:
            self.settle()
        return answers

    def copied(self, epoch: int, *batches: Batch) -> None:
        self.carry_out(self.replica.on_copied(epoch, batches))
        self.settle()

    def seal(self, epoch: int, *, base: int = 0) -> Sealed:
        answers = Answers()
        self.carry_out(self.replica.on_seal(Seal(PARTITION, epoch, base), answers))
        self.settle()
        [answer] = answers
        assert isinstance(answer, Sealed)
        return answer

    def repair(self, of: Segment, *batches: Batch) -> Repaired:
        answers = Answers()
        self.carry_out(self.replica.on_repair(Repair(PARTITION, "t", 0, of), batches, answers))
        self.settle()
        [answer] = answers
        assert isinstance(answer, Repaired)
        return answer

    def tip(self, epoch: int, *, base: int = 0) -> TipAnswer:
        answers = Answers()
        self.carry_out(self.replica.on_tip(Tip(PARTITION, epoch, base), answers))
        [answer] = answers
        assert isinstance(answer, TipAnswer)
        return answer
