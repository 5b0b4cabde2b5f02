"""The idempotence table is a function of the log, and recognises every repeat within its bounds (P-33 to P-35, I-5)."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.log.idempotence import Fenced, Gap, IdempotenceTable, Next, Repeat, TableSnapshot
from streamq.model.batches import FLAG_CONTROL, FLAG_FENCED, FLAG_IDENTIFIED, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.limits import DEDUP_BATCHES, NAMED_PRODUCER_EXPIRY_MS, PRODUCER_EXPIRY_MS

PRODUCERS = [b"a" * 16, b"b" * 16, NO_PRODUCER]
Sent = tuple[int, bool, int, int, int]


def log_of(sent: list[Sent]) -> list[BatchHeader]:
    """What a sequencer would assign: which producer, whether it comes back with a newer epoch, records, and how much time has gone by."""
    headers: list[BatchHeader] = []
    at, base = 1_000, 0
    table = IdempotenceTable()
    for who, reopens, records, pause, mark in sent:
        at += pause
        producer = PRODUCERS[who]
        known = table.get(producer, at=at)
        epoch = (known.epoch if known else 0) + reopens
        sequence = 0 if known is None or reopens else known.last_sequence + 1
        headers.append(BatchHeader(b"p" * 16, records, 0, 0, 0, producer, epoch, sequence, 0, 0, 1, base, at, mark=mark))
        table.fold(headers[-1])
        base += records
    return headers


logs = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([False] * 9 + [True]),
        st.integers(1, 3),
        st.sampled_from([0, 0, 1, 500, PRODUCER_EXPIRY_MS // 2, PRODUCER_EXPIRY_MS + 1, NAMED_PRODUCER_EXPIRY_MS + 1]),
        st.sampled_from([0] * 8 + [7, 70]),
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
    assert table.snapshot() == whole.snapshot()
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
            expiry_ms = NAMED_PRODUCER_EXPIRY_MS if any(old.mark for old in known) else PRODUCER_EXPIRY_MS
            if known and known[-1].append_time + expiry_ms < at:
                known.clear()
            entry = table.get(producer, at=at)
            assert (entry.mark if entry is not None else 0) == max((old.mark for old in known), default=0)
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


def test_a_named_producer_is_known_for_a_year_and_its_mark_stays_over_epochs() -> None:
    """Named by an opening alone, too. The mark is the highest, whatever came after it."""
    table = IdempotenceTable()

    def fold(producer: bytes, epoch: int, sequence: int, at: int, *, mark: int = 0, flags: int = 0) -> None:
        table.fold(BatchHeader(b"p" * 16, 1, 0, 0, 0, producer, epoch, sequence, 0, 0, 1, table.position, at, flags=flags, mark=mark))

    a, b = PRODUCERS[:2]
    fold(a, 1, 0, 1_000, flags=FLAG_CONTROL)
    fold(b, 0, 0, 1_000)
    fold(a, 1, 1, 1_000, mark=500)
    fold(b, 0, 1, 1_000 + PRODUCER_EXPIRY_MS + 1)
    assert table.verdict(b, epoch=0, sequence=1, at=1_000 + PRODUCER_EXPIRY_MS + 1) == Repeat((1, 3, 1, 1_000 + PRODUCER_EXPIRY_MS + 1))
    fold(a, 2, 0, 1_000 + NAMED_PRODUCER_EXPIRY_MS, flags=FLAG_CONTROL)
    known = table.get(a, at=1_000 + NAMED_PRODUCER_EXPIRY_MS)
    assert known is not None
    assert (known.mark, known.epoch, known.last_sequence, known.is_named) == (500, 2, 0, True)
    assert table.live(at=table.last_append_time) == {a}
    assert table.producers == 1
    late = 1_001 + 2 * NAMED_PRODUCER_EXPIRY_MS
    assert table.get(a, at=late) is None
    fold(a, 1, 0, late)
    known = table.get(a, at=late)
    assert known is not None
    assert (known.mark, known.is_named) == (0, False)


WINDOWS = [1_000, 50_000]

identified_and_fenced = st.lists(
    st.tuples(st.sampled_from("iiiift"), st.integers(0, 5), st.sampled_from(WINDOWS), st.sampled_from([0, 0, 1, 400, 999, 1_001, 50_001])),
    max_size=120,
)


def with_ids(drawn: list[tuple[str, int, int, int]]) -> list[BatchHeader]:
    """What a sequencer would assign of records with ids, windows that are altered between them, tokens that rise, and plain batches."""
    headers: list[BatchHeader] = []
    table, at, token = IdempotenceTable(), 1_000, 0
    for kind, which, window, pause in drawn:
        at += pause
        producer, flags, mark = NO_PRODUCER, 0, 0
        if kind == "i":
            producer, flags, mark = bytes([1 + which]) * 16, FLAG_IDENTIFIED, window
            if table.ids.get(producer, at=at) is not None:
                continue
        elif kind == "f":
            token += which
            flags, mark = FLAG_FENCED, token
        headers.append(BatchHeader(b"p" * 16, 1, 0, 0, 0, producer, 0, 0, 0, 0, 1, table.position, at, flags=flags, mark=mark))
        table.fold(headers[-1])
    return headers


@given(headers=identified_and_fenced.map(with_ids), cut=st.integers(0, 120))
@settings(max_examples=80, deadline=None)
def test_ids_and_tokens_are_a_function_of_the_log_too(headers: list[BatchHeader], cut: int) -> None:
    """A table that was kept on the way and one folded from the start remember the same: what a twin that forgets nothing says."""
    snapshot = msgspec.msgpack.encode(folded(headers[:cut]).snapshot())
    table = IdempotenceTable.restore(msgspec.msgpack.decode(snapshot, type=TableSnapshot))
    for header in headers[cut:]:
        table.fold(header)
    whole = folded(headers)
    assert table.snapshot() == whole.snapshot()
    assert table.fencing_token == max((h.mark for h in headers if h.is_fenced), default=0)
    newest = {h.producer: h for h in headers if h.is_identified}
    at = table.last_append_time
    for later in (at, at + 1, at + 999, at + 1_001, at + 50_001):
        counting = {id: h.base for id, h in newest.items() if h.append_time + h.mark >= later}
        found = {id: table.ids.get(id, at=later) for id in newest}
        assert {id: stored.base for id, stored in found.items() if stored is not None} == counting
        assert len(counting) <= table.ids.count_at(later) <= len(table.ids)
