"""Every bound has a name here, with a unit at its end, and asserts say how the bounds relate."""

from typing import Final

__all__ = [
    "BATCH_PAYLOAD_BYTES_MAX",
    "BATCH_RAW_BYTES_MAX",
    "BATCH_RECORDS_MAX",
    "CHAIN_SEGMENTS_MAX",
    "CONNECTIONS_MAX",
    "COPY_BYTES_MAX",
    "CREDIT_BYTES_MAX",
    "DEDUP_BATCHES",
    "DEDUP_MS_DEFAULT",
    "DEDUP_MS_MAX",
    "DEDUP_MS_MIN",
    "FRAME_HEADER_BYTES_MAX",
    "FRAME_PAYLOAD_BYTES_MAX",
    "GROUP_MEMBERS_MAX",
    "GROUP_NAMES_BYTES_MAX",
    "GROUP_PARTITIONS_MAX",
    "GROUP_PARTITION_BYTES_MAX",
    "GROUP_PENDING_MAX",
    "GROUP_SESSION_MS_MAX",
    "GROUP_SESSION_MS_MIN",
    "GROUP_TOPICS_MAX",
    "HEADERS_PER_RECORD_MAX",
    "IDS_PER_PARTITION_MAX",
    "IN_FLIGHT_BATCHES_MAX",
    "IN_FLIGHT_BYTES_MAX",
    "KEY_CHARS_MAX",
    "NAMED_PRODUCERS_MAX",
    "NAMED_PRODUCER_EXPIRY_MS",
    "NAME_CHARS_MAX",
    "OFFSET_MAX",
    "PARTITIONS_PER_TOPIC_MAX",
    "PEER_QUEUE_BYTES_MAX",
    "PLACES_PER_REQUEST_MAX",
    "PRODUCERS_PER_PARTITION_MAX",
    "PRODUCER_EPOCH_MAX",
    "PRODUCER_EXPIRY_MS",
    "RECORD_BYTES_MAX",
    "RECORD_ID_BYTES_MAX",
    "REGISTER_BYTES_MAX",
    "REPLICAS_MAX",
    "REQUESTS_PER_CONNECTION_MAX",
    "RETENTION_BYTES_MIN",
    "RETENTION_MS_MIN",
    "SUBSCRIPTIONS_PER_CONNECTION_MAX",
    "TABLE_PAGE_IDS_MAX",
    "TABLE_PAGE_PRODUCERS_MAX",
    "TOPICS_MAX",
    "TRANSACTION_MS_MAX",
    "TRANSACTION_MS_MIN",
]

KiB: Final = 1 << 10
MiB: Final = 1 << 20

OFFSET_MAX: Final = (1 << 63) - 1

RECORD_BYTES_MAX: Final = 1 * MiB
"""Key, value and headers of one record together."""
HEADERS_PER_RECORD_MAX: Final = 64
BATCH_RAW_BYTES_MAX: Final = 4 * MiB
"""A batch before compression; what a consumer has to be ready to decompress."""
BATCH_PAYLOAD_BYTES_MAX: Final = 4 * MiB + 64 * KiB
"""A batch after compression; incompressible data grows a little."""
BATCH_RECORDS_MAX: Final = 1 << 20

FRAME_HEADER_BYTES_MAX: Final = 4 * MiB
FRAME_PAYLOAD_BYTES_MAX: Final = 8 * MiB
REGISTER_BYTES_MAX: Final = 2 * MiB
"""One register's value; a chain of `CHAIN_SEGMENTS_MAX` segments fits."""

NAME_CHARS_MAX: Final = 200
KEY_CHARS_MAX: Final = 240
"""The key of a register, which names a topic or a broker; four bytes a character, it still fits into an entry of the journal."""
REPLICAS_MAX: Final = 9
PARTITIONS_PER_TOPIC_MAX: Final = 2_000
TOPICS_MAX: Final = 10_000
CHAIN_SEGMENTS_MAX: Final = 4_096

GROUP_MEMBERS_MAX: Final = 1_000
GROUP_TOPICS_MAX: Final = 100
"""That one member subscribes to."""
GROUP_PARTITIONS_MAX: Final = 20_000
"""Of all topics of a group together: they and their positions lie in one register."""
GROUP_SESSION_MS_MIN: Final = 1_000
GROUP_SESSION_MS_MAX: Final = 30 * 60 * 1_000
GROUP_PARTITION_BYTES_MAX: Final = 39
"""A partition in a group's register, encoded, without a pending position."""
GROUP_PENDING_MAX: Final = 5_000
"""Positions of a group that wait for their transactions."""
GROUP_PENDING_BYTES_MAX: Final = 38
GROUP_TOPIC_BYTES_MAX: Final = 26
"""A topic in a group's register, encoded, without its name and partitions; it has at least one of these."""
GROUP_MEMBER_BYTES_MAX: Final = 64
"""A member in a group's register, encoded, without names."""
NAME_FRAME_BYTES_MAX: Final = 3
"""What a name has beside its bytes, encoded."""
GROUP_NAMES_BYTES_MAX: Final = 480 * KiB
"""Of the names in a group's register together, encoded: of its topics, and of each member's, which names those that it subscribes to."""

TRANSACTION_MS_MIN: Final = 100
TRANSACTION_MS_MAX: Final = 60 * 60 * 1_000
"""How old a producer may have its transactions become."""

CONNECTIONS_MAX: Final = 2_000
REQUESTS_PER_CONNECTION_MAX: Final = 1_024
SUBSCRIPTIONS_PER_CONNECTION_MAX: Final = 4_096
CREDIT_BYTES_MAX: Final = 64 * MiB
PLACES_PER_REQUEST_MAX: Final = 1_000
"""Offsets of which one `ReadTimes` may ask when they were appended: each may have to be read from the disk."""
COPY_BYTES_MAX: Final = 2 * MiB
"""What one answer to `Copy` may carry, at least one batch."""

IN_FLIGHT_BYTES_MAX: Final = 48 * MiB
"""Batches a broker has taken from producers and not yet answered; past it, it stops reading from them."""
PEER_QUEUE_BYTES_MAX: Final = 16 * MiB
"""Batches waiting to be sent to one peer; past it the peer's replicas are fed from storage, at their own pace."""

IN_FLIGHT_BATCHES_MAX: Final = 32
"""Batches of one producer in one partition that are sent and not yet answered."""
DEDUP_BATCHES: Final = 64
"""K of P-34: the batches of one producer whose offsets the idempotence table keeps."""
PRODUCERS_PER_PARTITION_MAX: Final = 20_000
PRODUCER_EXPIRY_MS: Final = 7 * 24 * 3600 * 1000
NAMED_PRODUCER_EXPIRY_MS: Final = 366 * 24 * 3600 * 1000
PRODUCER_EPOCH_MAX: Final = (1 << 32) - 1
NAMED_PRODUCERS_MAX: Final = 10_000
"""Names of producers that a cluster keeps."""
TABLE_PAGE_PRODUCERS_MAX: Final = 250
"""Of an idempotence table, in one answer to `ReadTable`: checked in a few milliseconds."""
PLACE_BYTES_MAX: Final = 37
"""A batch's place in a table, encoded: four numbers and their frame."""

RECORD_ID_BYTES_MAX: Final = 1_024
DEDUP_MS_DEFAULT: Final = 10 * 60 * 1000
"""How long a topic remembers the ids of records, unless it was told otherwise."""
DEDUP_MS_MIN: Final = 60 * 1000
"""Longer than a producer goes on sending a record unless it is told otherwise: its own retries come within the window."""
DEDUP_MS_MAX: Final = 7 * 24 * 3600 * 1000
IDS_PER_PARTITION_MAX: Final = 100_000
"""Record ids that a partition remembers at a time."""
TABLE_PAGE_IDS_MAX: Final = 5_000
"""Of an idempotence table, in one answer to `ReadTable`: checked in a few milliseconds."""
STORED_ID_BYTES_MAX: Final = 46
"""A record's id in a table, encoded: its hash, three numbers and their frame."""

RETENTION_BYTES_MIN: Final = 1 * MiB
RETENTION_MS_MIN: Final = 1_000
"""Files are closed and removed whole, a few for each span of retention: less than this would be nothing but files."""

assert RECORD_BYTES_MAX * 2 <= BATCH_RAW_BYTES_MAX
assert BATCH_RAW_BYTES_MAX < BATCH_PAYLOAD_BYTES_MAX < FRAME_PAYLOAD_BYTES_MAX
assert NAME_CHARS_MAX + len(f"partition//{PARTITIONS_PER_TOPIC_MAX}") <= KEY_CHARS_MAX
assert REGISTER_BYTES_MAX * 2 <= FRAME_HEADER_BYTES_MAX
assert IN_FLIGHT_BATCHES_MAX <= DEDUP_BATCHES
assert (
    TABLE_PAGE_PRODUCERS_MAX * (DEDUP_BATCHES * PLACE_BYTES_MAX + 128) + TABLE_PAGE_IDS_MAX * STORED_ID_BYTES_MAX < FRAME_HEADER_BYTES_MAX
)
assert DEDUP_MS_MIN <= DEDUP_MS_DEFAULT <= DEDUP_MS_MAX
assert (
    GROUP_PARTITIONS_MAX * (GROUP_PARTITION_BYTES_MAX + GROUP_TOPIC_BYTES_MAX)
    + GROUP_PENDING_MAX * GROUP_PENDING_BYTES_MAX
    + GROUP_MEMBERS_MAX * GROUP_MEMBER_BYTES_MAX
    + GROUP_NAMES_BYTES_MAX
    + 2 * KEY_CHARS_MAX * 4
    < REGISTER_BYTES_MAX
)
assert COPY_BYTES_MAX + BATCH_PAYLOAD_BYTES_MAX < FRAME_PAYLOAD_BYTES_MAX
