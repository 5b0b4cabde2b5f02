"""Requests to the metadata voters: attempts, quorum reads and lists, each decided by the first majority that answers.

Every request goes to all voters at once, so a slow or paused one costs nothing; requests to the others go on in the background, each
bounded by its timeout, so that values spread.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol

import trio

from streamq.broker.local_acceptor import LocalAcceptor
from streamq.metadata.proposer import Ask, Attempt, Ballots, Burnt, Change, QuorumRead
from streamq.model.errors import StreamqError
from streamq.model.messages import (
    Accepted,
    AdoptVoters,
    AnyMessage,
    Failure,
    Keys,
    ListKeys,
    Message,
    Prepare,
    Promise,
    ReadVoters,
    VotersView,
)
from streamq.model.registers import Voters

__all__ = ["REQUEST_TIMEOUT_S", "Request", "Voting"]

Inbox = trio.MemoryReceiveChannel[tuple[Ask, Message]]
Outbox = trio.MemorySendChannel[tuple[Ask, Message]]

REQUEST_TIMEOUT_S: Final = 1.0
"""One request to one voter."""
READ_GRACE_S: Final = 0.01
"""How long a quorum read whose first majority disagrees waits for the others before it completes the newest value itself (P-4)."""


class Request(Protocol):
    """One request to one other broker, by name: its answer (a `Failure` may be returned or raised) within `timeout_s`.

    Raises StreamqError when the broker cannot be reached or does not answer in time.
    """

    def __call__(self, broker: str, message: Message, timeout_s: float, /) -> Awaitable[AnyMessage]: ...


class Voting:
    """Carries the messages of the proposer's state machines. It proposes under the configuration that the local acceptor has adopted."""

    def __init__(
        self, *, local: LocalAcceptor, request: Request, nursery: trio.Nursery, start: bytes, request_timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self._local = local
        self._request = request
        self._nursery = nursery
        self._request_timeout_s = request_timeout_s
        self._ballots = Ballots(proposer=local.broker, start=start)

    @property
    def voters(self) -> Voters:
        return self._local.voters

    def new_attempt(
        self,
        key: str,
        change: Change,
        *,
        voters: Voters | None = None,
        preparers: frozenset[str] | None = None,
        must_accept: str | None = None,
    ) -> Attempt:
        """An attempt with a ballot of its own, in the configuration adopted here unless `voters` names another."""
        return Attempt(
            key=key,
            ballot=self._ballots.next(key),
            voters=voters or self._local.voters,
            change=change,
            preparers=preparers,
            must_accept=must_accept,
        )

    async def run_attempt(self, attempt: Attempt) -> None:
        """Returns once it is chosen or burnt. Follows voters to other configurations when that is why it was burnt."""
        outbox, inbox = self._channel(attempt.voters)
        with inbox, outbox:
            self._send(attempt.begin(), outbox)
            while attempt.outcome is None:
                ask, answer = await inbox.receive()
                self._send(_deliver(attempt, ask, answer), outbox)
        if isinstance(attempt.outcome, Burnt):
            self._ballots.on_seen(attempt.key, attempt.outcome.above)
            await self.follow_numbers(attempt.outcome.wrong_number)

    async def run_read(self, read: QuorumRead) -> None:
        outbox, inbox = self._channel(read.voters)
        with inbox, outbox, trio.CancelScope() as grace:
            self._send(read.begin(), outbox)
            while not read.is_over:
                ask, answer = await inbox.receive()
                if isinstance(answer, Promise):
                    read.on_promise(ask.broker, answer)
                else:
                    failure = _failure_of(answer)
                    read.on_failed(ask.broker, code=failure.code, message=failure.message)
                if read.is_split:
                    grace.deadline = min(grace.deadline, trio.current_time() + READ_GRACE_S)
        self._ballots.on_seen(read.key, read.highest)

    async def list_keys(self, prefix: str, problems: dict[str, str]) -> set[str] | None:
        """The union over the first majority that has listed all its keys with this prefix: a chosen value is on one of them.

        None if there is no such majority; `problems` then says why.
        """
        voters = self._local.voters
        lists: dict[str, set[str]] = {}
        wrong_number: set[str] = set()

        async def collect(broker: str) -> None:
            keys: set[str] = set()
            after, more = "", True
            while more:
                page = await self.ask(broker, ListKeys(number=voters.number, prefix=prefix, after=after))
                if not isinstance(page, Keys):
                    failure = _failure_of(page)
                    problems[broker] = f"{failure.code}: {failure.message}"
                    if failure.code == "wrong_number":
                        wrong_number.add(broker)
                    return
                keys.update(page.keys)
                more = page.more and bool(page.keys)
                after = page.keys[-1] if page.keys else after
            lists[broker] = keys
            if len(lists) >= voters.majority:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for voter in voters.voters:
                nursery.start_soon(collect, voter.broker)
        if len(lists) >= voters.majority:
            return set().union(*lists.values())
        await self.follow_numbers(wrong_number)
        return None

    def _channel(self, voters: Voters) -> tuple[Outbox, Inbox]:
        """Room for every answer of an attempt, so that nobody ever waits to put one in."""
        return trio.open_memory_channel[tuple[Ask, Message]](2 * len(voters.voters))

    def _send(self, asks: list[Ask], outbox: Outbox) -> None:
        for ask in asks:
            if ask.broker == self._local.broker:
                self._local.submit(ask.message, _putter(ask, outbox))
            else:
                self._nursery.start_soon(self._ask_into, ask, outbox)

    async def _ask_into(self, ask: Ask, outbox: Outbox) -> None:
        _putter(ask, outbox)(await self.ask(ask.broker, ask.message))

    async def ask(self, broker: str, message: Message, *, timeout_s: float | None = None) -> Message:
        """One request to one broker, this one included; whatever goes wrong comes back as a `Failure`."""
        timeout = self._request_timeout_s if timeout_s is None else timeout_s
        with trio.move_on_after(timeout):
            try:
                if broker == self._local.broker:
                    return await self._local.answer(message)
                return await self._request(broker, message, timeout)
            except StreamqError as error:
                return Failure(code=error.code, message=error.message, hint=error.hint)
        return Failure(code="timed_out", message=f"no answer within {timeout} s")

    async def follow_numbers(self, brokers: Iterable[str]) -> None:
        """Brings these brokers and this one to the highest voter configuration that one of them has adopted (P-40).

        Only adopted configurations are told, and only decided ones are ever adopted.
        """

        async def follow(broker: str) -> None:
            view = await self.ask(broker, ReadVoters())
            if not isinstance(view, VotersView):
                return
            mine = self._local.voters
            if view.voters.number > mine.number:
                await self._local.answer(AdoptVoters(voters=view.voters))
            elif view.voters.number < mine.number:
                await self.ask(broker, AdoptVoters(voters=mine))

        async with trio.open_nursery() as nursery:
            for broker in sorted(brokers):
                nursery.start_soon(follow, broker)


def _putter(ask: Ask, outbox: Outbox) -> Callable[[Message], None]:
    def put(answer: Message) -> None:
        # An answer that comes after the decision is of no interest to anybody.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            outbox.send_nowait((ask, answer))

    return put


def _deliver(attempt: Attempt, ask: Ask, answer: Message) -> list[Ask]:
    if isinstance(ask.message, Prepare):
        if isinstance(answer, Promise):
            return attempt.on_promise(ask.broker, answer)
        failure = _failure_of(answer)
        return attempt.on_prepare_failed(ask.broker, code=failure.code, message=failure.message)
    if isinstance(answer, Accepted):
        return attempt.on_accepted(ask.broker, answer)
    failure = _failure_of(answer)
    return attempt.on_accept_failed(ask.broker, code=failure.code, message=failure.message)


def _failure_of(answer: Message) -> Failure:
    return answer if isinstance(answer, Failure) else Failure(code="protocol", message=f"unexpected {type(answer).__name__}")
