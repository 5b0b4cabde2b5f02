"""Finds out what nobody told: who closes an epoch or deletes a topic says so once, and may die before it does, or not know it itself."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from streamq.broker.lookout import Lookout
from streamq.broker.node import Node
from streamq.broker.partition import Partition
from streamq.model.errors import StreamqError

__all__ = ["read_news"]

log = logging.getLogger(__name__)

NEWS_INTERVAL_S: Final = 1.0
"""How often registers are read of which news may have been missed."""


async def read_news(node: Node, learn: Callable[[Partition], Awaitable[None]]) -> None:
    """Until cancelled. A replica that takes no stores, and nobody here at work on that, is told to be behind: it is looked up each time,
    and of the others one at a time. `learn` reads the partition's register and takes it in, or raises StreamqError."""
    lookout = Lookout(node, interval_s=NEWS_INTERVAL_S)
    turn = 0
    while True:
        await trio.sleep(NEWS_INTERVAL_S)
        partitions = list(node.partitions.values())
        if node.state != "serving" or not partitions:
            continue
        turn += 1
        due = [p for p in lookout.due() if _may_be_behind(p)]
        for partition in due:
            lookout.keep(partition)
        for partition in dict.fromkeys((*due, partitions[turn % len(partitions)])):
            try:
                await learn(partition)
            except StreamqError as error:
                log.info("news of %s cannot be read yet: %s", partition.name, error)
                break


def _may_be_behind(partition: Partition) -> bool:
    is_at_work = partition.sequencing is not None or partition.takeover_under_way is not None
    return partition.replica.accepts_epoch is None and not is_at_work
