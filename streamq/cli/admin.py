"""One question to a cluster at a time, over a blocking socket: what commands need that create, describe and look after things.

A shell user waits for the start of every command, and importing an event loop takes longer than most of these answers, so nothing here
uses one. All addresses are tried at once, a little apart, and the first broker that welcomes us is asked: one that is dead, or that takes
connections and says nothing, costs a fraction of a second.
"""

import queue
import socket
import threading
import time
from types import TracebackType
from typing import Final, TypeVar

from streamq import __version__
from streamq.cli.settings import Address, Bootstrap
from streamq.model.errors import ProtocolError, StreamqError, UnavailableError, UnknownOutcomeError, error_of
from streamq.model.messages import BrokerState, BrokerStatus, Failure, Hello, Message, Metrics, ReadMetrics, Welcome
from streamq.wire.framing import PREAMBLE, PROTOCOL_VERSIONS, Frame, FrameReader, encode_frame

__all__ = ["Admin", "Connection", "ask_metrics", "ask_state"]

CONNECT_TIMEOUT_S: Final = 8.0
"""Until the last address is given up; below the ten seconds within which an unreachable cluster has to be reported."""
STAGGER_S: Final = 0.15
REQUEST_TIMEOUT_S: Final = 10.0
RETRY_PAUSE_S: Final = 0.1
RECEIVE_BYTES: Final = 1 << 16

M = TypeVar("M", bound=Message)


class Connection:
    """A connection that has been welcomed. Requests are answered one after the other."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        """Raises OSError, or the StreamqError that the broker answered, or ProtocolError if it is none."""
        self.address = address
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self._next_request = 1
        self._deadline = time.monotonic() + timeout_s
        self._socket = socket.create_connection(address, timeout=timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(PREAMBLE)
            hello = Hello(versions=PROTOCOL_VERSIONS, features=(), software=f"streamq-cli/{__version__}")
            self.welcome = self.request(hello, Welcome, timeout_s=timeout_s)
        except BaseException:
            self._socket.close()
            raise

    def request(self, message: Message, answer: type[M], *, timeout_s: float) -> M:
        """The answer, or the error that it says. TimeoutError and OSError mean that no answer came; it may have been carried out."""
        self._deadline = time.monotonic() + timeout_s
        request, self._next_request = self._next_request, self._next_request + 1
        self._set_timeout()
        self._socket.sendall(b"".join(encode_frame(message, request=request)))
        while True:
            frame = self._receive()
            if frame.request != request:
                continue
            if isinstance(frame.message, Failure):
                raise _error(frame.message)
            if not isinstance(frame.message, answer):
                raise ProtocolError(f"{self.address} answered with {type(frame.message).__name__}", code="protocol")
            return frame.message

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> Frame:
        while not self._frames:
            self._set_timeout()
            received = self._socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionResetError("the broker closed the connection")
            self._frames += self._reader.feed(received)
        return self._frames.pop(0)

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left)


class Admin:
    """A cluster to ask. Reconnects by itself; a request that certainly was not carried out is sent again until its time is over."""

    def __init__(self, bootstrap: Bootstrap, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._connection: Connection | None = None

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._disconnect()

    @property
    def broker(self) -> str:
        """The id of the broker that is asked, empty when there is none at the moment."""
        return self._connection.welcome.broker if self._connection else ""

    def ask(self, message: Message, answer: type[M], *, is_change: bool = False) -> M:
        """Sends a request, and again while the cluster says that it cannot now. A change whose answer never came is not repeated.

        Raises what the cluster answered, UnavailableError when nothing could be asked in time, or UnknownOutcomeError.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            if self._connection is None:
                self._connection = connect_first(self.bootstrap, timeout_s=min(CONNECT_TIMEOUT_S, max(1.0, deadline - time.monotonic())))
            try:
                return self._connection.request(message, answer, timeout_s=max(0.5, deadline - time.monotonic()))
            except UnavailableError:
                if time.monotonic() + RETRY_PAUSE_S > deadline:
                    raise
                time.sleep(RETRY_PAUSE_S)
            except OSError as error:
                asked = self._connection.address
                self._disconnect()
                if is_change:
                    raise UnknownOutcomeError(
                        f"{asked} did not answer ({error}); the change may have been made",
                        code="unknown_outcome",
                        hint="look at the result with `streamq topic ls` before you try again",
                    ) from None
                if time.monotonic() + RETRY_PAUSE_S > deadline:
                    raise UnavailableError(
                        f"{asked} did not answer within {self._timeout_s:g} s: {error}",
                        code="timed_out",
                        hint="`streamq doctor` shows what works",
                    ) from None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def connect_first(bootstrap: Bootstrap, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Connection:
    """The first broker of the list that says welcome. Raises UnavailableError that names every address and what came of it.

    The attempts that lose close themselves; they run in daemon threads, so that none of them holds up the end of the command.
    """
    outcomes: queue.SimpleQueue[tuple[Address, Connection | Exception]] = queue.SimpleQueue()
    won = threading.Event()
    turn = threading.Lock()

    def attempt(address: Address) -> None:
        try:
            connection = Connection(address, timeout_s=timeout_s)
        except Exception as error:
            outcomes.put((address, error))
            return
        with turn:
            is_first = not won.is_set()
            won.set()
        if is_first:
            outcomes.put((address, connection))
        else:
            connection.close()

    deadline = time.monotonic() + timeout_s
    waiting = list(bootstrap.addresses)
    failures: dict[Address, Exception] = {}
    while len(failures) < len(bootstrap.addresses):
        if waiting:
            threading.Thread(target=attempt, args=(waiting.pop(0),), daemon=True).start()
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            address, outcome = outcomes.get(timeout=min(left, STAGGER_S) if waiting else left)
        except queue.Empty:
            continue
        if isinstance(outcome, Connection):
            return outcome
        failures[address] = outcome
    with turn:
        won.set()
    reasons = "; ".join(f"{address}: {_why(failures.get(address))}" for address in bootstrap.addresses)
    raise UnavailableError(
        f"no broker answered ({bootstrap.origin} says {bootstrap}): {reasons}",
        code="unavailable",
        hint="start a local cluster with `streamq cluster start`, or name a broker of yours with --bootstrap HOST:PORT",
    )


def ask_state(address: Address, *, timeout_s: float = 1.0) -> BrokerState:
    """How the one broker at that address does. Raises OSError or StreamqError."""
    return _ask_once(address, BrokerStatus(), BrokerState, timeout_s=timeout_s)


def ask_metrics(address: Address, *, timeout_s: float = 1.0) -> Metrics:
    """What the one broker at that address has counted. Raises OSError or StreamqError."""
    return _ask_once(address, ReadMetrics(), Metrics, timeout_s=timeout_s)


def _ask_once(address: Address, message: Message, answer: type[M], *, timeout_s: float) -> M:
    connection = Connection(address, timeout_s=timeout_s)
    try:
        return connection.request(message, answer, timeout_s=timeout_s)
    finally:
        connection.close()


def _why(error: Exception | None) -> str:
    if error is None or isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ProtocolError):
        return f"is no streamq broker ({error.message})"
    if isinstance(error, StreamqError):
        return error.message
    return str(error) or type(error).__name__


def _error(failure: Failure) -> StreamqError:
    return error_of(failure.code, failure.message, hint=failure.hint, sequencer=failure.sequencer)
