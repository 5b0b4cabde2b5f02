"""A program under trio: counts the records of each key as they come, and prints the counts when it has seen enough of them."""

import collections
import os
import sys

import trio

from streamq_consumer import Consumer, Record


async def main(bootstrap: str, enough: int) -> None:
    counts: collections.Counter[bytes | None] = collections.Counter()
    async with Consumer(bootstrap, topics=["orders"], group="statistics") as consumer, trio.open_nursery() as nursery:

        async def count(record: Record) -> None:
            counts[record.key] += 1
            if counts.total() >= enough:
                nursery.cancel_scope.cancel()

        await consumer.run(count)
    for key, number in sorted(counts.items()):
        print((key or b"").decode(), number)


trio.run(main, os.environ["STREAMQ_BOOTSTRAP"], int(sys.argv[1]))
