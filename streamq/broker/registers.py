"""The registers of P-1, as one broker sees and changes them through a majority of the metadata voters.

A change with nobody in its way is two round trips, a quorum read one; `voting` carries the requests.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import trio

from streamq.broker.local_acceptor import LocalAcceptor
from streamq.broker.voting import REQUEST_TIMEOUT_S, Request, Voting
from streamq.metadata.proposer import Attempt, Chosen, QuorumRead, backoff_s, identity
from streamq.model.errors import ProtocolError, RefusedError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq.model.ids import Ballot
from streamq.model.limits import KEY_CHARS_MAX, REGISTER_BYTES_MAX
from streamq.model.registers import PartitionRegister, TopicRegister
from streamq.wire.codec import decode_value, encode

__all__ = ["DEADLINE_S", "Change", "Registers"]

T = TypeVar("T")
Change = Callable[[bytes | None], bytes]

DEADLINE_S: Final = 5.0
"""One call, retries included."""
RETRY_S: Final = 0.002
"""The least time between attempts that failed for another reason than a duel: a refused connection answers at once."""


class _Known(NamedTuple):
    ballot: Ballot
    value: bytes


class _Call:
    """What a call has learned from its attempts, for the error that it raises when its deadline passes."""

    def __init__(self, key: str) -> None:
        if len(key) > KEY_CHARS_MAX:  # no acceptor would take it: the message would be broken
            raise RefusedError(f"a name is too long: the key of its register would have {len(key)} characters", code="bad_name")
        self.key = key
        self.attempt: Attempt | None = None
        self.problems: dict[str, str] = {}
        self._may_have_happened = False

    def begin(self, attempt: Attempt) -> Attempt:
        self._may_have_happened = self.may_have_happened
        self.attempt = attempt
        self.problems = attempt.problems
        return attempt

    @property
    def may_have_happened(self) -> bool:
        return self._may_have_happened or (self.attempt is not None and self.attempt.may_have_happened)

    def unavailable(self) -> UnavailableError:
        told = "; ".join(f"{broker}: {problem}" for broker, problem in sorted(self.problems.items())) or "no answers"
        return UnavailableError(
            f"no majority of the metadata voters for {self.key} in time ({told})",
            code="timed_out",
            hint="a majority of the metadata voters must be up: see `streamq doctor`",
        )

    def error(self) -> StreamqError:
        unavailable = self.unavailable()
        if not self.may_have_happened:
            return unavailable
        return UnknownOutcomeError(f"the change may have happened: {unavailable.message}", code="unknown_outcome", hint=unavailable.hint)


class Registers:
    """Reads and changes registers; keeps the newest values it came across as hints.

    All errors are StreamqErrors: `UnavailableError` (nothing was changed; codes unavailable, timed_out), `UnknownOutcomeError` (the change
    may have happened, or may still happen), and whatever the change function raised. Cancelling a change leaves its outcome unknown too.
    """

    def __init__(
        self,
        *,
        local: LocalAcceptor,
        request: Request,
        nursery: trio.Nursery,
        start: bytes,
        jitter: Callable[[], float],
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`nursery` (long-lived, the broker's) carries requests that outlive the call that began them, at most `request_timeout_s` each.

        `start`: random bytes of this start of the broker (P-2). `jitter`: a random number in [0, 1), such as `random.random`.
        """
        self.voting = Voting(local=local, request=request, nursery=nursery, start=start, request_timeout_s=request_timeout_s)
        self._jitter = jitter
        self._deadline_s = deadline_s
        self._known: dict[str, _Known] = {}
        self._turns: dict[str, trio.Lock] = {}
        self._subscriptions: dict[object, tuple[str, Callable[[str, bytes], None]]] = {}

    # --- reading and changing ------------------------------------------------------------------------------------------

    async def get(self, key: str, *, deadline_s: float | None = None) -> bytes | None:
        """A quorum read (P-4): the value at some moment during the call; None if the register was never written."""
        call = _Call(key)
        failures = 0
        with trio.move_on_after(self._deadline_s if deadline_s is None else deadline_s):
            while True:
                read = QuorumRead(key=key, voters=self.voting.voters)
                call.problems = read.problems
                await self.voting.run_read(read)
                outcome = read.outcome
                if outcome is None and read.is_split:
                    attempt = call.begin(self.voting.new_attempt(key, identity))
                    await self.voting.run_attempt(attempt)
                    outcome = attempt.outcome if isinstance(attempt.outcome, Chosen) else None
                if outcome is not None:
                    return self._learn(key, outcome)
                failures += 1
                await self.voting.follow_numbers(read.wrong_number)
                await trio.sleep(max(RETRY_S, self.pause_s(failures)))
        raise call.unavailable()

    async def change(self, key: str, f: Change, *, deadline_s: float | None = None) -> bytes:
        """Replaces the value v by f(v), atomically, and returns it. `f` must be pure and safe to apply again (P-5); it may run several
        times.

        `f` raises a StreamqError to give up: the register is then left as it is, v is made certain, and the error is raised here.
        """
        call = _Call(key)
        with trio.move_on_after(self._deadline_s if deadline_s is None else deadline_s):
            turn = self._turns.setdefault(key, trio.Lock())
            try:
                async with turn:  # changes of one broker to one register do not duel with each other
                    return await self._change(call, _bounded(key, f))
            finally:
                if not turn.locked():
                    self._turns.pop(key, None)
        raise call.error()

    async def _change(self, call: _Call, f: Change) -> bytes:
        failures = 0
        while True:
            attempt = call.begin(self.voting.new_attempt(call.key, f))
            await self.voting.run_attempt(attempt)
            outcome = attempt.outcome
            if isinstance(outcome, Chosen):
                self._learn(call.key, outcome)
                if outcome.refusal is not None:
                    raise outcome.refusal
                assert outcome.value is not None
                return outcome.value
            failures += 1
            is_duel = outcome is not None and outcome.above is not None
            await trio.sleep(max(0.0 if is_duel else RETRY_S, self.pause_s(failures)))

    async def list(self, prefix: str, *, deadline_s: float | None = None) -> list[str]:
        """Every key with this prefix that was written before the call began, in order.

        It may contain keys whose first write is not complete, and deleted ones: `get` tells.
        """
        call = _Call(f"{prefix}*")
        failures = 0
        with trio.move_on_after(self._deadline_s if deadline_s is None else deadline_s):
            while True:
                keys = await self.voting.list_keys(prefix, call.problems)
                if keys is not None:
                    return sorted(keys)
                failures += 1
                await trio.sleep(max(RETRY_S, self.pause_s(failures)))
        raise call.unavailable()

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failed attempts (P-5)."""
        return backoff_s(failures, self._jitter())

    # --- typed values --------------------------------------------------------------------------------------------------

    async def get_as(self, kind: type[T], key: str, *, deadline_s: float | None = None) -> T | None:
        """`get`, decoded."""
        value = await self.get(key, deadline_s=deadline_s)
        return None if value is None else _decoded(kind, key, value)

    async def change_as(self, kind: type[T], key: str, f: Callable[[T | None], T], *, deadline_s: float | None = None) -> T:
        """`change` with decoded values; `metadata.changes` has the functions."""

        def change(value: bytes | None) -> bytes:
            current = None if value is None else _decoded(kind, key, value)
            changed = f(current)
            return value if value is not None and changed == current else encode(changed)

        return _decoded(kind, key, await self.change(key, change, deadline_s=deadline_s))

    # --- hints ---------------------------------------------------------------------------------------------------------

    def cached(self, key: str) -> bytes | None:
        """The newest value that a completed change or quorum read of this broker returned: a hint (P-1)."""
        known = self._known.get(key)
        return None if known is None else known.value

    def cached_as(self, kind: type[T], key: str) -> T | None:
        value = self.cached(key)
        return None if value is None else _decoded(kind, key, value)

    def subscribe(self, prefix: str, callback: Callable[[str, bytes], None]) -> Callable[[], None]:
        """Calls `callback(key, value)` whenever `cached` gets a newer value under `prefix`. Returns what ends the subscription.

        The callback is called within the read or change that learned the value; it must neither block nor raise.
        """
        subscription = object()
        self._subscriptions[subscription] = (prefix, callback)

        def unsubscribe() -> None:
            self._subscriptions.pop(subscription, None)

        return unsubscribe

    def _learn(self, key: str, chosen: Chosen) -> bytes | None:
        if chosen.ballot is None or chosen.value is None:
            return None
        known = self._known.get(key)
        if known is None or known.ballot < chosen.ballot:
            self._known[key] = _Known(chosen.ballot, chosen.value)
            if known is None or known.value != chosen.value:
                for prefix, callback in list(self._subscriptions.values()):
                    if key.startswith(prefix):
                        callback(key, chosen.value)
        return chosen.value


def _decoded(kind: type[T], key: str, value: bytes) -> T:
    """Raises ProtocolError for what no broker writes, so that nobody takes a decision on it."""
    decoded = decode_value(kind, value)
    if isinstance(decoded, PartitionRegister | TopicRegister) and (fault := decoded.fault()) is not None:
        raise ProtocolError(f"register {key} is broken: {fault}", code="protocol")
    return decoded


def _bounded(key: str, f: Change) -> Change:
    def change(value: bytes | None) -> bytes:
        changed = f(value)
        if len(changed) > REGISTER_BYTES_MAX:
            raise RefusedError(f"register {key} would have {len(changed)} bytes, over {REGISTER_BYTES_MAX}", code="limit_reached")
        return changed

    return change
