"""Named producers: their registers, and what opening one means (P-33)."""

from streamq.broker.node import Node
from streamq.broker.topics import TOPIC_NAME
from streamq.metadata.changes import open_producer
from streamq.model.errors import RefusedError
from streamq.model.limits import NAME_CHARS_MAX, NAMED_PRODUCERS_MAX
from streamq.model.messages import OpenProducer, ProducerOpened
from streamq.model.registers import ProducerRegister, producer_key

__all__ = ["open_named"]


async def open_named(node: Node, message: OpenProducer) -> ProducerOpened:
    """Raises RefusedError for a bad name or one too many, and what `Registers` raise."""
    name = message.name
    if not TOPIC_NAME.fullmatch(name) or name in (".", ".."):
        raise RefusedError(
            f"{name[:80]!r} is no name of a producer: 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes and underscores",
            code="bad_name",
            hint="for example: ingest-1",
        )
    if len(message.attempt) != 16:
        raise RefusedError("an attempt is 16 random bytes", code="bad_request")
    registers = node.registers
    key = producer_key(name)
    if await registers.get(key) is None and len(await registers.list("producer/")) >= NAMED_PRODUCERS_MAX:
        raise RefusedError(f"there are {NAMED_PRODUCERS_MAX} named producers, the most that a cluster keeps", code="limit_reached")
    opened = await registers.change_as(ProducerRegister, key, open_producer(name, fresh=node.clock.token(), attempt=message.attempt))
    return ProducerOpened(opened.id, opened.epoch)
