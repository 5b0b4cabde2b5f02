"""The consumer: records out, in order, without a hole or a repeat. A blocking twin is in `streamq_consumer.sync`."""

from streamq.client.codecs import Codec, Json, MsgPack, Structs, Text
from streamq.client.times import Lag
from streamq_consumer.consumer import Consumer
from streamq_consumer.dead_letter import DeadLetter
from streamq_consumer.records import Record, Stable, Tip
from streamq_consumer.run import Reject, Retry
from streamq_consumer.settings import ConsumerSettings
from streamq_consumer.stats import ConsumerStats
from streamq_consumer.typed import TypedRecord, decode, decoding

__all__ = [
    "Codec", "Consumer", "ConsumerSettings", "ConsumerStats", "DeadLetter", "Json", "Lag", "MsgPack", "Record", "Reject", "Retry", "Stable",
    "Structs", "Text", "Tip", "TypedRecord", "decode", "decoding",
]  # fmt: skip
