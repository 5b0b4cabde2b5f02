"""Addresses and times that every client has, validated once."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from streamq.model.errors import RefusedError

__all__ = ["BOOTSTRAP_ADDRESSES_MAX", "DEFAULT_PORT", "Address", "Timeouts", "parse_bootstrap", "refuse_unless"]

DEFAULT_PORT = 7700
BOOTSTRAP_ADDRESSES_MAX = 64


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def refuse_unless(condition: bool, message: str, *, code: str = "bad_config", hint: str = "") -> None:
    if not condition:
        raise RefusedError(message, code=code, hint=hint)


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client waits for what, in seconds."""

    bootstrap_s: float = 9.0
    """Until a cluster none of whose addresses answers is given up."""
    handshake_s: float = 2.0
    """From dialling one address to its welcome."""
    stagger_s: float = 0.2
    """Head start of one address, or of one broker asked, before the next is tried as well: what a dead or paused one costs."""
    request_s: float = 10.0
    """For one question, all the brokers that it is put to included."""
    silence_s: float = 0.7
    """A broker that owes an answer and says nothing for so long, no heartbeat either, is left and its work taken elsewhere."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            refuse_unless(getattr(self, name) > 0, f"timeout {name} must be above 0, not {getattr(self, name)}")


def parse_bootstrap(bootstrap: str | Sequence[str]) -> tuple[Address, ...]:
    """`"host:port,host:port"`, or a sequence of such; an IPv6 address stands in brackets; without a port, 7700."""
    texts = [part.strip() for text in ([bootstrap] if isinstance(bootstrap, str) else bootstrap) for part in text.split(",")]
    addresses = tuple(dict.fromkeys(_parse_address(text) for text in texts if text))
    hint = "give host:port of any broker, several separated by commas, as in localhost:7700"
    refuse_unless(bool(addresses), "no bootstrap address is given", hint=hint)
    refuse_unless(len(addresses) <= BOOTSTRAP_ADDRESSES_MAX, f"{len(addresses)} bootstrap addresses; {BOOTSTRAP_ADDRESSES_MAX} at most")
    return addresses


def _parse_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    is_sound = bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16 and not any(c.isspace() for c in host)
    refuse_unless(is_sound, f"{text!r} is no address", hint="an address is host:port, as in localhost:7700 or [::1]:7700")
    return Address(host, int(port))
