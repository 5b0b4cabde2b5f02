"""Keeps the log file of a broker from growing without bound.

A local cluster's brokers write to a file that they were started with. When it is full, it is copied to `.1` and emptied in place: it was
opened for appending, so the next line begins at its start. On a terminal, in a pipe or under systemd nothing is done.
"""

import os
import stat
import sys
from typing import Final, TextIO

__all__ = ["LOG_BYTES_MAX", "bound_log"]

LOG_BYTES_MAX: Final = 8 << 20
CHECK_EVERY_BYTES: Final = 64 << 10
COPY_BYTES: Final = 1 << 20


def bound_log(stream: TextIO, *, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Replaces `sys.stderr` and `sys.stdout` by a stream that watches the file below `stream`, if it is one."""
    descriptor = stream.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        sys.stderr = sys.stdout = _BoundedStream(stream, descriptor, bytes_max)


class _BoundedStream:
    """What `print` and `logging` need of a text stream; the rest is the stream's own."""

    def __init__(self, stream: TextIO, descriptor: int, bytes_max: int) -> None:
        self._stream = stream
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._until_check = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._until_check -= len(text)
        if self._until_check <= 0:
            self._until_check = min(CHECK_EVERY_BYTES, self._bytes_max // 4)
            self._empty_when_full()
        return self._stream.write(text)

    def _empty_when_full(self) -> None:
        self._stream.flush()
        size = os.fstat(self._descriptor).st_size
        if size < self._bytes_max:
            return
        try:
            path = os.readlink(f"/proc/self/fd/{self._descriptor}")
            with open(path, "rb") as source, open(f"{path}.1", "wb") as copy:
                while chunk := source.read(COPY_BYTES):
                    copy.write(chunk)
        except OSError:
            pass  # the copy is a courtesy, the bound is not
        os.ftruncate(self._descriptor, 0)
