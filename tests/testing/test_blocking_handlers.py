"""`Consumer.run` of the blocking twin: plain functions in threads, and dead letters through a blocking producer."""

from collections.abc import Mapping

import pytest

from streamq.model.errors import HandlerError, RefusedError
from streamq.testing import ClusterInThread
from streamq_consumer import DeadLetter as AsyncDeadLetter
from streamq_consumer import Record, Reject, Retry
from streamq_consumer.sync import Consumer, DeadLetter
from streamq_producer.sync import Producer


class Closing:
    """Refuses the dead letter of the last record, which ends the run."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def send(self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Mapping[str, bytes] | None = None) -> object:
        if value == b"end":
            raise RefusedError("the end", code="bad_request")
        return self._producer.send(topic, value, key=key, headers=headers)


def test_what_fails_for_good_is_a_dead_letter_and_the_rest_is_handled(streamq_cluster: ClusterInThread) -> None:
    streamq_cluster.create_topic("t")
    streamq_cluster.create_topic("t.dead")
    handled: list[bytes | None] = []
    attempts: list[bytes | None] = []

    def handle(record: Record) -> None:
        attempts.append(record.value)
        if record.value == b"poison":
            raise Reject("known")
        if record.value in (b"broken", b"end"):
            raise ValueError("broken")
        handled.append(record.value)

    with Producer(streamq_cluster.bootstrap) as producer:
        for value in (b"1", b"poison", b"2", b"broken", b"3", b"end"):
            producer.send("t", value, key=b"k")
        with Consumer(streamq_cluster.bootstrap, topics=["t"], group="g") as consumer:
            dead_letter = DeadLetter(Closing(producer), "t.dead")
            with pytest.raises(HandlerError, match="the end"):
                consumer.run(handle, retry=Retry(attempts=3, first_s=0.001), dead_letter=dead_letter)
    with Consumer(streamq_cluster.bootstrap, topics=["t.dead"]) as graves:
        letters = [letter for _ in range(2) for letter in graves.fetch(1, timeout=5)]
    assert handled == [b"1", b"2", b"3"]
    assert [(letter.key, letter.value, letter.headers["dlq-error"]) for letter in letters] == [
        (b"k", b"poison", b"Reject: known"),
        (b"k", b"broken", b"ValueError: broken"),
    ]
    assert [attempts.count(value) for value in (b"poison", b"broken")] == [1, 3]


def test_dead_letters_for_an_event_loop_are_refused(streamq_cluster: ClusterInThread) -> None:
    streamq_cluster.create_topic("t")
    with Consumer(streamq_cluster.bootstrap, topics=["t"]) as consumer, pytest.raises(RefusedError, match="blocking producer"):
        consumer.run(print, dead_letter=AsyncDeadLetter(None, "t"))  # type: ignore[arg-type]
