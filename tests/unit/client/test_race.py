"""Attempts side by side: the first answer counts, slow ones are not waited for, and every failure is told."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from streamq.client.race import AllFailedError, race
from streamq.model.errors import NotFoundError, UnavailableError
from tests.support.backends import both, run

Attempt = Callable[[], Awaitable[str]]


def answers(word: str, *, after_s: float = 0.0) -> Attempt:
    async def attempt() -> str:
        await anyio.sleep(after_s)
        return word

    return attempt


def fails(error: Exception, *, after_s: float = 0.0) -> Attempt:
    async def attempt() -> str:
        await anyio.sleep(after_s)
        raise error

    return attempt


@both
def test_a_slow_attempt_costs_its_head_start_and_a_failed_one_nothing(backend: str) -> None:
    async def body() -> None:
        started = anyio.current_time()
        refused = UnavailableError("refused", code="unavailable")
        assert await race([fails(refused), answers("slow", after_s=5), answers("quick")], stagger_s=0.1) == "quick"
        assert 0.09 < anyio.current_time() - started < 0.5

    run(backend, body)


@both
def test_the_order_is_kept_while_the_first_is_quick(backend: str) -> None:
    async def body() -> None:
        assert await race([answers("first", after_s=0.05), answers("second")], stagger_s=0.2) == "first"

    run(backend, body)


@both
def test_what_another_would_say_too_is_final_and_the_rest_is_gathered(backend: str) -> None:
    async def body() -> None:
        lost = UnavailableError("lost", code="unavailable")
        with pytest.raises(NotFoundError):
            await race([fails(lost), fails(NotFoundError("no", code="unknown_topic")), answers("never")], stagger_s=1)
        with pytest.raises(AllFailedError, match="lost; slow") as caught:
            await race([fails(lost), fails(UnavailableError("slow", code="timed_out"), after_s=0.1)], stagger_s=0.01)
        assert len(caught.value.causes) == 2
        with pytest.raises(AllFailedError):
            await race([], stagger_s=1)

    run(backend, body)
