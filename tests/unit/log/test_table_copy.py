"""An idempotence table comes to another replica whole and as it was, or not at all."""

import msgspec
import pytest

from streamq.log.idempotence import IdempotenceTable
from streamq.log.table_copy import TABLES_KEPT_MAX, TableCopy, TablesGiven
from streamq.model.batches import FLAG_FENCED, FLAG_IDENTIFIED
from streamq.model.errors import CorruptDataError, UnavailableError
from streamq.model.limits import (
    DEDUP_BATCHES,
    IDS_PER_PARTITION_MAX,
    PRODUCERS_PER_PARTITION_MAX,
    TABLE_PAGE_IDS_MAX,
    TABLE_PAGE_PRODUCERS_MAX,
)
from streamq.model.messages import ReadTable, Table
from streamq.model.tables import Place, ProducerSnapshot, StoredId
from streamq.wire.codec import decode_message, encode_message
from tests.support.log_lab import PARTITION, batch


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def table(producers: int, *, rounds: int = 1) -> IdempotenceTable:
    """Folded over so many batches of each producer, one record a batch."""
    folded = IdempotenceTable()
    for base in range(producers * rounds):
        folded.fold(batch(base, producer=name(1 + base % producers), sequence=base // producers).header)
    return folded


def copied(given: TablesGiven, source: IdempotenceTable) -> IdempotenceTable:
    copy = TableCopy(PARTITION)
    while not copy.is_whole:
        page = decode_message(encode_message(given.page(copy.next_page, source)))
        assert isinstance(page, Table)
        copy.add(page)
    return copy.table()


@pytest.mark.parametrize("producers", [0, 1, TABLE_PAGE_PRODUCERS_MAX, TABLE_PAGE_PRODUCERS_MAX + 1, 3 * TABLE_PAGE_PRODUCERS_MAX])
def test_a_copy_is_the_table(producers: int) -> None:
    source = table(producers, rounds=2)
    assert copied(TablesGiven(), source).snapshot() == source.snapshot()


@pytest.mark.parametrize(("producers", "ids"), [(0, 1), (1, 1), (4, 6), (5, 7), (3, 6), (0, 0)])
def test_ids_and_the_fencing_token_come_behind_the_producers(producers: int, ids: int) -> None:
    source = table(producers)
    for number in range(ids):
        header = batch(source.position, producer=name(100 + number), sequence=0).header
        source.fold(msgspec.structs.replace(header, flags=FLAG_IDENTIFIED, mark=1_000 + number))
    source.fold(msgspec.structs.replace(batch(source.position, producer=bytes(16), sequence=0).header, flags=FLAG_FENCED, mark=70))
    copy = copied(TablesGiven(page_producers=2, page_ids=3), source)
    assert copy.snapshot() == source.snapshot()
    assert (len(copy.ids), copy.fencing_token) == (ids, 70)


def test_pages_are_of_one_table_though_it_goes_on_meanwhile() -> None:
    source, given, copy = table(5), TablesGiven(page_producers=2), TableCopy(PARTITION)
    before = source.snapshot()
    while not copy.is_whole:
        copy.add(given.page(copy.next_page, source))
        source.fold(batch(source.position, producer=name(1), sequence=source.position).header)
    assert copy.table().snapshot() == before


def test_a_bounded_number_of_tables_is_kept_and_who_misses_one_is_told_to_begin_anew() -> None:
    given = TablesGiven(page_producers=1)
    first = given.page(ReadTable(PARTITION), table(2))
    for number in range(TABLES_KEPT_MAX):
        given.page(ReadTable(name(number)), table(2))
    with pytest.raises(UnavailableError) as refused:
        given.page(ReadTable(PARTITION, first.position, 1), table(2))
    assert refused.value.code == "conflict"


def page(
    *producers: ProducerSnapshot, ids: tuple[StoredId, ...] = (), position: int = 100, last_append_time: int = 2_000, more: bool = False
) -> Table:
    return Table(position, last_append_time, producers, more, ids)


def producer(number: int = 1, *, places: tuple[Place, ...] = (Place(0, 5, 2, 1_500), Place(1, 7, 1, 1_500))) -> ProducerSnapshot:
    last = places[-1] if places else Place(0, 0, 0, 1_500)
    return ProducerSnapshot(name(number), 0, last.sequence, last.append_time, places)


def replaced(**fields: object) -> ProducerSnapshot:
    return msgspec.structs.replace(producer(), **fields)


@pytest.mark.parametrize(
    "broken",
    [
        page(replaced(producer=bytes(16))),
        page(replaced(last_sequence=2)),
        page(replaced(mark=1)),
        page(replaced(append_time=1_499)),
        page(replaced(append_time=2_001)),
        page(producer(), producer()),
        page(producer(1), producer(2, places=(Place(0, 9, 1, 1_400),))),
        page(producer(places=())),
        page(producer(places=tuple(Place(i, i, 1, 1_500) for i in range(DEDUP_BATCHES + 1)))),
        page(producer(places=(Place(0, 99, 2, 1_500),))),
        page(producer(places=(Place(0, 9, 0, 1_500),))),
        page(producer(places=(Place(0, 5, 2, 1_500), Place(2, 7, 1, 1_500)))),
        page(producer(places=(Place(0, 5, 2, 1_500), Place(1, 6, 1, 1_500)))),
        page(producer(places=(Place(0, 5, 2, 1_600), Place(1, 7, 1, 1_500)))),
        page(more=True),
        page(ids=(StoredId(bytes(16), 5, 1_500, 10),)),
        page(ids=(StoredId(name(1), 5, 1_500, 0),)),
        page(ids=(StoredId(name(1), 100, 1_500, 10),)),
        page(ids=(StoredId(name(1), 5, 2_001, 10),)),
        page(ids=(StoredId(name(1), 5, 1_500, 10), StoredId(name(1), 6, 1_500, 10))),
        page(ids=(StoredId(name(1), 5, 1_500, 10), StoredId(name(2), 5, 1_500, 10))),
        page(ids=(StoredId(name(1), 5, 1_500, 10), StoredId(name(2), 6, 1_499, 10))),
    ],
)
def test_what_no_fold_comes_to_is_refused(broken: Table) -> None:
    TableCopy(PARTITION).add(page(producer()))
    with pytest.raises(CorruptDataError):
        TableCopy(PARTITION).add(broken)


def test_a_page_of_another_table_and_a_table_without_end_are_refused() -> None:
    copy = TableCopy(PARTITION)
    copy.add(page(producer(1), more=True))
    with pytest.raises(CorruptDataError):
        copy.add(page(producer(2), position=101))
    number = 1
    with pytest.raises(CorruptDataError):  # noqa: PT012
        while True:
            of_page = [producer(number + i) for i in range(TABLE_PAGE_PRODUCERS_MAX)]
            number += TABLE_PAGE_PRODUCERS_MAX
            assert number < PRODUCERS_PER_PARTITION_MAX + 2 * TABLE_PAGE_PRODUCERS_MAX
            copy.add(page(*(of_page if number > TABLE_PAGE_PRODUCERS_MAX + 1 else of_page[1:]), more=True))


def test_ids_without_end_and_another_token_are_refused() -> None:
    copy = TableCopy(PARTITION)
    copy.add(page(ids=(StoredId(name(1), 0, 1, 10),), position=1 << 40, more=True))
    with pytest.raises(CorruptDataError):
        copy.add(msgspec.structs.replace(page(position=1 << 40), fencing_token=1))
    at = 1
    with pytest.raises(CorruptDataError):  # noqa: PT012
        while True:
            ids = tuple(StoredId(name(at + 1 + i), at + i, 1, 10) for i in range(TABLE_PAGE_IDS_MAX))
            at += TABLE_PAGE_IDS_MAX
            assert at < IDS_PER_PARTITION_MAX + 2 * TABLE_PAGE_IDS_MAX
            copy.add(page(ids=ids, position=1 << 40, more=True))
