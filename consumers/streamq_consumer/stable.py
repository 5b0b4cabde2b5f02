"""Last stable offsets, by quorum reads."""

from collections.abc import Collection
from typing import Final

from streamq.client.cluster import Cluster
from streamq.client.each import each
from streamq.client.times import Place
from streamq.model.messages import ReadStable, StableRead
from streamq_consumer.records import Stable

__all__ = ["read_stable", "read_stables"]

AT_ONCE: Final = 32


async def read_stable(cluster: Cluster, place: Place) -> Stable:
    """Raises NotFoundError, UnavailableError."""
    told = await cluster.request(ReadStable(*place), StableRead)
    number = told.transaction.number if told.transaction is not None else 0
    return Stable(*place, told.offset, told.tip, told.start_offset, told.name, number, told.began_ms)


async def read_stables(cluster: Cluster, places: Collection[Place]) -> dict[Place, Stable]:
    found: dict[Place, Stable] = {}

    async def ask(place: Place) -> None:
        found[place] = await read_stable(cluster, place)

    await each(places, ask, at_once=AT_ONCE)
    return {place: found[place] for place in places}
