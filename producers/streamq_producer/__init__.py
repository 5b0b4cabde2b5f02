"""The producer: records in, receipts out once W replicas have them on disk. A blocking twin is in `streamq_producer.sync`."""

from streamq_producer.delivery import Delivery, Receipt
from streamq_producer.producer import Producer
from streamq_producer.records import partition_of
from streamq_producer.settings import ProducerSettings
from streamq_producer.stats import ProducerStats

__all__ = ["Delivery", "Producer", "ProducerSettings", "ProducerStats", "Receipt", "partition_of"]
