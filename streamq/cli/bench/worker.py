"""One client process: `python -m streamq.cli.bench.worker`. A plan comes on stdin, what came of it goes to stdout, a JSON line each.

in   a Plan              out  {"ready": true} when the load is about to be measured
in   an empty line: go   out  an Outcome, or {"code", "message", "hint"} and exit code 1
"""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from streamq.cli.bench import consuming, producing, steady, thin_client
from streamq.cli.bench.meter import Meter, Ready
from streamq.cli.bench.plan import Plan
from streamq.model.errors import StreamqError

__all__ = ["main"]

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


def main() -> int:
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    try:
        meter = Meter(plan)
        trio.run(_run, plan, meter)
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        print(json.dumps(_in_words(error)), flush=True)
        return 1
    print(msgspec.json.encode(meter.outcome).decode(), flush=True)
    return 0


async def _run(plan: Plan, meter: Meter) -> None:
    async def next_line() -> None:
        await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    async def watch_for_the_end() -> None:
        await next_line()
        meter.stop.set()

    async def ready() -> None:
        print('{"ready":true}', flush=True)
        await next_line()
        if plan.load == "steady":
            nursery.start_soon(watch_for_the_end)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.sample)
        await LOADS[plan.load](plan, meter, ready)
        nursery.cancel_scope.cancel()


def _in_words(error: BaseException) -> dict[str, str]:
    while isinstance(error, BaseExceptionGroup):
        errors = [one for one in error.exceptions if not isinstance(one, trio.Cancelled)]
        error = next((one for one in errors if isinstance(one, StreamqError)), errors[0])
    if isinstance(error, StreamqError):
        return {"code": error.code, "message": error.message, "hint": error.hint}
    return {"code": "failed", "message": f"the measuring client failed: {type(error).__name__}: {error}", "hint": ""}


if __name__ == "__main__":
    sys.exit(main())
