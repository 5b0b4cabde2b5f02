"""A service under asyncio: takes orders from one topic, and puts an invoice for each into another."""

import asyncio
import os
import signal
import sys

from streamq_consumer import Consumer, Record
from streamq_producer import Producer


async def main(bootstrap: str) -> None:
    async with Producer(bootstrap) as producer, Consumer(bootstrap, topics=["orders"], group="billing") as consumer:

        async def bill(record: Record) -> None:
            await producer.send("invoices", b"invoice for " + (record.value or b""), key=record.key)

        service = asyncio.create_task(consumer.run(bill, concurrency=16, order="key"))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.cancel)
        try:
            await service
        except asyncio.CancelledError:
            print("drained", file=sys.stderr)


asyncio.run(main(os.environ["STREAMQ_BOOTSTRAP"]))
