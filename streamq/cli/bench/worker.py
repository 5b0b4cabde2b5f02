"""One client process: `python -m streamq.cli.bench.worker`. A plan comes on stdin, what came of it goes to stdout, a JSON line each.

in   a Plan              out  {"ready": true} when the load is about to be measured
in   an empty line: go   out  an Outcome, or {"code", "message", "hint"} and exit code 1
"""

import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from streamq.cli.bench import consuming, producing, steady, thin_client
from streamq.cli.bench.meter import Meter, Ready
from streamq.cli.bench.plan import Plan
from streamq.cli.output import EXIT_FAILED, EXIT_INTERRUPTED
from streamq.model.errors import StreamqError

__all__ = ["main"]

STDIN: Final = 0
READ_BYTES: Final = 1 << 16
LOADS: Final[dict[str, Callable[[Plan, Meter, Ready], Awaitable[None]]]] = {
    "produce": producing.produce,
    "latency": producing.latency,
    "fan-in": producing.fan_in,
    "raw": thin_client.raw,
    "fill": thin_client.fill,
    "connections": thin_client.connections,
    "consume": consuming.consume,
    "seek": consuming.seek,
    "verify": consuming.verify,
    "steady": steady.steady,
}


class _Orders:
    """Lines from the process that started this one, which has gone when they end."""

    def __init__(self) -> None:
        self._rest = b""

    def first(self) -> bytes:
        while b"\n" not in self._rest:
            self._rest += self._read()
        return self._take()

    async def next(self) -> bytes:
        while b"\n" not in self._rest:
            await trio.lowlevel.wait_readable(STDIN)
            self._rest += self._read()
        return self._take()

    def _read(self) -> bytes:
        received = os.read(STDIN, READ_BYTES)
        if not received:
            raise KeyboardInterrupt
        return received

    def _take(self) -> bytes:
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def main() -> int:
    orders = _Orders()
    try:
        plan = msgspec.json.decode(orders.first(), type=Plan)
        meter = Meter(plan)
        trio.run(_run, plan, meter, orders)
    except BaseException as error:
        reason = _first(error)
        if isinstance(reason, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        print(json.dumps(_in_words(reason)), flush=True)
        return EXIT_FAILED
    print(msgspec.json.encode(meter.outcome).decode(), flush=True)
    return 0


async def _run(plan: Plan, meter: Meter, orders: _Orders) -> None:
    async def watch() -> None:
        await orders.next()
        meter.stop.set()
        await orders.next()

    async def ready() -> None:
        print('{"ready":true}', flush=True)
        await orders.next()
        nursery.start_soon(watch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.sample)
        await LOADS[plan.load](plan, meter, ready)
        nursery.cancel_scope.cancel()


def _first(error: BaseException) -> BaseException:
    """What a group is about: an interrupt, an error of ours, or the first that is no cancellation."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_first(one) for one in error.exceptions]
    for kind in (KeyboardInterrupt, StreamqError, Exception):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _in_words(error: BaseException) -> dict[str, str]:
    if isinstance(error, StreamqError):
        return {"code": error.code, "message": error.message, "hint": error.hint}
    return {"code": "failed", "message": f"the measuring client failed: {type(error).__name__}: {error}", "hint": ""}


if __name__ == "__main__":
    sys.exit(main())
