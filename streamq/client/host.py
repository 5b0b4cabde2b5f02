"""What a client asks of the machine it runs on: connections, wall time, randomness. A simulation brings its own."""

import secrets
import time
from typing import Final, Protocol

from anyio.abc import ByteStream

from streamq.client.settings import Address
from streamq.client.tcp import connect_tcp

__all__ = ["THIS_MACHINE", "Host"]


class Host(Protocol):
    async def connect(self, address: Address) -> ByteStream:
        """A new connection. Raises OSError; the caller bounds the time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""

    def token(self) -> bytes:
        """16 random bytes, never the same twice."""

    def below(self, limit: int) -> int:
        """A random number in [0, limit)."""


class _Machine:
    async def connect(self, address: Address) -> ByteStream:
        return await connect_tcp(address.host, address.port)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def token(self) -> bytes:
        return secrets.token_bytes(16)

    def below(self, limit: int) -> int:
        return secrets.randbelow(limit)


THIS_MACHINE: Final[Host] = _Machine()
