"""What a reader is told of transactions: an answer for ever only by who can know, and nobody waits for all the others."""

from collections.abc import Callable

import trio
import trio.testing

from streamq.client.lifetime import Lifetime
from streamq.model.batches import BatchHeader
from streamq.model.errors import NotFoundError
from streamq.model.messages import OutcomesRead, ReadOutcomes
from streamq_consumer.outcomes import ASKED_AT_ONCE_MAX, Outcomes


class Brokers:
    """A cluster that answers as told."""

    def __init__(self, answer: Callable[[ReadOutcomes], OutcomesRead]) -> None:
        self._answer = answer

    async def request(self, question: ReadOutcomes, kind: type[OutcomesRead], *, timeout_s: float) -> OutcomesRead:
        answer = self._answer(question)
        if question.transaction.number > answer.decided:
            await trio.sleep(question.wait_ms / 1000)
        return answer


def batch(producer: int, number: int) -> BatchHeader:
    return BatchHeader(
        partition=bytes(16), records=1, payload_bytes=0, raw_bytes=0, payload_crc=0, producer=bytes([producer]) * 16, producer_epoch=1,
        sequence=1, first_timestamp=0, max_timestamp=0, epoch=1, base=0, append_time=0, mark=number,
    )  # fmt: skip


async def told(answer: Callable[[ReadOutcomes], OutcomesRead], asked: list[BatchHeader], last: BatchHeader) -> bool:
    """What becomes of the last, which is asked for behind all others."""
    lifetime = Lifetime()
    await lifetime.open()
    try:
        outcomes = Outcomes(Brokers(answer), lifetime, lambda: None)  # type: ignore[arg-type]
        for header in asked:
            assert outcomes.is_committed(header) is None
        await trio.sleep(0.1)
        assert outcomes.is_committed(last) is None
        with trio.fail_after(10):
            while (found := outcomes.is_committed(last)) is None:
                await trio.sleep(0.1)
        return found
    finally:
        await lifetime.close(None, None)


async def test_a_broker_that_is_not_known_says_nothing_about_a_transaction(autojump_clock: trio.testing.MockClock) -> None:
    """The client forgot where a broker lives in the middle of a question: the batch was taken for one of no transaction, and left out."""
    tries = iter(range(10))

    def answer(question: ReadOutcomes) -> OutcomesRead:
        if next(tries) == 0:
            raise NotFoundError("there is no broker 'b2'", code="unknown_broker")
        return OutcomesRead(0, 1, ())

    assert await told(answer, [], batch(1, 1)) is True


async def test_what_was_never_a_transaction_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    def answer(question: ReadOutcomes) -> OutcomesRead:
        raise NotFoundError("nobody has opened the producer", code="not_found")

    assert await told(answer, [], batch(1, 1)) is False


async def test_many_that_stay_open_do_not_hold_up_one_that_is_decided(autojump_clock: trio.testing.MockClock) -> None:
    def answer(question: ReadOutcomes) -> OutcomesRead:
        return OutcomesRead(0, 1 if question.transaction.producer == bytes([99]) * 16 else 0, ())

    assert await told(answer, [batch(producer, 1) for producer in range(ASKED_AT_ONCE_MAX)], batch(99, 1)) is True
