"""Whoever connects to a broker and says what it likes: a client or another broker whose frames are well-formed and senseless."""

import random
import typing
from typing import Final

import msgspec
import trio

from streamq.model.batches import Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.limits import OFFSET_MAX
from streamq.model.messages import AnyMessage, Hello, Message, Produce, Repair, Stop, Store, StoreRun
from streamq.model.registers import BrokerRegister, ClusterRegister, PartitionRegister, TopicRegister, Voters
from streamq.net.handshake import greet
from streamq.wire.batch_format import encode_batch
from streamq.wire.codec import encode
from streamq.wire.framing import encode_frame
from streamq.wire.records import pack_rows
from tests.fuzz.live import PORT, Live
from tests.fuzz.wild import Wild

__all__ = ["KINDS", "WildSender", "wild_batch", "wild_frame"]

KINDS: Final[tuple[type[Message], ...]] = tuple(kind for kind in typing.get_args(AnyMessage) if kind is not Stop)
"""All but the one that rightly ends a broker."""
VALUES: Final = (PartitionRegister, TopicRegister, BrokerRegister, ClusterRegister, Voters)
SEND_S: Final = 2.0


def wild_batch(wild: Wild, partition: bytes | None = None, epoch: int | None = None) -> Batch:
    """Whole, with checksums that hold, and a header that says anything within its bounds."""
    rng = wild.rng

    def number(bits: int) -> int:
        return int(min(max(wild.value(int), 0), (1 << bits) - 1))

    raw = pack_rows([(None, None, b"w", None)] * rng.randrange(1, 4))
    header = BatchHeader(
        (wild.value(bytes) if partition is None else partition).ljust(16, b"\0")[:16],
        rng.choice((1, 1, 2, 3, 1 << 20)), 0, rng.choice((len(raw), 0, 1 << 22)), 0,
        rng.choice((NO_PRODUCER, b"p" * 16)), number(32), number(63), number(63), number(63),
        number(63) if epoch is None else min(max(epoch, 0), OFFSET_MAX), min(number(63), OFFSET_MAX - (1 << 20) - 1), number(63),
        compression=0,
    )  # fmt: skip
    if rng.random() < 0.4:
        header = msgspec.structs.replace(header, base=rng.choice((0, 2, 4, 6)), records=rng.choice((1, 2)))
    return encode_batch(header, raw)


def wild_frame(wild: Wild, kind: type[Message]) -> tuple[Message, list[bytes]]:
    """A message of the kind, with a payload that often is what it announces."""
    rng = wild.rng
    message: Message = wild.value(kind)
    batches: list[Batch] = []
    if rng.random() < 0.75:
        if isinstance(message, Store):
            runs = tuple(run._replace(batches=rng.randrange(3), partition=run.partition.ljust(16, b"\0")[:16]) for run in message.runs)
            batches = [wild_batch(wild, run.partition, run.epoch) for run in runs for _ in range(run.batches)]
            message = Store(tuple(StoreRun(*run) for run in runs))
        elif isinstance(message, Repair):
            batches = [wild_batch(wild, message.partition, message.segment.epoch) for _ in range(rng.randrange(3))]
        elif isinstance(message, Produce):
            batches = [msgspec_reset(wild_batch(wild)) for _ in message.tickets]
    elif rng.random() < 0.5:
        batches = [wild_batch(wild) for _ in range(rng.randrange(3))]
    payload = [part for batch in batches for part in (batch.head, batch.payload)]
    if rng.random() < 0.05:
        payload.append(rng.randbytes(rng.randrange(200)))
    return message, payload


def msgspec_reset(batch: Batch) -> Batch:
    """As a producer sends it: not stamped yet."""
    return encode_batch(msgspec.structs.replace(batch.header, epoch=0, base=0, append_time=0), batch.payload)


class WildSender:
    """Connects to brokers, again and again, and sends what `Wild` makes; what comes back is read and thrown away."""

    def __init__(self, live: Live, rng: random.Random, kinds: typing.Sequence[type[Message]], *, as_broker: bool) -> None:
        self.live = live
        self.rng = rng
        self.kinds = kinds
        self.as_broker = as_broker
        self.wild = Wild(rng, live.pool)
        self.sent: list[tuple[str, Message]] = []
        self._streams: dict[str, trio.abc.Stream] = {}
        pool = live.pool
        pool.identities += [encode(Wild(rng, pool).value(rng.choice(VALUES))) for _ in range(6)]

    async def send(self, frames: int, nursery: trio.Nursery) -> None:
        for _ in range(frames):
            target = self.rng.choice([name for name, broker in self.live.running.brokers.items() if broker.is_running])
            kind = self.rng.choice(self.kinds)
            message, payload = wild_frame(self.wild, kind)
            request = self.rng.choice((0, 1, 2, 3, self.rng.randrange(1, 1 << 32)))
            buffers = encode_frame(message, request=request, is_answer=self.rng.random() < 0.05, payload=payload)
            self.sent.append((target, message))
            await self._send(target, b"".join(buffers), nursery)

    async def _send(self, target: str, data: bytes, nursery: trio.Nursery) -> None:
        for _ in range(2):
            stream = self._streams.get(target)
            try:
                with trio.move_on_after(SEND_S):
                    if stream is None:
                        stream = self._streams[target] = await self._connect(target, nursery)
                    await stream.send_all(data)
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._streams.pop(target, None)

    async def _connect(self, target: str, nursery: trio.Nursery) -> trio.abc.Stream:
        live, rng = self.live, self.rng
        stream = await live.network.of("wild").connect(target, PORT)
        hello = Hello((1, 1), (), "wild")
        if self.as_broker:
            name = rng.choice((*live.running.brokers, "stranger"))
            known = live.running.brokers.get(name)
            incarnation = known.storage.identity.incarnation if known is not None and rng.random() < 0.8 else rng.randbytes(16)
            hello = Hello((1, 1), (), "wild", live.identity(target).cluster, name, incarnation)
        await greet(stream, hello)
        nursery.start_soon(_drain, stream)
        return stream


async def _drain(stream: trio.abc.Stream) -> None:
    try:
        while await stream.receive_some(1 << 20):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)
