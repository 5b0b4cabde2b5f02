"""The topics that a producer has sent to, and how their lanes are made."""

from collections.abc import Sequence
from typing import Final

import anyio

from streamq.client.cluster import Cluster
from streamq.client.host import Host
from streamq.model.errors import UnavailableError
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import ProducerOpened, TopicView
from streamq_producer.dispatch import Dispatcher
from streamq_producer.lane import Lane
from streamq_producer.session import PartitionSession
from streamq_producer.settings import ProducerSettings
from streamq_producer.topic import Topic

__all__ = ["Topics"]

IDENTIFIED_IN_FLIGHT: Final = 128
"""Records with ids of one partition that are sent and not yet answered: none waits for another, and each is a batch."""


class Topics:
    def __init__(self, cluster: Cluster, dispatcher: Dispatcher, host: Host, settings: ProducerSettings, name: str | None) -> None:
        """`name` is the producer's, if it has one."""
        self.identity = ProducerOpened(NO_PRODUCER, 0)
        """Of a named producer, once it is opened."""
        self.known: Final[dict[str, Topic]] = {}
        self._cluster = cluster
        self._dispatcher = dispatcher
        self._host = host
        self._settings = settings
        self._name = name
        self._opening = anyio.Lock()

    async def open(self, name: str) -> Topic:
        """Looked up in the cluster once. Raises NotFoundError, or UnavailableError."""
        async with self._opening:
            known = self.known.get(name)
            if known is None:
                known = self.known[name] = self._make(await self._cluster.topic(name))
        return known

    def forget(self, name: str) -> None:
        self.known.pop(name, None)

    def identified(self, lane: Lane) -> Lane:
        """The lane beside this one for records with ids."""
        if lane.ids is None:
            session = self._session(lane.view.replicas, lane.session.target or lane.view.sequencer, are_identified=True)
            lane.ids = Lane(lane.topic, lane.index, lane.view, session, self._settings)
            self._dispatcher.lanes.append(lane.ids)
        return lane.ids

    def _make(self, view: TopicView) -> Topic:
        if not view.partitions:
            raise UnavailableError(f"topic {view.name!r} has no partitions yet", code="unavailable")
        lanes = [
            Lane(view.name, index, partition, self._session(partition.replicas, partition.sequencer), self._settings)
            for index, partition in enumerate(view.partitions)
        ]
        self._dispatcher.lanes += lanes
        return Topic(view.name, lanes, first=self._host.below(len(lanes)))

    def _session(self, replicas: Sequence[str], sequencer: str, *, are_identified: bool = False) -> PartitionSession:
        fresh = self._host.token() if self._settings.idempotent else NO_PRODUCER
        return PartitionSession(
            replicas=replicas,
            sequencer=sequencer,
            in_flight=IDENTIFIED_IN_FLIGHT if are_identified else self._settings.in_flight,
            tickets=self._dispatcher.tickets,
            producer=fresh if self._name is None else self.identity.producer,
            producer_epoch=self.identity.epoch,
            name=self._name or "",
            are_identified=are_identified,
        )
