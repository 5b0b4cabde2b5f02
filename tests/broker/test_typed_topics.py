"""Typed topics from producer to consumer, under trio, in a cluster in this process."""

import msgspec
import pytest
import trio

from streamq.model.errors import DecodeError, RefusedError
from streamq.model.messages import CreateTopic, TopicCreated
from streamq.testing.in_process import cluster
from streamq_consumer import Consumer, DeadLetter, Structs, TypedRecord, decoding
from streamq_producer import Producer


class Order(msgspec.Struct):
    item: str
    count: int


async def test_objects_go_in_and_come_out_and_one_that_is_none_does_not_stop_those_behind_it() -> None:
    async with cluster(3) as running, Producer(running.bootstrap) as producer:
        for topic in ("orders", "dead"):
            await producer._cluster.request(CreateTopic(topic, 1, 3, 2, 2, "fsync"), TopicCreated)
        orders = producer.topic("orders", Structs(Order))
        await orders.send(Order("pizza", 1), key=b"a")
        await producer.send("orders", b"no order")
        await (await orders.enqueue(None, key=b"a")).receipt()
        await orders.enqueue_many([Order("pasta", 2), Order("water", 3)])
        with pytest.raises(RefusedError):
            await orders.send("pizza")  # type: ignore[arg-type]
        await producer.flush()

        async with Consumer(running.bootstrap, topics=["orders"]) as consumer:
            typed = consumer.decoded(Structs(Order))
            assert (await anext(typed)).value == Order("pizza", 1)
            with pytest.raises(DecodeError, match="orders/0@1"):
                await anext(typed)
            assert (await anext(typed)).value is None
            assert [(await anext(typed)).value for _ in range(2)] == [Order("pasta", 2), Order("water", 3)]

        seen: list[Order | None] = []

        async def handle(record: TypedRecord[Order]) -> None:
            seen.append(record.value)

        async with Consumer(running.bootstrap, topics=["orders"], group="g") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: consumer.run(decoding(Structs(Order), handle), dead_letter=DeadLetter(producer, "dead")))
            with trio.fail_after(5):
                while len(seen) < 4:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert seen == [Order("pizza", 1), None, Order("pasta", 2), Order("water", 3)]
        async with Consumer(running.bootstrap, topics=["dead"]) as graves:
            [letter] = await graves.fetch(5, timeout=2)
        assert (letter.value, letter.headers["dlq-attempts"]) == (b"no order", b"1"), "what cannot be decoded is not tried again"
