"""An idempotence table on its way from one replica to another (P-34, P-41): cut into pages there, put together and checked here.

A table at a committed position is the same on every replica, so whichever is asked, what comes is as good as one's own fold. The table goes
on while pages are fetched, so the giver keeps the one that it began with for a while, a bounded number of them.
"""

from collections import OrderedDict
from typing import Final

from streamq.log.idempotence import IdempotenceTable
from streamq.model.errors import CorruptDataError, UnavailableError
from streamq.model.ids import PartitionId, ProducerId
from streamq.model.limits import IDS_PER_PARTITION_MAX, PRODUCERS_PER_PARTITION_MAX, TABLE_PAGE_IDS_MAX, TABLE_PAGE_PRODUCERS_MAX
from streamq.model.messages import ReadTable, Table
from streamq.model.tables import ProducerSnapshot, StoredId, TableSnapshot, fault_of, fault_of_id

__all__ = ["TableCopy", "TablesGiven"]

TABLES_KEPT_MAX: Final = 4
"""Snapshots kept for those who have fetched some of their pages; the oldest goes first, and who misses it begins anew."""


class TablesGiven:
    """The giver's side, of all partitions of one broker."""

    def __init__(self, *, page_producers: int = TABLE_PAGE_PRODUCERS_MAX, page_ids: int = TABLE_PAGE_IDS_MAX) -> None:
        self._page_producers = page_producers
        self._page_ids = page_ids
        self._kept: OrderedDict[tuple[PartitionId, int], TableSnapshot] = OrderedDict()

    def page(self, asked: ReadTable, table: IdempotenceTable) -> Table:
        """Producers first, then ids. Raises UnavailableError (`conflict`) when the table of the pages before is not kept any more."""
        if asked.first:
            snapshot = self._kept.get((asked.partition, asked.position))
            if snapshot is None:
                raise UnavailableError("the table that the pages before are of is not kept any more", code="conflict", hint="begin anew")
        else:
            snapshot = table.snapshot()
        producers = snapshot.producers[asked.first : asked.first + self._page_producers]
        first_id = asked.first + len(producers) - len(snapshot.producers)
        ids = snapshot.ids[first_id : first_id + self._page_ids] if first_id >= 0 else ()
        more = first_id + len(ids) < len(snapshot.ids)
        key = (asked.partition, snapshot.position)
        if more:
            self._kept[key] = snapshot
            self._kept.move_to_end(key)
            while len(self._kept) > TABLES_KEPT_MAX:
                self._kept.popitem(last=False)
        else:
            self._kept.pop(key, None)
        return Table(snapshot.position, snapshot.last_append_time, producers, more, ids, snapshot.fencing_token)


class TableCopy:
    """The receiver's side: `ask` for `next_page`, `add` what comes, until `is_whole`. Whatever is not a table raises CorruptDataError."""

    def __init__(self, partition: PartitionId) -> None:
        self._partition = partition
        self._position: int | None = None
        self._last_append_time = 0
        self._fencing_token = 0
        self._producers: list[ProducerSnapshot] = []
        self._names: set[ProducerId] = set()
        self._ids: dict[ProducerId, StoredId] = {}
        self.is_whole = False

    @property
    def next_page(self) -> ReadTable:
        return ReadTable(self._partition, self._position or 0, len(self._producers) + len(self._ids))

    def add(self, page: Table) -> None:
        if self._position is None:
            self._position, self._last_append_time, self._fencing_token = page.position, page.last_append_time, page.fencing_token
        elif (page.position, page.last_append_time, page.fencing_token) != (self._position, self._last_append_time, self._fencing_token):
            raise CorruptDataError(f"a page of the table at {page.position} came in one of that at {self._position}", code="data_damaged")
        producers, ids = len(self._producers) + len(page.producers), len(self._ids) + len(page.ids)
        is_empty = not page.producers and not page.ids
        if producers > PRODUCERS_PER_PARTITION_MAX or ids > IDS_PER_PARTITION_MAX or (page.more and is_empty):
            raise CorruptDataError("an idempotence table that does not end was sent", code="data_damaged")
        for producer in page.producers:
            after = self._producers[-1].append_time if self._producers else 0
            fault = fault_of(producer, position=page.position, after=after, last_append_time=page.last_append_time)
            if fault is None and producer.producer in self._names:
                fault = "is there twice"
            if fault is not None:
                raise CorruptDataError(f"a table in which producer {producer.producer.hex()} {fault} was sent", code="data_damaged")
            self._names.add(producer.producer)
            self._producers.append(producer)
        self._add_ids(page)
        self.is_whole = not page.more

    def _add_ids(self, page: Table) -> None:
        before = next(reversed(self._ids.values()), None)
        for stored in page.ids:
            fault = fault_of_id(stored, position=page.position, after=before, last_append_time=page.last_append_time)
            if fault is None and stored.id in self._ids:
                fault = "is there twice"
            if fault is not None:
                raise CorruptDataError(f"a table in which the record id {stored.id.hex()} {fault} was sent", code="data_damaged")
            before = self._ids[stored.id] = stored

    def table(self) -> IdempotenceTable:
        assert self.is_whole
        assert self._position is not None
        snapshot = TableSnapshot(
            self._position, self._last_append_time, tuple(self._producers), tuple(self._ids.values()), self._fencing_token
        )
        return IdempotenceTable.restore(snapshot)
