"""Records that cannot be handled, kept in a topic of their own with all that they had and why they are there."""

import logging
from collections.abc import Mapping
from typing import Final, Protocol

from streamq.model.errors import RefusedError
from streamq.model.limits import HEADERS_PER_RECORD_MAX
from streamq_consumer.records import Record

__all__ = ["DeadLetter", "Sender"]

log = logging.getLogger("streamq_consumer")

ERROR_CHARS_MAX: Final = 1_000


def record_place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


class Sender(Protocol):
    """A `streamq_producer.Producer`."""

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> object:
        """Returns when the record is acked."""


class DeadLetter:
    """Where records go that failed for good: `DeadLetter(producer, "orders.dead")`. The producer stays the caller's.

    A dead letter has the record's key, value and headers, and the headers `dlq-topic`, `dlq-partition`, `dlq-offset`, `dlq-timestamp`,
    `dlq-attempts` and `dlq-error`. Where that is more than a record may be, the record's own headers are left out (`dlq-headers-dropped`
    says how many), then those of the dead letter.
    """

    def __init__(self, producer: Sender, topic: str) -> None:
        self.producer: Final = producer
        self.topic: Final = topic

    async def send(self, record: Record, error: BaseException, attempts: int) -> None:
        """Returns when it is acked. Raises what the producer raises; RefusedError if not even the bare record is taken."""
        text = f"{type(error).__name__}: {error}"
        where = {
            "dlq-topic": record.topic.encode(),
            "dlq-partition": b"%d" % record.partition,
            "dlq-offset": b"%d" % record.offset,
            "dlq-timestamp": b"%d" % record.timestamp,
        }
        why = {"dlq-attempts": b"%d" % attempts, "dlq-error": text[:ERROR_CHARS_MAX].encode("utf-8", "replace")}
        bare = {**where, "dlq-headers-dropped": b"%d" % len(record.headers)} if record.headers else where
        ways: list[Mapping[str, bytes]] = [{**record.headers, **where, **why}, {**bare, **why}, bare, {}]
        for headers in ways:
            if len(headers) > HEADERS_PER_RECORD_MAX:
                continue
            try:
                await self.producer.send(self.topic, record.value, key=record.key, headers=headers)
            except RefusedError as refused:
                if refused.code != "record_too_large" or not headers:
                    raise
            else:
                if not headers:
                    log.warning("%s/%d@%d is a dead letter without headers, for want of room", *record_place(record))
                return
