"""Brokers that clients should never meet: they know what an honest one would say, and say it as often as `truth` has it.

Else they answer with well-formed lies, with answers to other questions, with errors, bytes that are no frame, silence, or a closed
connection; and they say unasked what nobody waits for.
"""

import random
from typing import Final

import trio

from streamq.model.batches import Batch
from streamq.model.errors import CODES, ProtocolError
from streamq.model.messages import (
    Ack,
    AnyMessage,
    BrokerAddress,
    Credit,
    Failure,
    FindOffset,
    Heartbeat,
    Hello,
    Message,
    Metadata,
    MetadataView,
    Nack,
    OffsetFound,
    PartitionView,
    Produce,
    Produced,
    ReadTip,
    Records,
    Subscribe,
    TipRead,
    TopicView,
    Unsubscribe,
    Welcome,
)
from streamq.wire.batch_format import split_batches, stamp
from streamq.wire.framing import PREAMBLE, Frame, FrameReader, encode_frame
from tests.fuzz.mutation import mutate
from tests.fuzz.wild import Pool, Wild
from tests.fuzz.wild_batches import wild_batches
from tests.fuzz.wild_peer import KINDS
from tests.sim.tier2.network import SimulatedNetwork

__all__ = ["PORT", "TOPIC", "HostileBrokers"]

PORT: Final = 7700
TOPIC: Final = "t"
PARTITIONS: Final = 2
TICK_S: Final = 0.1
BATCHES_PER_TICK: Final = 4
ANSWERS: Final[dict[type[Message], type[Message]]] = {
    Hello: Welcome,
    Metadata: MetadataView,
    Produce: Produced,
    ReadTip: TipRead,
    FindOffset: OffsetFound,
    Subscribe: Records,
    Credit: Records,
    Unsubscribe: Records,
}


class HostileBrokers:
    """Brokers b1, b2, b3 of one topic whose partitions they share; `logs` are what was acked truly."""

    def __init__(self, rng: random.Random, network: SimulatedNetwork, *, truth: float) -> None:
        self.rng = rng
        self.network = network
        self.truth = truth
        self.names = ("b1", "b2", "b3")
        self.cluster = rng.randbytes(16)
        self.partitions = [rng.randbytes(16) for _ in range(PARTITIONS)]
        self.logs: list[list[Batch]] = [[] for _ in range(PARTITIONS)]
        self.taken: dict[tuple[bytes, int, int], Ack] = {}
        self.lies = 0
        pool = Pool(numbers=[*range(12), PORT], texts=[*self.names, TOPIC, *CODES], identities=[*self.partitions, self.cluster])
        self.wild = Wild(rng, pool)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for name in self.names:
                listener = await self.network.of(name).listen(name, PORT)
                nursery.start_soon(self._listen, name, listener)
            task_status.started()

    async def _listen(self, name: str, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        async def serve(stream: trio.abc.Stream) -> None:
            await _Session(self, name, stream).run()

        await trio.serve_listeners(serve, [listener])

    def end(self, index: int) -> int:
        return self.logs[index][-1].end if self.logs[index] else 0

    def append(self, batch: Batch) -> Ack | None:
        if batch.header.partition not in self.partitions:
            return None
        key = (batch.header.producer, batch.header.producer_epoch, batch.header.sequence)
        if key not in self.taken:
            index = self.partitions.index(batch.header.partition)
            stamped = stamp(batch, epoch=1, base=self.end(index), append_time=1)
            self.logs[index].append(stamped)
            self.taken[key] = Ack(0, stamped.base, 1, 2, 3, True)
        return self.taken[key]

    def view(self) -> MetadataView:
        brokers = tuple(BrokerAddress(name, name, PORT, "", True) for name in self.names)
        views = tuple(PartitionView(identity, 1, "b1", self.names, 0) for identity in self.partitions)
        return MetadataView(self.cluster, brokers, (TopicView(TOPIC, views),))


class _Session:
    def __init__(self, brokers: HostileBrokers, name: str, stream: trio.abc.Stream) -> None:
        self.brokers = brokers
        self.name = name
        self.stream = stream
        self.rng = brokers.rng
        self.places: dict[int, tuple[int, int]] = {}
        """By stream: the partition's index, and the next offset."""

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick)
                await self._hear()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _hear(self) -> None:
        begun = b""
        while len(begun) < len(PREAMBLE):
            data = await self.stream.receive_some(4096)
            if not data:
                return
            begun += data
        reader, data = FrameReader(), begun[len(PREAMBLE) :]
        while True:
            for frame in list(reader.feed(data)):
                out = self._lie(frame) if self.rng.random() > self.brokers.truth else self._honest(frame)
                if out is None:
                    return
                await self.stream.send_all(out)
            data = await self.stream.receive_some(1 << 16)
            if not data:
                return

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            out = b"".join([_frame(Heartbeat()), *map(self._records, list(self.places))])
            if self.rng.random() > self.brokers.truth:
                out += self._unasked()
            await self.stream.send_all(out)

    # --- the truth -------------------------------------------------------------------------------------------------------------

    def _honest(self, frame: Frame) -> bytes:
        message, request, brokers = frame.message, frame.request, self.brokers
        answer: Message | None = None
        if isinstance(message, Hello):
            answer = Welcome(1, (), "hostile", brokers.cluster, self.name, bytes(16))
        elif isinstance(message, Metadata):
            answer = brokers.view()
        elif isinstance(message, Produce):
            return _frame(self._produce(message, frame.payload))
        elif isinstance(message, ReadTip):
            answer = TipRead(1, brokers.end(message.index % PARTITIONS), 0, ("b1", "b2"))
        elif isinstance(message, FindOffset):
            answer = OffsetFound(0)
        elif isinstance(message, Subscribe):
            if message.partition in brokers.partitions:
                self.places[request] = (brokers.partitions.index(message.partition), message.offset)
                return self._records(request)
            answer = Failure("unknown_partition", "there is no such partition")
        elif isinstance(message, Unsubscribe):
            self.places.pop(request, None)
        return _frame(answer, request) if answer is not None else b""

    def _produce(self, message: Produce, payload: bytes) -> Produced:
        acks: list[Ack] = []
        nacks: list[Nack] = []
        for ticket, batch in zip(message.tickets, split_batches(payload), strict=True):
            ack = self.brokers.append(batch)
            if ack is None:
                nacks.append(Nack(ticket, "unknown_partition", "there is no such partition", ""))
            else:
                acks.append(ack._replace(ticket=ticket))
        return Produced(tuple(acks), tuple(nacks))

    def _records(self, request: int) -> bytes:
        index, offset = self.places[request]
        end = self.brokers.end(index)
        if offset > end:
            del self.places[request]
            return _frame(Failure("offset_ahead", "past the tip"), request)
        batches = [batch for batch in self.brokers.logs[index] if batch.end > offset][:BATCHES_PER_TICK]
        if batches:
            self.places[request] = (index, batches[-1].end)
        return _frame(Records(1, end, 0), request, b"".join(part for batch in batches for part in (batch.head, batch.payload)))

    # --- everything else -------------------------------------------------------------------------------------------------------

    def _lie(self, frame: Frame) -> bytes | None:
        """None: the connection is closed."""
        rng, wild, request = self.rng, self.brokers.wild, frame.request
        self.brokers.lies += 1
        choice = rng.randrange(10)
        if choice == 0:
            return None if rng.random() < 0.5 else b""
        if choice == 1:
            return rng.randbytes(rng.randrange(40)) if rng.random() < 0.3 else mutate(rng, self._honest(frame))
        if choice == 2:
            return self._honest(frame) + self._unasked()
        if choice == 3:
            return _frame(Failure(rng.choice([*CODES, "nonsense"]), wild.value(str)[:99], "", rng.choice(self.brokers.names)), request)
        kind = ANSWERS.get(type(frame.message), Failure) if choice > 4 else rng.choice(KINDS)
        answer: Message = wild.value(kind)
        if isinstance(frame.message, Produce) and rng.random() < 0.7:
            return _frame(self._produced(frame.message))
        return _frame(self._close_to_truth(frame.message, answer), request, self._payload(answer))

    def _close_to_truth(self, asked: AnyMessage, answer: Message) -> Message:
        rng, wild = self.rng, self.brokers.wild
        if isinstance(answer, Welcome) and rng.random() < 0.7:
            return Welcome(1, (), "hostile", self.brokers.cluster, rng.choice((*self.brokers.names, wild.value(str)[:99])), bytes(16))
        if isinstance(answer, MetadataView) and rng.random() < 0.7:
            true = self.brokers.view()
            views: list[PartitionView] = [wild.value(PartitionView) for _ in range(rng.randrange(4))]
            known = rng.choice((tuple(views), true.topics[0].partitions, true.topics[0].partitions[:1]))
            error = rng.choice(("", "", "unknown_topic"))
            return MetadataView(true.cluster, rng.choice((answer.brokers, true.brokers)), (TopicView(TOPIC, known, error),))
        return answer

    def _produced(self, message: Produce) -> Produced:
        """Outcomes of the right tickets, and of wrong ones."""
        acks: list[Ack] = []
        nacks: list[Nack] = []
        for ticket in (*message.tickets, self.brokers.wild.value(Ack).ticket):
            for _ in range(self.rng.choice((0, 1, 1, 1, 2))):
                if self.rng.random() < 0.3:
                    acks.append(self.brokers.wild.value(Ack)._replace(ticket=ticket))
                else:
                    told: Nack = self.brokers.wild.value(Nack)
                    nacks.append(told._replace(ticket=ticket, code=self.rng.choice([*CODES, told.code])))
        return Produced(tuple(acks), tuple(nacks))

    def _payload(self, answer: Message) -> bytes:
        rng = self.rng
        if not isinstance(answer, Records) or rng.random() < 0.2:
            return b""
        index = rng.randrange(PARTITIONS)
        partition = rng.choice((self.brokers.partitions[index], self.brokers.partitions[index], bytes(16)))
        content = wild_batches(
            self.brokers.wild, rng.randrange(4), partition=partition, base=rng.choice((0, 0, self.brokers.end(index), 1 << 62))
        )
        return content if rng.random() < 0.7 else mutate(rng, content)

    def _unasked(self) -> bytes:
        rng = self.rng
        answer: Message = self.brokers.wild.value(rng.choice((Produced, Records, Records, Failure, *KINDS)))
        request = rng.choice((0, 1, 2, 3, 4, *self.places, 1 << 31))
        return _frame(answer, request, self._payload(answer), is_answer=rng.random() < 0.8)


def _frame(message: Message, request: int = 0, payload: bytes = b"", *, is_answer: bool = True) -> bytes:
    return b"".join(encode_frame(message, request=request, is_answer=is_answer and request > 0, payload=[payload]))
