"""One connection: frames in, frames out, and requests matched with their answers.

Sending never waits: frames are queued and one task writes them, many in one go. What is queued is bounded by `CHANNEL_QUEUE_BYTES_MAX`: a
channel that runs over has a peer that does not read, and is closed. Frames that arrive are given to a plain function, in order, so that
whatever it triggers is decided without a task switch; what takes longer is started elsewhere by that function.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final

import trio

from streamq.model.errors import ProtocolError, StreamqError, UnavailableError, error_of
from streamq.model.limits import FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, MiB
from streamq.model.messages import Failure, Message
from streamq.net.budget import ByteBudget
from streamq.net.poller import Poller
from streamq.net.reading import Reading, Taker, socket_of
from streamq.wire.framing import FRAME_PREFIX_BYTES, Frame, FrameReader, encode_frame

__all__ = ["CHANNEL_QUEUE_BYTES_MAX", "Channel", "ChannelClosedError"]

CHANNEL_QUEUE_BYTES_MAX: Final = 64 * MiB
BUFFERS_PER_WRITE_MAX: Final = 512
"""Half of Linux's limit on the buffers of one `writev`."""
JOIN_BYTES_MAX: Final = 1 * MiB
SEND_STALL_S: Final = 20.0
"""A peer that takes nothing for so long is taken for gone."""
assert CHANNEL_QUEUE_BYTES_MAX > 2 * FRAME_PAYLOAD_BYTES_MAX


class ChannelClosedError(UnavailableError):
    """The connection is gone; what was asked over it may or may not have happened."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unavailable")


class _Waiting:
    """A request without its answer yet."""

    __slots__ = ("event", "frame")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.frame: Frame | None = None


class Channel:
    """Invariants: a request id is in `_requests` at most once; after `close` nothing is queued and every waiting request has been woken."""

    def __init__(self, stream: trio.abc.Stream, *, name: str, reader: FrameReader | None = None) -> None:
        self.name = name
        self.is_closed = False
        self.reason = ""
        self.queued_bytes = 0
        self._stream = stream
        self._reader = reader or FrameReader()
        self._out: deque[bytes | memoryview] = deque()
        self._wake = trio.Event()
        self._drained = trio.Event()
        self._requests: dict[int, _Waiting] = {}
        self._next_request = 1
        self._scope: trio.CancelScope | None = None
        self._sending_since: float | None = None
        self._is_writing = False
        self._reading: Reading | None = None
        self._fd = socket_of(stream)

    def __repr__(self) -> str:
        return f"<Channel {self.name}{' closed' if self.is_closed else ''}>"

    @property
    def is_paused(self) -> bool:
        """What the other side sends is not read for now."""
        return self._reading is not None and self._reading.is_paused

    def send(self, message: Message, *, request: int = 0, is_answer: bool = False, payload: Iterable[bytes] = ()) -> None:
        """Queues a frame; does nothing on a closed channel, whose owner learns of it from `run`."""
        self.gather(message, request=request, is_answer=is_answer, payload=payload)
        self._wake.set()

    def gather(self, message: Message, *, request: int = 0, is_answer: bool = False, payload: Iterable[bytes] = ()) -> None:
        """As `send`, but the frame leaves with the next `push` or `send`."""
        if self.is_closed:
            return
        buffers = encode_frame(message, request=request, is_answer=is_answer, payload=payload)
        if is_answer and len(buffers[0]) > FRAME_HEADER_BYTES_MAX + FRAME_PREFIX_BYTES:
            # The other side would take it for broken and close the connection.
            failure = Failure("limit_reached", f"the answer would have {len(buffers[0])} bytes", "ask for less at once")
            buffers = encode_frame(failure, request=request, is_answer=True)
        self.queued_bytes += sum(map(len, buffers))
        self._out += filter(None, buffers)  # an empty one would never be seen to leave
        if self.queued_bytes > CHANNEL_QUEUE_BYTES_MAX:
            self.close(f"{self.name} does not read what it asked for")

    def push(self) -> None:
        """Gives what is gathered to the socket at once as far as that takes no waiting; the writing task does the rest.

        Waking that task costs two passes of the scheduler, which one small batch in flight feels at each of its four hops.
        """
        if self._out and self._fd >= 0 and not self._is_writing:
            with suppress(OSError):  # full, or broken: the writing task finds out which
                self._write_some(self._fd)
        if self._out:
            self._wake.set()

    async def request(self, message: Message, *, payload: Iterable[bytes] = (), timeout_s: float) -> Frame:
        """Sends and waits for the answer. A `Failure` is raised as its error; UnavailableError `timed_out` when none came in time.

        Cancelled or timed out, the request may still be carried out at the other side; a late answer is dropped.
        """
        if self.is_closed:
            raise ChannelClosedError(self.reason)
        request, waiting = self._next_request, _Waiting()
        self._next_request = self._next_request % 0xFFFF_FFFF + 1
        self._requests[request] = waiting
        try:
            self.send(message, request=request, payload=payload)
            with trio.move_on_after(timeout_s):
                await waiting.event.wait()
        finally:
            self._requests.pop(request, None)
        if waiting.frame is None:
            if self.is_closed:
                raise ChannelClosedError(self.reason)
            raise UnavailableError(f"{self.name} did not answer {type(message).__name__} within {timeout_s:g} s", code="timed_out")
        if isinstance(waiting.frame.message, Failure):
            raise failure_error(waiting.frame.message)
        return waiting.frame

    async def drain(self, below_bytes: int) -> None:
        """Waits until fewer bytes than that are queued; at once when the channel is closed."""
        while self.queued_bytes >= below_bytes and not self.is_closed:
            if self._drained.is_set():
                self._drained = trio.Event()
            await self._drained.wait()

    async def run(
        self,
        deliver: Callable[[Frame], None],
        *,
        after_chunk: Callable[[], None],
        gate: Callable[[], trio.Event | None],
        budget: ByteBudget | None = None,
        poller: Poller | None = None,
    ) -> None:
        """Reads and writes until the connection ends or `close` is called. Frames that answer no request of ours go to `deliver`.

        `after_chunk`, `gate` and `budget`: see `Taker`; `poller`: see `Reading.run`.
        Raises ProtocolError if the other side breaks the protocol; ends quietly otherwise. Always leaves the channel closed.
        """
        taker = Taker(partial(self._take, deliver), after_chunk, gate, budget)
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                if self.is_closed:
                    return
                self._reading = Reading(self._stream, self._reader, taker, name=self.name)
                nursery.start_soon(self._write)
                await self._reading.run(poller)
                nursery.cancel_scope.cancel()
        except* ProtocolError as errors:
            first = errors.exceptions[0]
            self.close(str(first))
            raise first from None
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close(f"{self.name}: connection lost")
        finally:
            self.close(f"{self.name}: connection closed")
            self._reading = None  # each holds the other, and half a frame would stay until the collector comes
            await trio.aclose_forcefully(self._stream)

    def close(self, reason: str) -> None:
        """Ends `run`, wakes all who wait; what is queued is not sent any more. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self.reason = reason
        self._fd = -1
        if self._reading is not None:
            self._reading.stop()
        self._out.clear()
        self.queued_bytes = 0
        self._wake.set()
        self._drained.set()
        for waiting in self._requests.values():
            waiting.event.set()
        if self._scope is not None:
            self._scope.cancel()

    def close_if_stalled(self) -> None:
        """For whoever looks after connections to call now and then: a cancel scope around each send would cost more than the send."""
        if self._sending_since is not None and trio.current_time() - self._sending_since > SEND_STALL_S:
            self.close(f"{self.name} took nothing for {SEND_STALL_S:g} s")

    def _take(self, deliver: Callable[[Frame], None], frame: Frame) -> None:
        if not frame.is_answer:
            deliver(frame)
        elif (waiting := self._requests.get(frame.request)) is not None:
            waiting.frame = frame
            waiting.event.set()

    async def _write(self) -> None:
        while True:
            if not self._out:
                if self.is_closed:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            self._is_writing = True
            if self._fd >= 0:
                await self._write_to_socket(self._fd)
            else:
                await self._write_to_stream()
            self._sending_since = None
            self._is_writing = False

    async def _write_to_socket(self, fd: int) -> None:
        """Until nothing is queued. The descriptor stays this socket's: it is closed only after this task has ended."""
        while self._out:
            try:
                self._write_some(fd)
            except BlockingIOError:
                if self._sending_since is None:
                    self._sending_since = trio.current_time()
                await trio.lowlevel.wait_writable(fd)
            except OSError as error:
                raise trio.BrokenResourceError from error
            else:
                self._sending_since = None
                await trio.lowlevel.checkpoint()

    def _write_some(self, fd: int) -> None:
        """One system call for as many frames as it takes. Raises OSError, BlockingIOError when the socket is full."""
        out = self._out
        sent = os.writev(fd, [*islice(out, BUFFERS_PER_WRITE_MAX)])
        self.queued_bytes -= sent
        while sent:
            first = out.popleft()
            sent -= len(first)
            if sent < 0:
                out.appendleft(memoryview(first)[sent:])
                break
        self._drained.set()

    async def _write_to_stream(self) -> None:
        out, self._out = self._out, deque()
        for chunk in _gather(out):
            self._sending_since = trio.current_time()
            await self._stream.send_all(chunk)
            self.queued_bytes = max(0, self.queued_bytes - len(chunk))
            self._drained.set()


def failure_error(failure: Failure) -> StreamqError:
    return error_of(failure.code, failure.message, hint=failure.hint, sequencer=failure.sequencer)


def _gather(buffers: Iterable[bytes | memoryview]) -> Iterable[bytes | memoryview]:
    """Small buffers joined, so that one system call takes many frames; never more than JOIN_BYTES_MAX copied at once."""
    group: list[bytes | memoryview] = []
    size = 0
    for buffer in buffers:
        if group and size + len(buffer) > JOIN_BYTES_MAX:
            yield b"".join(group) if len(group) > 1 else group[0]
            group, size = [], 0
        group.append(buffer)
        size += len(buffer)
    if group:
        yield b"".join(group) if len(group) > 1 else group[0]
