"""Counts what goes over a client's connections."""

from streamq.client.host import THIS_MACHINE
from streamq.client.settings import Address
from streamq.client.tcp import TcpStream, connect_tcp

__all__ = ["CountingHost"]


class CountingHost:
    """This machine, and the bytes that clients made with it sent and received over all their connections."""

    def __init__(self) -> None:
        self._streams: list[TcpStream] = []
        self.now_ms = THIS_MACHINE.now_ms  # no call between: it is asked for each record
        self.token = THIS_MACHINE.token
        self.below = THIS_MACHINE.below

    @property
    def sent_bytes(self) -> int:
        return sum(stream.sent_bytes for stream in self._streams)

    @property
    def received_bytes(self) -> int:
        return sum(stream.received_bytes for stream in self._streams)

    async def connect(self, address: Address) -> TcpStream:
        stream = await connect_tcp(address.host, address.port)
        self._streams.append(stream)
        return stream
