"""Opening a named producer (P-33)."""

from typing import Final

from streamq.client.cluster import Cluster
from streamq.model.errors import UnknownOutcomeError
from streamq.model.messages import OpenProducer, ProducerOpened

__all__ = ["open_producer"]

TRIES_MAX: Final = 3
"""Of an opening whose outcome a broker could not tell; each has the time of a request."""


async def open_producer(cluster: Cluster, name: str, *, attempt: bytes, transaction_ms: int) -> ProducerOpened:
    """The id of the producer with this name, and an epoch that nobody else has. Raises RefusedError, UnavailableError, or
    UnknownOutcomeError: then it may be opened, which does no harm but to the producer of this name that was open before.

    `transaction_ms` is 0 for one that has no transactions.
    """
    tries = 0
    while True:
        try:
            return await cluster.request(OpenProducer(name, attempt, transaction_ms), ProducerOpened)
        except UnknownOutcomeError:
            tries += 1
            if tries == TRIES_MAX:
                raise
