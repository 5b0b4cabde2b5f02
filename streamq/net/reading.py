"""The reading half of a connection: bytes in, whole frames to a plain function, and a pause while there is no room for more.

A socket is read without trio's own stream: that tries in vain before it waits, each time, and wakes for every piece of a large frame.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from streamq.model.errors import ProtocolError
from streamq.model.limits import MiB
from streamq.net.budget import ByteBudget
from streamq.net.poller import Poller
from streamq.wire.framing import Frame, FrameReader

__all__ = ["Reading", "Taker", "socket_of"]

RECEIVE_BYTES: Final = 64 * 1024
"""Room for more than this is mapped anew by the system for every receive: 12 us, more than all else that a small one takes."""
RECEIVE_MORE_BYTES: Final = 256 * 1024
"""After a receive that left something behind."""
RECEIVE_BYTES_MAX: Final = 1 * MiB
AWAIT_BYTES_MAX: Final = 512 * 1024
"""Of a large frame so much is waited for, if so much is lacking, before it is looked at again."""
LARGE_FRAME_BYTES: Final = 64 * 1024
FRAME_STALL_S: Final = 30.0
_of_thread = threading.local()


class Taker(NamedTuple):
    """Where frames go, and what reading waits for. None of these waits or belongs to a single connection's task.

    `after_chunk` runs when all frames of one receive were given to `take`; with a poller it is left to the end of the poller's pass.
    Reading pauses while `gate` returns an event that is not set. With a `budget`, a large frame is received only when it has room there,
    and has to arrive in FRAME_STALL_S.
    """

    take: Callable[[Frame], None]
    after_chunk: Callable[[], None]
    gate: Callable[[], trio.Event | None]
    budget: ByteBudget | None = None


class Reading:
    """Invariant: once stopped it calls nothing of its taker any more, and its descriptor, which may be another's then, is not touched."""

    def __init__(self, stream: trio.abc.Stream, frames: FrameReader, taker: Taker, *, name: str) -> None:
        self.is_paused = False
        """What the other side sends is not read for now."""
        self._name = name
        self._stream = stream
        self._frames = frames
        self._taker = taker
        self._fd = socket_of(stream)
        self._room = _room_of_this_thread()
        self._is_stopped = False
        self._may_have_more = False
        self._awaited_bytes = 1

    def stop(self) -> None:
        """From here on nothing is read. Idempotent."""
        self._is_stopped = True
        self._fd = -1

    async def run(self, poller: Poller | None = None) -> None:
        """Until the other side has closed, or `stop` (whose caller cancels this). With a poller, which has to run, a socket is read by it.

        Raises ProtocolError, and BrokenResourceError when the connection is lost.
        """
        if poller is not None and self._fd >= 0:
            await self._run_with(poller)
            return
        while not self._is_stopped:
            data = await self._receive()
            if not data:
                return
            self._take(data, self._taker.after_chunk)
            await self._wait_for_room()

    async def _run_with(self, poller: Poller) -> None:
        """The poller reads; this task wakes when it is over, or has to wait for room."""
        fd = self._fd
        gate, budget = self._taker.gate, self._taker.budget
        attention = trio.Event()
        ended: list[BaseException | None] = []

        def read() -> None:
            if self._is_stopped:
                return
            try:
                if gate() is None:
                    if data := self._read_some():
                        self._take(data, _nothing)
                        if budget is None or self._frames.missing <= LARGE_FRAME_BYTES:
                            self._await_missing()
                            return
                    else:
                        ended.append(None)
            except BlockingIOError:
                return
            except BaseException as error:  # raised by the task below: here it would end the poller
                ended.append(error)
            poller.forget(fd)
            attention.set()

        try:
            while not self._is_stopped:
                poller.watch(fd, read)
                await attention.wait()
                attention = trio.Event()
                if ended:
                    if (error := ended[0]) is not None:
                        raise error
                    return
                await self._wait_for_room()
                self._await_missing()
        finally:
            poller.forget(fd)

    async def _wait_for_room(self) -> None:
        budget, gate = self._taker.budget, self._taker.gate
        if budget is not None and self._frames.missing > LARGE_FRAME_BYTES:
            held = await budget.acquire(self._frames.missing)
            try:
                await self._receive_large()
            finally:
                budget.release(held)
        while (event := gate()) is not None:
            self.is_paused = True
            await event.wait()
        self.is_paused = False

    def _take(self, data: bytes, after_chunk: Callable[[], None]) -> None:
        take = self._taker.take
        try:
            for frame in self._frames.feed(data):
                take(frame)
        finally:
            after_chunk()

    async def _receive_large(self) -> None:
        """The rest of one large frame, which holds a share of the budget and so has a deadline."""
        with trio.move_on_after(FRAME_STALL_S):
            while self._frames.missing > LARGE_FRAME_BYTES:
                data = await self._receive()
                if not data:
                    return
                self._take(data, self._taker.after_chunk)
            return
        raise ProtocolError(f"{self._name} left a frame incomplete for {FRAME_STALL_S:g} s", code="protocol")

    async def _receive(self) -> bytes:
        """What is there, at least a byte; of a large frame as much as can be had with few wake-ups. b"" at the end."""
        if self._fd < 0:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        self._await_missing()
        while True:
            if self._may_have_more:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._fd)
            if self._is_stopped:
                return b""
            with suppress(BlockingIOError):
                return self._read_some()

    def _read_some(self) -> bytes:
        """b"" at the end. Raises BlockingIOError when there is nothing, BrokenResourceError when the connection is lost."""
        size = min(max(self._frames.missing, RECEIVE_MORE_BYTES if self._may_have_more else RECEIVE_BYTES), RECEIVE_BYTES_MAX)
        self._may_have_more = False
        try:
            if size > RECEIVE_BYTES:
                data = os.read(self._fd, size)
            else:  # not into memory of its own: what is kept of it, half a frame, would leave a hole of that size behind
                count = os.readv(self._fd, (self._room,))
                data = bytes(self._room[:count])
        except BlockingIOError:
            raise
        except OSError as error:
            raise trio.BrokenResourceError from error
        self._may_have_more = len(data) == size
        return data

    def _await_missing(self) -> None:
        """Sets how much has to be there before the socket is readable; for less the system wakes when its buffer is full, or at the end."""
        missing = self._frames.missing
        count = min(missing, AWAIT_BYTES_MAX) if missing > LARGE_FRAME_BYTES else 1
        if count != self._awaited_bytes:
            assert isinstance(self._stream, trio.SocketStream)
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._awaited_bytes = count


def socket_of(stream: trio.abc.Stream) -> int:
    """The descriptor of a socket; -1 for a stream that is none."""
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1


def _room_of_this_thread() -> memoryview:
    """Where all connections of an event loop receive, one at a time."""
    if not hasattr(_of_thread, "room"):
        _of_thread.room = memoryview(bytearray(RECEIVE_BYTES))
    room: memoryview = _of_thread.room
    return room


def _nothing() -> None:
    """After a chunk of a pass that has a step of its own at its end."""
