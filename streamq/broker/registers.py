"""Signatures first; bodies follow (the docstrings are the contract)."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from streamq.broker.local_acceptor import LocalAcceptor
from streamq.model.messages import AnyMessage, Message

T = TypeVar("T")
Change = Callable[[bytes | None], bytes]


class Request(Protocol):
    """One request to one broker: its answer (a `Failure` is returned or raised, as the transport likes), within `timeout_s`.

    Raises StreamqError when the broker cannot be reached or does not answer in time.
    """

    def __call__(self, broker: str, message: Message, timeout_s: float, /) -> Awaitable[AnyMessage]: ...


class Registers:
    """The registers of P-1, as one broker sees and changes them through a majority of the metadata voters.

    All errors are StreamqErrors: `UnavailableError` (nothing was changed: codes unavailable, timed_out), `UnknownOutcomeError` (the change may
    have happened, or may still happen), and whatever the change function raised. Cancelling a call leaves its outcome unknown too.
    """

    def __init__(
        self,
        *,
        local: LocalAcceptor,
        request: Request,
        nursery: trio.Nursery,
        start: bytes,
        jitter: Callable[[], float],
        request_timeout_s: float = 1.0,
        deadline_s: float = 5.0,
    ) -> None:
        """`nursery` (long-lived, the broker's) carries requests that outlive the call that began them, at most `request_timeout_s` each.

        `start`: random bytes of this start of the broker. `jitter`: a random number in [0, 1), `random.random`.
        """

    async def get(self, key: str, *, deadline_s: float | None = None) -> bytes | None:
        """A quorum read (P-4): the value at some moment during the call; None if the register was never written."""

    async def change(self, key: str, f: Change, *, deadline_s: float | None = None) -> bytes:
        """Replaces the value v by f(v), atomically, and returns it. `f` must be pure and safe to apply again (P-5); it may run several times.

        `f` raises a StreamqError to give up: the register is then left as it is, v is made certain, and the error raised here.
        """

    async def list(self, prefix: str, *, deadline_s: float | None = None) -> list[str]:
        """Every key with this prefix that was written before the call began, in order; it may contain keys whose first write did not complete."""

    async def get_as(self, kind: type[T], key: str, *, deadline_s: float | None = None) -> T | None:
        """`get`, decoded."""

    async def change_as(self, kind: type[T], key: str, f: Callable[[T | None], T], *, deadline_s: float | None = None) -> T:
        """`change` with decoded values; see `metadata.changes` for the functions."""

    def cached(self, key: str) -> bytes | None:
        """The newest value that a completed change or quorum read of this broker returned: a hint (P-1)."""

    def cached_as(self, kind: type[T], key: str) -> T | None: ...

    def subscribe(self, prefix: str, callback: Callable[[str, bytes], None]) -> Callable[[], None]:
        """Calls `callback(key, value)` whenever `cached` gets a newer value. Returns what ends the subscription."""
