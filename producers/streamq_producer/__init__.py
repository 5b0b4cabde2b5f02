"""The producer: records in, receipts out once W replicas have them on disk. A blocking twin is in `streamq_producer.sync`."""

from streamq.client.codecs import Codec, Json, MsgPack, Structs, Text
from streamq_producer.delivery import Delivery, Receipt
from streamq_producer.producer import Producer
from streamq_producer.records import partition_of
from streamq_producer.settings import ProducerSettings
from streamq_producer.stats import ProducerStats
from streamq_producer.transaction import Transaction
from streamq_producer.typed import TypedTopic

__all__ = [
    "Codec", "Delivery", "Json", "MsgPack", "Producer", "ProducerSettings", "ProducerStats", "Receipt", "Structs", "Text",
    "Transaction", "TypedTopic",     "partition_of",
]  # fmt: skip
