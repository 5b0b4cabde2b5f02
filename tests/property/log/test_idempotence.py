"""The idempotence table is a function of the log, and recognises every repeat within its bounds (P-33 to P-35, I-5)."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.log.idempotence import Fenced, Gap, IdempotenceTable, Next, Repeat, TableSnapshot
from streamq.model.batches import BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.limits import DEDUP_BATCHES, PRODUCER_EXPIRY_MS

PRODUCERS = [b"a" * 16, b"b" * 16, NO_PRODUCER]
Sent = tuple[int, bool, int, int]


def log_of(sent: list[Sent]) -> list[BatchHeader]:
    """What a sequencer would assign: which producer, whether it comes back with a newer epoch, records, and how much time has gone by."""
    headers: list[BatchHeader] = []
    at, base = 1_000, 0
    table = IdempotenceTable()
    for who, reopens, records, pause in sent:
        at += pause
        producer = PRODUCERS[who]
        known = table.get(producer, at=at)
        epoch = (known.epoch if known else 0) + reopens
        sequence = 0 if known is None or reopens else known.last_sequence + 1
        headers.append(BatchHeader(b"p" * 16, records, 0, 0, 0, producer, epoch, sequence, 0, 0, 1, base, at))
        table.fold(headers[-1])
        base += records
    return headers


logs = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([False] * 9 + [True]),
        st.integers(1, 3),
        st.sampled_from([0, 0, 1, 500, PRODUCER_EXPIRY_MS // 2, PRODUCER_EXPIRY_MS + 1]),
    ),
    max_size=150,
).map(log_of)


def folded(headers: list[BatchHeader]) -> IdempotenceTable:
    table = IdempotenceTable()
    for header in headers:
        table.fold(header)
    return table


@given(headers=logs, cut=st.integers(0, 150))
@settings(max_examples=60, deadline=None)
def test_a_table_that_was_kept_on_the_way_answers_like_one_folded_from_the_start(headers: list[BatchHeader], cut: int) -> None:
    """Whatever was checkpointed, and when: only the log counts."""
    snapshot = msgspec.msgpack.encode(folded(headers[:cut]).snapshot())
    table = IdempotenceTable.restore(msgspec.msgpack.decode(snapshot, type=TableSnapshot))
    for header in headers[cut:]:
        table.fold(header)
    whole = folded(headers)
    assert (table.position, table.last_append_time) == (whole.position, whole.last_append_time)
    assert table.live(at=table.last_append_time) == whole.live(at=table.last_append_time)
    for producer in PRODUCERS:
        for epoch in range(4):
            for sequence in range(160):
                given_ = {"epoch": epoch, "sequence": sequence, "at": whole.last_append_time}
                assert table.verdict(producer, **given_) == whole.verdict(producer, **given_)


@given(headers=logs)
@settings(max_examples=60, deadline=None)
def test_verdicts_against_a_table_that_remembers_everything(headers: list[BatchHeader]) -> None:
    table = IdempotenceTable()
    mine: dict[bytes, list[BatchHeader]] = {}
    for header in headers:
        producer, at = header.producer, header.append_time
        known = mine.setdefault(producer, [])
        if producer != NO_PRODUCER:
            if known and known[-1].append_time + PRODUCER_EXPIRY_MS < at:
                known.clear()
            assert table.verdict(producer, epoch=header.producer_epoch, sequence=header.sequence, at=at) == Next()
            for i, old in enumerate(known):
                verdict = table.verdict(producer, epoch=old.producer_epoch, sequence=old.sequence, at=at)
                if old.producer_epoch < known[-1].producer_epoch:
                    assert verdict == Fenced(known[-1].producer_epoch)
                else:
                    assert isinstance(verdict, Repeat)
                    if len(known) - i <= DEDUP_BATCHES:
                        assert verdict.place == (old.sequence, old.base, old.records, old.append_time)
                    else:
                        assert verdict.place is None
            following = known[-1].sequence + 1 if known else 0
            epoch = known[-1].producer_epoch if known else 0
            assert table.verdict(producer, epoch=epoch, sequence=following + 1, at=at) == Gap(following)
            assert table.verdict(producer, epoch=epoch + 1, sequence=following + 1, at=at) == Gap(0)
        table.fold(header)
        known.append(header)
    assert table.producers <= 2


def test_an_expired_producer_begins_again_at_zero() -> None:
    table = IdempotenceTable()
    table.fold(BatchHeader(b"p" * 16, 1, 0, 0, 0, PRODUCERS[0], 3, 0, 0, 0, 1, 0, 1_000))
    last = 1_000 + PRODUCER_EXPIRY_MS
    assert table.verdict(PRODUCERS[0], epoch=3, sequence=1, at=last) == Next()
    assert table.verdict(PRODUCERS[0], epoch=3, sequence=1, at=last + 1) == Gap(0)
    assert table.verdict(PRODUCERS[0], epoch=0, sequence=0, at=last + 1) == Next()
