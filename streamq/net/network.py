"""Where streams come from. The broker sees `Network` only, so a simulation can put an in-memory one in TCP's place."""

import errno
import socket
from typing import Protocol

import trio

from streamq.model.errors import AlreadyExistsError, RefusedError, UnavailableError

__all__ = ["Network", "TcpNetwork"]

BACKLOG = 512


class Network(Protocol):
    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """A new stream. Raises UnavailableError: `refused` in its hint when nobody listens there."""

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        """Raises AlreadyExistsError when the port is in use, RefusedError when the address is not ours."""


class RefusedConnectionError(UnavailableError):
    """Nobody listens at the address: its process is gone, or never was (P-20)."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} refuses connections", code="unavailable", hint="no broker runs there")


class TcpNetwork:
    """TCP with TCP_NODELAY, since frames are gathered before they are sent."""

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        try:
            stream = await trio.open_tcp_stream(host, port)
        except ConnectionRefusedError:
            raise RefusedConnectionError(f"{host}:{port}") from None
        except (UnicodeError, OverflowError) as error:  # a name or port that can be none: a broker's register may hold anything
            raise UnavailableError(f"{host}:{port} is no address: {error}", code="unavailable") from None
        except OSError as error:
            if isinstance(error.__cause__, ConnectionRefusedError) or _all_refused(error):
                raise RefusedConnectionError(f"{host}:{port}") from None
            raise UnavailableError(f"{host}:{port} cannot be reached: {error}", code="unavailable") from None
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    async def listen(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        try:
            [listener, *others] = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AlreadyExistsError(
                    f"port {port} on {host} is in use", code="precondition_failed", hint="stop what listens there, or choose another port"
                ) from None
            raise RefusedError(
                f"cannot listen on {host}:{port}: {error}", code="bad_config", hint="choose an address of this machine"
            ) from None
        for other in others:
            await other.aclose()
        return listener


def _all_refused(error: OSError) -> bool:
    group = error.__cause__
    return (
        isinstance(group, BaseExceptionGroup)
        and group.subgroup(lambda e: not isinstance(e, (ConnectionRefusedError, BaseExceptionGroup))) is None
    )
