"""A broker in the place of an honest one whose answers are well-formed lies: what the others dial, ask and believe."""

import random
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from streamq.model.messages import (
    Accept,
    Accepted,
    AdoptVoters,
    AnyMessage,
    Copied,
    Copy,
    Failure,
    Heartbeat,
    Hello,
    Keys,
    ListKeys,
    Message,
    Open,
    Opened,
    Prepare,
    Promise,
    ReadAccepted,
    ReadVoters,
    Rejoin,
    Repair,
    Repaired,
    Seal,
    Sealed,
    Store,
    Stored,
    StoredRun,
    TakenOver,
    TakeOver,
    Tip,
    TipAnswer,
    VotersReady,
    VotersView,
    Welcome,
)
from streamq.model.registers import BrokerRegister, ClusterRegister, PartitionRegister, TopicRegister, Voters
from streamq.wire.codec import encode
from streamq.wire.framing import PREAMBLE, Frame, FrameReader, encode_frame
from tests.fuzz.live import PORT, Live
from tests.fuzz.wild import Wild
from tests.fuzz.wild_peer import KINDS, wild_batch

__all__ = ["HostilePeer"]

ANSWERS: Final[dict[type[Message], type[Message]]] = {
    Prepare: Promise,
    Accept: Accepted,
    ReadAccepted: Promise,
    ListKeys: Keys,
    ReadVoters: VotersView,
    AdoptVoters: VotersView,
    VotersReady: VotersView,
    Rejoin: VotersView,
    Seal: Sealed,
    Repair: Repaired,
    Open: Opened,
    Tip: TipAnswer,
    Copy: Copied,
    TakeOver: TakenOver,
}
CODES: Final = ("not_ready", "wrong_number", "conflict", "internal", "unavailable", "protocol", "nonsense", "data_damaged")
KIND_OF_KEY: Final = {"topic": TopicRegister, "partition": PartitionRegister, "broker": BrokerRegister, "cluster": ClusterRegister}


class HostilePeer:
    """Listens at `name`'s address, which its broker must have left. `truth` is how often an answer is close to what was asked."""

    def __init__(self, live: Live, name: str, rng: random.Random, *, truth: float = 0.8) -> None:
        self.live = live
        self.name = name
        self.rng = rng
        self.truth = truth
        self.wild = Wild(rng, live.pool)
        self.answered = 0
        self._nursery: trio.Nursery

    async def run(self) -> None:
        listener = await self.live.network.of(self.name).listen(self.name, PORT)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            begun = b""
            while len(begun) < len(PREAMBLE):
                data = await stream.receive_some(4096)
                if not data:
                    return
                begun += data
            reader, data = FrameReader(), begun[len(PREAMBLE) :]
            while True:
                out: list[bytes] = []
                for frame in list(reader.feed(data)):
                    out += self._answer(frame)
                if out:
                    await stream.send_all(b"".join(out))
                data = await stream.receive_some(1 << 20)
                if not data:
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    def _answer(self, frame: Frame) -> list[bytes]:
        message, rng = frame.message, self.rng
        if isinstance(message, Hello):
            identity = self.live.identity(self.name)
            welcome = Welcome(1, (), "hostile", identity.cluster, self.name, identity.incarnation)
            return encode_frame(welcome, request=frame.request, is_answer=True)
        if isinstance(message, Heartbeat):
            return encode_frame(Heartbeat()) + (self._wild_frame() if rng.random() < 0.3 else [])
        if isinstance(message, Store):
            return encode_frame(self._stored(message))
        if not frame.request:
            return self._wild_frame()
        if rng.random() < 0.03:
            return []
        self.answered += 1
        payload: list[bytes] = []
        answer: Message
        if rng.random() < 0.1:
            answer = Failure(rng.choice(CODES), self.wild.value(str)[:4096], "", rng.choice(("", "b1")))
        elif rng.random() < 0.1:
            answer = self.wild.value(rng.choice(KINDS))
        else:
            answer = self._fitting(message)
        if isinstance(answer, Copied):
            epoch = message.epoch if isinstance(message, Copy) else 1
            partition = message.partition if isinstance(message, Copy) else b""
            batches = [wild_batch(self.wild, partition, epoch) for _ in range(rng.randrange(3))]
            payload = [part for batch in batches for part in (batch.head, batch.payload)]
        return encode_frame(answer, request=frame.request, is_answer=True, payload=payload)

    def _wild_frame(self) -> list[bytes]:
        rng = self.rng
        return encode_frame(self.wild.value(rng.choice(KINDS)), request=rng.choice((0, 1, 2)), is_answer=rng.random() < 0.3)

    def _stored(self, message: Store) -> Message:
        runs = []
        for run in message.runs:
            told: StoredRun = self.wild.value(StoredRun)
            runs.append(told._replace(partition=run.partition, epoch=run.epoch) if self.rng.random() < self.truth else told)
        return Stored(tuple(runs))

    def _fitting(self, message: AnyMessage) -> Message:
        """Of the kind that is expected, about what was asked, and often near enough to be believed."""
        answer: Message = self.wild.value(ANSWERS.get(type(message), Failure))
        if self.rng.random() > self.truth:
            return answer
        changes: dict[str, object] = {}
        if "epoch" in answer.__struct_fields__ and hasattr(message, "epoch"):
            changes["epoch"] = message.epoch
        if isinstance(answer, Repaired) and isinstance(message, Repair):
            changes["epoch"] = message.segment.epoch
        if isinstance(answer, Sealed | TipAnswer):
            changes["limbo"] = False
        if isinstance(answer, Promise | Accepted) and isinstance(message, Prepare | Accept):
            changes |= {"ok": True, "promised": message.ballot}
        if isinstance(answer, Promise) and isinstance(message, Prepare | ReadAccepted):
            changes |= {"ok": True, "value": self._register(message.key)}
        if isinstance(answer, TakenOver):
            changes["register"] = self.wild.value(PartitionRegister)
        if isinstance(answer, VotersView):
            changes["voters"] = self._voters()
        return msgspec.structs.replace(answer, **changes)

    def _register(self, key: str) -> bytes | None:
        """What a proposer will take for the newest value, of the type that it expects."""
        if self.rng.random() < 0.2:
            return None
        kind: Callable[..., object] = KIND_OF_KEY.get(key.partition("/")[0], Voters)
        value = self.wild.value(kind)
        if isinstance(value, PartitionRegister) and self.rng.random() < 0.8:
            value = msgspec.structs.replace(value, id=self.rng.choice(self.live.partitions), topic="t", deleted=self.rng.random() < 0.1)
        return encode(value)

    def _voters(self) -> Voters:
        true = self.live.identity("b1").first_voters
        choice = self.rng.randrange(4)
        if choice == 0:
            return true
        if choice == 1:
            return Voters(true.number + self.rng.choice((0, 1, 2)), true.voters[: self.rng.randrange(4)])
        if choice == 2:
            return msgspec.structs.replace(true, number=self.rng.choice((0, 1, 2, 3, (1 << 63) - 1)))
        voters: Voters = self.wild.value(Voters)
        return voters
