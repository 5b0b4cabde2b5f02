"""One connection to one broker: many requests and streams in flight, one-way messages, and a watch for silence.

Who asks waits for the frame that repeats its request id with the flag ANSWER. A stream is a request id on which many frames arrive, until a
`Failure` ends it. One-way frames go to the listener. Whatever is outstanding when the connection ends is told so, exactly once.

A broker says something at least every 0.2 s (a `Heartbeat`) to a client that waits for anything. When nothing at all was heard for
`Timeouts.silence_s` while something was outstanding, the broker is paused, cut off or gone, and the connection is abandoned.
"""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol, TypeVar

import anyio
from anyio.abc import ByteStream

from streamq import __version__
from streamq.client.host import THIS_MACHINE, Host
from streamq.client.lifetime import Lifetime
from streamq.client.settings import Address, Timeouts
from streamq.client.tcp import Buffers, TcpStream
from streamq.model.errors import ProtocolError, StreamqError, UnavailableError, UnknownOutcomeError, error_of
from streamq.model.limits import REQUESTS_PER_CONNECTION_MAX, SUBSCRIPTIONS_PER_CONNECTION_MAX
from streamq.model.messages import AlterTopic, CreateTopic, DeleteTopic, Failure, Hello, Message, Rejoin, Stop, Welcome
from streamq.wire.framing import PREAMBLE, PROTOCOL_VERSIONS, Frame, FrameReader, encode_frame

__all__ = ["CHANGES", "Connection", "Listener", "Stream", "StreamSink", "connect", "dial"]

CHANGES: Final = (CreateTopic, DeleteTopic, AlterTopic, Stop, Rejoin)
"""Requests that change something: when the connection breaks after they were sent, their outcome is unknown."""
RECEIVE_BYTES: Final = 64 << 10
"""Room for more than this is mapped anew by the system for every receive: 12 us, more than all else that a small one takes."""
RECEIVE_MORE_BYTES: Final = 256 << 10
"""After a receive that left something behind."""
SEND_BYTES: Final = 1 << 20
"""As much as is joined into one send."""
WATCHES_PER_SILENCE: Final = 5
WATCH_PAUSE_MIN_S: Final = 0.001
REQUEST_IDS: Final = (1 << 32) - 1

T = TypeVar("T", bound=Message)


class Listener(Protocol):
    """Gets the one-way messages of a connection. Called from its reader: must not wait, must not raise."""

    def on_message(self, connection: "Connection", frame: Frame) -> None: ...
    def on_lost(self, connection: "Connection", error: StreamqError) -> None: ...


class StreamSink(Protocol):
    """Gets the frames of one stream. Called from the connection's reader: must not wait, must not raise."""

    def on_frame(self, frame: Frame) -> None: ...
    def on_end(self, error: StreamqError) -> None:
        """The broker ended the stream, or the connection is lost; nothing comes after."""


class _Reply:
    """The sink of a plain request: one frame, one waiter."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.frame: Frame | None = None
        self.error: StreamqError | None = None

    def on_frame(self, frame: Frame) -> None:
        self.frame = frame
        self.done.set()

    def on_end(self, error: StreamqError) -> None:
        self.error = error
        self.done.set()


class Stream:
    """A stream's sending half."""

    def __init__(self, connection: "Connection", request: int) -> None:
        self._connection = connection
        self._request = request

    def send(self, message: Message) -> None:
        """One-way, on the stream's request id."""
        if self._request in self._connection._streams:
            self._connection.send(message, request=self._request)

    def close(self, farewell: Message) -> None:
        """Sends `farewell`; frames that are still on their way are dropped, and the sink hears nothing more."""
        self.send(farewell)
        self._connection._streams.pop(self._request, None)


class Connection:
    """An open connection; `run` has to run as long as it is used (`connect` and `Cluster` see to that).

    Invariants: each request and stream ends once, by its answer or by `failure`; after `failure` is set nothing is sent.
    `tickets` is what a producer adds to and takes from while it waits for one-way answers, so that silence is noticed.
    """

    def __init__(self, stream: ByteStream, reader: FrameReader, *, address: Address, welcome: Welcome, timeouts: Timeouts) -> None:
        self.address = address
        self.welcome = welcome
        self.failure: StreamqError | None = None
        self.listener: Listener | None = None
        self.tickets = 0
        self._stream = stream
        self._tcp = stream if isinstance(stream, TcpStream) else None
        self._reader = reader
        self._timeouts = timeouts
        self._replies: dict[int, StreamSink] = {}
        self._streams: dict[int, StreamSink] = {}
        self._slots = anyio.Semaphore(REQUESTS_PER_CONNECTION_MAX)
        self._last_request = 1
        self._outbox: list[bytes | memoryview] = []
        self._is_writing = False
        self._outbox_filled = anyio.Event()
        self._heard = anyio.current_time()
        self._ended = anyio.Event()

    @property
    def broker(self) -> str:
        """The id of the broker that answers at the other end."""
        return self.welcome.broker

    @property
    def is_open(self) -> bool:
        return self.failure is None

    async def request(self, message: Message, kind: type[T], *, payload: Iterable[bytes] = (), timeout_s: float | None = None) -> T:
        """The answer to `message`, of the type `kind`.

        Raises the error that the broker answered with; when it did not answer, UnavailableError, or UnknownOutcomeError for `CHANGES`.
        Cancelled while it waits, it forgets the answer: what was asked for may happen all the same.
        """
        limit = self._timeouts.request_s if timeout_s is None else timeout_s
        with anyio.move_on_after(limit):
            async with self._slots:
                return await self._ask(message, kind, payload)
        raise _unanswered(message, f"{self} did not answer {type(message).__name__} within {limit:g} s", code="timed_out")

    async def _ask(self, message: Message, kind: type[T], payload: Iterable[bytes]) -> T:
        request, reply = self._next_request(), _Reply()
        self.send(message, request=request, payload=payload)
        self._replies[request] = reply
        try:
            await reply.done.wait()
        finally:
            self._replies.pop(request, None)
        if reply.frame is None:
            assert reply.error is not None
            raise _unanswered(message, reply.error.message)
        answer = reply.frame.message
        if isinstance(answer, Failure):
            raise error_of(answer.code, answer.message, hint=answer.hint, sequencer=answer.sequencer)
        if not isinstance(answer, kind):
            raise ProtocolError(f"{self} answered {type(message).__name__} with {type(answer).__name__}", code="protocol")
        return answer

    def open_stream(self, message: Message, sink: StreamSink) -> Stream:
        """Sends `message` and gives every frame that answers it to `sink`. Raises UnavailableError."""
        if len(self._streams) >= SUBSCRIPTIONS_PER_CONNECTION_MAX:
            raise UnavailableError(f"{self} has {len(self._streams)} streams, as many as are allowed", code="limit_reached")
        request = self._next_request()
        self.send(message, request=request)
        self._streams[request] = sink
        return Stream(self, request)

    def send(self, message: Message, *, request: int = 0, payload: Iterable[bytes] = ()) -> None:
        """Sends a frame as far as the socket takes it at once, and leaves the rest to the writer; the caller bounds how much that has to
        do. Raises UnavailableError on a lost connection."""
        if self.failure is not None:
            raise UnavailableError(self.failure.message, code="unavailable")
        self._outbox += encode_frame(message, request=request, payload=payload)
        if self._tcp is not None and not self._is_writing:
            with suppress(OSError):  # full, or broken: the writer finds out which
                self._outbox = list(self._tcp.send_now(self._outbox))
        if self._outbox:
            self._outbox_filled.set()

    def close(self, reason: str = "closed") -> None:
        """Ends the connection at once; everything outstanding is told so."""
        self._end(UnavailableError(f"{self}: {reason}", code="unavailable"))

    def __str__(self) -> str:
        return f"{self.broker} at {self.address}"

    async def run(self) -> None:
        """Reads, writes and watches until the connection ends; never raises for what the network or the broker does."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                tasks.start_soon(self._write)
                tasks.start_soon(self._watch)
                await self._ended.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.close()
            await anyio.aclose_forcefully(self._stream)

    def _next_request(self) -> int:
        while True:
            self._last_request = self._last_request % REQUEST_IDS + 1
            if self._last_request not in self._replies and self._last_request not in self._streams:
                return self._last_request

    async def _read(self) -> None:
        try:
            room = RECEIVE_BYTES
            while True:
                received = await self._stream.receive(max(room, self._reader.missing))
                room = RECEIVE_BYTES if len(received) < room else RECEIVE_MORE_BYTES
                self._heard = anyio.current_time()
                for frame in self._reader.feed(received):
                    self._on_frame(frame)
        except anyio.EndOfStream:
            self.close("the broker closed the connection")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            self.close(f"connection lost ({_reason(error)})")
        except ProtocolError as error:
            self._end(ProtocolError(f"{self}: {error.message}", code="protocol"))

    def _on_frame(self, frame: Frame) -> None:
        if not frame.is_answer:
            if self.listener is not None:
                self.listener.on_message(self, frame)
            return
        sink = self._streams.get(frame.request)
        if sink is None:
            sink = self._replies.get(frame.request)
            if sink is not None:
                sink.on_frame(frame)
        elif isinstance(frame.message, Failure):
            del self._streams[frame.request]
            failure = frame.message
            sink.on_end(error_of(failure.code, failure.message, hint=failure.hint, sequencer=failure.sequencer))
        else:
            sink.on_frame(frame)

    async def _write(self) -> None:
        try:
            while True:
                if not self._outbox:
                    self._outbox_filled = anyio.Event()
                    await self._outbox_filled.wait()
                waiting, self._outbox = self._outbox, []
                self._is_writing = True
                await self._send(waiting)
                self._is_writing = False
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            self.close(f"connection lost ({_reason(error)})")

    async def _send(self, buffers: Buffers) -> None:
        if self._tcp is not None:
            await self._tcp.send_all(buffers)
            return
        for buffer in _joined(buffers):
            await self._stream.send(buffer)

    async def _watch(self) -> None:
        silence = self._timeouts.silence_s
        interval = silence / WATCHES_PER_SILENCE
        while True:
            slept_from = anyio.current_time()
            pause = min(interval, max(WATCH_PAUSE_MIN_S, self._heard + silence - slept_from))
            await anyio.sleep(pause)
            now = anyio.current_time()
            is_late = now - slept_from > pause + interval  # this process stood still; what was sent meanwhile is not read yet
            if is_late or not (self._replies or self._streams or self.tickets):
                self._heard = now
            elif now - self._heard >= silence:
                self.close(f"nothing heard for {now - self._heard:.1f} s")

    def _end(self, error: StreamqError) -> None:
        if self.failure is not None:
            return
        self.failure = error
        self._outbox = []
        self._ended.set()
        sinks = [*self._replies.values(), *self._streams.values()]
        self._replies, self._streams = {}, {}
        for sink in sinks:
            sink.on_end(error)
        if self.listener is not None:
            self.listener.on_lost(self, error)


def _unanswered(message: Message, text: str, *, code: str = "unavailable") -> StreamqError:
    if isinstance(message, CHANGES):
        hint = "it may have been carried out; look before you ask again"
        return UnknownOutcomeError(f"{text}; whether it was carried out is unknown", code="unknown_outcome", hint=hint)
    return UnavailableError(text, code=code)


def _joined(buffers: Buffers) -> Iterable[bytes]:
    start, size = 0, 0
    for end, buffer in enumerate(buffers, 1):
        size += len(buffer)
        if size >= SEND_BYTES or end == len(buffers):
            yield b"".join(buffers[start:end])
            start, size = end, 0


def _reason(error: BaseException) -> str:
    """The innermost reason in words: anyio wraps what the system said, sometimes in groups."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(_reason(part) for part in error.exceptions))
    if isinstance(error, OSError) and error.errno:
        return (os.strerror(error.errno) if error.errno > 0 else str(error.strerror)).lower()
    return _reason(error.__cause__) if error.__cause__ is not None else (str(error) or type(error).__name__).lower()


async def dial(address: Address, *, timeouts: Timeouts, host: Host = THIS_MACHINE) -> Connection:
    """Connects and shakes hands. Raises UnavailableError (says address and reason), or ProtocolError if no streamq broker answers."""
    with anyio.move_on_after(timeouts.handshake_s) as scope:
        try:
            stream = await host.connect(address)
        except (UnicodeError, OverflowError) as error:  # a name or port that can be none: a broker's register may hold anything
            raise UnavailableError(f"{address} is no address: {error}", code="unavailable") from None
        except OSError as error:
            raise UnavailableError(f"{address}: {_reason(error)}", code="unavailable") from None
        try:
            return await _shake_hands(stream, address, timeouts)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
    assert scope.cancelled_caught
    raise UnavailableError(f"{address}: no answer within {timeouts.handshake_s:g} s", code="timed_out")


async def _shake_hands(stream: ByteStream, address: Address, timeouts: Timeouts) -> Connection:
    reader = FrameReader()
    hello = Hello(PROTOCOL_VERSIONS, (), f"streamq-python {__version__}")
    try:
        await stream.send(PREAMBLE + b"".join(encode_frame(hello, request=1)))
        frames: list[Frame] = []
        while not frames:
            frames = list(reader.feed(await stream.receive(RECEIVE_BYTES)))
    except anyio.EndOfStream:
        raise UnavailableError(f"{address}: closed the connection before it said anything", code="unavailable") from None
    except (anyio.BrokenResourceError, OSError) as error:
        raise UnavailableError(f"{address}: {_reason(error)}", code="unavailable") from None
    except ProtocolError as error:
        hint = "is that the port of a streamq broker?"
        raise ProtocolError(f"{address}: what answers there does not speak streamq ({error.message})", code="protocol", hint=hint) from None
    answer = frames[0].message
    if isinstance(answer, Failure):
        raise error_of(answer.code, f"{address}: {answer.message}", hint=answer.hint)
    if not isinstance(answer, Welcome):
        raise ProtocolError(f"{address}: answered the greeting with {type(answer).__name__}", code="protocol")
    low, high = PROTOCOL_VERSIONS
    if not low <= answer.version <= high:
        raise ProtocolError(f"{address}: wants version {answer.version}; here {low} to {high} are spoken", code="wrong_version")
    return Connection(stream, reader, address=address, welcome=answer, timeouts=timeouts)


@asynccontextmanager
async def connect(address: Address, *, timeouts: Timeouts | None = None, host: Host = THIS_MACHINE) -> AsyncIterator[Connection]:
    """A connection to this very address and no other, for as long as the block lasts; raises what `dial` raises."""
    lifetime = Lifetime()
    connection = await dial(address, timeouts=timeouts or Timeouts(), host=host)
    await lifetime.open()
    error: BaseException | None = None
    try:
        lifetime.start(connection.run)
        yield connection
    except BaseException as caught:
        error = caught
        raise
    finally:
        await lifetime.close(error, error.__traceback__ if error else None)
