"""Background tasks end with their owner's block, and do not show in the exceptions that leave it."""

import anyio
import anyio.lowlevel
import pytest

from streamq.client.lifetime import Lifetime
from tests.support.backends import both, run


class Owner:
    def __init__(self) -> None:
        self.lifetime = Lifetime()
        self.ended = 0

    async def __aenter__(self) -> "Owner":
        await self.lifetime.open()
        self.lifetime.start(self.wait_for_ever)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        await self.lifetime.close(error, error.__traceback__ if error else None)

    async def wait_for_ever(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.ended += 1

    async def break_down(self) -> None:
        raise LookupError("a bug")


@both
def test_tasks_end_with_the_block(backend: str) -> None:
    async def body() -> None:
        async with Owner() as owner:
            await anyio.sleep(0.01)
        assert owner.ended == 1
        assert not owner.lifetime.is_open

    run(backend, body)


@both
def test_the_blocks_own_exception_is_not_wrapped(backend: str) -> None:
    async def body() -> None:
        with pytest.raises(ZeroDivisionError):
            async with Owner():
                raise ZeroDivisionError

    run(backend, body)


@both
def test_cancellation_from_outside_passes_through(backend: str) -> None:
    async def body() -> None:
        with anyio.move_on_after(0.05) as scope:
            async with Owner() as owner:
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert owner.ended == 1

    run(backend, body)


@both
def test_a_bug_in_a_task_ends_the_block_with_that_one_exception(backend: str) -> None:
    async def body() -> None:
        with pytest.raises(LookupError, match="a bug"):  # noqa: PT012
            async with Owner() as owner:
                owner.lifetime.start(owner.break_down)
                await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    run(backend, body)


@both
def test_a_cancellation_from_outside_reaches_the_tasks_when_the_block_has_ended(backend: str) -> None:
    """What a block does at its end may need them: a member of a group leaves by its connections."""

    async def body() -> None:
        ended_within: list[int] = []
        with anyio.move_on_after(0.05):
            async with Owner() as owner:
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.05)
                    ended_within.append(owner.ended)
        assert ended_within == [0]
        assert owner.ended == 1

    run(backend, body)
