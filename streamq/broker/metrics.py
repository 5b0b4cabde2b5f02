"""What a broker counts, and all that it tells of itself when it is asked.

`deploy/README.md` says what each name means; a test keeps the two the same.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from streamq.model.batches import Batch
from streamq.model.messages import Ack, Metrics, Nack
from streamq.model.metrics import Histogram, MetricSet

if TYPE_CHECKING:
    from streamq.broker.node import Node

__all__ = ["BrokerMetrics", "ProcessUsage", "Usage", "read_metrics"]

US_PER_S: Final = 1_000_000


class ProcessUsage(NamedTuple):
    """What the operating system says of the whole process; by name, as far as it says it."""

    counters: dict[str, int | float]
    gauges: dict[str, int | float]


Usage = Callable[[], ProcessUsage]


class BrokerMetrics(MetricSet):
    """Everything here belongs to the event loop."""

    def __init__(self) -> None:
        # from producers
        self.batches_taken = 0
        self.records_taken = 0
        self.bytes_taken = 0
        self.duplicates = 0
        self.batches_acked = 0
        self.batches_nacked: Counter[str] = Counter()
        self.ack_seconds = Histogram(US_PER_S)
        # from sequencers and other replicas
        self.batches_followed = 0
        self.bytes_followed = 0
        self.stores_dropped = 0
        self.bytes_copied = 0
        # to consumers and followers
        self.batches_read = 0
        self.records_read = 0
        self.bytes_read = 0
        self.bytes_read_from_disk = 0
        self.catch_ups = 0
        # changes
        self.takeovers: Counter[str] = Counter(begun=0, won=0, lost=0, deferred=0, stuck=0)
        self.takeover_seconds = Histogram(US_PER_S)
        self.suspicions = 0
        self.seals = 0
        self.repairs = 0
        self.handoffs = 0
        self.cuts = 0
        self.renames = 0
        # retention
        self.trims = 0
        self.tables_fetched = 0
        # damage
        self.limbo = 0
        self.damaged_ranges = 0
        self.mended_ranges = 0
        self.alarms = 0
        # connections
        self.connections_accepted = 0
        self.connections_refused = 0
        self.connections_broken = 0
        self.requests = 0

    def took(self, records: int, size: int) -> None:
        """A batch of a producer, which was given a place in the log."""
        self.batches_taken += 1
        self.records_taken += records
        self.bytes_taken += size

    def served(self, batches: Sequence[Batch], *, is_from_disk: bool) -> None:
        """Read for a consumer."""
        size = sum([batch.size for batch in batches])
        self.batches_read += len(batches)
        self.records_read += sum([batch.header.records for batch in batches])
        self.bytes_read += size
        if is_from_disk:
            self.bytes_read_from_disk += size

    def answered(self, acks: Sequence[Ack], nacks: Sequence[Nack]) -> None:
        """Outcomes that are on their way to a producer."""
        self.batches_acked += len(acks)
        for nack in nacks:
            self.batches_nacked[nack.code] += 1


def read_metrics(node: "Node", usage: Usage | None) -> Metrics:
    """Everything of this broker, and of its process if `usage` is given."""
    storage = node.storage
    counters: dict[str, int | float] = {**node.metrics.counters(), **storage.metrics.counters()}
    gauges: dict[str, int | float] = {**_gauges(node), **storage.gauges()}
    if usage is not None:
        used = usage()
        counters |= used.counters
        gauges |= used.gauges
    return Metrics(counters, gauges, {**node.metrics.histograms(), **storage.metrics.histograms()})


def _gauges(node: "Node") -> dict[str, int | float]:
    partitions = list(node.partitions.values())
    sequenced = [partition.sequencing for partition in partitions if partition.sequencing is not None]
    followers = [follower for sequencing in sequenced for follower in sequencing.followers.values()]
    peers = [peer.channel for peer in node.peers if peer.channel is not None]
    return {
        "serving": int(node.state == "serving"),
        "uptime_seconds": round(trio.current_time() - node.began, 3),
        "partitions": len(partitions),
        "partitions_sequenced": len(sequenced),
        "partitions_followed": sum(p.sequencing is None and p.replica.accepts_epoch is not None for p in partitions),
        "partitions_limbo": sum(bool(p.replica.state.limbo or p.replica.state.limbo_everywhere) for p in partitions),
        "partitions_damaged": sum(bool(p.replica.state.damaged) for p in partitions),
        "followers": len(followers),
        "followers_fed": sum(follower.is_feeding for follower in followers),
        "in_flight_bytes": node.in_flight_bytes,
        "peers_connected": len(peers),
        "peer_queue_bytes": sum(channel.queued_bytes for channel in peers),
        "connections": len(node.sessions),
        "connection_queue_bytes": sum(session.channel.queued_bytes for session in node.sessions),
        "subscriptions": sum(len(session.subscriptions) for session in node.sessions),
    }
