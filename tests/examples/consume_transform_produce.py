"""Writes an invoice, and a line of the audit, for each order: exactly once, however often and wherever it is killed.

Several may run at once, each under a name of its own (the argument); one that was killed is started again under the same.
"""

import logging
import os
import sys

import trio

from streamq.model.errors import FencedError, StreamqError
from streamq_consumer import Consumer
from streamq_producer import Producer


async def work(bootstrap: str, name: str) -> None:
    producer = Producer(bootstrap, name=name, transactional=True)
    consumer = Consumer(bootstrap, topics=["orders"], group="invoicing", auto_commit=False, session_s=2.0)
    async with producer, consumer:
        async for orders in consumer.batches(max_records=200, max_wait=0.05):
            async with producer.transaction(consumer):  # what is sent here, and the positions of what was read: all of it or nothing
                for order in orders:
                    await producer.enqueue("invoices", b"invoice for " + (order.value or b""), key=order.key or b"")
                    await producer.enqueue("audit", b"%d/%d" % (order.partition, order.offset), partition=0)


async def main(bootstrap: str, name: str) -> None:
    while True:
        try:
            await work(bootstrap, name)
        except FencedError:
            raise  # another of this name was started: the work is its own now
        except StreamqError as error:
            logging.warning("begins anew: %s", error)


trio.run(main, os.environ["STREAMQ_BOOTSTRAP"], sys.argv[1])
