"""Fetches the idempotence table of another replica, for one that lacks the headers below its start offset (P-34, P-41)."""

import logging
from typing import TYPE_CHECKING

from streamq.log.idempotence import IdempotenceTable
from streamq.log.table_copy import TableCopy
from streamq.model.errors import StreamqError, UnavailableError
from streamq.model.messages import Table

if TYPE_CHECKING:
    from streamq.broker.partition import Partition

__all__ = ["fetch_table"]

log = logging.getLogger(__name__)


async def fetch_table(partition: "Partition") -> None:
    """Takes the first table that is further than the one here. Raises UnavailableError when no other replica gives one."""
    for source in partition.others():
        try:
            table = await _read(partition, source)
        except StreamqError as error:
            log.info("%s: the idempotence table of %s: %s", partition.name, source, error)
            continue
        if partition.replica.on_table(table):
            partition.node.metrics.tables_fetched += 1
            log.info("%s: took the idempotence table at %d from %s", partition.name, partition.replica.table.position, source)
            return
    raise UnavailableError(f"no replica gives an idempotence table of {partition.name} at its start offset", code="unavailable")


async def _read(partition: "Partition", source: str) -> IdempotenceTable:
    node = partition.node
    copy = TableCopy(partition.id)
    while not copy.is_whole:
        page = await node.peers.request(source, copy.next_page, node.config.request_timeout_s)
        if not isinstance(page, Table):
            raise UnavailableError(f"{source} answered with {type(page).__name__}", code="unavailable")
        copy.add(page)
    return copy.table()
