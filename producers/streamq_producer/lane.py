"""One partition as the producer fills it: the open batch, how it is closed, and the session that sees it through."""

import msgspec

from streamq.client.settings import refuse_unless
from streamq.client.timers import NEVER
from streamq.model.batches import (
    COMPRESSION_NONE,
    COMPRESSION_ZSTD,
    FLAG_CONDITIONAL,
    FLAG_CONTROL,
    FLAG_FENCED,
    FLAG_IDENTIFIED,
    FLAG_TRANSACTIONAL,
    Batch,
    BatchHeader,
    Compression,
)
from streamq.model.ids import NO_PRODUCER, ProducerId
from streamq.model.limits import OFFSET_MAX
from streamq.model.messages import PartitionView
from streamq.wire.batch_format import encode_batch
from streamq.wire.compression import compress
from streamq.wire.records import Row, pack_rows
from streamq_producer.delivery import BatchOutcome
from streamq_producer.effects import Entry
from streamq_producer.session import PartitionSession
from streamq_producer.settings import ProducerSettings

__all__ = ["Lane", "SealedBatch"]


class SealedBatch:
    """The token of a session's entry: the packed records, and the bytes to send once producer id and sequence are known."""

    __slots__ = ("_numbered", "_payload", "buffered_bytes", "closed_at", "header", "outcome")

    def __init__(self, header: BatchHeader, payload: bytes, outcome: BatchOutcome, *, buffered_bytes: int) -> None:
        """`buffered_bytes` is what the batch goes on counting for: its size before compression, so that a full buffer is soon stored."""
        self.outcome = outcome
        self.buffered_bytes = buffered_bytes
        self.closed_at = 0.0
        self.header = header
        self._payload = payload
        self._numbered: Batch | None = None

    def numbered(self, producer: ProducerId, producer_epoch: int, sequence: int) -> Batch:
        """The same bytes for the same numbers, however often it is sent. A record with an id goes by that, not by a producer's."""
        batch = self._numbered
        producer = self.header.producer if self.header.is_identified else producer
        if batch is None or batch.header.sequence != sequence or batch.header.producer_epoch != producer_epoch:
            header = msgspec.structs.replace(self.header, producer=producer, producer_epoch=producer_epoch, sequence=sequence)
            batch = self._numbered = encode_batch(header, self._payload)
        return batch


class Lane:
    """Invariant: `rows` is empty exactly when no batch is open, and then `linger_until` is never."""

    __slots__ = (
        "_settings", "first_timestamp", "ids", "index", "is_shared", "linger_until", "mark", "max_timestamp", "opened", "outcome",
        "position", "raw_bytes", "rows", "session", "topic", "view", "wakes_at",
    )  # fmt: skip

    def __init__(self, topic: str, index: int, view: PartitionView, session: PartitionSession, settings: ProducerSettings) -> None:
        self.topic = topic
        self.index = index
        self.view = view
        self.session = session
        self.rows: list[Row] = []
        self.raw_bytes = 0
        self.first_timestamp = 0
        self.max_timestamp = 0
        self.linger_until = NEVER
        self.wakes_at = NEVER
        self.is_shared = False
        """The last batch had several records: whoever sends now is probably not the only one."""
        self.outcome = BatchOutcome(topic, index)
        self.mark = 0
        """The position of the open batch's last record that has one."""
        self.position = 0
        """The last that was given here."""
        self.opened: BatchOutcome | None = None
        """Of a named producer: what becomes of the opening."""
        self.ids: Lane | None = None
        """For records with ids of this partition: a lane that never has an open batch."""
        self._settings = settings

    def begin(self, timestamp: int, now: float) -> None:
        """Opens a batch, whose first record has this time."""
        self.outcome = BatchOutcome(self.topic, self.index)
        self.first_timestamp = self.max_timestamp = timestamp
        self.linger_until = now + self._settings.linger_s

    @property
    def may_close(self) -> bool:
        """Nothing is under way, so that the open batch has nothing to wait for."""
        return bool(self.rows) and self.session.is_idle

    @property
    def next_deadline(self) -> float:
        return min(self.linger_until, self.session.next_deadline)

    def seal(self, transaction: int) -> Entry:
        """Closes the open batch: packs and compresses it. `transaction` is the number of the one that it belongs to, if any."""
        assert self.rows, "no batch is open"
        payload, raw_bytes, compression = self._packed(self.rows)
        header = BatchHeader(
            partition=self.view.id, records=len(self.rows), payload_bytes=len(payload), raw_bytes=raw_bytes, payload_crc=0,
            producer=bytes(16), producer_epoch=0, sequence=0, first_timestamp=self.first_timestamp, max_timestamp=self.max_timestamp,
            epoch=0, base=0, append_time=0, compression=compression, flags=FLAG_TRANSACTIONAL if transaction else 0,
            mark=transaction or self.mark,
        )  # fmt: skip
        deadline = self.linger_until - self._settings.linger_s + self._settings.delivery_timeout_s
        entry = Entry(SealedBatch(header, payload, self.outcome, buffered_bytes=self.raw_bytes), records=len(self.rows), deadline=deadline)
        self.is_shared = len(self.rows) > 1
        self.rows = []
        self.raw_bytes = self.mark = 0
        self.linger_until = NEVER
        return entry

    def _packed(self, rows: list[Row]) -> tuple[bytes, int, Compression]:
        """The payload, its size before compression, and how it is compressed."""
        raw = pack_rows(rows)
        if self._settings.compression == "zstd":
            smaller = compress(raw, level=self._settings.level)
            if len(smaller) < len(raw):
                return smaller, len(raw), COMPRESSION_ZSTD
        return raw, len(raw), COMPRESSION_NONE

    def check_position(self, position: int) -> None:
        """Raises RefusedError for the position of the next record, if what is stored or taken is not below it."""
        before = max(self.position, self.session.mark)
        refuse_unless(
            before < position <= OFFSET_MAX, f"position {position} does not come after {before}, the last one", code="bad_request"
        )

    def append(
        self, rows: list[Row], buffered_bytes: int, timestamp: int, now: float, *, expected_offset: int | None, fencing_token: int | None
    ) -> Entry:
        """A batch of its own, which is stored at this offset, and not behind a higher token, or not at all."""
        flags = (FLAG_CONDITIONAL if expected_offset is not None else 0) | (FLAG_FENCED if fencing_token is not None else 0)
        entry = self._alone(rows, buffered_bytes, timestamp, now, flags=flags, base=expected_offset or 0, mark=fencing_token or 0)
        assert isinstance(entry.token, SealedBatch)
        entry.token.outcome.was_asked = True
        return entry

    def identified(self, row: Row, buffered_bytes: int, timestamp: int, now: float, *, hashed: bytes) -> Entry:
        """A batch of one record that has an id."""
        return self._alone([row], buffered_bytes, timestamp, now, flags=FLAG_IDENTIFIED, producer=hashed)

    def _alone(
        self,
        rows: list[Row],
        buffered_bytes: int,
        timestamp: int,
        now: float,
        *,
        flags: int,
        base: int = 0,
        mark: int = 0,
        producer: ProducerId = NO_PRODUCER,
    ) -> Entry:
        payload, raw_bytes, compression = self._packed(rows)
        header = BatchHeader(
            partition=self.view.id, records=len(rows), payload_bytes=len(payload), raw_bytes=raw_bytes, payload_crc=0, producer=producer,
            producer_epoch=0, sequence=0, first_timestamp=timestamp, max_timestamp=timestamp, epoch=0, base=base, append_time=0,
            compression=compression, flags=flags, mark=mark,
        )  # fmt: skip
        sealed = SealedBatch(header, payload, BatchOutcome(self.topic, self.index), buffered_bytes=buffered_bytes)
        return Entry(sealed, records=len(rows), deadline=now + self._settings.delivery_timeout_s)

    def opening(self, timestamp: int, now: float) -> Entry:
        """A named producer's first batch here: a control batch, which fences its former self and asks for its mark (P-33)."""
        raw = pack_rows([(None, None, None, None)])
        header = BatchHeader(
            partition=self.view.id, records=1, payload_bytes=len(raw), raw_bytes=len(raw), payload_crc=0, producer=bytes(16),
            producer_epoch=0, sequence=0, first_timestamp=timestamp, max_timestamp=timestamp, epoch=0, base=0, append_time=0,
            compression=COMPRESSION_NONE, flags=FLAG_CONTROL,
        )  # fmt: skip
        self.opened = BatchOutcome(self.topic, self.index)
        self.opened.was_asked = True
        return Entry(SealedBatch(header, raw, self.opened, buffered_bytes=0), records=0, deadline=now + self._settings.delivery_timeout_s)
