"""Deadlines of many owners in one task."""

import anyio

from streamq.client.timers import NEVER, Timers
from tests.support.backends import both, run


class Owner:
    def __init__(self) -> None:
        self.wakes_at = NEVER
        self.next_deadline = NEVER


@both
def test_owners_wake_in_the_order_of_their_deadlines_however_these_move(backend: str) -> None:
    async def body() -> None:
        timers: Timers[Owner] = Timers()
        owners = [Owner() for _ in range(5)]
        woken: list[int] = []
        begun = anyio.current_time()

        def on_time(owner: Owner, now: float) -> None:
            assert now >= begun
            if owner.next_deadline <= now:
                owner.next_deadline = NEVER
                woken.append(owners.index(owner))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: timers.run(on_time, turn=lambda now: None))
            await anyio.sleep(0.01)
            for at, owner in zip((0.20, 0.10, 0.15, 0.05, NEVER), owners, strict=True):
                owner.next_deadline = begun + at
                timers.schedule(owner)
            owners[0].next_deadline = begun + 0.02  # nearer than it was
            timers.schedule(owners[0])
            owners[3].next_deadline = begun + 0.30  # farther: it is woken too early, and sleeps on
            await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()
        assert woken == [0, 1, 2, 3]

    run(backend, body)
